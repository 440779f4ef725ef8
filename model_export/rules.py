"""Thresholds and post-processing of each label, as data that the manifest carries; the service only runs them.

The order is the order of execution. Source: the reference implementation's constants and rules
(CLIP-Driven Universal Model, Liu et al., ICCV 2023; SuPreM's copy has the size and number limits in force). It counts
voxels of its 1.5 mm grid; here they are millilitres and millimetres, so that they hold on any grid:
1 voxel = 3.375 mm^3, its 5x5x5 structuring element reaches 2 voxels = 3 mm.

What differs from the reference, and why:

- All seven lesion types must lie in their host organs; the reference asks that of kidney and liver tumours only.
  A lung tumour in the bowel is never right.
- The minimum volume and the maximum number are in force for all seven, as in SuPreM; the reference computes them and
  then leaves them out.
- An organ keeps its largest component, as in the reference, and the pieces that the end of the scan cuts off it: the
  bases of a lung on both sides of the diaphragm, the two limbs of the aortic arch or of the colon.
- Each lung is an organ like the others. The reference joins both lungs, takes the two largest components and names the
  sides by their position: that swaps or erases lungs that touch, and a patient with one lung loses it.
- The portal and splenic vein is not cut below the lowest slice of the pancreas, a rule that deletes the vein where the
  pancreas was missed. Like the hepatic vessels it stays as it was predicted: thin branches are separate components.
- Colon and small intestine keep one component, as in the reference, although collapsed bowel is often interrupted:
  the price is a missing loop, the gain no scattered false bowel.
- Host organs are cleaned by their own rules before they limit a lesion; the reference keeps as many components of the
  joined hosts as there are hosts, which is the same for organs that are found at all.
- A lesion of a calibrated checkpoint is somewhere as certain as the calibration asks; its border lies at the label's
  threshold all the same, so that a strict demand does not shrink what is measured.
- A hepatic vessel tumour may also lie in the liver (`training.labels` says why); in the reference only in the vessel.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from training.checkpoint import NOT_CALIBRATED, Calibration
from training.labels import Label, LabelKind

_REFERENCE_VOXEL_MM3 = 1.5**3
_REFERENCE_REACH_MM = 2 * 1.5  # the half-width of the 5x5x5 structuring element, beyond its centre


@dataclass(frozen=True, kw_only=True)
class KeepLargest:
    """Keep the `count` largest 26-connected components and, with `cut_pieces_ml`, pieces that the scan's end cuts off.

    Those are components of at least so many millilitres that reach the plane of the scan, the first or the last, that
    one of the largest reaches: beyond it they may be one. None: no such pieces.
    """

    rule: Literal["keep_largest"] = "keep_largest"
    count: int
    cut_pieces_ml: float | None = None


@dataclass(frozen=True, kw_only=True)
class WithinHosts:
    """Keep what lies in the union of the host organs, closed and then dilated by these reaches in millimetres."""

    rule: Literal["within_hosts"] = "within_hosts"
    closing_mm: float
    dilation_mm: float
    components: int | None = None  # of the hosts as predicted; None: the hosts after their own rules


@dataclass(frozen=True, kw_only=True)
class MinVolume:
    """Drop components smaller than `ml` millilitres."""

    rule: Literal["min_volume"] = "min_volume"
    ml: float


@dataclass(frozen=True, kw_only=True)
class MinPeak:
    """Drop components whose probability is nowhere above `probability`."""

    rule: Literal["min_peak"] = "min_peak"
    probability: float


@dataclass(frozen=True, kw_only=True)
class MaxComponents:
    """Keep at most the `count` largest components."""

    rule: Literal["max_components"] = "max_components"
    count: int


@dataclass(frozen=True, kw_only=True)
class SideOfPair:
    """Of this label and its partner as predicted, joined: the two largest components, told apart by their position."""

    rule: Literal["side_of_pair"] = "side_of_pair"
    partner: str
    side: Literal["left", "right"]


@dataclass(frozen=True, kw_only=True)
class CutBelow:
    """Drop what lies below the lowest slice of an organ."""

    rule: Literal["cut_below"] = "cut_below"
    organ: str


#: Of an organ. Pieces of 0.5 or 3 ml were no better in slabs of real CTs (docs/default-bundle.md).
LARGEST_AND_CUT_PIECES = KeepLargest(count=1, cut_pieces_ml=1.0)

#: How far a lesion may reach beyond its hosts as segmented, and which gaps between them are closed.
HOST_REACH = WithinHosts(closing_mm=_REFERENCE_REACH_MM, dilation_mm=_REFERENCE_REACH_MM)

Rule: TypeAlias = KeepLargest | WithinHosts | MinVolume | MinPeak | MaxComponents | SideOfPair | CutBelow


@dataclass(frozen=True)
class LesionLimits:
    """The reference's limits for one lesion type: voxels at 1.5 mm, components per scan."""

    min_voxels: int
    max_components: int

    @property
    def min_ml(self) -> float:
        """The smallest lesion in millilitres, rounded to the nanolitre: 0.27 has no exact binary form."""
        return round(self.min_voxels * _REFERENCE_VOXEL_MM3 / 1000.0, 6)


LESION_LIMITS: dict[str, LesionLimits] = {
    "kidney_tumor": LesionLimits(80, 5),
    "liver_tumor": LesionLimits(20, 20),
    "pancreas_tumor": LesionLimits(100, 1),
    "hepatic_vessel_tumor": LesionLimits(80, 10),
    "lung_tumor": LesionLimits(30, 10),
    "colon_tumor": LesionLimits(100, 3),
    "kidney_cyst": LesionLimits(20, 20),
}

# Branching vessels: their thin parts are separate components of a correct mask.
UNFILTERED_ORGANS = frozenset({"portal_and_splenic_vein", "hepatic_vessel"})


def postprocessing_rules(label: Label, calibration: Calibration = NOT_CALIBRATED) -> tuple[Rule, ...]:
    """The rules of one label in their order of execution. Raises KeyError for a lesion type without limits.

    The smallest lesion of the calibration raises the reference's limit, and never lowers it.
    """
    if label.kind is LabelKind.ORGAN:
        return () if label.name in UNFILTERED_ORGANS else (LARGEST_AND_CUT_PIECES,)
    limits = LESION_LIMITS[label.name]
    peak = calibration.lesion_peaks.get(label.name)
    return (
        HOST_REACH,
        MinVolume(ml=max(limits.min_ml, calibration.lesion_volumes_ml.get(label.name, 0.0))),
        *(() if peak is None else (MinPeak(probability=peak),)),
        MaxComponents(count=limits.max_components),
    )


#: Lesions that the reference limits to their hosts, and how many components of the hosts it takes.
_REFERENCE_HOST_COMPONENTS = {"kidney_tumor": 2, "liver_tumor": 1}


def reference_rules(label: Label) -> tuple[Rule, ...]:
    """The rules of the published implementation for one label, where it crashes doing nothing instead.

    Its size and number limits of lesions are not in force there; an empty pancreas, at which it stops, cuts nothing.
    """
    if label.name in _REFERENCE_HOST_COMPONENTS:
        reach = _REFERENCE_REACH_MM
        return (WithinHosts(closing_mm=reach, dilation_mm=reach, components=_REFERENCE_HOST_COMPONENTS[label.name]),)
    if label.kind is not LabelKind.ORGAN or label.name == "hepatic_vessel":
        return ()
    if label.name == "portal_and_splenic_vein":
        return (CutBelow(organ="pancreas"),)
    if label.name == "lung_right":
        return (SideOfPair(partner="lung_left", side="right"),)
    if label.name == "lung_left":
        return (SideOfPair(partner="lung_right", side="left"),)
    return (KeepLargest(count=1),)


def companions(rule: Rule) -> frozenset[str]:
    """The organs that a rule names itself; in a bundle without them it has no meaning."""
    match rule:
        case SideOfPair(partner=name) | CutBelow(organ=name):
            return frozenset({name})
        case _:
            return frozenset()


def rules_by_name(label: Label, calibration: Calibration = NOT_CALIBRATED) -> dict[str, tuple[Rule, ...]]:
    """All rule sets of one label, by the name that a request chooses them by."""
    return {"viscera": postprocessing_rules(label, calibration), "reference": reference_rules(label)}
