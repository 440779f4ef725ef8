"""Uploads: a multipart body goes to storage while it arrives, within the limits, or leaves nothing.

Nothing is buffered but the chunk at hand and the short text fields. A client's file name decides only the suffix of the
stored name (`00001.nii.gz`); it is never a path. Looking into the files is the job's work.
"""

import hashlib
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import BinaryIO

from anyio import to_thread
from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.api.body import allow_body
from service.errors import BodyTooLarge, EmptyUpload, RequestError, UnreadableUpload, UploadTooLarge, VisceraError
from service.fingerprint import hash_of_files
from service.storage import LocalStorage, storage_error

FILE_FIELDS = ("files", "file")
TEXT_FIELDS = (
    "model", "targets", "mode", "overlap", "postprocessing", "series", "outputs", "seg_type", "deidentify", "push",
    "callback_url",
    "priority", "reuse", "batch_id", "time_limit_seconds",
)  # fmt: skip
MAX_TEXT_FIELDS = 64
MAX_TEXT_BYTES = 4096
KEPT_SUFFIXES = (".nii.gz", ".nii", ".zip")
# Finished files are flushed to disk in a thread after each chunk; a chunk full of tiny files is flushed on the way,
# so that they do not use up the process's file descriptors.
MAX_UNFLUSHED_FILES = 32


@dataclass(frozen=True)
class UploadLimits:
    """How much one job may upload."""

    bytes: int  #: of the whole request body
    files: int


@dataclass(frozen=True)
class ReceivedUpload:
    """What arrived: the files are in storage, the text fields are here in order of arrival."""

    bytes: int  #: of all files together
    files: int
    sha256: str  #: of the contents, see `service.fingerprint`
    fields: dict[str, list[str]] = field(default_factory=dict)


async def receive_upload(request: Request, storage: LocalStorage, job_id: str, limits: UploadLimits) -> ReceivedUpload:
    """The upload in the body of `request`, stored under `job_id`; when this raises, nothing of it is left in storage.

    Raises:
        UnreadableUpload: the body is not multipart/form-data.
        UploadTooLarge: more bytes or files than `limits`; known from Content-Length or as soon as it is crossed.
        EmptyUpload: no file, or nothing in any file.
        RequestError: the multipart body is malformed, cut short or has an unknown field.
        RequestTooSlow: the body stopped arriving, or nearly.
        StorageUnavailable: the disk is full or away.
        starlette.requests.ClientDisconnect: the client hung up.
    """
    check_declared_length(request, limits)
    allow_body(request, limits.bytes)
    parts = _Parts(_boundary(request), storage, job_id, limits)
    try:
        async for chunk in request.stream():
            parts.feed(chunk)
            if parts.unflushed:
                await to_thread.run_sync(parts.flush)
        return parts.finish()
    except BaseException as error:
        parts.abandon()
        await to_thread.run_sync(storage.delete_upload, job_id)
        if isinstance(error, BodyTooLarge):
            raise too_many_bytes(limits) from error
        if isinstance(error, OSError):
            raise storage_error(error) from error
        raise


def check_declared_length(request: Request, limits: UploadLimits) -> None:
    """Raise UploadTooLarge when the request says itself that it is longer than allowed."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limits.bytes:
        raise too_many_bytes(limits)


def _boundary(request: Request) -> bytes:
    content_type, options = parse_options_header(request.headers.get("content-type"))
    if content_type != b"multipart/form-data":
        raise UnreadableUpload("Send the study as multipart/form-data, its files in fields named `files`.")
    if not options.get(b"boundary"):
        raise RequestError("The Content-Type header has no multipart boundary.")
    return options[b"boundary"]


def too_many_bytes(limits: UploadLimits) -> UploadTooLarge:
    """The error for a body that is longer than allowed."""
    return UploadTooLarge(f"The upload exceeds the limit of {limits.bytes} bytes.")


class _Parts:
    """Turns the parser's callbacks into stored files and text fields."""

    def __init__(self, boundary: bytes, storage: LocalStorage, job_id: str, limits: UploadLimits) -> None:
        self._storage = storage
        self._job_id = job_id
        self._limits = limits
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._text: tuple[str, bytearray] | None = None
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self._digests: list[bytes] = []
        self._fields: dict[str, list[str]] = {}
        self._fields_count = 0
        self._files = 0
        self._bytes = 0
        self._complete = False
        self._open: AbstractContextManager[BinaryIO] | None = None
        self.unflushed: list[AbstractContextManager[BinaryIO]] = []
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise RequestError("The multipart boundary is not valid.") from error

    def feed(self, chunk: bytes) -> None:
        """Parse the next bytes of the body; what belongs to a file is written."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise RequestError("The multipart body is malformed.") from error

    def flush(self) -> None:
        """Make the finished files durable and visible; blocks on the disk."""
        while self.unflushed:
            self.unflushed.pop(0).__exit__(None, None, None)

    def finish(self) -> ReceivedUpload:
        """The whole upload, or the reason why it is none."""
        if not self._complete:
            raise RequestError("The multipart body ends before its closing boundary.")
        if self._bytes == 0:
            raise EmptyUpload(
                "The upload holds no data; send a NIfTI file, a zip or DICOM files in fields named `files`."
            )
        return ReceivedUpload(self._bytes, self._files, hash_of_files(self._digests), self._fields)

    def abandon(self) -> None:
        """Close the files still open without making them visible."""
        pending = [*self.unflushed, *([self._open] if self._open else [])]
        self.unflushed, self._open, self._file = [], None, None
        reason = RequestError("The upload was abandoned.")
        for opened in pending:
            try:
                opened.__exit__(RequestError, reason, None)
            except (VisceraError, OSError):
                continue  # its folder is removed next

    def _on_part_begin(self) -> None:
        self._header_name = self._header_value = self._disposition = b""
        self._text = None

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode(errors="replace")
        if name in FILE_FIELDS:
            filename = options.get(b"filename", b"").decode(errors="replace")
            if b"filename" in options and not filename:
                return  # an empty file input of a browser form
            self._begin_file(filename)
        elif name in TEXT_FIELDS:
            self._begin_text(name)
        else:
            known = ", ".join((*FILE_FIELDS, *TEXT_FIELDS))
            raise RequestError(f"The form has an unknown field {name[:80]!r}; known are {known}.")

    def _begin_file(self, filename: str) -> None:
        self._files += 1
        if self._files > self._limits.files:
            raise UploadTooLarge(f"The upload exceeds the limit of {self._limits.files} files; send them as one zip.")
        self._open = self._storage.open_upload(self._job_id, stored_name(filename, self._files))
        self._file = self._open.__enter__()
        self._digest = hashlib.sha256()

    def _begin_text(self, name: str) -> None:
        self._fields_count += 1
        if self._fields_count > MAX_TEXT_FIELDS:
            raise RequestError(f"The form has more than {MAX_TEXT_FIELDS} text fields.")
        self._text = (name, bytearray())

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            part = memoryview(data)[start:end]
            self._file.write(part)
            self._digest.update(part)
            self._bytes += end - start
        elif self._text is not None:
            name, value = self._text
            value += data[start:end]
            if len(value) > MAX_TEXT_BYTES:
                raise RequestError(f"The field {name!r} is longer than {MAX_TEXT_BYTES} bytes.")

    def _on_part_end(self) -> None:
        if self._open is not None:
            self.unflushed.append(self._open)
            self._digests.append(self._digest.digest())
            self._open = self._file = None
            if len(self.unflushed) >= MAX_UNFLUSHED_FILES:
                self.flush()
        elif self._text is not None:
            name, value = self._text
            self._fields.setdefault(name, []).append(value.decode(errors="replace"))

    def _on_end(self) -> None:
        self._complete = True


def stored_name(filename: str, number: int) -> str:
    """Name under which the upload's `number`-th file is stored: the number and a known suffix, `.dcm` for all else."""
    lowered = filename.lower()
    suffix = next((suffix for suffix in KEPT_SUFFIXES if lowered.endswith(suffix)), ".dcm")
    return f"{number:05d}{suffix}"
