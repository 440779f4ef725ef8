"""Warnings: what a reader should know before trusting a number.

Everything here follows from the measurements and the bundle's data (kinds, hosts, codes, laterality): no organ is
named. Before these come the notices of reading and inference.

    nothing-found               not one voxel of any label
    organ-cut-by-field-of-view  the organ goes on outside the scan; its volume is a lower bound
    lesion-cut-by-field-of-view the same for a lesion's size
    lesion-outside-host         no voxel inside any organ it may grow in
    lesions-left-out            more lesions of one kind than are listed
    lesion-ambiguous            one region is called two kinds of lesion
    lesion-fills-host           lesions make up most of their host organ
    asymmetric-pair             left and right differ more than anatomy explains, or only one was found
    non-axial-slices            the slices are not axial, so "axial" diameters lie in another plane
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from service.imaging.volume import Notice, Volume
from service.inference.manifest import Label
from service.reporting.regions import Compass
from service.reporting.schema import FindingsWarning, LesionFinding, LesionLabelSummary, OrganFinding

PAIR_RATIO = 3.0
"""A left and a right organ whose volumes differ by more than this factor are pointed out."""

CUT_BY_FIELD_OF_VIEW = "cut-by-field-of-view"
"""How the codes of both warnings about cut structures end."""

HOST_SHARE = 0.5
"""Lesions that take more than this share of their host are pointed out: often the mask is wrong, not the patient."""


def cautions(
    notices: Sequence[Notice],
    volume: Volume,
    labels: Sequence[Label],
    organs: Sequence[OrganFinding],
    lesions: Sequence[LesionFinding],
    summaries: Sequence[LesionLabelSummary],
) -> tuple[FindingsWarning, ...]:
    """All warnings: the notices of reading and inference first, then those about the findings."""
    return (
        *(FindingsWarning(code=notice.code, message=notice.message) for notice in notices),
        *_about_the_scan(volume, organs, lesions),
        *_about_organs(organs, lesions),
        *_about_pairs(organs),
        *_about_counts(summaries, lesions),
        *_about_lesions(labels, lesions),
    )


def _about_the_scan(
    volume: Volume, organs: Sequence[OrganFinding], lesions: Sequence[LesionFinding]
) -> Iterator[FindingsWarning]:
    if not lesions and not any(organ.present for organ in organs):
        yield FindingsWarning(
            code="nothing-found",
            message="None of the requested structures was found. Check that the scan shows them and is in HU.",
        )
    if volume.sop_instance_uids is not None and Compass(volume.geometry).axis_towards(2) != 2:
        yield FindingsWarning(
            code="non-axial-slices",
            message="The slices of the series are not axial: diameters are measured in the plane of the slices.",
        )


def _about_organs(organs: Sequence[OrganFinding], lesions: Sequence[LesionFinding]) -> Iterator[FindingsWarning]:
    in_host: defaultdict[str, float] = defaultdict(float)
    for lesion in lesions:
        if lesion.host_organ is not None:
            in_host[lesion.host_organ] += lesion.volume_ml * lesion.host_overlap_fraction
    for organ in organs:
        if organ.cut_by_field_of_view:
            yield FindingsWarning(
                code=f"organ-{CUT_BY_FIELD_OF_VIEW}",
                message=f"{organ.display_name}: cut by the field of view ({', '.join(organ.cut_sides)}); "
                f"{organ.volume_ml:.1f} ml is a lower bound.",
                subject=organ.label,
            )
        if organ.present and in_host[organ.label] > HOST_SHARE * organ.volume_ml:
            yield FindingsWarning(
                code="lesion-fills-host",
                message=f"{organ.display_name}: {in_host[organ.label]:.1f} ml of {organ.volume_ml:.1f} ml are "
                "marked as lesion. Look at both masks.",
                subject=organ.label,
            )


def _about_pairs(organs: Sequence[OrganFinding]) -> Iterator[FindingsWarning]:
    """Compare organs of the same type code and different laterality; a cut one proves nothing."""
    pairs: defaultdict[tuple[str, str], list[OrganFinding]] = defaultdict(list)
    for organ in organs:
        if organ.codes.laterality is not None:
            pairs[organ.codes.type.scheme, organ.codes.type.value].append(organ)
    for pair in pairs.values():
        if len(pair) != 2 or any(organ.cut_by_field_of_view for organ in pair):
            continue
        small, large = sorted(pair, key=lambda organ: organ.volume_ml)
        ratio = large.volume_ml / small.volume_ml if small.volume_ml > 0.0 else math.inf
        if large.present and ratio > PAIR_RATIO:
            measured = f"measures {small.volume_ml:.1f} ml" if small.present else "was not found"
            yield FindingsWarning(
                code="asymmetric-pair",
                message=f"{small.display_name} {measured}, {large.display_name} measures {large.volume_ml:.1f} ml.",
                subject=small.label,
            )


def _about_counts(
    summaries: Sequence[LesionLabelSummary], lesions: Sequence[LesionFinding]
) -> Iterator[FindingsWarning]:
    listed = Counter(lesion.label for lesion in lesions)
    for summary in summaries:
        if summary.count > listed[summary.label]:
            yield FindingsWarning(
                code="lesions-left-out",
                message=f"{summary.display_name}: {summary.count} were found and only the {listed[summary.label]} "
                "largest are listed. So many are rarely real: look at the mask.",
                subject=summary.label,
            )


def _about_lesions(labels: Sequence[Label], lesions: Sequence[LesionFinding]) -> Iterator[FindingsWarning]:
    segmented = {label.name for label in labels}
    names = {label.name: label.display_name for label in labels}
    hosts = {label.name: [host for host in label.hosts if host in segmented] for label in labels}
    for lesion in lesions:
        if lesion.host_organ is None and hosts[lesion.label]:
            yield FindingsWarning(
                code="lesion-outside-host",
                message=f"{lesion.id}: touches none of the organs it may lie in ({', '.join(hosts[lesion.label])}).",
                subject=lesion.id,
            )
        if lesion.also_labelled:
            others = ", ".join(names[other] for other in lesion.also_labelled)
            yield FindingsWarning(
                code="lesion-ambiguous",
                message=f"{lesion.id}: the same region is also called {others}. Look at it: at most one can be right.",
                subject=lesion.id,
            )
        if lesion.cut_by_field_of_view:
            yield FindingsWarning(
                code=f"lesion-{CUT_BY_FIELD_OF_VIEW}",
                message=f"{lesion.id}: cut by the field of view ({', '.join(lesion.cut_sides)}); "
                "its size is a lower bound.",
                subject=lesion.id,
            )
