"""What every DICOM object written here has in common: who made it, what it belongs to, and how it is saved.

An object joins the study and the frame of reference of its source, in a series of its own. It carries the type 1 and
type 2 attributes of patient and study and none beyond them. De-identified, it follows the Basic Application Level
Confidentiality Profile (PS3.15 Annex E) with the Retain UIDs Option: it still lies on its source images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydicom.dataset import Dataset
from pydicom.uid import UID, generate_uid
from pydicom.valuerep import DSfloat, format_number_as_ds

from service.imaging.dicom_source import DicomSource, PatientStudy, SourceImage
from service.reporting.dicom.codes import concept
from service.reporting.schema import Provenance

MANUFACTURER: Final = "Viscera"
RESEARCH_USE: Final = "Research use only. Not a medical device."

# PS3.15 table E.1-1 demands a dummy where a date may not be empty (action D): this one is before CT was invented.
_DUMMY: Final = {"DA": "19000101", "TM": "000000", "DT": "19000101000000"}


@dataclass(frozen=True)
class Authorship:
    """What the objects of one job share: source, bundle and program, and whether they are de-identified."""

    source: DicomSource
    provenance: Provenance
    deidentify: bool = False

    @property
    def patient_study(self) -> PatientStudy:
        """Patient and study as they are written."""
        return PatientStudy() if self.deidentify else self.source.patient_study

    @property
    def equipment(self) -> dict[str, Any]:
        """Keyword arguments of highdicom's objects for the equipment: the serial number is the bundle's SHA-256."""
        return {
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": self.provenance.bundle.name,
            "device_serial_number": self.provenance.bundle.sha256,
            "software_versions": self.provenance.software_version,
        }

    def source_datasets(self, rows: int, columns: int) -> list[Dataset]:
        """The source images as highdicom takes them: headers without pixels, of images with that many pixels.

        One for each of `source.images`; or one for all of them, its frames in their order, where they are frames of
        one object.
        """
        if self.source.images[0].frame is not None:
            return [self._multi_frame_dataset(rows, columns)]
        return [self._single_frame_dataset(image, rows, columns) for image in self.source.images]

    def _single_frame_dataset(self, image: SourceImage, rows: int, columns: int) -> Dataset:
        dataset = self._image_dataset(image, rows, columns)
        dataset.ImagePositionPatient = decimals(image.position_mm)
        dataset.update(self._plane())
        dataset.update(self._measures())
        return dataset

    def _multi_frame_dataset(self, rows: int, columns: int) -> Dataset:
        images, shared = self.source.images, Dataset()
        dataset = self._image_dataset(images[0], rows, columns)
        dataset.NumberOfFrames = len(images)
        shared.PlaneOrientationSequence = [self._plane()]
        shared.PixelMeasuresSequence = [self._measures()]
        dataset.SharedFunctionalGroupsSequence = [shared]
        dataset.PerFrameFunctionalGroupsSequence = [_placed(image) for image in images]
        return dataset

    def _plane(self) -> Dataset:
        plane = Dataset()
        plane.ImageOrientationPatient = decimals(self.source.orientation)
        return plane

    def _measures(self) -> Dataset:
        measures = Dataset()
        measures.PixelSpacing = decimals(self.source.pixel_spacing_mm)
        measures.SliceThickness = decimals([self.source.slice_thickness_mm])[0]
        return measures

    def _image_dataset(self, image: SourceImage, rows: int, columns: int) -> Dataset:
        source, dataset = self.source, self.study_dataset()
        dataset.SOPClassUID = image.sop_class_uid
        dataset.SOPInstanceUID = image.sop_instance_uid
        dataset.SeriesInstanceUID = source.series_uid
        dataset.FrameOfReferenceUID = source.frame_of_reference_uid
        dataset.PositionReferenceIndicator = ""
        dataset.Modality = "CT"
        dataset.Rows, dataset.Columns = rows, columns
        return dataset

    def study_dataset(self) -> Dataset:
        """The Patient and General Study modules, in UTF-8 (PS3.3 C.7.1.1, C.7.2.1)."""
        written = self.patient_study
        dataset = Dataset()
        dataset.SpecificCharacterSet = "ISO_IR 192"
        dataset.PatientName = written.patient_name
        dataset.PatientID = written.patient_id
        dataset.PatientBirthDate = written.patient_birth_date
        dataset.PatientSex = written.patient_sex
        dataset.StudyInstanceUID = self.source.study_uid
        dataset.StudyDate = written.study_date
        dataset.StudyTime = written.study_time
        dataset.StudyID = written.study_id
        dataset.AccessionNumber = written.accession_number
        dataset.ReferringPhysicianName = written.referring_physician_name
        return dataset

    def save(self, dataset: Dataset, path: Path, transfer_syntax: UID) -> None:
        """Write the object, de-identified if that was asked for.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        if self.deidentify:
            _deidentify(dataset)
        dataset.file_meta.TransferSyntaxUID = transfer_syntax
        dataset.save_as(path, enforce_file_format=True)


def new_uid() -> UID:
    """A UID that was never used before, from a random UUID (PS3.5 B.2)."""
    return generate_uid(prefix=None)


def decimals(numbers: Sequence[float]) -> list[DSfloat]:
    """Numbers as decimal strings of at most 16 characters (PS3.5 section 6.2, DS)."""
    return [DSfloat(format_number_as_ds(float(number))) for number in numbers]


def instance_reference(image: SourceImage) -> Dataset:
    """The SOP Instance Reference Macro (PS3.3 table 10-11)."""
    reference = Dataset()
    reference.ReferencedSOPClassUID = image.sop_class_uid
    reference.ReferencedSOPInstanceUID = image.sop_instance_uid
    return reference


def _placed(image: SourceImage) -> Dataset:
    group, position = Dataset(), Dataset()
    position.ImagePositionPatient = decimals(image.position_mm)
    group.PlanePositionSequence = [position]
    return group


def _deidentify(dataset: Dataset) -> None:
    """Dates and times of the making become dummies; patient and study are empty from the start."""
    for element in dataset.iterall():
        if element.VR in _DUMMY and element.value:
            element.value = _DUMMY[element.VR]
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethodCodeSequence = [
        concept("113100", "DCM", "Basic Application Confidentiality Profile"),
        concept("113110", "DCM", "Retain UIDs Option"),
    ]
