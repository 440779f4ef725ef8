"""The DICOM files of a result, each read back before it counts as written.

    dicom/seg-organs.dcm      Segmentation, a segment for each organ that was found
    dicom/seg-lesions.dcm     Segmentation, a segment for each lesion
    dicom/sr.dcm              measurement report (TID 1500) on those segments
    dicom/rtstruct.dcm        RT Structure Set of organs and lesions

What would be empty is not written. The report as a DICOM object is `service.reporting.dicom.document`'s.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import highdicom as hd
from pydicom.uid import ExplicitVRLittleEndian

from service.inference.manifest import Label
from service.inference.masks import Masks
from service.reporting.dicom.codes import hosts_by_lesion
from service.reporting.dicom.measurements import measurement_report
from service.reporting.dicom.objects import Authorship
from service.reporting.dicom.readback import verify_binary, verify_labelmap, verify_structure_set
from service.reporting.dicom.segmentation import binary_segmentation, labelmap_segmentation, save_segmentation
from service.reporting.dicom.structure_set import save_structure_set, structure_set
from service.reporting.outputs import DICOM_FOLDER, OutputPlan, Task
from service.reporting.schema import Findings
from service.reporting.structures import Structure, lesions, on_slices, organs
from service.request import Output, SegType

SEG_ORGANS: Final = "dicom/seg-organs.dcm"
SEG_LESIONS: Final = "dicom/seg-lesions.dcm"
SR: Final = "dicom/sr.dcm"
RTSTRUCT: Final = "dicom/rtstruct.dcm"


def dicom_tasks(out_dir: Path, masks: Masks, findings: Findings, plan: OutputPlan) -> Iterator[Task]:
    """What writes and verifies the DICOM files that are wanted; nothing where nothing was found.

    The tasks raise VerificationFailed when a file, read back, is not the masks, and OSError.
    """
    if plan.source is None:
        return
    imaged = frozenset(plan.source.image_at)
    found = _Found(on_slices(organs(masks), imaged), on_slices(lesions(masks), imaged), masks, findings)
    if not found.organs and not found.lesions:
        return
    authorship = Authorship(plan.source, findings.provenance, plan.deidentify)
    (out_dir / DICOM_FOLDER).mkdir(exist_ok=True)
    if plan.wanted & {Output.SEG, Output.SR}:
        with_report = Output.SR in plan.wanted
        names = [name for name, some in ((SEG_ORGANS, found.organs), (SEG_LESIONS, found.lesions)) if some]
        names += [SR] * with_report
        yield tuple(names), lambda: _write_segments(out_dir, authorship, found, plan.seg_type, with_report)
    if Output.RTSTRUCT in plan.wanted:
        yield (RTSTRUCT,), lambda: _write_structure_set(out_dir / RTSTRUCT, authorship, found)


@dataclass(frozen=True, eq=False)
class _Found:
    """What the objects are about."""

    organs: tuple[Structure, ...]
    lesions: tuple[Structure, ...]
    masks: Masks
    findings: Findings

    @property
    def labels(self) -> dict[str, Label]:
        return {label.name: label for label in self.masks.labels}

    @property
    def hosts(self) -> dict[str, Label]:
        """Label of the organ that each lesion lies in, by lesion id."""
        return hosts_by_lesion(self.masks.labels, {lesion.id: lesion.host_organ for lesion in self.findings.lesions})

    @property
    def painted(self) -> list[Structure]:
        """The organs from the bottom of a label map to its top: the larger below."""
        volume_ml = {organ.label: organ.volume_ml for organ in self.findings.organs}
        return sorted(self.organs, key=lambda organ: -volume_ml[organ.id])


def _write_segments(out_dir: Path, authorship: Authorship, found: _Found, seg_type: SegType, with_report: bool) -> None:
    """The segmentations and, with them still in memory, the report that refers to them."""
    segmentations = []
    if found.organs:
        write = _write_labelmap if seg_type is SegType.LABELMAP else _write_binary
        segmentations.append(write(out_dir / SEG_ORGANS, authorship, found, "organs"))
    if found.lesions:
        segmentations.append(_write_binary(out_dir / SEG_LESIONS, authorship, found, "lesions"))
    if with_report:
        report = measurement_report(authorship, segmentations, found.findings, found.labels, found.hosts)
        authorship.save(report, out_dir / SR, ExplicitVRLittleEndian)


def _write_binary(path: Path, authorship: Authorship, found: _Found, content: str) -> hd.seg.Segmentation:
    structures: Sequence[Structure] = found.organs if content == "organs" else found.lesions
    geometry = found.masks.geometry
    segmentation = binary_segmentation(authorship, structures, content, geometry.shape, found.hosts)
    save_segmentation(authorship, segmentation, path)
    verify_binary(path, structures, geometry)
    return segmentation


def _write_labelmap(path: Path, authorship: Authorship, found: _Found, content: str) -> hd.seg.Segmentation:
    geometry = found.masks.geometry
    segmentation = labelmap_segmentation(authorship, found.painted, content, geometry.shape)
    save_segmentation(authorship, segmentation, path)
    verify_labelmap(path, found.painted, geometry)
    return segmentation


def _write_structure_set(path: Path, authorship: Authorship, found: _Found) -> None:
    structures = (*found.organs, *found.lesions)
    save_structure_set(authorship, structure_set(authorship, structures, found.hosts), path)
    verify_structure_set(path, structures, found.masks.geometry)
