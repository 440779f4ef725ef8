"""A study on its way: which files are sent, and how, without a whole study in memory."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from uuid import uuid4

CHUNK_BYTES = 256 * 1024
KEPT_SUFFIXES = (".nii.gz", ".nii", ".zip")


def study_files(path: Path) -> list[Path]:
    """The files to send for a study at `path`: the file itself, or every file below the folder that is not hidden."""
    if path.is_file():
        return [path]
    files = (file for file in path.rglob("*") if file.is_file())
    return sorted(file for file in files if not any(p.startswith(".") for p in file.relative_to(path).parts))


class UploadForm:
    """A multipart/form-data body that opens each file only while it is sent."""

    def __init__(
        self, fields: Sequence[tuple[str, str | None]], files: Sequence[Path], on_sent: Callable[[int], None] | None
    ) -> None:
        self._boundary = uuid4().hex
        self._on_sent = on_sent
        self._fields = b"".join(self._head(name) + str(value).encode() + b"\r\n" for name, value in fields)
        self._files = [
            (self._head("files", filename=_neutral_name(file, number)), file, file.stat().st_size)
            for number, file in enumerate(files, start=1)
        ]
        self._tail = f"--{self._boundary}--\r\n".encode()

    @property
    def content_type(self) -> str:
        """The header Content-Type."""
        return f"multipart/form-data; boundary={self._boundary}"

    @property
    def length(self) -> int:
        """Bytes of the whole body."""
        files = sum(len(head) + size + len(b"\r\n") for head, _, size in self._files)
        return len(self._fields) + files + len(self._tail)

    def __iter__(self) -> Iterator[bytes]:
        sent = 0
        yield self._fields
        for head, path, _ in self._files:
            yield head
            with path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk
                    sent += len(chunk)
                    if self._on_sent:
                        self._on_sent(sent)
            yield b"\r\n"
        yield self._tail

    def _head(self, name: str, filename: str | None = None) -> bytes:
        disposition = f'form-data; name="{name}"'
        content_type = ""
        if filename:
            disposition += f'; filename="{filename}"'
            content_type = "Content-Type: application/octet-stream\r\n"
        return f"--{self._boundary}\r\nContent-Disposition: {disposition}\r\n{content_type}\r\n".encode()


def _neutral_name(path: Path, number: int) -> str:
    suffix = next((suffix for suffix in KEPT_SUFFIXES if path.name.lower().endswith(suffix)), ".dcm")
    return f"{number:05d}{suffix}"
