"""Scans on the model grid, as the service lays them there: one axis at a time, from the centre of the first voxel."""

import numpy as np
import torch
from numpy.typing import NDArray

from training.label_table import LabelMap

Float32 = NDArray[np.float32]
Spacing = tuple[float, float, float]


def grid_size(size: int, step: float) -> int:
    """Voxels `step` source voxels apart that fit between the centres of the first and the last of `size`."""
    return int(np.floor((size - 1) / step + 1e-6)) + 1


def resample_hu(hu: NDArray[np.int16], own_mm: Spacing, target_mm: Spacing) -> NDArray[np.int16]:
    """Linear interpolation; where the target is coarser, each voxel is a mean over a tent as wide as the target."""
    values = torch.from_numpy(np.ascontiguousarray(hu))
    for axis in range(3):
        weights = torch.from_numpy(tent_weights(values.shape[axis], target_mm[axis] / own_mm[axis]))
        moved = values.movedim(axis, 0).float()
        values = (weights @ moved.reshape(len(moved), -1)).view(len(weights), *moved.shape[1:]).movedim(0, axis)
    rounded: NDArray[np.int16] = values.round_().to(torch.int16).contiguous().numpy()
    return rounded


def resample_labels(labels: LabelMap, own_mm: Spacing, target_mm: Spacing) -> LabelMap:
    """The label bits of the nearest voxel."""
    nearest = []
    for axis in range(3):
        step = target_mm[axis] / own_mm[axis]
        positions = np.arange(grid_size(labels.shape[axis], step)) * step
        nearest.append(np.minimum(np.floor(positions + 0.5).astype(np.intp), labels.shape[axis] - 1))
    return labels[np.ix_(*nearest)]


def tent_weights(size: int, step: float) -> Float32:
    """Weights (grid_size, size) of each source voxel; rows add up to 1."""
    positions = np.arange(grid_size(size, step))[:, None] * step
    weights = np.maximum(0.0, 1.0 - np.abs(np.arange(size) - positions) / max(1.0, step))
    normalised: Float32 = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return normalised
