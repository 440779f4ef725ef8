"""DICOM files opened without trusting them: deflated ones within a bound, and pydicom kept from quoting values."""

import logging
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from service.errors import UnsafeArchive
from service.imaging.archive import RATIO_FLOOR_BYTES
from service.imaging.dicom_values import text
from service.imaging.limits import ReadLimits

_QUOTING_LOGGERS = ("pydicom", "pylibjpeg", "openjpeg", "highdicom")
_CHUNK_BYTES = 1024**2

# Preamble and prefix lie before the file's meta information (PS3.10 7.1).
_META_AT = 132
_UID_VALUE = f"{ExplicitVRLittleEndian}\0".encode()
EXPLICIT_LITTLE_ENDIAN = (
    bytes(128) + b"DICM" + b"\x02\x00\x10\x00UI" + len(_UID_VALUE).to_bytes(2, "little") + _UID_VALUE
)


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Silence the warnings and logs of pydicom and its codecs: they quote values of the file, maybe patient data.

    Both switches are the process's, so use this around a thread pool, not inside its threads.
    """
    levels = {logger: logger.level for logger in map(logging.getLogger, _QUOTING_LOGGERS)}
    for logger in levels:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def open_dicom(path: Path, tags: Sequence[str] | None = None) -> Dataset:
    """The dataset of a file: everything, or the header's `tags` without pixels.

    Raises:
        UnsafeArchive: a deflated file expands out of proportion.
        Exception: almost any, from a damaged file.
    """
    meta = pydicom.filereader.read_file_meta_info(path) if _has_preamble(path) else Dataset()
    deflated = text(meta, "TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
    source: Path | BytesIO = BytesIO(_inflated(path, meta)) if deflated else path
    if tags is None:
        return pydicom.dcmread(source, force=True)
    return pydicom.dcmread(source, stop_before_pixels=True, force=True, specific_tags=list(tags))


def transfer_syntax_of(dataset: Dataset) -> str:
    """The stated transfer syntax, or for a file without meta information the encoding that pydicom found."""
    stated = text(getattr(dataset, "file_meta", Dataset()), "TransferSyntaxUID")
    if stated:
        return stated
    implicit, _ = dataset.original_encoding
    return str(ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian)


def _has_preamble(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _inflated(path: Path, meta: Dataset) -> bytes:
    """A deflated file as an Explicit VR Little Endian one (PS3.5 A.5); pydicom would inflate it without a bound.

    Raises:
        UnsafeArchive: it expands out of proportion.
    """
    with path.open("rb") as file:
        file.seek(_META_AT + 12 + int(meta.FileMetaInformationGroupLength))  # 12: the group length's own element
        packed = file.read()
    allowed = max(RATIO_FLOOR_BYTES, int(ReadLimits().max_expansion_ratio * len(packed)))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = BytesIO()
    plain.write(EXPLICIT_LITTLE_ENDIAN)
    while packed and not inflater.eof:
        plain.write(inflater.decompress(packed, _CHUNK_BYTES))
        packed = inflater.unconsumed_tail
        if plain.tell() > allowed:
            raise UnsafeArchive(
                "A deflated DICOM file expands out of proportion, as a zip bomb does. Export the series uncompressed."
            )
    return plain.getvalue()
