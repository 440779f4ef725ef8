"""Overlap and lesion detection counts of boolean masks on one grid."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
_TOUCHING = np.ones((3, 3, 3), bool)  # 26-connected, as the service counts lesions

#: A lesion is found when predictions of its label cover at least this share of it.
HIT_FRACTION = 0.1

#: A ball of 10 mm, the smallest lesion that is measurable (RECIST 1.1). Smaller ones are neither reported nor scored.
LEAST_LESION_ML = 0.5
_ROUNDING = 1e-6  # of a volume: NIfTI affines are float32


@dataclass(frozen=True)
class Detections:
    """Lesions of one label in one scan: how many there are, how many were found, predictions that touch none."""

    lesions: int
    found: int
    false_positives: int


def dice(predicted: Mask, truth: Mask) -> float:
    """2 |P and T| / (|P| + |T|); 1 when both are empty."""
    total = int(predicted.sum()) + int(truth.sum())
    return 2.0 * int((predicted & truth).sum()) / total if total else 1.0


def count_detections(predicted: Mask, truth: Mask, voxel_ml: float) -> Detections:
    """Lesion-wise comparison of one label.

    Lesions are the 26-connected components of `truth` of at least `LEAST_LESION_ML`; smaller ones, such as the sliver
    of a lesion that the field of view cuts off, count neither as found nor as missed, and a prediction there is not
    false. `voxel_ml` is the volume of a voxel.
    """
    box = bounding_box(predicted | truth)  # components cost as much as the array is large, lesions are small
    predicted, truth = predicted[box], truth[box]
    truth_components, truth_count = ndimage.label(truth, _TOUCHING)
    sizes = np.bincount(truth_components.ravel(), minlength=truth_count + 1)
    covered = np.bincount(truth_components[predicted], minlength=truth_count + 1)
    large = np.flatnonzero(sizes[1:] * voxel_ml >= LEAST_LESION_ML * (1.0 - _ROUNDING)) + 1
    found = int((covered[large] >= HIT_FRACTION * sizes[large]).sum())
    predicted_components, predicted_count = ndimage.label(predicted, _TOUCHING)
    touching = np.unique(predicted_components[truth & predicted])
    return Detections(len(large), found, predicted_count - int((touching > 0).sum()))


def bounding_box(mask: Mask) -> tuple[slice, ...]:
    """The smallest box around the mask; empty for an empty mask."""
    spans = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        occupied = np.flatnonzero(mask.any(axis=others))
        spans.append(slice(int(occupied[0]), int(occupied[-1]) + 1) if len(occupied) else slice(0, 0))
    return tuple(spans)
