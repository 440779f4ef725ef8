"""From a case to a training window, first half: all that is random about it, drawn as one small plan.

A plan says which case is seen, in what pose, and by what scanner; `training.rendering` makes images of plans, on any
device. A phantom's HU are all drawn; a scan keeps its own, seen by a scanner that is a little worse or set otherwise,
and as often as not in another contrast phase. Nothing here flips left and right: side is part of the label.
"""

from enum import StrEnum
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.config import ModelConfig
from training.label_table import STANDARD, LabelTable, from_least_specific
from training.labels import LabelKind
from training.phantom.render import LEAST_SIGMA, gaussian_weights, noise_gain, texture_table
from training.phantom.tissues import Tissue, draw_phase, enhancement_hu, sample_tissue_hu
from training.store import Case

ELASTIC_NODES = 6
_CODES = 256
_LABELS_PER_FIELD = 16  # 4 bits each of an int64
#: What enhances in an organ; those that are not here hold gas, fluid or fat, which do not.
_PARENCHYMA = {
    "spleen": Tissue.SPLEEN, "kidney_right": Tissue.RENAL_CORTEX, "kidney_left": Tissue.RENAL_CORTEX,
    "esophagus": Tissue.ESOPHAGUS, "liver": Tissue.LIVER, "aorta": Tissue.AORTA,
    "inferior_vena_cava": Tissue.VENA_CAVA, "portal_and_splenic_vein": Tissue.PORTAL_VEIN,
    "pancreas": Tissue.PANCREAS, "adrenal_gland_right": Tissue.ADRENAL, "adrenal_gland_left": Tissue.ADRENAL,
    "duodenum": Tissue.DUODENUM_WALL, "hepatic_vessel": Tissue.HEPATIC_VEIN, "prostate": Tissue.PROSTATE,
    "celiac_trunk": Tissue.ARTERY,
}  # fmt: skip
# Shares of a portal venous enhancement: what a native scan may gain and an enhanced one lose.
_DOSES = (-0.6, 1.1)

Float32 = NDArray[np.float32]


class Augmentation(StrEnum):
    """How windows of scans are varied; those of phantoms always are as the phantoms' own."""

    MODERN = "modern"  #: turned, scaled, bent, cut short, blurred, with noise, thick slices and other HU
    PAPER = "paper"  #: the published one: a quarter turn in 10 % of windows, HU shifted in 20 %


class WindowPlan(NamedTuple):
    """One window of X x Y x Z voxels, or a batch of them with an axis in front; tensors, so that loaders collate it.

    World position of voxel v: `center` + `matrix` (v - middle of the window) + the smooth displacement that `elastic`
    has on 6 x 6 x 6 nodes, in voxels of the case. What lies beyond the case or outside the planes `scanned` is `air`.
    `hu`, `texture_hu` and `fields` give each code of the case its meaning; a scan has its own HU, to which `hu` is
    added. `along_x`, `along_y` and `along_z` are the scanner's point spread and slices, as linear maps along an axis.
    """

    number: Tensor  #: int64 (): of the case, as the caller numbers its cases
    center: Tensor  #: float32 (3,)
    matrix: Tensor  #: float32 (3,3)
    elastic: Tensor  #: float32 (3,6,6,6)
    scanned: Tensor  #: int64 (2,): first plane along z and the one after the last
    air: Tensor  #: int64 (): a code
    hu: Tensor  #: float32 (256,)
    texture_hu: Tensor  #: float32 (256,): standard deviation of the slow texture
    fields: Tensor  #: int64 (R,256): of channel c, the bit 4 (c % 16) in row c // 16
    noise_hu: Tensor  #: float32 (): standard deviation before the point spread
    noise_seed: Tensor  #: int64 ()
    along_x: Tensor  #: float32 (X,X)
    along_y: Tensor  #: float32 (Y,Y)
    along_z: Tensor  #: float32 (Z,Z)
    gain: Tensor  #: float32 (): of the finished HU
    offset_hu: Tensor  #: float32 ()
    supervised: Tensor  #: bool (C,)


def draw_plan(
    case: Case,
    config: ModelConfig,
    patch: int,
    rng: np.random.Generator,
    *,
    around: tuple[float, float] = (0.4, 0.4),
    number: int = 0,
    augmentation: Augmentation = Augmentation.MODERN,
    table: LabelTable = STANDARD,
) -> WindowPlan:
    """A random window of `patch`^3 voxels of the case, in a random pose, as one random acquisition.

    `around` is how often the window lies around a lesion and how often around a voxel of any label, each as likely;
    else it lies anywhere in the patient. `number` is passed on. `augmentation` is of scans.
    `table` has the labels of the model, at least those of the case.
    """
    if case.hu is not None and augmentation is Augmentation.PAPER:
        return _paper_plan(number, case, config, patch, around, rng, table)
    center = _draw_center(case, around, rng, table) + rng.uniform(-0.28, 0.28, 3) * patch
    matrix = _draw_matrix(rng)
    elastic = np.zeros((3, *[ELASTIC_NODES] * 3), np.float32)
    if rng.random() < 0.5:
        elastic = rng.normal(0.0, rng.uniform(0.5, 2.5), elastic.shape).astype(np.float32)
    scanned = _draw_scanned(patch, rng)
    if case.hu is not None:
        return _seen_again(number, case, config, (patch,) * 3, (center, matrix, elastic), scanned, rng, table)
    return _acquired(number, case, config, (patch,) * 3, (center, matrix, elastic), scanned, rng, table)


def plain_plan(case: Case, config: ModelConfig, shape: tuple[int, int, int], rng: np.random.Generator) -> WindowPlan:
    """The case as it lies, from its first voxel on and filled up with air to `shape`: a phantom as one random
    acquisition, a scan as it is."""
    center = (np.array(shape) - 1) / 2.0
    elastic = np.zeros((3, *[ELASTIC_NODES] * 3), np.float32)
    if case.hu is not None:
        return _scan_plan(0, case, shape, (center, np.eye(3), elastic), (0, shape[2]), STANDARD)
    return _acquired(0, case, config, shape, (center, np.eye(3), elastic), (0, shape[2]), rng, STANDARD)


def _acquired(
    number: int,
    case: Case,
    config: ModelConfig,
    shape: tuple[int, int, int],
    pose: tuple[NDArray[np.float64], NDArray[np.float64], Float32],
    scanned: tuple[int, int],
    rng: np.random.Generator,
    table: LabelTable,
) -> WindowPlan:
    """A pose, and a scanner and a patient's tissues drawn for it."""
    phase = draw_phase(rng)
    tissue_hu = sample_tissue_hu(rng, phase)
    if rng.random() < 0.5:  # a patient unlike any of ours
        soft = tissue_hu > -50.0
        tissue_hu = tissue_hu + np.where(soft, rng.normal(0.0, 5.0, tissue_hu.shape), 0.0).astype(np.float32)
    noise_hu = rng.gamma(2.0, 4.5)
    sigma = max(LEAST_SIGMA, rng.uniform(0.4, 1.8) / config.spacing_mm[0])
    along = [point_spread(size, sigma) for size in shape]
    if rng.random() < 0.35:
        along[2] = thick_slices(shape[2], float(rng.uniform(1.3, 2.7))) @ along[2]
    gain, offset_hu = (rng.normal(1.0, 0.05), rng.normal(0.0, 8.0)) if rng.random() < 0.3 else (1.0, 0.0)
    center, matrix, elastic = pose
    return WindowPlan(
        number=torch.tensor(number),
        center=torch.tensor(center, dtype=torch.float32),
        matrix=torch.tensor(matrix, dtype=torch.float32),
        elastic=torch.from_numpy(elastic),
        scanned=torch.tensor(scanned),
        air=torch.tensor(_air(case)),
        hu=_by_code(tissue_hu[case.tissues], torch.float32),
        texture_hu=_by_code(texture_table()[case.tissues], torch.float32),
        fields=label_fields(case.labels, len(table.labels)),
        # Noise is as smooth as the point spread makes it; its deviation is that of the finished image.
        noise_hu=torch.tensor(noise_hu / noise_gain(sigma) ** 3, dtype=torch.float32),
        noise_seed=torch.tensor(int(rng.integers(2**62))),
        along_x=torch.from_numpy(along[0]),
        along_y=torch.from_numpy(along[1]),
        along_z=torch.from_numpy(along[2]),
        gain=torch.tensor(gain, dtype=torch.float32),
        offset_hu=torch.tensor(offset_hu, dtype=torch.float32),
        supervised=torch.tensor([bool(case.supervised >> label.channel & 1) for label in table.labels]),
    )


def _seen_again(
    number: int,
    case: Case,
    config: ModelConfig,
    shape: tuple[int, int, int],
    pose: tuple[NDArray[np.float64], NDArray[np.float64], Float32],
    scanned: tuple[int, int],
    rng: np.random.Generator,
    table: LabelTable,
) -> WindowPlan:
    """A scan in a pose, as often as not with more noise, a softer kernel, thicker slices, or other HU."""
    along = [np.eye(size, dtype=np.float32) for size in shape]
    sigma = 0.0
    if rng.random() < 0.4:
        sigma = max(LEAST_SIGMA, rng.uniform(0.3, 1.2) / config.spacing_mm[0])
        along = [point_spread(size, sigma) for size in shape]
    if rng.random() < 0.25:
        along[2] = thick_slices(shape[2], float(rng.uniform(1.3, 2.7))) @ along[2]
    noise_hu = rng.gamma(2.0, 4.0) if rng.random() < 0.4 else 0.0
    gain, offset_hu = (rng.normal(1.0, 0.06), rng.normal(0.0, 12.0)) if rng.random() < 0.5 else (1.0, 0.0)
    plan = _scan_plan(number, case, shape, pose, scanned, table)
    if rng.random() < 0.5:
        plan = plan._replace(hu=other_contrast(case.labels, rng, table))
    return plan._replace(
        noise_hu=torch.tensor(noise_hu / (noise_gain(sigma) ** 3 if sigma else 1.0), dtype=torch.float32),
        noise_seed=torch.tensor(int(rng.integers(2**62))),
        along_x=torch.from_numpy(along[0]),
        along_y=torch.from_numpy(along[1]),
        along_z=torch.from_numpy(along[2]),
        gain=torch.tensor(gain, dtype=torch.float32),
        offset_hu=torch.tensor(offset_hu, dtype=torch.float32),
    )


def _paper_plan(
    number: int,
    case: Case,
    config: ModelConfig,
    patch: int,
    around: tuple[float, float],
    rng: np.random.Generator,
    table: LabelTable,
) -> WindowPlan:
    """A window as the reference augments it: unturned around a voxel; quarter turns about z; HU shifted by up to a
    tenth of the intensity range."""
    # On the scan's own voxels: of a window with an even number of them the middle lies between two.
    center = np.floor(_draw_center(case, around, rng, table)) + (0.5 if patch % 2 == 0 else 0.0)
    matrix = np.eye(3)
    if rng.random() < 0.1:
        quarter = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        matrix = np.linalg.matrix_power(quarter, int(rng.integers(1, 4)))
    elastic = np.zeros((3, *[ELASTIC_NODES] * 3), np.float32)
    plan = _scan_plan(number, case, (patch,) * 3, (center, matrix, elastic), (0, patch), table)
    low, high = config.intensity_range_hu
    shift = rng.uniform(-0.1, 0.1) * (high - low) if rng.random() < 0.2 else 0.0
    return plan._replace(offset_hu=torch.tensor(shift, dtype=torch.float32))


def _scan_plan(
    number: int,
    case: Case,
    shape: tuple[int, int, int],
    pose: tuple[NDArray[np.float64], NDArray[np.float64], Float32],
    scanned: tuple[int, int],
    table: LabelTable,
) -> WindowPlan:
    """A scan in a pose, its HU untouched."""
    center, matrix, elastic = pose
    along = [torch.eye(size) for size in shape]
    return WindowPlan(
        number=torch.tensor(number),
        center=torch.tensor(center, dtype=torch.float32),
        matrix=torch.tensor(matrix, dtype=torch.float32),
        elastic=torch.from_numpy(elastic),
        scanned=torch.tensor(scanned),
        air=torch.tensor(_air(case)),
        hu=torch.zeros(_CODES),
        texture_hu=torch.zeros(_CODES),
        fields=label_fields(case.labels, len(table.labels)),
        noise_hu=torch.tensor(0.0),
        noise_seed=torch.tensor(0),
        along_x=along[0],
        along_y=along[1],
        along_z=along[2],
        gain=torch.tensor(1.0),
        offset_hu=torch.tensor(0.0),
        supervised=torch.tensor([bool(case.supervised >> label.channel & 1) for label in table.labels]),
    )


def other_contrast(labels: NDArray[np.uint64], rng: np.random.Generator, table: LabelTable) -> Tensor:
    """What organs gain or lose in one other contrast phase: HU (256,) by the `labels` of each code.

    Each by the same share of its enhancement, and a little at random. A lesion changes with its host, and keeps its
    contrast.
    """
    dose = rng.uniform(*_DOSES)
    gain = np.zeros(len(labels))
    for label in from_least_specific(table):
        if label.kind is not LabelKind.ORGAN:
            continue
        enhanced = enhancement_hu(_PARENCHYMA[label.name]) if label.name in _PARENCHYMA else 0.0
        has = labels >> np.uint64(label.channel) & np.uint64(1) != 0
        gain[has] = dose * enhanced + rng.normal(0.0, 8.0)
    return _by_code(gain, torch.float32)


def label_fields(labels: NDArray[np.uint64], count: int) -> Tensor:
    """`WindowPlan.fields` of the labels of each code, `count` labels: counts up to 15 of 16 labels add up in one
    number."""
    fields = torch.zeros((-(-count // _LABELS_PER_FIELD), _CODES), dtype=torch.int64)
    for channel in range(count):
        row, place = divmod(channel, _LABELS_PER_FIELD)
        bit = (labels >> np.uint64(channel) & np.uint64(1)) << np.uint64(4 * place)
        fields[row, : len(labels)] |= torch.from_numpy(bit.view(np.int64))
    return fields


def point_spread(size: int, sigma: float) -> Float32:
    """A Gaussian of `sigma` voxels along an axis of `size` voxels, whose border value holds beyond it: (size,size)."""
    weights = gaussian_weights(sigma)
    radius = len(weights) // 2
    spread = np.zeros((size, size), np.float32)
    rows = np.arange(size)
    for shift, weight in enumerate(weights, -radius):
        np.add.at(spread, (rows, np.clip(rows + shift, 0, size - 1)), np.float32(weight))
    return spread


def thick_slices(size: int, factor: float) -> Float32:
    """Slices `factor` voxels apart, each the mean over its thickness, brought back by linear interpolation:
    (size,size)."""
    thickness = max(2, round(factor))
    rows = np.arange(size)
    means = np.zeros((size, size), np.float32)
    for shift in range(-(thickness // 2), thickness - thickness // 2):
        np.add.at(means, (rows, np.clip(rows + shift, 0, size - 1)), np.float32(1.0 / thickness))
    positions = np.clip(np.arange(0.0, size, factor), 0, size - 1)
    slices = means[np.round(positions).astype(np.int64)]
    back = np.clip(rows / factor, 0, len(positions) - 1)
    lower = np.minimum(back.astype(np.int64), len(positions) - 2)
    fraction = (back - lower).astype(np.float32)[:, None]
    thick: Float32 = slices[lower] * (1 - fraction) + slices[lower + 1] * fraction
    return thick


def _by_code(values: NDArray[np.generic], dtype: torch.dtype) -> Tensor:
    table = torch.zeros(_CODES, dtype=dtype)
    table[: len(values)] = torch.from_numpy(values).to(dtype)
    return table


def _draw_center(
    case: Case, around: tuple[float, float], rng: np.random.Generator, table: LabelTable
) -> NDArray[np.float64]:
    choice = rng.random()
    lesion, label = around
    channels = np.unique(case.center_channel)
    if not len(channels):  # a scan that shows none of what was annotated in it
        choice = 1.0
    if choice < lesion:
        lesions = channels[np.isin(channels, [lesion.channel for lesion in table.lesions])]
        channels = lesions if len(lesions) else channels
    if choice < lesion + label:
        rows = np.flatnonzero(case.center_channel == rng.choice(channels))
        return np.asarray(case.centers[rng.choice(rows)], np.float64)
    shape = np.array(case.codes.shape, np.float64)
    return shape * rng.uniform([0.3, 0.3, 0.0], [0.7, 0.7, 1.0])


def _draw_matrix(rng: np.random.Generator) -> NDArray[np.float64]:
    """A rotation about all axes, and a scale that differs a little between them."""
    angles = np.deg2rad(rng.normal(0.0, [5.0, 5.0, 7.0]))
    scale = np.exp(rng.normal(0.0, 0.10) + rng.normal(0.0, 0.05, 3))
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x @ np.diag(scale))


def _draw_scanned(planes: int, rng: np.random.Generator) -> tuple[int, int]:
    """Sometimes only a slab of the window was scanned; the rest is padding, as at inference on a short scan."""
    if rng.random() >= 0.15:
        return 0, planes
    thickness = int(rng.integers(8, planes))
    start = int(rng.integers(0, planes - thickness + 1))
    return start, start + thickness


def _air(case: Case) -> int:
    return int(np.flatnonzero((case.tissues == Tissue.AIR) & (case.labels == 0))[0])
