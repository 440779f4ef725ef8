"""How probabilities become masks, chosen on whole phantoms that were not trained on. No weights are changed here.

Training sees windows around small labels more often than a scan has them, so 0.5 is not the best place to cut. An organ
is cut where its Dice is best. A lesion is cut at 0.5, so that its size does not depend on how strict one is, and counts
if the network is certain enough somewhere in it and it is large enough: each type has the peak and the volume at which,
over all types together, most lesions are found at no more than `FALSE_POSITIVES_PER_SCAN`. What a type costs in false
lesions, another may use better.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import cc3d
import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from numpy.typing import NDArray
from rich.progress import track
from scipy import ndimage
from torch import Tensor
from torch.utils.data import default_collate

from training.augment import plain_plan
from training.checkpoint import Calibration
from training.detection import LEAST_LESION_ML, bounding_box, count_detections
from training.labels import BY_NAME, LABELS, LESIONS, ORGANS, Label
from training.networks.universal import UniversalModel
from training.precision import mixed_precision
from training.rendering import render
from training.store import Case, open_case

BINS = 100
LOWEST, HIGHEST = 0.2, 0.8  # an organ that wants more than this needs training, not another threshold
UNDECIDED = 0.5

LESION_PEAKS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99)
LESION_VOLUMES_ML = (LEAST_LESION_ML, 1.0, 1.5, 2.0, 3.0)
FALSE_POSITIVES_PER_SCAN = 0.5  # some room: new scans showed about twice as many of them as those chosen on

_OVERLAP = 0.1  # of the windows; a half, as at inference, would be about six times as many


@dataclass(frozen=True)
class WholeCase:
    """One case as the model sees it, at the features' stride: probabilities and occupancies (C,*grid) in 0..1."""

    probability: NDArray[np.float16]
    occupancy: NDArray[np.uint8]  #: eighths
    supervised: NDArray[np.bool_]
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
    """Threshold of each organ, peak and volume of each lesion type, from the cases of `seeds`.

    0.5 and the least volume for what none of them has. Lesions end where the probability is 0.5.
    """
    model.eval()
    filled, seen = (torch.zeros(len(LABELS), BINS, dtype=torch.float64) for _ in range(2))
    points: dict[str, list[list[OperatingPoint]]] = {lesion.name: [] for lesion in LESIONS}
    for seed in track(seeds, description="Calibration"):
        case = see_whole_case(model, open_case(store, seed), np.random.default_rng((seed, 78)), device)
        for organ in ORGANS:
            if case.supervised[organ.channel]:
                _count_voxels(case, organ.channel, filled, seen)
        for lesion in LESIONS:
            if case.supervised[lesion.channel]:
                points[lesion.name].append(operating_points(case, lesion))
    best = best_thresholds(filled, seen)
    summed = {name: _sum_over_cases(cases) for name, cases in points.items() if cases}
    chosen = choose_operating_points(summed, FALSE_POSITIVES_PER_SCAN * len(seeds))
    return Calibration(
        thresholds={organ.name: round(float(best[organ.channel]), 2) for organ in ORGANS},
        lesion_peaks={name: point.peak for name, point in chosen.items()},
        lesion_volumes_ml={name: point.volume_ml for name, point in chosen.items()},
    )


@torch.no_grad()
def see_whole_case(model: UniversalModel, case: Case, rng: np.random.Generator, device: torch.device) -> WholeCase:
    """The case as one random acquisition, through blended windows as at inference."""
    tick = model.backbone.size_multiple
    x, y, z = (-(-size // tick) * tick for size in case.codes.shape)
    plan = default_collate([plain_plan(case, model.config, (x, y, z), rng)])
    image, occupancy, supervised = render(plan, [torch.from_numpy(case.codes).to(device)], model.config)

    def predict(window: Tensor) -> Tensor:
        with mixed_precision(device):
            logits: Tensor = model(window)
        return logits.float()

    logits = sliding_window_inference(
        image,
        model.config.roi_size,
        1,
        predict,
        overlap=_OVERLAP,
        mode="gaussian",
        padding_mode="constant",
        cval=model.config.output_range[0],
        sw_device=device,
        device=device,
    )
    assert isinstance(logits, Tensor)
    voxel_ml = float(np.prod(model.config.spacing_mm)) * model.feature_stride**3 / 1000.0
    probability: NDArray[np.float16] = torch.sigmoid(logits[0]).half().cpu().numpy()
    return WholeCase(probability, occupancy[0].cpu().numpy(), supervised[0].cpu().numpy(), voxel_ml)


def best_thresholds(filled: Tensor, seen: Tensor) -> Tensor:
    """Threshold (C,) of the best Dice, from voxels by bin of their probability: filled ones and all, (C,BINS).

    Of equally good thresholds the one closest to 0.5. 0.5 where nothing is filled.
    """
    above = torch.flip(torch.cumsum(torch.flip(filled, [1]), 1), [1])
    predicted = torch.flip(torch.cumsum(torch.flip(seen, [1]), 1), [1])
    dice = 2.0 * above / (predicted + filled.sum(1, keepdim=True)).clamp(min=1e-9)
    threshold = torch.arange(BINS, dtype=torch.float64) / BINS
    dice = torch.where((threshold >= LOWEST - 1e-9) & (threshold <= HIGHEST + 1e-9), dice, -1.0)
    tie = 1e-9 * (threshold - UNDECIDED).abs()
    best = threshold[torch.argmax(dice - tie, dim=1)]
    return torch.where(filled.sum(1) > 0, best, UNDECIDED)


def operating_points(case: WholeCase, lesion: Label) -> list[OperatingPoint]:
    """Lesions of one type in one case at each of `LESION_VOLUMES_ML` and `LESION_PEAKS`.

    As in the bundle's post-processing, a lesion counts only inside its hosts.
    """
    truth = case.occupancy[lesion.channel] >= 4
    hosts = [BY_NAME[name].channel for name in lesion.hosts]
    inside = ndimage.binary_dilation((case.probability[hosts] > UNDECIDED).any(axis=0))
    probability = np.where(inside, case.probability[lesion.channel], np.float16(0.0))
    box = bounding_box((probability > UNDECIDED) | truth)
    if not truth[box].size:
        return [OperatingPoint(peak, ml, 0, 0, 0) for ml in LESION_VOLUMES_ML for peak in LESION_PEAKS]
    probability, truth = probability[box].astype(np.float32), truth[box]
    least = math.ceil(LEAST_LESION_ML / case.voxel_ml)
    above = (probability > UNDECIDED).view(np.uint8)  # on bool arrays cc3d 4.1 can fail
    components = cc3d.connected_components(cc3d.dust(above, threshold=least, connectivity=26), connectivity=26)
    peaks = np.zeros(int(components.max()) + 1)
    np.maximum.at(peaks, components[components > 0], probability[components > 0])
    sizes_ml = np.bincount(components.ravel(), minlength=len(peaks)) * case.voxel_ml
    points = []
    for ml in LESION_VOLUMES_ML:
        for peak in LESION_PEAKS:
            counts = (peaks > peak) & (sizes_ml >= ml)
            found = count_detections(counts[components], truth, case.voxel_ml)
            points.append(OperatingPoint(peak, ml, found.lesions, found.found, found.false_positives))
    return points


def choose_operating_points(
    points: dict[str, list[OperatingPoint]], false_positives: float
) -> dict[str, OperatingPoint]:
    """The point of each lesion type that finds most lesions of all types with at most `false_positives` altogether.

    Each type in turn moves to the point that gains most lesions per false positive, while the sum allows it. A type
    without lesions stays at 0.5 and the least volume.
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
            undecided = OperatingPoint(UNDECIDED, LEAST_LESION_ML, 0, 0, 0)
            return dict.fromkeys(points, undecided) | at
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


def _count_voxels(case: WholeCase, channel: int, filled: Tensor, seen: Tensor) -> None:
    """Adds a case's voxels to the histograms; a voxel counts as filled with the share of it that is."""
    bins = (torch.from_numpy(case.probability[channel]).float().flatten() * BINS).long().clamp(max=BINS - 1)
    occupancy = torch.from_numpy(case.occupancy[channel]).flatten().double() / 8.0
    filled[channel] += torch.bincount(bins, occupancy, minlength=BINS)
    seen[channel] += torch.bincount(bins, minlength=BINS)
