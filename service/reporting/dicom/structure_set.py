"""RT Structure Set (PS3.3 A.19): a region of interest for each structure, its contours slice by slice.

A contour runs half-way between the centres of the voxels inside and outside, so that filling it gives the mask back.
What lies apart in a slice has a contour of its own; a hole is joined to its outline by a channel without width, the
"keyhole" of PS3.3 C.8.8.6.3, which readers that fill by parity and those that fill by winding both fill rightly.

The one library for it that is kept would bring a second imaging stack, so contourpy traces and pydicom writes. The
transfer syntax is Implicit VR: in Explicit VR the contour data of a long outline exceed what the length of a decimal
string can state.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.tag import Tag
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage

from service.imaging.dicom_source import DicomSource, SourceImage
from service.inference.manifest import Label
from service.reporting.dicom.codes import coded, site_of
from service.reporting.dicom.objects import MANUFACTURER, RESEARCH_USE, Authorship, instance_reference, new_uid
from service.reporting.structures import Structure

Outline = NDArray[np.float64]  # (points, 2): i, j of a closed contour in voxels of the image

_SERIES_NUMBER: Final = 9104
_LEVEL: Final = 0.5
_CONTOUR_DATA: Final = Tag(0x3006, 0x0050)


def structure_set(authorship: Authorship, structures: Sequence[Structure], hosts: Mapping[str, Label]) -> Dataset:
    """The structure set of structures that are not empty; `hosts` are by lesion id."""
    dataset = _header(authorship)
    regions, contours, observations = [], [], []
    for number, structure in enumerate(structures, start=1):
        regions.append(_region(authorship.source, number, structure))
        contours.append(_roi_contour(authorship.source, number, structure))
        observations.append(_observation(number, structure, hosts.get(structure.id)))
    dataset.StructureSetROISequence = regions
    dataset.ROIContourSequence = contours
    dataset.RTROIObservationsSequence = observations
    return dataset


def save_structure_set(authorship: Authorship, dataset: Dataset, path: Path) -> None:
    """Write the object.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    authorship.save(dataset, path, ImplicitVRLittleEndian)


def _header(authorship: Authorship) -> Dataset:
    provenance = authorship.provenance
    created = provenance.created
    dataset = authorship.study_dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.SOPClassUID = RTStructureSetStorage
    dataset.SOPInstanceUID = new_uid()
    dataset.SeriesInstanceUID = new_uid()
    dataset.Modality = "RTSTRUCT"
    dataset.SeriesNumber = _SERIES_NUMBER
    dataset.InstanceNumber = 1
    dataset.SeriesDescription = f"Viscera structures. {RESEARCH_USE}"
    dataset.OperatorsName = ""
    dataset.Manufacturer = MANUFACTURER
    dataset.ManufacturerModelName = provenance.bundle.name
    dataset.DeviceSerialNumber = provenance.bundle.sha256
    dataset.SoftwareVersions = [provenance.software_version, provenance.bundle.version]
    dataset.FrameOfReferenceUID = authorship.source.frame_of_reference_uid
    dataset.PositionReferenceIndicator = ""
    dataset.StructureSetLabel = "Viscera"
    dataset.StructureSetDescription = RESEARCH_USE
    dataset.StructureSetDate = "" if created is None else created.strftime("%Y%m%d")
    dataset.StructureSetTime = "" if created is None else created.strftime("%H%M%S")
    dataset.ApprovalStatus = "UNAPPROVED"
    dataset.ReferencedFrameOfReferenceSequence = [_frame_of_reference(authorship.source)]
    return dataset


def _frame_of_reference(source: DicomSource) -> Dataset:
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = source.series_uid
    series.ContourImageSequence = [_image_reference(image) for image in source.images]
    study.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management, as PS3.3 C.8.8.5.3 has it
    study.ReferencedSOPInstanceUID = source.study_uid
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = source.frame_of_reference_uid
    frame.RTReferencedStudySequence = [study]
    return frame


def _image_reference(image: SourceImage) -> Dataset:
    """The Image SOP Instance Reference Macro (PS3.3 table 10-3)."""
    reference = instance_reference(image)
    if image.frame is not None:
        reference.ReferencedFrameNumber = image.frame
    return reference


def _region(source: DicomSource, number: int, structure: Structure) -> Dataset:
    region = Dataset()
    region.ROINumber = number
    region.ReferencedFrameOfReferenceUID = source.frame_of_reference_uid
    region.ROIName = structure.id
    region.ROIGenerationAlgorithm = "AUTOMATIC"
    return region


def _observation(number: int, structure: Structure, host: Label | None) -> Dataset:
    """What the region is; a lesion has no interpreted type: whether it is a target is not for a program to say."""
    label = structure.label
    observation = Dataset()
    observation.ObservationNumber = number
    observation.ReferencedROINumber = number
    observation.ROIObservationLabel = structure.title[:16]
    observation.RTROIInterpretedType = "" if label.kind.is_lesion else "ORGAN"
    observation.ROIInterpreter = ""
    code = coded(label.type)
    if (side := site_of(label, host).laterality) is not None:
        code.SegmentedPropertyTypeModifierCodeSequence = [coded(side)]
    observation.RTROIIdentificationCodeSequence = [code]
    return observation


def _roi_contour(source: DicomSource, number: int, structure: Structure) -> Dataset:
    contour, image_at = Dataset(), source.image_at
    contour.ReferencedROINumber = number
    contour.ROIDisplayColor = list(structure.label.color)
    contour.ContourSequence = DicomSequence(
        _contour(source, image_at[k], outline)
        for k, plane in structure.planes()
        for outline in outlines(plane, structure)
    )
    return contour


def _contour(source: DicomSource, image: SourceImage, outline: Outline) -> Dataset:
    item = Dataset()
    item.ContourImageSequence = [_image_reference(image)]
    item.ContourGeometricType = "CLOSED_PLANAR"
    item.NumberOfContourPoints = len(outline)
    # As bytes, which Implicit VR writes as they are: pydicom would make an object of each of a million numbers.
    text = "\\".join(f"{value:.3f}" for value in _to_lps_mm(source, image, outline).ravel().tolist()).encode()
    item.add(DataElement(_CONTOUR_DATA, "OB", text + b" " * (len(text) % 2)))
    return item


def _to_lps_mm(source: DicomSource, image: SourceImage, outline: Outline) -> NDArray[np.float64]:
    """Points of an image in the patient (PS3.3 C.7.6.2.1.1)."""
    between_rows, between_columns = source.pixel_spacing_mm
    row, column = np.array(source.orientation[:3]), np.array(source.orientation[3:])
    step = np.stack([row * between_columns, column * between_rows])
    points: NDArray[np.float64] = np.array(image.position_mm) + outline @ step
    return points


def outlines(plane: NDArray[np.bool_], structure: Structure) -> Iterator[Outline]:
    """The closed contours of one plane, holes joined in, in voxels of the whole image; the first point is not repeated.

    Filled by parity at the voxels' centres they are the plane again.
    """
    import contourpy  # here: an eighth of a second, which every start would take for what few ask for

    corner = np.array([structure.box[0].start - 1, structure.box[1].start - 1])
    padded = np.pad(plane, 1).astype(np.float64)
    tracer = contourpy.contour_generator(z=padded, name="serial", fill_type=contourpy.FillType.OuterOffset)
    polygons, offsets = cast(tuple[list[Outline], list[NDArray[np.uint32]]], tracer.filled(_LEVEL, 2.0))
    for points, ends in zip(polygons, offsets, strict=True):
        rings = [points[start : stop - 1] for start, stop in pairwise(ends.tolist())]
        yield _without_needless_points(_keyhole(rings)) + corner


def _keyhole(rings: Sequence[Outline]) -> Outline:
    """One closed line along an outline and the holes in it, each joined where it is nearest."""
    line = rings[0]
    for hole in sorted(rings[1:], key=lambda ring: float(ring[:, 1].min())):
        distances = ((line[:, None, :] - hole[None, :, :]) ** 2).sum(axis=2)
        on_line, on_hole = np.unravel_index(int(distances.argmin()), distances.shape)
        around = np.roll(hole, -on_hole, axis=0)
        line = np.concatenate([line[: on_line + 1], around, around[:1], line[on_line:]])
    return line


def _without_needless_points(line: Outline) -> Outline:
    """The line without the points that lie on the straight way between their neighbours."""
    before, after = line - np.roll(line, 1, axis=0), np.roll(line, -1, axis=0) - line
    turns = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    back = (before * after).sum(axis=1) <= 0.0
    kept: Outline = line[(np.abs(turns) > 1e-9) | back]
    return kept
