"""From a label map to a training sample: a random pose of a random crop, rendered as a scan of its own.

Nothing here flips left and right: side is part of the label.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from training.config import ModelConfig
from training.labels import LESIONS
from training.phantom.render import render_hu
from training.phantom.tissues import Tissue, draw_phase, sample_tissue_hu
from training.store import Case

_LESION_CHANNELS = np.array([label.channel for label in LESIONS])


@dataclass(frozen=True)
class Sample:
    """One training window: `image` float32 (1,D,H,W) normalised; `occupancy` uint8 (C,D/s,H/s,W/s), eighths of a voxel
    filled (0..8); `supervised` bool (C,)."""

    image: NDArray[np.float32]
    occupancy: NDArray[np.uint8]
    supervised: NDArray[np.bool_]


def draw_sample(
    case: Case, config: ModelConfig, patch: int, rng: np.random.Generator, *, around: tuple[float, float] = (0.4, 0.4)
) -> Sample:
    """A random sample of `patch`^3 voxels from the case.

    `around` is how often the window lies around a lesion and how often around a voxel of any label, each as likely;
    else it lies anywhere in the patient.
    """
    codes = _random_crop(case, patch, around, rng)
    _cut_field_of_view(codes, case, rng)
    hu = _scan(case.tissues[codes], config.spacing_mm[0], rng)
    return Sample(
        image=normalise(hu, config)[None],
        occupancy=occupancy_at_stride_2(codes, case.labels),
        supervised=_supervised(case),
    )


def plain_sample(case: Case, config: ModelConfig, corner: tuple[int, int, int], rng: np.random.Generator) -> Sample:
    """The window of `roi_size` voxels at `corner` as it lies in the case, air beyond it, as one random acquisition."""
    codes = np.full(config.roi_size, _air(case), np.uint8)
    inside = case.codes[tuple(slice(start, start + edge) for start, edge in zip(corner, config.roi_size, strict=True))]
    codes[tuple(slice(0, n) for n in inside.shape)] = inside
    hu = _scan(case.tissues[codes], config.spacing_mm[0], rng)
    return Sample(normalise(hu, config)[None], occupancy_at_stride_2(codes, case.labels), _supervised(case))


def _supervised(case: Case) -> NDArray[np.bool_]:
    return (case.supervised >> np.arange(32) & 1).astype(np.bool_)


def normalise(hu: NDArray[np.float32], config: ModelConfig) -> NDArray[np.float32]:
    """HU clipped to the intensity range and mapped to the output range."""
    low, high = config.intensity_range_hu
    out_low, out_high = config.output_range
    unit = (np.clip(hu, low, high) - low) / (high - low)
    return (unit * (out_high - out_low) + out_low).astype(np.float32)


def _random_crop(case: Case, patch: int, around: tuple[float, float], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Codes (patch,)*3 under a random rotation, scale and smooth deformation; air outside the case."""
    center = _draw_center(case, around, rng) + rng.uniform(-0.28, 0.28, 3) * patch
    angles = np.deg2rad(rng.normal(0.0, [5.0, 5.0, 7.0]))
    scale = np.exp(rng.normal(0.0, 0.10) + rng.normal(0.0, 0.05, 3))
    matrix = _rotation(angles) @ np.diag(scale)
    ticks = np.arange(patch, dtype=np.float32) - (patch - 1) / 2.0
    elastic = _elastic(patch, rng) if rng.random() < 0.5 else None
    flat = np.zeros((patch,) * 3, np.int32)
    outside = np.zeros((patch,) * 3, bool)
    for axis, size in enumerate(case.codes.shape):
        row = matrix[axis].astype(np.float32)
        coordinate = (
            np.float32(center[axis] + 0.5)
            + (row[0] * ticks)[:, None, None]
            + (row[1] * ticks)[None, :, None]
            + (row[2] * ticks)[None, None, :]
        )
        if elastic is not None:
            coordinate += elastic[axis]
        index = np.floor(coordinate).astype(np.int32)
        outside |= (index < 0) | (index >= size)
        flat = flat * size + np.clip(index, 0, size - 1)
    codes: NDArray[np.uint8] = np.asarray(case.codes).reshape(-1)[flat]
    codes[outside] = _air(case)
    return codes


def _draw_center(case: Case, around: tuple[float, float], rng: np.random.Generator) -> NDArray[np.float64]:
    choice = rng.random()
    lesion, label = around
    channels = np.unique(case.center_channel)
    if choice < lesion:
        lesions = channels[np.isin(channels, _LESION_CHANNELS)]
        channels = lesions if len(lesions) else channels
    if choice < lesion + label:
        rows = np.flatnonzero(case.center_channel == rng.choice(channels))
        return np.asarray(case.centers[rng.choice(rows)], np.float64)
    shape = np.array(case.codes.shape, np.float64)
    return shape * rng.uniform([0.3, 0.3, 0.0], [0.7, 0.7, 1.0])


def _rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x)


def _elastic(patch: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Smooth displacement (3,patch,patch,patch) in voxels."""
    coarse = rng.normal(0.0, rng.uniform(0.5, 2.5), (3, 6, 6, 6)).astype(np.float32)
    steps = np.linspace(0.0, 5.0, patch, dtype=np.float32)
    lower = np.minimum(steps.astype(np.int64), 4)
    weight = np.zeros((patch, 6), np.float32)
    weight[np.arange(patch), lower] = 1.0 - (steps - lower)
    weight[np.arange(patch), lower + 1] = steps - lower
    field = np.tensordot(coarse, weight, axes=(1, 1))  # (3, 6, 6, patch): the contracted axis moves to the end
    field = np.tensordot(field, weight, axes=(1, 1))
    field = np.tensordot(field, weight, axes=(1, 1))
    return np.ascontiguousarray(field)


def _air(case: Case) -> int:
    return int(np.flatnonzero((case.tissues == Tissue.AIR) & (case.labels == 0))[0])


def _cut_field_of_view(codes: NDArray[np.uint8], case: Case, rng: np.random.Generator) -> None:
    """Sometimes only a slab of the window was scanned; the rest is padding, as at inference on a short scan."""
    if rng.random() < 0.15:
        size = codes.shape[2]
        thickness = int(rng.integers(8, size))
        start = int(rng.integers(0, size - thickness + 1))
        codes[:, :, :start] = _air(case)
        codes[:, :, start + thickness :] = _air(case)


def _scan(tissue: NDArray[np.uint8], spacing_mm: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """HU of one acquisition: phase, patient, dose, kernel, slice thickness."""
    phase = draw_phase(rng)
    tissue_hu = sample_tissue_hu(rng, phase)
    if rng.random() < 0.5:  # a patient unlike any of ours
        soft = tissue_hu > -50.0
        tissue_hu = tissue_hu + np.where(soft, rng.normal(0.0, 7.0, tissue_hu.shape), 0.0).astype(np.float32)
    hu = render_hu(
        tissue,
        tissue_hu,
        rng,
        spacing_mm=(spacing_mm,) * 3,
        noise_hu=float(rng.gamma(2.0, 6.0)),
        kernel_mm=float(rng.uniform(0.4, 1.8)),
    ).astype(np.float32)
    if rng.random() < 0.35:
        hu = _thick_slices(hu, float(rng.uniform(1.3, 2.7)))
    if rng.random() < 0.3:
        hu = hu * np.float32(rng.normal(1.0, 0.05)) + np.float32(rng.normal(0.0, 8.0))
    return hu


def _thick_slices(hu: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """Slices `factor` voxels apart, each the mean over its thickness, brought back by linear interpolation."""
    size = hu.shape[2]
    blurred = ndimage.uniform_filter1d(hu, max(2, round(factor)), axis=2, mode="nearest")
    positions = np.clip(np.arange(0.0, size, factor), 0, size - 1)
    slices = blurred[:, :, np.round(positions).astype(np.int64)]
    back = np.clip(np.arange(size) / factor, 0, len(positions) - 1)
    lower = np.minimum(back.astype(np.int64), len(positions) - 2)
    fraction = (back - lower).astype(np.float32)
    thick: NDArray[np.float32] = slices[:, :, lower] * (1 - fraction) + slices[:, :, lower + 1] * fraction
    return thick


def occupancy_at_stride_2(codes: NDArray[np.uint8], labels: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """How many of the 8 voxels under each feature voxel carry each label: uint8 (32,D/2,H/2,W/2), 0..8.

    Counts of 16 labels are summed at once as 4-bit fields of one uint64.
    """
    table = np.zeros((2, len(labels)), np.uint64)
    for channel in range(32):
        bit = (labels >> np.uint32(channel) & np.uint32(1)).astype(np.uint64)
        table[channel // 16] |= bit << np.uint64(4 * (channel % 16))
    d, h, w = (size // 2 for size in codes.shape)
    occupancy = np.empty((32, d, h, w), np.uint8)
    for half in range(2):
        fields = table[half][codes]
        sums = fields[0::2] + fields[1::2]
        sums = sums[:, 0::2] + sums[:, 1::2]
        sums = sums[:, :, 0::2] + sums[:, :, 1::2]
        for channel in range(16):
            occupancy[half * 16 + channel] = sums >> np.uint64(4 * channel) & np.uint64(15)
    return occupancy
