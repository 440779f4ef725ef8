"""The trunk as a container: pose, warp, skin, fat, muscle wall, cavity, diaphragm. Tables are mm in body coordinates.

Sizes were read off `totalsegmentator_example` (TotalSegmentator's public test scan).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from training.phantom.canvas import Canvas, Fields, FloatArray, lattice_axes
from training.phantom.rotation import rotation
from training.phantom.tissues import Tissue

# Height z, half width, front y, back y of the cavity (inside of ribs and abdominal wall).
_CAVITY = np.array(
    [
        (-320, 12, 10, -18), (-295, 35, 35, -38), (-260, 62, 78, -58), (-220, 76, 100, -66), (-180, 100, 112, -62),
        (-150, 117, 116, -48), (-100, 126, 121, -42), (-50, 129, 123, -48), (0, 133, 124, -58), (60, 136, 122, -74),
        (120, 133, 112, -88), (160, 126, 99, -92), (200, 110, 80, -86), (230, 92, 60, -73), (260, 68, 37, -55),
        (285, 42, 16, -40), (300, 22, 2, -28), (330, 10, -5, -20),
    ], float,
)  # fmt: skip
# The same for the outside of the muscles.
_MUSCLE = np.array(
    [
        (-345, 60, 50, -60), (-290, 150, 68, -92), (-240, 162, 88, -100), (-200, 150, 104, -98), (-150, 140, 121, -86),
        (-100, 139, 130, -80), (-50, 144, 132, -84), (0, 149, 134, -90), (60, 152, 133, -102), (120, 154, 124, -114),
        (160, 158, 113, -118), (200, 164, 96, -116), (230, 166, 78, -105), (255, 140, 56, -92), (275, 95, 38, -80),
        (295, 64, 28, -68), (360, 58, 26, -66),
    ], float,
)  # fmt: skip
# Vertebral levels from L5 up to C7: height z of the body's centre and its y; the spine runs through them.
SPINE = np.array(
    [
        (-262, -62), (-240, -66), (-205, -45), (-165, -2), (-137, 12), (-105, 19), (-69, 16), (-34, 9), (0, 0),
        (31, -10), (60, -20), (87, -30), (112, -38), (136, -44), (159, -48), (181, -50), (202, -48), (222, -43),
        (242, -36), (260, -27), (278, -17), (296, -9), (312, -6), (328, -5), (360, -4),
    ], float,
)  # fmt: skip


@dataclass(frozen=True)
class Body:
    """The habitus of one patient."""

    scale: tuple[float, float, float]  #: size along x, y, z relative to the reference patient
    angles: tuple[float, float, float]  #: rotation in degrees
    shift: tuple[float, float, float]  #: where L1 lies in the world (mm)
    subcutaneous_mm: float  #: fat under the skin of the flank
    visceral_mm: float  #: how far the abdominal wall is pushed out by visceral fat
    wall: float  #: muscle bulk relative to the reference
    warp_mm: float
    dome_mm: tuple[float, float]  #: top of the right and left hemidiaphragm
    female: bool
    arms: str  #: "up", "down" or "absent"
    table: bool


def sample_body(rng: np.random.Generator) -> Body:
    """A patient's habitus; thin to obese, small to tall, any adult age."""
    size = rng.normal(1.0, 0.055)
    obesity = float(np.clip(rng.beta(1.6, 3.0), 0, 1))
    inspiration = float(rng.normal(0, 11))
    return Body(
        scale=(
            float(np.clip(size * rng.normal(1.0, 0.05) + 0.06 * obesity, 0.84, 1.2)),
            float(np.clip(size * rng.normal(1.0, 0.05) + 0.08 * obesity, 0.84, 1.22)),
            float(np.clip(size * rng.normal(1.0, 0.05), 0.85, 1.15)),
        ),
        angles=(float(rng.normal(0, 2)), float(rng.normal(0, 2)), float(rng.normal(0, 3))),
        shift=(float(rng.normal(0, 8)), float(rng.normal(0, 12)), float(rng.normal(0, 10))),
        subcutaneous_mm=4 + 38 * obesity + float(rng.uniform(0, 6)),
        visceral_mm=float(np.clip(rng.normal(0, 6) + 38 * obesity - 6, -14, 40)),
        wall=float(np.clip(rng.normal(1, 0.18), 0.6, 1.4)),
        warp_mm=float(rng.uniform(2.0, 5.0)),
        dome_mm=(86 - inspiration + float(rng.normal(0, 4)), 76 - inspiration + float(rng.normal(0, 5))),
        female=bool(rng.random() < 0.5),
        arms=str(rng.choice(["up", "down", "absent"], p=[0.3, 0.25, 0.45])),
        table=bool(rng.random() < 0.8),
    )


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> FloatArray:
    """Gaussian noise of unit variance on the lattice, correlated over `sigma` lattice steps."""
    field = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma, mode="wrap", truncate=3)
    return np.asarray(field / field.std(), np.float32)


def spine_y(z: FloatArray | float) -> FloatArray:
    """Front-back position of the spine's axis at a height (mm)."""
    return np.asarray(np.interp(z, SPINE[:, 0], SPINE[:, 1]), np.float32)


def _profile_distance(
    table: NDArray[np.float64], x: FloatArray, y: FloatArray, z: FloatArray, exponent: float
) -> FloatArray:
    """Radial distance (mm) to a trunk contour: superellipse sections whose size follows the table; negative inside."""
    half, front, back = (np.interp(z, table[:, 0], table[:, k]).astype(np.float32) for k in (1, 2, 3))
    dy = y - (front + back) / 2
    ratio = np.maximum(
        ((np.abs(x) / half) ** exponent + (np.abs(dy) / ((front - back) / 2)) ** exponent) ** (1 / exponent), 1e-3
    )
    return np.asarray(np.sqrt(x * x + dy * dy) * (1 - 1 / ratio) - np.float32(1e-3), np.float32)


def _smooth_min(a: FloatArray, b: FloatArray, width: float) -> FloatArray:
    h = np.clip(0.5 + 0.5 * (b - a) / width, 0, 1)
    return np.asarray(b * (1 - h) + a * h - width * h * (1 - h), np.float32)


def _limbs(x: FloatArray, y: FloatArray, z: FloatArray, arms: str) -> FloatArray:
    """Distance to the muscles of thighs and arms."""
    leg = np.hypot(np.abs(x) - (92 + 0.06 * (z + 290)), y + 2) - (80 + 0.05 * (z + 290))
    out = (leg + np.maximum(z + 275, 0)).astype(np.float32)
    if arms == "down":
        swing = np.clip((230 - z) / 400, 0, 1)
        arm = np.hypot(np.abs(x) - (192 + 34 * swing), y + 45 - 40 * swing) - (44 - 10 * swing)
        out = np.minimum(out, np.maximum(arm, z - 235))
    elif arms == "up":
        rise = np.clip((z - 215) / 160, 0, 1)
        arm = np.hypot(np.abs(x) - (150 + 5 * rise), y + 25 - 55 * rise) - (46 - 8 * rise)
        out = np.minimum(out, np.maximum(arm, 205 - z))
    return np.asarray(out, np.float32)


def build_fields(body: Body, rng: np.random.Generator) -> Fields:
    """The patient's smooth fields on the lattice."""
    pose = _pose(body)
    inverse = np.linalg.inv(pose)
    axes = lattice_axes()
    world = np.meshgrid(*axes, indexing="ij")
    shape = world[0].shape
    warp = [body.warp_mm * (0.8 * smooth_noise(rng, shape, 11) + 0.35 * smooth_noise(rng, shape, 5)) for _ in range(3)]
    x, y, z = (
        (inverse[i, 0] * world[0] + inverse[i, 1] * world[1] + inverse[i, 2] * world[2] + inverse[i, 3]).astype(
            np.float32
        )
        + np.float32([0.8, 0.9, 1.0][i]) * warp[i]
        for i in range(3)
    )
    reach = 1.05 * max(float(np.abs(w).max()) for w in warp)
    belly = np.exp(-(((z + 50) / 95) ** 2)) * np.clip((y + 20) / 100, 0, 1)
    swollen = body.visceral_mm * belly
    cavity = _profile_distance(_CAVITY, x, y, z, 2.35) - swollen
    muscle = _profile_distance(_MUSCLE, x, y, z, 2.5) - swollen
    in_chest = np.clip((z - 20) / 60, 0, 1)
    bulk = np.where(muscle > cavity, cavity, muscle)
    muscle = (muscle - (body.wall - 1) * 8).astype(np.float32)
    trunk = np.where(z < -290, np.maximum(muscle, (-290 - z) * 0.8), muscle).astype(np.float32)
    muscle = _smooth_min(trunk, _limbs(x, y, z, body.arms), 18)
    fat = _fat(body, x, y, z) + 0.12 * body.subcutaneous_mm * smooth_noise(rng, shape, 7)
    diaphragm = _diaphragm(body, x, y, z, np.minimum(cavity, bulk) * (0.6 + 0.4 * in_chest) + 0.0)
    diaphragm += 2.5 * smooth_noise(rng, shape, 6)
    noise = (smooth_noise(rng, shape, 2.2), smooth_noise(rng, shape, 2.2))
    return Fields((x, y, z), cavity, muscle, np.maximum(fat, 1.5).astype(np.float32), diaphragm, noise, reach, pose)


def _pose(body: Body) -> NDArray[np.float64]:
    pose = np.eye(4)
    pose[:3, :3] = rotation(*body.angles) @ np.diag(body.scale)
    pose[:3, 3] = body.shift
    return pose


def _fat(body: Body, x: FloatArray, y: FloatArray, z: FloatArray) -> FloatArray:
    """Subcutaneous fat (mm): thick on belly, flank and buttock, thin on the chest and the limbs."""
    base = np.interp(z, [-345, -240, -120, -40, 80, 180, 300], [0.8, 1.0, 1.05, 0.95, 0.55, 0.5, 0.45])
    back = np.clip(-y / 80, 0, 1) * np.interp(z, [-260, -180, -60, 60], [0.5, 0.6, 0.3, 0.1])
    arm = np.where(np.abs(x) > 175, 0.45, 1.0)
    fat = body.subcutaneous_mm * (base + back) * arm
    if body.female:
        side = np.exp(-(((np.abs(x) - 75) / 48) ** 2) - ((z - 135) / 55) ** 2) * np.clip((y - 30) / 60, 0, 1)
        fat = fat + (22 + 0.9 * body.subcutaneous_mm) * side
    return np.asarray(fat, np.float32)


def _diaphragm(body: Body, x: FloatArray, y: FloatArray, z: FloatArray, depth: FloatArray) -> FloatArray:
    """Height (mm) above the diaphragm: two domes that fall steeply into the recess along the wall."""
    right, left = body.dome_mm
    across = 1 / (1 + np.exp(-(x + 6) / 16))
    middle = 9 * np.exp(-(((x + 14) / 30) ** 2))
    top = left + (right - left) * across - middle
    foot = np.interp(y, [-90, -40, 40, 120], [-8, 2, 22, 48])
    rise = 1 - np.exp(-np.clip(-depth, 0, None) / 15)
    sag = 0.0022 * (np.abs(x) - 62) ** 2 + 0.0035 * (y - 30) ** 2
    return np.asarray(z - (foot + (top - foot) * rise - np.minimum(sag, 25)), np.float32)


def paint_body(canvas: Canvas, body: Body) -> None:
    """Skin, subcutaneous fat, muscles with fat planes between them, the cavity's fat, and the table below."""
    muscle = canvas.upsample(canvas.fields.muscle)
    fat = canvas.upsample(canvas.fields.fat)
    box = canvas.everything
    depth = muscle - fat
    canvas.tissue[depth < 0] = Tissue.SKIN
    canvas.tissue[depth < -1.8] = Tissue.SUBCUTANEOUS_FAT
    inside = muscle < 0
    canvas.tissue[inside] = Tissue.MUSCLE
    planes = inside & (np.abs(canvas.noise(box, 0.4)) < 0.055 + 0.002 * body.subcutaneous_mm) & (muscle < -4)
    canvas.tissue[planes] = Tissue.INTERMUSCULAR_FAT
    canvas.tissue[(canvas.cavity < 0) & (canvas.cavity > -400) & inside] = Tissue.VISCERAL_FAT
    lining = (canvas.cavity < 0) & (canvas.cavity > -1.8) & inside & (canvas.diaphragm < 0)
    canvas.tissue[lining] = Tissue.MUSCLE
    if body.table:
        _paint_table(canvas, body)


def _paint_table(canvas: Canvas, body: Body) -> None:
    """A curved carbon table with a foam core, under the back; it is straight in the world, not in the body."""
    wx, wy = ((canvas.origin[a] + canvas.spacing[a] * np.arange(canvas.shape[a])).astype(np.float32) for a in range(2))
    back = body.shift[1] - 112 * body.scale[1] - 1.15 * body.subcutaneous_mm - 22
    surface = wy[None, :] - (back + 0.00035 * wx[:, None] ** 2)
    wide = np.abs(wx)[:, None] < 215
    shell = wide & (((surface < 0) & (surface > -2.5)) | ((surface < -26) & (surface > -28.5)))
    foam = wide & (surface <= -2.5) & (surface >= -26)
    for mask, tissue in ((shell, Tissue.TABLE_SHELL), (foam, Tissue.TABLE_FOAM)):
        index = np.nonzero(mask)
        column = canvas.tissue[index]
        column[column == Tissue.AIR] = tissue
        canvas.tissue[index] = column
