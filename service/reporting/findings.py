"""Numbers from masks: volumes, HU, diameters and places, on the source grid."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.imaging.volume import Candidate, Notice, Volume
from service.inference.manifest import Code, Label
from service.inference.masks import Box, LabelMask, Masks
from service.progress import Progress, Stage, no_progress
from service.reporting.cautions import cautions
from service.reporting.diameters import Diameters, measure_component
from service.reporting.quality import check_quality
from service.reporting.regions import VOXEL_AXES, Compass, Region, bounding_box, label_regions
from service.reporting.schema import (
    CodedConcept,
    Findings,
    LabelCodes,
    LesionFinding,
    LesionLabelSummary,
    OrganFinding,
    Provenance,
    SeriesCandidate,
    SourceSummary,
)
from service.reporting.structures import Component, Components, components, lesion_id

_SUMMED_VOXELS = 1_000_000

SHARED_SHARE = 0.1
"""A lesion with this share of its voxels in the mask of another lesion label is one region called two things."""


def measure(
    volume: Volume,
    masks: Masks,
    provenance: Provenance,
    progress: Progress = no_progress,
    notices: Sequence[Notice] = (),
) -> Findings:
    """The findings of one CT.

    Organs are whole masks; lesions are the 26-connected components of the tumour and cyst masks, of each label the
    `MOST_LESIONS` largest. Every number is
    taken on the source grid from the source HU. `provenance` is passed through as it is;
    `notices` are those of inference, and become warnings as those of the volume do.

    Raises:
        ValueError: the masks are not on the volume's grid.
    """
    if masks.geometry != volume.geometry:
        raise ValueError("The masks are not on the volume's grid.")
    scan = _Scan(volume, masks, Compass(volume.geometry))
    organs: list[OrganFinding] = []
    lesions: list[LesionFinding] = []
    summaries: list[LesionLabelSummary] = []
    for done, region in enumerate(label_regions(masks)):
        progress(Stage.MEASURING, done / len(masks.labels))
        if region.label.kind.is_lesion:
            found = components(region)
            lesions += _lesions(scan, region, found)
            summaries.append(_summary(scan, region, found.count))
        else:
            organs.append(_organ(scan, region))
    progress(Stage.MEASURING, 1.0)
    return Findings(
        source=scan.summary,
        series=tuple(map(_candidate, volume.candidates)),
        quality=check_quality(volume, organs),
        organs=tuple(organs),
        lesion_labels=tuple(summaries),
        lesions=tuple(lesions),
        warnings=cautions((*volume.notices, *notices), volume, masks.labels, organs, lesions, summaries),
        provenance=provenance,
    )


@dataclass(frozen=True)
class _Scan:
    """What every measurement looks up."""

    volume: Volume
    masks: Masks
    compass: Compass

    @property
    def slice_axis(self) -> int:
        """The axis across the measured slices: a DICOM series says k, a NIfTI says what is nearest to superior."""
        return self.compass.axis_towards(2) if self.volume.sop_instance_uids is None else 2

    @property
    def summary(self) -> SourceSummary:
        i, j, k = (round(step, 6) for step in self.volume.geometry.spacing_mm)
        return SourceSummary(
            format=self.volume.source_format.value,
            shape=self.volume.geometry.shape,
            spacing_mm=(i, j, k),
            orientation=self.compass.codes,
            slice_axis=VOXEL_AXES[self.slice_axis],
        )

    def volume_ml(self, voxels: int) -> float:
        return round(voxels * self.volume.geometry.voxel_volume_ml, 4)

    def hosts(self, label: Label) -> Iterator[tuple[str, LabelMask]]:
        """The label's hosts that were segmented, the likeliest first."""
        masks = {other.name: mask for other, mask in zip(self.masks.labels, self.masks.of_labels, strict=True)}
        return ((host, masks[host]) for host in label.hosts if host in masks)

    def probability(self, region: Region) -> NDArray[np.uint8] | None:
        """Of a lesion label in its box, 0 to 255 for 0 to 1, and 0 outside its mask; None where it is not known."""
        of_voxels = self.masks.lesion_probability.get(region.label.name)
        if of_voxels is None:
            return None
        mask = region.mask
        probability = np.zeros(mask.shape, np.uint8)
        probability[mask] = of_voxels
        return probability

    def other_lesions(self, label: Label) -> Iterator[tuple[str, LabelMask]]:
        """The other lesion labels that were segmented."""
        return (
            (other.name, mask)
            for other, mask in zip(self.masks.labels, self.masks.of_labels, strict=True)
            if other.kind.is_lesion and other.name != label.name
        )


def _organ(scan: _Scan, region: Region) -> OrganFinding:
    label, box = region.label, region.box
    if box is None:
        return OrganFinding(
            label=label.name,
            display_name=label.display_name,
            codes=label_codes(label),
            present=False,
            volume_ml=0.0,
            mean_hu=None,
            sd_hu=None,
            bounding_box_voxel=None,
            cut_by_field_of_view=False,
            cut_sides=(),
        )
    hu = scan.volume.hu[box][region.mask]
    mean, sd = _mean_and_sd(hu)
    sides = scan.compass.sides_touched(box)
    return OrganFinding(
        label=label.name,
        display_name=label.display_name,
        codes=label_codes(label),
        present=True,
        volume_ml=scan.volume_ml(hu.size),
        mean_hu=mean,
        sd_hu=sd,
        bounding_box_voxel=bounding_box(box),
        cut_by_field_of_view=bool(sides),
        cut_sides=sides,
    )


def _lesions(scan: _Scan, region: Region, found: Components) -> Iterator[LesionFinding]:
    probability = scan.probability(region)
    for one in found.largest:
        inner = tuple(
            slice(cut.start - first, cut.stop - first) for cut, first in zip(one.box, region.start, strict=True)
        )
        yield _lesion(scan, region.label, one, None if probability is None else probability[inner][one.mask])


def _lesion(scan: _Scan, label: Label, one: Component, probability: NDArray[np.uint8] | None) -> LesionFinding:
    geometry = scan.volume.geometry
    component, box = one.mask, one.box
    start = (box[0].start, box[1].start, box[2].start)
    mean_hu, sd_hu = _mean_and_sd(scan.volume.hu[box][component])
    diameters = measure_component(component, start, geometry, scan.slice_axis)
    centroid = np.argwhere(component).mean(axis=0) + start
    host, overlap = _host(scan, label, component, box)
    mean_probability, max_probability = _mean_and_max(probability)
    sides = scan.compass.sides_touched(box)
    uids = scan.volume.sop_instance_uids
    longest_axis, perpendicular_axis = _axes_lps_mm(scan, diameters)
    return LesionFinding(
        id=lesion_id(label, one.rank),
        label=label.name,
        display_name=label.display_name,
        kind=label.kind.value,
        codes=label_codes(label),
        host_organ=host,
        host_overlap_fraction=overlap,
        also_labelled=_also_labelled(scan, label, component, box),
        volume_ml=scan.volume_ml(int(component.sum())),
        mean_hu=mean_hu,
        sd_hu=sd_hu,
        longest_axial_diameter_mm=round(diameters.longest_mm, 2),
        perpendicular_diameter_mm=round(diameters.perpendicular_mm, 2),
        longest_axis_lps_mm=longest_axis,
        perpendicular_axis_lps_mm=perpendicular_axis,
        slice_index=diameters.slice_index,
        sop_instance_uid=None if uids is None else uids[diameters.slice_index] or None,
        centroid_lps_mm=_point(geometry.to_lps_mm(centroid)),
        centroid_voxel=_point(centroid),
        bounding_box_voxel=bounding_box(box),
        cut_by_field_of_view=bool(sides),
        cut_sides=sides,
        mean_probability=mean_probability,
        max_probability=max_probability,
    )


def _host(scan: _Scan, label: Label, component: NDArray[np.bool_], box: Box) -> tuple[str | None, float]:
    """The host with the most of the lesion's voxels, and the lesion's share in it; of equals the likelier host."""
    best, most = None, 0
    for host, mask in scan.hosts(label):
        shared = int(np.count_nonzero(mask.read(box) & component))
        if shared > most:
            best, most = host, shared
    return best, round(most / int(np.count_nonzero(component)), 3)


def _also_labelled(scan: _Scan, label: Label, component: NDArray[np.bool_], box: Box) -> tuple[str, ...]:
    """The other lesion labels whose masks hold at least `SHARED_SHARE` of the lesion's voxels."""
    least = SHARED_SHARE * int(np.count_nonzero(component))
    return tuple(
        name for name, mask in scan.other_lesions(label) if np.count_nonzero(mask.read(box) & component) >= least
    )


def _mean_and_max(probability: NDArray[np.uint8] | None) -> tuple[float | None, float | None]:
    """Of a lesion's voxels, 0 to 1."""
    if probability is None:
        return None, None
    values = probability / 255.0
    return round(float(values.mean()), 3), round(float(values.max()), 3)


def _summary(scan: _Scan, region: Region, count: int) -> LesionLabelSummary:
    label = region.label
    return LesionLabelSummary(
        label=label.name,
        display_name=label.display_name,
        kind=label.kind.value,
        codes=label_codes(label),
        count=count,
        total_volume_ml=scan.volume_ml(int(np.count_nonzero(region.mask))),
    )


def _mean_and_sd(hu: NDArray[np.int16] | NDArray[np.float32]) -> tuple[float, float]:
    """Mean and population standard deviation, summed in float64, part by part: an organ can be millions of voxels."""
    mean = float(hu.mean(dtype=np.float64))
    parts = (
        hu[start : start + _SUMMED_VOXELS].astype(np.float64) - mean for start in range(0, hu.size, _SUMMED_VOXELS)
    )
    return round(mean, 1), round(math.sqrt(math.fsum(np.dot(part, part) for part in parts) / hu.size), 1)


def _axes_lps_mm(
    scan: _Scan, diameters: Diameters
) -> tuple[tuple[tuple[float, float, float], tuple[float, float, float]], ...]:
    to_lps_mm = scan.volume.geometry.to_lps_mm
    return tuple(
        (_point(to_lps_mm(ends[0])), _point(to_lps_mm(ends[1])))
        for ends in (diameters.longest_segment, diameters.perpendicular_segment)
    )


def _candidate(candidate: Candidate) -> SeriesCandidate:
    return SeriesCandidate(
        series_uid=candidate.series_uid or None,
        series_number=candidate.series_number,
        images=candidate.images,
        chosen=candidate.chosen,
        reason=candidate.reason,
        plane=None if candidate.plane is None else candidate.plane.value,
        original=candidate.original,
        kernel=candidate.kernel,
        slices=candidate.slices,
        slice_spacing_mm=_rounded(candidate.slice_spacing_mm),
        slice_thickness_mm=_rounded(candidate.slice_thickness_mm),
        coverage_mm=_rounded(candidate.coverage_mm),
        tilt_degrees=_rounded(candidate.tilt_degrees),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _point(values: NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = (round(float(value), 2) + 0.0 for value in values)  # + 0.0: no "-0.0" in the JSON
    return x, y, z


def label_codes(label: Label) -> LabelCodes:
    """The label's meaning, as the findings state it."""
    return LabelCodes(
        category=_concept(label.category),
        type=_concept(label.type),
        laterality=None if label.laterality is None else _concept(label.laterality),
        anatomic_region=None if label.anatomic_region is None else _concept(label.anatomic_region),
    )


def _concept(code: Code) -> CodedConcept:
    return CodedConcept(scheme=code.scheme, value=code.value, meaning=code.meaning)
