"""One DICOM file as the attributes that reading a CT needs.

pydicom is asked for these attributes only, and never for pixels. Values come from strangers: each is taken if it is
well formed and is None otherwise; what must be there is decided where it is used, not here.
"""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from service.errors import DecodeFailed

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
MULTI_FRAME_CT_STORAGE = (
    "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT
    "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT
)

# (row x, y, z, column x, y, z): direction cosines in LPS
Orientation = tuple[float, ...]

_TAGS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientID",
    "PatientName", "Modality", "ImageType", "SeriesNumber", "InstanceNumber", "NumberOfFrames", "Rows", "Columns",
    "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "PixelRepresentation",
    "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "SliceThickness", "RescaleSlope",
    "RescaleIntercept", "RescaleType", "ModalityLUTSequence", "PixelPaddingValue", "PixelPaddingRangeLimit",
)  # fmt: skip

# Files without preamble begin with an element of group 0008 (or 0002), little endian, as old archives wrote them.
_BARE_DATASET = re.compile(rb"[\x02\x08]\x00[\x00-\x1f]\x00", re.DOTALL)

_UID = re.compile(r"[0-9.]{1,64}")
_QUOTING_LOGGERS = ("pydicom", "pylibjpeg", "openjpeg", "highdicom")
_CODE_STRING = re.compile(r"[A-Z0-9_ ]{1,16}")


class ObjectKind(StrEnum):
    """What a DICOM object is to the reader of a CT."""

    CT_IMAGE = "ct-image"  #: a single-frame CT image
    LOCALIZER = "localizer"  #: a scout view, CT by modality
    MULTI_FRAME_CT = "multi-frame-ct"  #: Enhanced CT
    OTHER = "other"  #: anything else: SEG, SR, PT, secondary capture, DICOMDIR


@dataclass(frozen=True)
class DicomImage:
    """The header of one DICOM object; lengths in mm, directions and positions in LPS."""

    path: Path
    kind: ObjectKind
    modality: str
    transfer_syntax: str
    sop_instance_uid: str = ""
    series_uid: str = ""
    study_uid: str = ""
    frame_of_reference_uid: str = ""
    patient: str = ""
    image_type: tuple[str, ...] = ()
    series_number: int | None = None
    rows: int = 0
    columns: int = 0
    samples_per_pixel: int = 1
    photometric_interpretation: str = ""
    bits_allocated: int = 0
    bits_stored: int = 0
    signed: bool = False
    pixel_spacing_mm: tuple[float, ...] | None = None  # between rows, between columns
    orientation: Orientation | None = None
    position_mm: tuple[float, ...] | None = None
    slice_thickness_mm: float | None = None
    rescale_slope: float | None = None
    rescale_intercept: float | None = None
    rescale_type: str = ""
    has_modality_lut: bool = False
    padding: tuple[int, int] | None = None  # stored values, lowest and highest


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins with these (at least 132) bytes is DICOM, with or without preamble."""
    return head[128:132] == b"DICM" or _BARE_DATASET.match(head) is not None


def is_uid(text: str) -> bool:
    """Whether a text can stand in results as a UID; anything else may hold patient data."""
    return _UID.fullmatch(text) is not None


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


def read_dicom_header(path: Path) -> DicomImage:
    """The header of one file that looks like DICOM.

    Raises:
        DecodeFailed: the header is damaged, or a CT image is deflated as a whole.
    """
    try:
        with quiet_pydicom():
            meta = pydicom.filereader.read_file_meta_info(path) if _has_preamble(path) else Dataset()
            if _text(meta, "TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
                return _deflated(path, meta)
            dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(_TAGS))
            return _image(path, dataset)
    except DecodeFailed:
        raise
    except Exception as error:  # a damaged header surfaces as almost any exception of pydicom's parsers
        raise DecodeFailed("A DICOM file has a damaged header. Export the series again.") from error


def transfer_syntax_of(dataset: Dataset) -> str:
    """The stated transfer syntax, or for a file without meta information the encoding that pydicom found."""
    stated = _text(getattr(dataset, "file_meta", Dataset()), "TransferSyntaxUID")
    if stated:
        return stated
    implicit, _ = dataset.original_encoding
    return str(ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian)


def _has_preamble(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _deflated(path: Path, meta: Dataset) -> DicomImage:
    """A deflated file, which pydicom would inflate without a bound; told apart by its meta information alone.

    Raises:
        DecodeFailed: it is a CT image.
    """
    if _text(meta, "MediaStorageSOPClassUID") in (CT_IMAGE_STORAGE, *MULTI_FRAME_CT_STORAGE, ""):
        raise DecodeFailed(
            "The CT images use the Deflated transfer syntax, which is not read."
            " Export them uncompressed or with a lossless image compression."
        )
    return DicomImage(path, ObjectKind.OTHER, modality="", transfer_syntax=DeflatedExplicitVRLittleEndian)


def _image(path: Path, dataset: Dataset) -> DicomImage:
    image_type = tuple(value.upper() for value in _texts(dataset, "ImageType"))
    bits_allocated = _integer(dataset, "BitsAllocated") or 0
    return DicomImage(
        path=path,
        kind=_kind(dataset, image_type),
        modality=_modality(dataset),
        transfer_syntax=transfer_syntax_of(dataset),
        sop_instance_uid=_text(dataset, "SOPInstanceUID"),
        series_uid=_text(dataset, "SeriesInstanceUID"),
        study_uid=_text(dataset, "StudyInstanceUID"),
        frame_of_reference_uid=_text(dataset, "FrameOfReferenceUID"),
        patient=_text(dataset, "PatientID") or _text(dataset, "PatientName"),
        image_type=image_type,
        series_number=_integer(dataset, "SeriesNumber"),
        rows=_integer(dataset, "Rows") or 0,
        columns=_integer(dataset, "Columns") or 0,
        samples_per_pixel=_integer(dataset, "SamplesPerPixel") or 1,
        photometric_interpretation=_text(dataset, "PhotometricInterpretation").upper(),
        bits_allocated=bits_allocated,
        bits_stored=_integer(dataset, "BitsStored") or bits_allocated,
        signed=_integer(dataset, "PixelRepresentation") == 1,
        pixel_spacing_mm=_numbers(dataset, "PixelSpacing", 2),
        orientation=_numbers(dataset, "ImageOrientationPatient", 6),
        position_mm=_numbers(dataset, "ImagePositionPatient", 3),
        slice_thickness_mm=_number(dataset, "SliceThickness"),
        rescale_slope=_number(dataset, "RescaleSlope"),
        rescale_intercept=_number(dataset, "RescaleIntercept"),
        rescale_type=_text(dataset, "RescaleType").upper(),
        has_modality_lut=bool(dataset.get("ModalityLUTSequence")),
        padding=_padding(dataset),
    )


def _kind(dataset: Dataset, image_type: tuple[str, ...]) -> ObjectKind:
    sop_class = _text(dataset, "SOPClassUID")
    if sop_class in MULTI_FRAME_CT_STORAGE:
        return ObjectKind.MULTI_FRAME_CT
    # Anonymisers empty the SOP class; then modality and the presence of an image decide.
    # A CT class with another modality is contradictory; the modality is believed: nothing is guessed to be CT.
    modality = _text(dataset, "Modality").upper()
    is_ct = (sop_class == CT_IMAGE_STORAGE and modality in {"", "CT"}) or (
        not sop_class and modality == "CT" and "Rows" in dataset
    )
    if not is_ct:
        return ObjectKind.OTHER
    if "LOCALIZER" in image_type:
        return ObjectKind.LOCALIZER
    return ObjectKind.MULTI_FRAME_CT if (_integer(dataset, "NumberOfFrames") or 1) > 1 else ObjectKind.CT_IMAGE


def _modality(dataset: Dataset) -> str:
    """The modality if it is a code string; anything else is not repeated to anyone."""
    modality = _text(dataset, "Modality").upper()
    return modality if _CODE_STRING.fullmatch(modality) else ""


def _padding(dataset: Dataset) -> tuple[int, int] | None:
    value = _integer(dataset, "PixelPaddingValue")
    if value is None:
        return None
    limit = _integer(dataset, "PixelPaddingRangeLimit")
    limit = value if limit is None else limit
    if _integer(dataset, "PixelRepresentation") == 1:
        # Written as US by files whose pixels are SS: -2000 then reads 63536.
        value, limit = (v - 65536 if 32767 < v < 65536 else v for v in (value, limit))
    return min(value, limit), max(value, limit)


def _texts(dataset: Dataset, keyword: str) -> list[str]:
    value = _value(dataset, keyword)
    if value is None:
        return []
    many = list(value) if isinstance(value, MultiValue) else [value]
    return [str(item).strip().strip("\0") for item in many]


def _text(dataset: Dataset, keyword: str) -> str:
    return "\\".join(_texts(dataset, keyword))


def _numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Exactly `count` finite numbers, or None."""
    try:
        numbers = tuple(float(text) for text in _texts(dataset, keyword))
    except (ValueError, OverflowError):
        return None
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None


def _number(dataset: Dataset, keyword: str) -> float | None:
    numbers = _numbers(dataset, keyword, 1)
    return numbers[0] if numbers else None


def _integer(dataset: Dataset, keyword: str) -> int | None:
    number = _number(dataset, keyword)
    return int(number) if number is not None else None


def _value(dataset: Dataset, keyword: str) -> object | None:
    """The element's value, or None where it is absent, empty or malformed."""
    try:
        value: object | None = dataset.get(keyword)
    except (ValueError, TypeError, OverflowError, ArithmeticError, AttributeError, NotImplementedError):
        return None
    return value
