"""What DICOM objects about a CT series say of their source: patient, study, frame of reference, and every image.

Only the attributes that the Patient and General Study modules demand (PS3.3 C.7.1.1 and C.7.2.1, type 1 and 2) are kept
of the headers. Values come from strangers: one that its value representation does not allow (PS3.5 section 6.2) is left
empty, so that no library stumbles over it and quotes it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Final

from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from service.errors import OutputNotPossible
from service.imaging.dicom import CT_IMAGE_STORAGE, DicomImage, Orientation
from service.imaging.dicom_files import open_dicom, quiet_pydicom
from service.imaging.dicom_stack import DicomSeries
from service.imaging.dicom_values import is_uid
from service.imaging.nifti import NiftiSeries
from service.imaging.volume import Notice

_TIME: Final = re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?")
_SEX: Final = re.compile(r"[MFO]")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True)
class PatientStudy:
    """The type 2 attributes of patient and study: present in every object, empty where the source has none."""

    patient_name: str = ""
    patient_id: str = ""
    patient_birth_date: str = ""
    patient_sex: str = ""
    study_date: str = ""
    study_time: str = ""
    study_id: str = ""
    accession_number: str = ""
    referring_physician_name: str = ""


@dataclass(frozen=True)
class SourceImage:
    """One image of the series: slice `k` of the volume. The position is of the centre of its first voxel, LPS mm.

    `frame` is its number in a multi-frame object, from 1; None for an object that is one image.
    """

    k: int
    sop_class_uid: str
    sop_instance_uid: str
    position_mm: tuple[float, float, float]
    frame: int | None = None


@dataclass(frozen=True)
class DicomSource:
    """The series that the masks lie on. `images` come in the order of k; a slice that was interpolated has none.

    `orientation`: direction cosines along a row and down a column, LPS. `pixel_spacing_mm`: between rows, then between
    columns.
    """

    patient_study: PatientStudy
    study_uid: str
    series_uid: str
    frame_of_reference_uid: str
    images: tuple[SourceImage, ...]
    orientation: Orientation
    pixel_spacing_mm: tuple[float, float]
    slice_thickness_mm: float
    notices: tuple[Notice, ...] = ()

    @property
    def image_at(self) -> dict[int, SourceImage]:
        """The image of each slice that has one, by k."""
        return {image.k: image for image in self.images}


def read_source(series: DicomSeries | NiftiSeries) -> DicomSource:
    """The source of a series; its headers must still be on the disk.

    A series without FrameOfReferenceUID gets a new one, and a notice; so do slices that no object can refer to.

    Raises:
        OutputNotPossible: NIfTI, images or study without UIDs that an object could refer to, or frames of several
            multi-frame objects.
    """
    if isinstance(series, NiftiSeries):
        raise OutputNotPossible(
            "DICOM objects can be written for DICOM input only: a NIfTI file names no patient, study or images."
            " Leave seg, sr and rtstruct out of the outputs, or send the DICOM series."
        )
    first = series.images[0]
    has_own_uids = series.sop_instance_uids is not None
    missing = [
        name
        for name, usable in (
            ("StudyInstanceUID", is_uid(first.study_uid)),
            ("SeriesInstanceUID", is_uid(first.series_uid)),
            ("SOPInstanceUID", has_own_uids),
        )
        if not usable
    ]
    if missing or first.orientation is None or first.pixel_spacing_mm is None:
        raise OutputNotPossible(
            f"DICOM objects cannot refer to this series: it has no usable {', '.join(missing)}."
            " Leave seg, sr and rtstruct out of the outputs, or export the series again."
        )
    if first.frame is not None and len({image.sop_instance_uid for image in series.images}) > 1:
        raise OutputNotPossible(
            "DICOM objects can refer to the frames of one multi-frame object only, and this series has several."
            " Leave seg, sr and rtstruct out of the outputs, or send single-frame images."
        )
    notices: tuple[Notice, ...] = ()
    if series.spacing.missing:
        notices += (
            Notice(
                "dicom-slices-left-out",
                "Slices that were missing have no images: SEG and RTSTRUCT leave them out, the measurements do not.",
            ),
        )
    frame_of_reference = first.frame_of_reference_uid
    if not is_uid(frame_of_reference):
        frame_of_reference = generate_uid(prefix=None)
        notices += (
            Notice(
                "frame-of-reference-missing",
                "The series has no FrameOfReferenceUID; the DICOM results have a new one and refer to its images.",
            ),
        )
    rows_mm, columns_mm = first.pixel_spacing_mm
    return DicomSource(
        patient_study=_patient_study(first),
        study_uid=first.study_uid,
        series_uid=first.series_uid,
        frame_of_reference_uid=frame_of_reference,
        images=tuple(map(_source_image, series.spacing.places, series.images)),
        orientation=first.orientation,
        pixel_spacing_mm=(rows_mm, columns_mm),
        slice_thickness_mm=first.slice_thickness_mm or series.geometry.spacing_mm[2],
        notices=notices,
    )


def _source_image(k: int, image: DicomImage) -> SourceImage:
    assert image.position_mm is not None  # the stack was sorted by it
    x, y, z = image.position_mm
    return SourceImage(
        k,
        image.sop_class_uid or CT_IMAGE_STORAGE,
        image.sop_instance_uid,
        (x, y, z),
        None if image.frame is None else image.frame + 1,
    )


def _patient_study(image: DicomImage) -> PatientStudy:
    """Patient and study as the image's header states them, read as its SpecificCharacterSet says."""
    checks: dict[str, Callable[[str], bool]] = {
        "patient_birth_date": _is_date,
        "patient_sex": _matches(_SEX),
        "study_date": _is_date,
        "study_time": _matches(_TIME),
        "study_id": _at_most(16),
        "accession_number": _at_most(16),
        "patient_id": _at_most(64),
        "patient_name": _is_person_name,
        "referring_physician_name": _is_person_name,
    }
    tags = {field.name: _keyword(field.name) for field in fields(PatientStudy)}
    with quiet_pydicom():
        header = open_dicom(image.path, ["SpecificCharacterSet", *tags.values()])
        values = {name: _text(header, keyword) for name, keyword in tags.items()}
    return PatientStudy(**{name: value for name, value in values.items() if checks[name](value)})


def _keyword(name: str) -> str:
    return "".join({"id": "ID"}.get(word, word.capitalize()) for word in name.split("_"))


def _text(header: Dataset, keyword: str) -> str:
    try:
        value = header.get(keyword)
    except Exception:  # noqa: BLE001  # a malformed value surfaces as almost any exception of pydicom's parsers
        return ""
    return "" if value is None else str(value).strip()


def _is_date(value: str) -> bool:
    try:
        return bool(datetime.strptime(value, "%Y%m%d")) and len(value) == 8
    except ValueError:
        return False


def _matches(pattern: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda value: pattern.fullmatch(value) is not None


def _at_most(length: int) -> Callable[[str], bool]:
    return lambda value: len(value) <= length and _CONTROL.search(value) is None


def _is_person_name(value: str) -> bool:
    """PS3.5 section 6.2.1.2: up to three groups of up to five components, 64 characters each."""
    groups = value.split("=")
    return (
        len(groups) <= 3
        and all(len(group) <= 64 and group.count("^") <= 4 for group in groups)
        and _CONTROL.search(value) is None
    )
