"""How logits become masks, chosen on phantom scans that were not trained on.

Training sees windows around small labels more often than a scan has them, and a network that is trained for long says
0 or 1 where it should say perhaps. So all logits are first multiplied by the one number that makes the probabilities
likeliest (temperature scaling, Guo et al. 2017, section 4.2); that moves no border at 0.5. Organs are cut there: where
their Dice is best on the features' grid, which sees half a border voxel as a whole one, is not where it is on the
scan's. A lesion is cut where its Dice is best, mostly far lower. Of one that is so cut, peak and volume decide whether
it counts: each type has those at which, over all types together, most lesions are found at no more than
`FALSE_POSITIVES_PER_SCAN`. What a type costs in false lesions, another may use better.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import cc3d
import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from numpy.typing import NDArray
from rich.progress import track
from scipy import ndimage
from scipy.optimize import minimize_scalar
from scipy.special import expit
from torch import Tensor
from torch.utils.data import default_collate

from training.augment import plain_plan
from training.checkpoint import Calibration
from training.detection import LEAST_LESION_ML, bounding_box, count_detections
from training.labels import BY_NAME, LABELS, LESIONS, ORGANS, Label
from training.networks.universal import UniversalModel
from training.phantom.phantom import sample_settings
from training.precision import mixed_precision
from training.rendering import Voxels, render
from training.store import Case, open_case

UNDECIDED = 0.5
#: Of thresholds: a probability is small where the network has seen few such lesions; the service keeps it at 8 bits.
LESION_BOUNDS = (0.02, 0.5)

FARTHEST = 24.0  # logits beyond it count as it
BINS = 480  #: of logits, from -FARTHEST to FARTHEST
_LOGIT_SCALES = (0.1, 2.0)
_LEAST_PLANES = 32

LESION_PEAKS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
LESION_VOLUMES_ML = (LEAST_LESION_ML, 1.0, 1.5, 2.0, 3.0)
FALSE_POSITIVES_PER_SCAN = 0.8  # of one that may be: new scans show others than those chosen on


@dataclass(frozen=True)
class WholeCase:
    """One case as the model sees it, at the features' stride: logits and occupancies (C,*grid)."""

    logits: NDArray[np.float16]
    occupancy: NDArray[np.uint8]  #: eighths
    supervised: NDArray[np.bool_]
    voxel_ml: float


@dataclass(frozen=True)
class LesionField:
    """What one case shows of a type of lesion, in the box of its hosts and of the lesions that are there."""

    logits: NDArray[np.float32]  #: -`FARTHEST` outside of the hosts, where post-processing lets no lesion lie
    truth: NDArray[np.bool_]
    voxel_ml: float


@dataclass(frozen=True)
class OperatingPoint:
    """Lesions of one type over all cases, when only those of `volume_ml` and with a probability above `peak` count."""

    peak: float
    volume_ml: float
    lesions: int
    found: int
    false_positives: int


def calibrate(model: UniversalModel, store: Path, seeds: range, device: torch.device) -> Calibration:
    """Scale of the logits, threshold of each label, peak and volume of each lesion type, from the cases of `seeds`.

    The scale is put into the model's weights. 0.5 for organs, 0.5 and the least volume for what no case has.
    """
    model.eval()
    filled, seen = (torch.zeros(len(LABELS), BINS, dtype=torch.float64) for _ in range(2))
    fields: dict[str, list[LesionField]] = {lesion.name: [] for lesion in LESIONS}
    for seed in track(seeds, description="Calibration"):
        scanned = field_of_view(open_case(store, seed), seed, model.config.spacing_mm[2])
        case = see_whole_case(model, scanned, np.random.default_rng((seed, 78)), device)
        for organ in ORGANS:
            if case.supervised[organ.channel]:
                occupancy = case.occupancy[organ.channel] / np.float32(8.0)
                _count_voxels(case.logits[organ.channel], occupancy, filled[organ.channel], seen[organ.channel])
        for lesion in LESIONS:
            if case.supervised[lesion.channel]:
                field = lesion_field(case, lesion)
                fields[lesion.name].append(field)
                _count_voxels(field.logits, field.truth, filled[lesion.channel], seen[lesion.channel])
    scale = likeliest_scale(filled, seen)
    model.scale_logits(scale)
    thresholds = dict.fromkeys((organ.name for organ in ORGANS), UNDECIDED) | {
        lesion.name: best_threshold(filled[lesion.channel], seen[lesion.channel], scale) for lesion in LESIONS
    }
    points = {
        name: _sum_over_cases([operating_points(field, scale, thresholds[name]) for field in of_type])
        for name, of_type in fields.items()
        if of_type
    }
    chosen = choose_operating_points(points, FALSE_POSITIVES_PER_SCAN * len(seeds))
    return Calibration(
        logit_scale=scale,
        thresholds=thresholds,
        lesion_peaks={name: point.peak for name, point in chosen.items() if point.peak > thresholds[name]},
        lesion_volumes_ml={name: point.volume_ml for name, point in chosen.items()},
    )


def field_of_view(case: Case, seed: int, spacing_mm: float) -> Case:
    """The part of a phantom that a scan of its seed shows along z: as much of it can hold false lesions."""
    view, planes = sample_settings(seed).field_of_view, case.codes.shape[2]
    low, high = (round(z / spacing_mm + (planes - 1) / 2) for z in (view.low_z, view.high_z))
    start = min(max(low, 0), max(planes - _LEAST_PLANES, 0))
    codes = np.ascontiguousarray(case.codes[:, :, start : max(high, start + _LEAST_PLANES)])
    return replace(case, codes=codes)


@torch.no_grad()
def see_whole_case(model: UniversalModel, case: Case, rng: np.random.Generator, device: torch.device) -> WholeCase:
    """The case as one random acquisition, through blended windows as at inference."""
    tick = model.backbone.size_multiple
    x, y, z = (-(-size // tick) * tick for size in case.codes.shape)
    plan = default_collate([plain_plan(case, model.config, (x, y, z), rng)])
    image, occupancy, supervised = render(plan, [Voxels.of(case).to(device)], model.config)

    def predict(window: Tensor) -> Tensor:
        with mixed_precision(device):
            logits: Tensor = model(window)
        return logits.float()

    logits = sliding_window_inference(
        image,
        model.config.roi_size,
        1,
        predict,
        overlap=model.config.overlap,
        mode="gaussian",
        padding_mode="constant",
        cval=model.config.output_range[0],
        sw_device=device,
        device=device,
    )
    assert isinstance(logits, Tensor)
    voxel_ml = float(np.prod(model.config.spacing_mm)) * model.feature_stride**3 / 1000.0
    kept: NDArray[np.float16] = logits[0].clamp(-FARTHEST, FARTHEST).half().cpu().numpy()
    return WholeCase(kept, occupancy[0].cpu().numpy(), supervised[0].cpu().numpy(), voxel_ml)


def lesion_field(case: WholeCase, lesion: Label) -> LesionField:
    """Lesions of one type, predicted and true, where the bundle's post-processing lets them lie."""
    truth = case.occupancy[lesion.channel] >= 4
    hosts = [_largest_component(case.logits[BY_NAME[name].channel] > 0.0) for name in lesion.hosts]
    inside = ndimage.binary_dilation(np.logical_or.reduce(hosts))
    box = bounding_box(inside | truth)
    logits = np.where(inside[box], case.logits[lesion.channel][box], np.float16(-FARTHEST)).astype(np.float32)
    return LesionField(logits, truth[box], case.voxel_ml)


def _largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    largest: NDArray[np.bool_] = cc3d.largest_k(mask.view(np.uint8), k=1, connectivity=26) > 0
    return largest


def likeliest_scale(filled: Tensor, seen: Tensor) -> float:
    """The factor of all logits with which voxels are likeliest what they are, from voxels by bin of their logit: filled
    ones and all, (C,BINS). 1 without any."""
    logits = (_edges() + FARTHEST / BINS).numpy()
    full, empty = filled.sum(0).numpy(), (seen - filled).sum(0).numpy()
    if not (full + empty).any():
        return 1.0

    def cost(scale: float) -> float:  # cross entropy
        return float(full @ np.logaddexp(0.0, -scale * logits) + empty @ np.logaddexp(0.0, scale * logits))

    return round(float(minimize_scalar(cost, bounds=_LOGIT_SCALES, method="bounded").x), 2)


def best_threshold(filled: Tensor, seen: Tensor, scale: float) -> float:
    """The probability within `LESION_BOUNDS` where a cut has the best Dice, from voxels of one label by bin, (BINS,).

    Of equally good ones that closest to 0.5. 0.5 where nothing is filled.
    """
    if not filled.any():
        return UNDECIDED
    above, predicted = (torch.flip(torch.cumsum(torch.flip(counts, [0]), 0), [0]) for counts in (filled, seen))
    dice = 2.0 * above / (predicted + filled.sum()).clamp(min=1e-9)
    threshold = torch.sigmoid(scale * _edges())
    low, high = LESION_BOUNDS
    allowed = (threshold >= low - 1e-9) & (threshold <= high + 1e-9)
    tie = 1e-9 * (threshold - UNDECIDED).abs()
    return round(float(threshold[torch.argmax(torch.where(allowed, dice, -1.0) - tie)]), 3)


def operating_points(field: LesionField, scale: float, threshold: float) -> list[OperatingPoint]:
    """Lesions of one case, cut at a probability, at each of `LESION_VOLUMES_ML` and `LESION_PEAKS`."""
    probability = expit(np.float32(scale) * field.logits)
    least = math.ceil(LEAST_LESION_ML / field.voxel_ml)
    above = (probability > threshold).view(np.uint8)  # on bool arrays cc3d 4.1 can fail
    components = cc3d.connected_components(cc3d.dust(above, threshold=least, connectivity=26), connectivity=26)
    peaks = np.zeros(int(components.max(initial=0)) + 1)
    np.maximum.at(peaks, components[components > 0], probability[components > 0])
    sizes_ml = np.bincount(components.ravel(), minlength=len(peaks)) * field.voxel_ml
    points = []
    for ml in LESION_VOLUMES_ML:
        for peak in LESION_PEAKS:
            counts = (peaks > peak) & (sizes_ml >= ml)
            found = count_detections(counts[components], field.truth, field.voxel_ml)
            points.append(OperatingPoint(peak, ml, found.lesions, found.found, found.false_positives))
    return points


def choose_operating_points(
    points: dict[str, list[OperatingPoint]], false_positives: float
) -> dict[str, OperatingPoint]:
    """The point of each lesion type that finds most lesions of all types with at most `false_positives` altogether.

    Each type in turn moves to the point that gains most lesions per false positive, while the sum allows it. A type
    without lesions drops none.
    """
    at = {name: _most_careful(curve) for name, curve in points.items() if curve[0].lesions}
    spent = sum(point.false_positives for point in at.values())
    while True:
        moves = [
            (gain / max(cost, 0.5), -cost, name, point)
            for name, now in at.items()
            for point in points[name]
            if (gain := point.found - now.found) > 0
            and spent + (cost := point.false_positives - now.false_positives) <= false_positives
        ]
        if not moves:
            return dict.fromkeys(points, OperatingPoint(0.0, LEAST_LESION_ML, 0, 0, 0)) | at
        _, cost, name, point = max(moves, key=lambda move: move[:3])
        at[name], spent = point, spent - cost


def _most_careful(curve: list[OperatingPoint]) -> OperatingPoint:
    """The point with the fewest false positives; of several the one that finds most, then the least volume and peak."""
    return min(curve, key=lambda point: (point.false_positives, -point.found, point.volume_ml, point.peak))


def _sum_over_cases(cases: list[list[OperatingPoint]]) -> list[OperatingPoint]:
    return [
        OperatingPoint(
            point.peak,
            point.volume_ml,
            sum(curve[i].lesions for curve in cases),
            sum(curve[i].found for curve in cases),
            sum(curve[i].false_positives for curve in cases),
        )
        for i, point in enumerate(cases[0])
    ]


def _edges() -> Tensor:
    """The lower ends of the bins."""
    return torch.arange(BINS, dtype=torch.float64) * (2.0 * FARTHEST / BINS) - FARTHEST


def _count_voxels(logits: NDArray[np.floating], occupancy: NDArray[np.generic], filled: Tensor, seen: Tensor) -> None:
    """Adds voxels to the histograms (BINS,) of a label; a voxel counts as filled with the share of it that is."""
    bins = ((torch.from_numpy(logits).float().flatten() + FARTHEST) * (BINS / (2.0 * FARTHEST))).long()
    bins = bins.clamp(0, BINS - 1)
    filled += torch.bincount(bins, torch.from_numpy(occupancy).flatten().double(), minlength=BINS)
    seen += torch.bincount(bins, minlength=BINS)
