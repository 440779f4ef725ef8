"""Distances between the surfaces of a predicted and a true mask, by MONAI's implementation, and volumes.

NSD is the share of both surfaces, by area of sub-voxel surface elements, that lies within a tolerance of the other: the
metric of the Medical Segmentation Decathlon. HD95 is the larger of both directions' 95th percentiles of distances
between border voxels.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.surface_dice import compute_surface_dice
from numpy.typing import NDArray

from training.detection import bounding_box, dice

Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]

#: The Decathlon's tolerances for its labels.
_DECATHLON_MM = {
    "liver": 7.0, "liver_tumor": 7.0, "lung_tumor": 2.0, "pancreas": 5.0, "pancreas_tumor": 5.0,
    "hepatic_vessel": 3.0, "hepatic_vessel_tumor": 3.0, "spleen": 3.0, "colon_tumor": 4.0,
}  # fmt: skip
_OTHERS_MM = 3.0


def nsd_tolerance_mm(label: str) -> float:
    """The tolerance of NSD for a label."""
    return _DECATHLON_MM.get(label, _OTHERS_MM)


@dataclass(frozen=True)
class Overlap:
    """How well a predicted mask covers the true one, which is not empty.

    `nsd` is 0 and `hd95_mm` None where nothing was predicted. Volumes in millilitres.
    """

    dice: float
    nsd: float
    hd95_mm: float | None
    truth_ml: float
    predicted_ml: float


def measure_overlap(predicted: Mask, truth: Mask, spacing_mm: Spacing, tolerance_mm: float) -> Overlap:
    """All metrics of one label (X,Y,Z)."""
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0
    truth_ml, predicted_ml = (float(np.count_nonzero(mask)) * voxel_ml for mask in (truth, predicted))
    if not predicted.any():
        return Overlap(0.0, 0.0, None, truth_ml, predicted_ml)
    # What is far from both masks is cut off; a border of one voxel keeps surfaces closed.
    box = bounding_box(predicted | truth)
    found, wanted = (torch.from_numpy(np.pad(mask[box], 1))[None, None] for mask in (predicted, truth))
    limits = [tolerance_mm]
    spacing = list(spacing_mm)
    with warnings.catch_warnings():  # MONAI calls itself with an argument that it has deprecated
        warnings.filterwarnings("ignore", "monai.metrics.utils get_mask_edges", FutureWarning)
        nsd = compute_surface_dice(found, wanted, limits, include_background=True, spacing=spacing, use_subvoxels=True)
        distance = compute_hausdorff_distance(found, wanted, include_background=True, percentile=95.0, spacing=spacing)
    return Overlap(dice(predicted, truth), float(nsd), float(distance), truth_ml, predicted_ml)
