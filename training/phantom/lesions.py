"""Lesions: where they may grow, and how they change the tissue of their host. All sizes in world mm."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from training.labels import LESIONS
from training.phantom.canvas import Box, Canvas, FloatArray, Mask, bit
from training.phantom.tissues import Tissue

_FAT = (Tissue.VISCERAL_FAT, Tissue.PERIRENAL_FAT, Tissue.RENAL_SINUS_FAT)
#: Lesions that push their host's surface outwards into fat.
_BULGING = ("kidney_tumor", "kidney_cyst", "pancreas_tumor", "colon_tumor")
#: How deep below the host's surface the centre lies, as a share of the radius.
_DEPTH = {
    "kidney_tumor": (0.0, 0.9), "kidney_cyst": (0.1, 0.8), "pancreas_tumor": (0.4, 9.0), "colon_tumor": (0.0, 0.5),
    "liver_tumor": (0.95, 9.0), "hepatic_vessel_tumor": (0.7, 9.0), "lung_tumor": (0.8, 9.0),
}  # fmt: skip
#: Range of diameters (mm).
_DIAMETER = {
    "kidney_tumor": (16, 50), "kidney_cyst": (10, 46), "pancreas_tumor": (14, 36), "colon_tumor": (18, 46),
    "liver_tumor": (10, 50), "hepatic_vessel_tumor": (16, 50), "lung_tumor": (10, 42),
}  # fmt: skip


@dataclass(frozen=True)
class LesionPlan:
    """A lesion before it is painted: a ball with a bumpy surface."""

    label: str
    host: str
    center_mm: tuple[float, float, float]  #: RAS
    radius_mm: float
    bumps: NDArray[np.float64]  #: (waves, 4): wave vector (1/mm) and phase


@dataclass(frozen=True)
class PlantedLesion:
    """A lesion as it lies in a raster."""

    label: str
    host: str
    center_mm: tuple[float, float, float]  #: RAS
    diameter_mm: float  #: of the ball with the same volume, as planned
    volume_ml: float  #: as rasterised: number of voxels times their volume


def draw_burden(rng: np.random.Generator, *, heavy: bool = False) -> list[str]:
    """Types of the lesions that a patient is to have, in random order: none to five, no type twice; or, for a patient
    made to learn lesions from, none to three of each type."""
    names = [label.name for label in LESIONS]
    if heavy:
        return [str(name) for name in rng.permutation(np.repeat(names, rng.integers(0, 4, len(names))))]
    order = [str(name) for name in rng.permutation(names)]
    return order[: int(rng.choice([0, 1, 2, 3, 4, 5], p=[0.1, 0.16, 0.2, 0.2, 0.18, 0.16]))]


def plan_lesions(
    rng: np.random.Generator, burden: Sequence[str], labels: NDArray[np.uint32], affine: NDArray[np.float64]
) -> tuple[LesionPlan, ...]:
    """Places for lesions of these types, of those that find one, in a patient who was rasterised without any."""
    plans: list[LesionPlan] = []
    for name in burden:
        plan = _plan(rng, name, labels, affine, plans)
        if plan is not None:
            plans.append(plan)
    return tuple(plans)


def _plan(
    rng: np.random.Generator,
    name: str,
    labels: NDArray[np.uint32],
    affine: NDArray[np.float64],
    others: list[LesionPlan],
) -> LesionPlan | None:
    hosts = next(label.hosts for label in LESIONS if label.name == name)
    host = "liver" if "liver" in hosts else hosts[int(rng.integers(len(hosts)))]
    organ = (labels & bit(host)) != 0
    if organ.sum() < 60:
        return None
    found = np.argwhere(organ)
    low, high = np.maximum(found.min(0) - 1, 0), found.max(0) + 2
    region = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    spacing = np.diag(affine)[:3]
    depth = distance_transform_edt(organ[region], sampling=spacing)
    radius = float(np.exp(rng.uniform(*np.log(_DIAMETER[name])))) / 2
    least, most = _DEPTH[name]
    radius = min(radius, max(depth.max() * 0.97 / max(least, 0.3), _DIAMETER[name][0] / 2))
    good = (
        organ[region]
        & (depth >= min(least * radius, 0.97 * depth.max()))
        & (depth <= max(most * radius, spacing.max()))
    )
    if name == "hepatic_vessel_tumor":
        vessel = (labels[region] & bit("hepatic_vessel")) != 0
        good &= vessel
    places = np.argwhere(good) + low
    rng.shuffle(places)
    for place in places[:200]:
        center = affine[:3, :3] @ (place + rng.uniform(-0.4, 0.4, 3)) + affine[:3, 3]
        if all(np.linalg.norm(center - o.center_mm) > 1.2 * (radius + o.radius_mm) + 4 for o in others):
            waves = np.column_stack([rng.normal(0, 1.4 / radius, (3, 3)), rng.uniform(0, 6.28, 3)])
            return LesionPlan(name, host, (float(center[0]), float(center[1]), float(center[2])), radius, waves)
    return None


def _ball(canvas: Canvas, plan: LesionPlan) -> tuple[Box, FloatArray] | None:
    """Box and normalised radius of the bumpy ball (1 on its surface)."""
    reach = plan.radius_mm * 1.25
    first = np.maximum(np.floor((np.array(plan.center_mm) - reach - canvas.origin) / canvas.spacing).astype(int), 0)
    last = np.minimum(
        np.ceil((np.array(plan.center_mm) + reach - canvas.origin) / canvas.spacing).astype(int) + 1, canvas.shape
    )
    if (last <= first).any():
        return None
    box = (slice(first[0], last[0]), slice(first[1], last[1]), slice(first[2], last[2]))
    dx, dy, dz = np.meshgrid(
        *(canvas.origin[a] + canvas.spacing[a] * np.arange(first[a], last[a]) - plan.center_mm[a] for a in range(3)),
        indexing="ij",
    )
    amplitude = 0.015 if plan.label == "kidney_cyst" else 0.06
    bump = sum(np.sin(kx * dx + ky * dy + kz * dz + phase) for kx, ky, kz, phase in plan.bumps)
    radius = np.sqrt(dx * dx + dy * dy + dz * dz) / plan.radius_mm + amplitude * bump
    return box, radius.astype(np.float32)


def paint_lesion(canvas: Canvas, plan: LesionPlan) -> Mask | None:
    """Paint one lesion; returns its mask on the whole grid's box, None when it lies off the grid."""
    found = _ball(canvas, plan)
    if found is None:
        return None
    box, radius = found
    host = canvas.has_label(box, plan.host)
    if plan.label in _BULGING:
        host |= canvas.is_tissue(box, *_FAT) & (canvas.cavity[box] < 0)
    mask: Mask = host & (radius < 1)
    canvas.labels[box][mask] = bit(plan.host) | bit(plan.label)
    tissue = canvas.tissue[box]
    noise = canvas.noise(box, plan.radius_mm)
    match plan.label:
        case "liver_tumor":
            tissue[mask] = Tissue.LIVER_TUMOR
            tissue[mask & (radius > 0.88)] = Tissue.LIVER_TUMOR_RIM
        case "hepatic_vessel_tumor":
            tissue[mask] = Tissue.HEPATIC_VESSEL_TUMOR
            tissue[mask & (radius < 0.45)] = Tissue.HEPATIC_VESSEL_TUMOR_CORE
        case "pancreas_tumor":
            tissue[mask] = Tissue.PANCREAS_TUMOR
        case "kidney_tumor":
            tissue[mask] = Tissue.KIDNEY_TUMOR
            tissue[mask & (radius + 0.25 * noise < 0.4)] = Tissue.KIDNEY_TUMOR_NECROSIS
        case "kidney_cyst":
            tissue[mask] = Tissue.KIDNEY_CYST
        case "lung_tumor":
            tissue[mask] = Tissue.LUNG_TUMOR
        case _:
            tissue[mask] = Tissue.COLON_TUMOR
    return mask
