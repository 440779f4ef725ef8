"""One patient: all parameters drawn from a seed, and the patient painted on any grid."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from training.phantom.abdomen import (
    Abdomen,
    paint_gallbladder,
    paint_kidneys,
    paint_liver,
    paint_pancreas,
    paint_spleen,
    sample_abdomen,
)
from training.phantom.body import Body, build_fields, paint_body, sample_body
from training.phantom.bowel import (
    Bowel,
    paint_colon,
    paint_mesentery,
    paint_small_intestine,
    paint_stomach_and_duodenum,
    sample_bowel,
)
from training.phantom.canvas import Canvas, Fields, bit
from training.phantom.lesions import LesionPlan, PlantedLesion, draw_burden, paint_lesion, plan_lesions
from training.phantom.pelvis import Pelvis, paint_pelvis_organs, sample_pelvis
from training.phantom.seeds import stream
from training.phantom.skeleton import Skeleton, paint_skeleton, sample_skeleton
from training.phantom.thorax import Thorax, paint_esophagus_and_airways, paint_heart, paint_lungs, sample_thorax
from training.phantom.vessels import Vessels, paint_vessels, sample_vessels

#: Voxels painted at once; larger grids are painted slab by slab along z, to bound memory.
_SLAB_VOXELS = 12_000_000
_PLANNING_MM = 4.0
#: Patients with ten lesions rather than two. A window costs a training the same whatever it shows, and these show more.
HEAVY_BURDEN_SEEDS = range(500_000, 900_000)


@dataclass(frozen=True)
class Anatomy:
    """All parameters of one patient."""

    seed: int
    body: Body
    fields: Fields
    skeleton: Skeleton
    vessels: Vessels
    thorax: Thorax
    abdomen: Abdomen
    bowel: Bowel
    pelvis: Pelvis
    lesions: tuple[LesionPlan, ...]

    def height(self, body_z: float) -> float:
        """World z (mm) of a height given in body coordinates, on the body's axis."""
        return float(self.fields.pose[2, 2] * body_z + self.fields.pose[2, 3])


@dataclass(frozen=True)
class Raster:
    """A patient on a grid; arrays are (X, Y, Z) in RAS order."""

    tissue: NDArray[np.uint8]
    labels: NDArray[np.uint32]  #: bit c is channel c of `training.labels`
    affine: NDArray[np.float64]  #: voxel -> RAS mm, as in NIfTI
    lesions: tuple[PlantedLesion, ...]


def sample_anatomy(seed: int) -> Anatomy:
    """All parameters of the patient with this seed; those of `HEAVY_BURDEN_SEEDS` have many lesions."""
    body = sample_body(stream(seed, "body"))
    fields = build_fields(body, stream(seed, "fields"))
    vessels = sample_vessels(stream(seed, "vessels"))
    anatomy = Anatomy(
        seed=seed,
        body=body,
        fields=fields,
        skeleton=sample_skeleton(stream(seed, "skeleton")),
        vessels=vessels,
        thorax=sample_thorax(stream(seed, "thorax")),
        abdomen=sample_abdomen(stream(seed, "abdomen"), vessels, body.dome_mm[1]),
        bowel=sample_bowel(stream(seed, "bowel"), body.dome_mm[1]),
        pelvis=sample_pelvis(stream(seed, "pelvis"), body.female),
        lesions=(),
    )
    shape, affine = trunk_grid(anatomy, (_PLANNING_MM,) * 3)
    plan = rasterize(anatomy, shape, affine)
    lesions = stream(seed, "lesions")
    burden = draw_burden(lesions, heavy=seed in HEAVY_BURDEN_SEEDS)
    return replace(anatomy, lesions=plan_lesions(lesions, burden, plan.labels, plan.affine))


def trunk_grid(
    anatomy: Anatomy, spacing_mm: tuple[float, float, float], *, low_z: float = -330.0, high_z: float = 305.0
) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Shape and affine of a grid that holds the trunk between two heights (body mm), without its arms."""
    scale, shift, fat = anatomy.body.scale, anatomy.body.shift, anatomy.body.subcutaneous_mm
    half = 172 * scale[0] + 1.2 * fat + 8
    back, front = -118 * scale[1] - 1.5 * fat - 14, 136 * scale[1] + max(anatomy.body.visceral_mm, 0) + 1.1 * fat + 12
    low = np.array([shift[0] - half, shift[1] + back, anatomy.height(low_z)])
    high = np.array([shift[0] + half, shift[1] + front, anatomy.height(high_z)])
    size = np.maximum(np.round((high - low) / spacing_mm).astype(int), 1)
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = low
    return (int(size[0]), int(size[1]), int(size[2])), affine


def rasterize(anatomy: Anatomy, shape: tuple[int, int, int], affine: NDArray[np.float64]) -> Raster:
    """The patient on a RAS grid (`affine` diagonal and positive); every grid shows the same patient."""
    thickness = max(1, _SLAB_VOXELS // (shape[0] * shape[1]))
    tissue = np.empty(shape, np.uint8)
    labels = np.empty(shape, np.uint32)
    for start in range(0, shape[2], thickness):
        stop = min(start + thickness, shape[2])
        slab_affine = np.array(affine, np.float64)
        slab_affine[:3, 3] += affine[:3, 2] * start
        canvas = Canvas(anatomy.fields, (shape[0], shape[1], stop - start), slab_affine)
        _paint(canvas, anatomy)
        tissue[:, :, start:stop], labels[:, :, start:stop] = canvas.tissue, canvas.labels
    voxel_ml = float(abs(np.linalg.det(affine[:3, :3]))) / 1000
    planted = []
    for plan in anatomy.lesions:
        volume = _count(labels, plan, affine) * voxel_ml
        if volume > 0:
            planted.append(PlantedLesion(plan.label, plan.host, plan.center_mm, 2 * plan.radius_mm, volume))
    return Raster(tissue, labels, np.array(affine, np.float64), tuple(planted))


def _count(labels: NDArray[np.uint32], plan: LesionPlan, affine: NDArray[np.float64]) -> int:
    """Voxels of a planned lesion: those of its type within 1.2 radii, where no other lesion comes (`plan_lesions`) and
    which no bump of its own leaves."""
    reach = 1.2 * plan.radius_mm
    spacing, center = np.diag(affine)[:3], np.array(plan.center_mm) - affine[:3, 3]
    first = np.maximum(np.floor((center - reach) / spacing).astype(int), 0)
    last = np.maximum(np.ceil((center + reach) / spacing).astype(int) + 1, 0)
    part = labels[first[0] : last[0], first[1] : last[1], first[2] : last[2]]
    offsets_mm = np.indices(part.shape).T * spacing + first * spacing - center
    distance_mm = np.linalg.norm(offsets_mm, axis=-1).T
    near = distance_mm <= reach
    return int((near & ((part & bit(plan.label)) != 0)).sum())


def _paint(canvas: Canvas, anatomy: Anatomy) -> None:
    """Paint in order of right of way: what comes first keeps its place, what comes later takes the room left."""
    paint_body(canvas, anatomy.body)
    paint_skeleton(canvas, anatomy.skeleton, anatomy.body.arms)
    paint_vessels(canvas, anatomy.vessels)
    paint_esophagus_and_airways(canvas, anatomy.thorax)
    paint_heart(canvas, anatomy.thorax)
    paint_lungs(canvas, anatomy.thorax)
    paint_kidneys(canvas, anatomy.abdomen)
    paint_pancreas(canvas, anatomy.abdomen)
    paint_gallbladder(canvas, anatomy.abdomen)
    paint_stomach_and_duodenum(canvas, anatomy.bowel)
    paint_spleen(canvas, anatomy.abdomen)
    paint_liver(canvas, anatomy.abdomen)
    paint_pelvis_organs(canvas, anatomy.pelvis)
    paint_colon(canvas, anatomy.bowel)
    paint_small_intestine(canvas, anatomy.bowel)
    paint_mesentery(canvas)
    for plan in anatomy.lesions:
        paint_lesion(canvas, plan)
