"""Zip archives from strangers, unpacked into a scratch folder.

Nothing an archive says about itself is believed: entries land under numbers, never under their own names, so no name
can leave the folder, collide or be too long; bytes are counted as they are written, so no header can hide a bomb.
"""

import errno
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from service.errors import EmptyUpload, StorageUnavailable, UnreadableUpload, UnsafeArchive, UploadTooLarge
from service.imaging.limits import ReadLimits

ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")

# Below this an archive is harmless whatever its ratio: a small phantom of constant values compresses a thousandfold.
RATIO_FLOOR_BYTES = 64 * 1024**2

# Python keeps about half a kilobyte per entry, so the directory is bounded before it is parsed.
CENTRAL_DIRECTORY_BYTES_PER_FILE = 1024

_CHUNK_BYTES = 1024**2
# An end record and the longest comment, preceded by the two fixed records of zip64.
_TAIL_BYTES = 22 + 0xFFFF + 20 + 56
# Signature, offset and width of the size of the central directory, and the value that means "see the other record".
_END_RECORDS = ((b"PK\x05\x06", 12, 4, 0xFFFFFFFF), (b"PK\x06\x06", 40, 8, None))
_LITTER_NAMES = frozenset({".ds_store", "thumbs.db", "desktop.ini"})

# zipfile documents BadZipFile, but damaged archives also surface the errors of the layers below it.
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, struct.error, ValueError, KeyError, IndexError,
    OverflowError, RuntimeError, UnicodeError, MemoryError,
)  # fmt: skip


@dataclass
class ExpansionBudget:
    """What is left of the limits over all archives of one upload."""

    limits: ReadLimits
    files: int = 0
    bytes: int = 0

    def add_file(self) -> None:
        """Count one more file.

        Raises:
            UploadTooLarge: more files than the limits allow.
        """
        self.files += 1
        if self.files > self.limits.max_files:
            raise UploadTooLarge(
                f"The upload holds more than {self.limits.max_files} files. Send one study, or only its CT series."
            )

    def add_bytes(self, count: int) -> None:
        """Count bytes written.

        Raises:
            UploadTooLarge: more bytes than the limits allow.
        """
        self.bytes += count
        if self.bytes > self.limits.max_expanded_bytes:
            gib = self.limits.max_expanded_bytes / 1024**3
            raise UploadTooLarge(f"The archive expands to more than {gib:.3g} GiB. Send only the CT series.")


def is_zip(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a zip archive."""
    return head.startswith(ZIP_MAGIC)


def is_litter(path: PurePosixPath) -> bool:
    """Whether a file is what an operating system leaves in folders: macOS resource forks, thumbnails."""
    name = path.name.lower()
    return name in _LITTER_NAMES or name.startswith("._") or "__MACOSX" in path.parts


def extract_zip(
    zip_path: Path, into: Path, limits: ReadLimits | None = None, budget: ExpansionBudget | None = None
) -> list[Path]:
    """Unpack a zip, and the zips inside it, below `into`, and list the files.

    Entries are named 000001, 000002, ... by their order in the archive. `budget` carries the count over several
    archives of one upload; by default each call starts a new one. On a failure `into` holds what was written so far;
    it belongs to the caller's scratch folder.

    Raises:
        UnsafeArchive: names outside the archive, links or devices, a bomb's ratio, archives nested too deep.
        UploadTooLarge: more files or bytes than the limits.
        UnreadableUpload: damaged, encrypted, or packed with a method other than stored or deflate.
        EmptyUpload: no file inside.
        StorageUnavailable: the scratch folder cannot be written.
    """
    budget = budget or ExpansionBudget(limits or ReadLimits())
    files = list(_extract(zip_path, into, budget, depth=0))
    if not files:
        raise EmptyUpload("The archive holds no files. Zip the folder with the CT series and send it again.")
    return files


def _extract(zip_path: Path, into: Path, budget: ExpansionBudget, depth: int) -> Iterator[Path]:
    try:
        into.mkdir(parents=True, exist_ok=True)
        _check_central_directory(zip_path, budget.limits)
        with zipfile.ZipFile(zip_path) as archive:
            ratio_guard = _RatioGuard(zip_path.stat().st_size, budget.limits.max_expansion_ratio)
            for number, entry in enumerate(archive.infolist(), start=1):
                name = _checked_name(entry, number)
                if entry.is_dir() or is_litter(name):
                    continue
                _check_entry(entry, number)
                budget.add_file()
                target = into / f"{number:06d}"
                head = _write_entry(archive, entry, target, budget, ratio_guard)
                if is_zip(head):
                    yield from _extract_nested(target, budget, depth)
                else:
                    yield target
    except _DAMAGE as error:
        raise UnreadableUpload(
            "The zip archive is damaged or cut short. Create it again, and check the upload's size."
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise StorageUnavailable("The scratch folder cannot hold the expanded archive.") from error
        raise UnreadableUpload("The zip archive cannot be read. Create it again.") from error


def _extract_nested(zip_path: Path, budget: ExpansionBudget, depth: int) -> Iterator[Path]:
    if depth + 1 > budget.limits.max_archive_depth:
        raise UnsafeArchive(
            f"Zip archives are nested more than {budget.limits.max_archive_depth} deep. Send the files in one archive."
        )
    yield from _extract(zip_path, zip_path.with_suffix(".contents"), budget, depth + 1)
    zip_path.unlink()


def _check_central_directory(zip_path: Path, limits: ReadLimits) -> None:
    """Refuse a directory that would need more memory than that of any archive within the limits."""
    with zip_path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL_BYTES))
        tail = file.read()
    allowed = limits.max_files * CENTRAL_DIRECTORY_BYTES_PER_FILE
    # Every record counts: a comment may hold further ones, and zipfile may pick any of them.
    for signature, offset, width, unknown in _END_RECORDS:
        at = tail.find(signature)
        while at != -1:
            declared = int.from_bytes(tail[at + offset : at + offset + width], "little")
            if declared > allowed and declared != unknown:
                raise UploadTooLarge(f"The archive lists more than {limits.max_files} files. Send only the CT series.")
            at = tail.find(signature, at + 1)


def _checked_name(entry: zipfile.ZipInfo, number: int) -> PurePosixPath:
    """The entry's name, used only to recognise litter.

    Raises:
        UnsafeArchive: it points outside the archive. The message does not repeat it: names may hold patient data.
    """
    name = entry.orig_filename.replace("\\", "/")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or name[1:2] == ":":
        raise UnsafeArchive(
            f"Entry {number} of the archive has a name that leads outside it ('..' or an absolute path)."
            " Zip the folder again with a plain tool."
        )
    return path


def _check_entry(entry: zipfile.ZipInfo, number: int) -> None:
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise UnsafeArchive(f"Entry {number} of the archive is a link or a device. Zip the files themselves.")
    if entry.flag_bits & 0x1:
        raise UnreadableUpload("The archive is encrypted. Send it without a password.")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # bzip2 and LZMA may demand gigabytes for their dictionaries before the first byte.
        raise UnreadableUpload(
            f"Entry {number} of the archive uses compression method {entry.compress_type};"
            " only 'stored' and 'deflate' are read. Zip the files again with standard settings."
        )


@dataclass
class _RatioGuard:
    """The growth of one archive, against its own size on disk (entries may overlap, so their sizes prove nothing)."""

    archive_bytes: int
    max_ratio: float
    written: int = 0

    def add(self, count: int) -> None:
        self.written += count
        if self.written > max(RATIO_FLOOR_BYTES, self.max_ratio * self.archive_bytes):
            raise UnsafeArchive(
                f"The archive expands to more than {self.max_ratio:g} times its size, as a zip bomb does."
                " Send the files themselves, or the CT series alone."
            )


def _write_entry(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, budget: ExpansionBudget, guard: _RatioGuard
) -> bytes:
    """Write one entry and return its first bytes."""
    head = b""
    with archive.open(entry) as source, target.open("xb") as file:
        for chunk in _chunks(source):
            head = head or chunk[:8]
            guard.add(len(chunk))
            budget.add_bytes(len(chunk))
            file.write(chunk)
    return head


def _chunks(source: IO[bytes]) -> Iterator[bytes]:
    while chunk := source.read(_CHUNK_BYTES):
        yield chunk
