"""The threshold of each label: the probability above which whole phantoms, not trained on, are segmented best.

Training sees windows around small labels more often than a scan has them, and the network is never sure of the
half-filled voxels of a thin structure; 0.5 is then not the best place to cut. No weights are changed here.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.augment import Sample, plain_sample
from training.labels import LABELS
from training.networks.universal import UniversalModel
from training.store import Case, open_case

BINS = 100
LOWEST, HIGHEST = 0.2, 0.8  # a label that wants more than this needs training, not another threshold
UNDECIDED = 0.5


@torch.no_grad()
def calibrate(model: UniversalModel, store: Path, seeds: range, device: torch.device) -> dict[str, float]:
    """Threshold of each label by name, from the cases of `seeds`; 0.5 for a label that none of them has.

    A feature voxel counts with the share of it that is filled. Each case is seen once, whole, in windows side by side.
    """
    model.eval()
    filled, seen = (torch.zeros(len(LABELS), BINS, dtype=torch.float64) for _ in range(2))
    for seed in seeds:
        for sample in _windows(open_case(store, seed), model, np.random.default_rng((seed, 78))):
            image = torch.from_numpy(sample.image)[None].to(device)
            with torch.autocast(device.type, torch.bfloat16):
                logits = model(image)
            probability = torch.sigmoid(logits.float())[0].flatten(1).cpu()
            occupancy = torch.from_numpy(sample.occupancy).flatten(1).double() / 8.0
            for c in np.flatnonzero(sample.supervised):
                bins = (probability[c] * BINS).long().clamp(max=BINS - 1)
                filled[c] += torch.bincount(bins, occupancy[c], minlength=BINS)
                seen[c] += torch.bincount(bins, minlength=BINS)
    best = best_thresholds(filled, seen)
    return {label.name: round(float(best[c]), 2) for c, label in enumerate(LABELS)}


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


def _windows(case: Case, model: UniversalModel, rng: np.random.Generator) -> Iterator[Sample]:
    edges = model.config.roi_size
    corners = product(*(range(0, size, edge) for size, edge in zip(case.codes.shape, edges, strict=True)))
    for x, y, z in corners:
        yield plain_sample(case, model.config, (x, y, z), rng)
