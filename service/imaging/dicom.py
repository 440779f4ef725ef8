"""DICOM objects as the attributes that reading a CT needs: one header for each image, or for each frame of an object.

pydicom is asked for these attributes only, and never for pixels. Values come from strangers: each is taken if it is
well formed and is None otherwise; what must be there is decided where it is used, not here.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydicom.dataset import Dataset

from service.errors import DecodeFailed, VisceraError
from service.imaging.dicom_files import open_dicom, quiet_pydicom, transfer_syntax_of
from service.imaging.dicom_values import Attributes, Layers, code_string, integer, items, number, numbers, text, texts

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
MULTI_FRAME_CT_STORAGE = (
    "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT
    "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT
)

# (row x, y, z, column x, y, z): direction cosines in LPS
Orientation = tuple[float, ...]

_TAGS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientID",
    "PatientName", "Modality", "ImageType", "SeriesNumber", "AcquisitionNumber", "NumberOfFrames", "Rows", "Columns",
    "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "PixelRepresentation",
    "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "SliceThickness", "ConvolutionKernel",
    "GantryDetectorTilt", "ContrastBolusAgent", "RescaleSlope", "RescaleIntercept", "RescaleType",
    "ModalityLUTSequence", "PixelPaddingValue", "PixelPaddingRangeLimit", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)  # fmt: skip

# The macros of a multi-frame CT that hold what a single image has at its top level (PS3.3 A.38.1.4 and A.70.1.4).
_MACROS = (
    "PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence", "PixelValueTransformationSequence",
    "CTImageFrameTypeSequence", "CTReconstructionSequence", "CTAcquisitionDetailsSequence", "FrameContentSequence",
    "UnassignedSharedConvertedAttributesSequence", "UnassignedPerFrameConvertedAttributesSequence",
)  # fmt: skip

# Files without preamble begin with an element of group 0008 (or 0002), little endian, as old archives wrote them.
_BARE_DATASET = re.compile(rb"[\x02\x08]\x00[\x00-\x1f]\x00", re.DOTALL)

# Beyond a kilometre a number is no place in a scanner, and would overflow where places are subtracted.
_FARTHEST_MM = 1e6

_SCOUT_TYPES = {"LOCALIZER", "SCOUT", "TOPOGRAM"}
_SCREEN_TYPES = {"SCREEN SAVE", "DOSE", "DOSE_INFO", "PROTOCOL", "CT_SOM5 PROT"}


class ObjectKind(StrEnum):
    """What a DICOM object is to the reader of a CT."""

    CT_IMAGE = "ct-image"  #: a CT image, or a frame of a multi-frame CT
    LOCALIZER = "localizer"  #: a scout view, CT by modality
    MULTI_FRAME_CT = "multi-frame-ct"  #: frames that do not say where they lie
    OTHER = "other"  #: anything else: SEG, SR, PT, secondary capture, dose page, DICOMDIR


@dataclass(frozen=True)
class DicomImage:
    """The header of one DICOM image; lengths in mm, directions and positions in LPS.

    `frame` counts from 0 in a multi-frame object and is None in an object that is one image.
    """

    path: Path
    kind: ObjectKind
    modality: str
    transfer_syntax: str
    frame: int | None = None
    frames: int = 1
    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    series_uid: str = ""
    study_uid: str = ""
    frame_of_reference_uid: str = ""
    patient: str = ""
    image_type: tuple[str, ...] = ()
    kernel: str = ""
    series_number: int | None = None
    acquisition_number: int | None = None
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
    gantry_tilt_degrees: float | None = None
    has_contrast_agent: bool = False
    rescale_slope: float | None = None
    rescale_intercept: float | None = None
    rescale_type: str = ""
    has_modality_lut: bool = False
    padding: tuple[int, int] | None = None  # stored values, lowest and highest


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins with these (at least 132) bytes is DICOM, with or without preamble."""
    return head[128:132] == b"DICM" or _BARE_DATASET.match(head) is not None


def read_dicom_images(path: Path) -> tuple[DicomImage, ...]:
    """The header of one file that looks like DICOM: one image, or as many as a multi-frame CT has frames.

    Raises:
        DecodeFailed: the header is damaged.
        UnsafeArchive: a deflated file expands out of proportion.
    """
    try:
        with quiet_pydicom():
            dataset = open_dicom(path, _TAGS)
            groups = items(dataset, "PerFrameFunctionalGroupsSequence")
            kind = _kind(dataset, has_frames=bool(groups))
            if kind is not ObjectKind.CT_IMAGE or not groups:
                return (_image(path, dataset, dataset, kind),)
            return _frames(path, dataset, groups)
    except VisceraError:
        raise
    except Exception as error:  # a damaged header surfaces as almost any exception of pydicom's parsers
        raise DecodeFailed("A DICOM file has a damaged header. Export the series again.") from error


def _frames(path: Path, dataset: Dataset, groups: list[Dataset]) -> tuple[DicomImage, ...]:
    """One image for each frame of a multi-frame CT (PS3.3 C.7.6.16).

    Raises:
        DecodeFailed: the functional groups do not fit the number of frames.
    """
    count = integer(dataset, "NumberOfFrames") or 1
    if count != len(groups):
        raise DecodeFailed(
            f"A multi-frame CT states {count} frames and describes {len(groups)}. Export the series again."
        )
    shared = [part for group in items(dataset, "SharedFunctionalGroupsSequence") for part in _macros(group)]
    return tuple(
        _image(path, Layers([*_macros(group), *shared, dataset]), dataset, ObjectKind.CT_IMAGE, frame, count)
        for frame, group in enumerate(groups)
    )


def _macros(group: Dataset) -> list[Dataset]:
    return [item for keyword in _MACROS for item in items(group, keyword)[:1]]


def _image(
    path: Path, attributes: Attributes, dataset: Dataset, kind: ObjectKind, frame: int | None = None, frames: int = 1
) -> DicomImage:
    image_type = texts(attributes, "FrameType") or texts(attributes, "ImageType")
    bits_allocated = integer(attributes, "BitsAllocated") or 0
    acquisition = integer(attributes, "FrameAcquisitionNumber")
    return DicomImage(
        path=path,
        kind=kind,
        modality=code_string(attributes, "Modality"),
        transfer_syntax=transfer_syntax_of(dataset),
        frame=frame,
        frames=frames,
        sop_class_uid=_sop_class(dataset),
        sop_instance_uid=text(attributes, "SOPInstanceUID"),
        series_uid=text(attributes, "SeriesInstanceUID"),
        study_uid=text(attributes, "StudyInstanceUID"),
        frame_of_reference_uid=text(attributes, "FrameOfReferenceUID"),
        patient=text(attributes, "PatientID") or text(attributes, "PatientName"),
        image_type=tuple(value.upper() for value in image_type),
        kernel=text(attributes, "ConvolutionKernel"),
        series_number=integer(attributes, "SeriesNumber"),
        acquisition_number=integer(attributes, "AcquisitionNumber") if acquisition is None else acquisition,
        rows=integer(attributes, "Rows") or 0,
        columns=integer(attributes, "Columns") or 0,
        samples_per_pixel=integer(attributes, "SamplesPerPixel") or 1,
        photometric_interpretation=text(attributes, "PhotometricInterpretation").upper(),
        bits_allocated=bits_allocated,
        bits_stored=integer(attributes, "BitsStored") or bits_allocated,
        signed=integer(attributes, "PixelRepresentation") == 1,
        pixel_spacing_mm=numbers(attributes, "PixelSpacing", 2, _FARTHEST_MM),
        orientation=numbers(attributes, "ImageOrientationPatient", 6, _FARTHEST_MM),
        position_mm=numbers(attributes, "ImagePositionPatient", 3, _FARTHEST_MM),
        slice_thickness_mm=number(attributes, "SliceThickness"),
        gantry_tilt_degrees=number(attributes, "GantryDetectorTilt"),
        has_contrast_agent=bool(text(attributes, "ContrastBolusAgent")),
        rescale_slope=number(attributes, "RescaleSlope"),
        rescale_intercept=number(attributes, "RescaleIntercept"),
        rescale_type=text(attributes, "RescaleType").upper(),
        has_modality_lut=bool(attributes.get("ModalityLUTSequence")),
        padding=_padding(attributes),
    )


def _kind(dataset: Dataset, *, has_frames: bool) -> ObjectKind:
    sop_class = _sop_class(dataset)
    modality = text(dataset, "Modality").upper()
    image_type = {value.upper() for value in texts(dataset, "ImageType")}
    # Anonymisers empty the SOP class; then modality and the presence of an image decide.
    # A CT class with another modality is contradictory; the modality is believed: nothing is guessed to be CT.
    is_ct = (sop_class in (CT_IMAGE_STORAGE, *MULTI_FRAME_CT_STORAGE) and modality in {"", "CT"}) or (
        not sop_class and modality == "CT" and "Rows" in dataset
    )
    if not is_ct or image_type & _SCREEN_TYPES:
        return ObjectKind.OTHER
    if image_type & _SCOUT_TYPES:
        return ObjectKind.LOCALIZER
    is_multi_frame = sop_class in MULTI_FRAME_CT_STORAGE or (integer(dataset, "NumberOfFrames") or 1) > 1
    return ObjectKind.MULTI_FRAME_CT if is_multi_frame and not has_frames else ObjectKind.CT_IMAGE


def _sop_class(dataset: Dataset) -> str:
    return text(dataset, "SOPClassUID") or text(getattr(dataset, "file_meta", Dataset()), "MediaStorageSOPClassUID")


def _padding(attributes: Attributes) -> tuple[int, int] | None:
    value = integer(attributes, "PixelPaddingValue")
    if value is None:
        return None
    limit = integer(attributes, "PixelPaddingRangeLimit")
    limit = value if limit is None else limit
    if integer(attributes, "PixelRepresentation") == 1:
        # Written as US by files whose pixels are SS: -2000 then reads 63536.
        value, limit = (v - 65536 if 32767 < v < 65536 else v for v in (value, limit))
    return min(value, limit), max(value, limit)
