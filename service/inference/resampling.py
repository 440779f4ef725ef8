"""Resampling along one axis at a time: out = weights @ in, with one small banded matrix per axis.

Voxel positions are indices of the input axis: 0.0 is the centre of its first voxel. Positions outside the axis take
the value of its edge. All arithmetic is float32.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.inference.manifest import Interpolation

Float32 = NDArray[np.float32]
AxisWeights = tuple[Float32, Float32, Float32]
"""One (n_out, n_in) matrix for each axis of a volume."""

_CPU = torch.device("cpu")

# Rows that are multiplied at once: their band spans few columns, so little work is wasted on zeros.
_BLOCK_ROWS = 16


def axis_weights(
    n_in: int, positions: NDArray[np.floating], interpolation: Interpolation, step: float = 1.0
) -> Float32:
    """Weights (n_out, n_in) that interpolate an axis of n_in voxels at `positions` (n_out,); each row sums to 1.

    `step` is the distance of neighbouring positions in voxels: LINEAR_ANTIALIAS makes the triangle that much wider when
    it exceeds 1, and is LINEAR otherwise. NEAREST takes the upper voxel halfway between two.
    """
    clamped = np.clip(positions, 0.0, n_in - 1.0)
    weights = np.zeros((len(positions), n_in), np.float32)
    rows = np.arange(len(positions))
    if interpolation is Interpolation.NEAREST:
        weights[rows, np.minimum(np.floor(clamped + 0.5).astype(np.intp), n_in - 1)] = 1.0
        return weights
    width = max(1.0, step) if interpolation is Interpolation.LINEAR_ANTIALIAS else 1.0
    reach = int(np.ceil(width))
    base = np.floor(clamped).astype(np.intp)
    for offset in range(-reach, reach + 2):
        columns = base + offset
        inside = (columns >= 0) & (columns < n_in)
        tent = np.maximum(0.0, 1.0 - np.abs(columns - clamped) / width)
        weights[rows[inside], columns[inside]] = tent[inside]
    normalised: Float32 = weights / weights.sum(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    return normalised


def resample(volume: NDArray[np.generic], weights: AxisWeights, device: torch.device = _CPU) -> Float32:
    """The volume (n0, n1, n2), of any real dtype, multiplied by weights[a] along each axis a: float32.

    Axes are walked as they lie in memory, whatever the view: to turn a scan around takes longer than to resample it. So
    may the result lie. Block by block along the outermost: beside the result only the intermediates of one block are
    held, and an int16 scan never exists in float32 as a whole. A `device` other than the CPU holds the volume and the
    result too; it is left to the CPU when it has no room for them.
    """
    order = sorted(range(3), key=lambda axis: -abs(volume.strides[axis]))
    backwards = tuple(axis for axis in range(3) if volume.strides[axis] < 0)
    lying = np.flip(volume, backwards).transpose(order)
    w0, w1, w2 = (weights[a][:, ::-1].copy() if a in backwards else weights[a] for a in order)
    try:
        resampled = _resample(lying, (w0, w1, w2), device)
    except torch.OutOfMemoryError:
        resampled = _resample(lying, (w0, w1, w2), _CPU)
    return resampled.transpose(np.argsort(order))


@torch.inference_mode()
def _resample(volume: NDArray[np.generic], weights: AxisWeights, device: torch.device) -> Float32:
    w0, w1, w2 = (torch.from_numpy(w).to(device) for w in weights)
    blocks_0, blocks_1, blocks_2 = (_blocks(w) for w in weights)
    planes_of = _planes_on_cpu(volume) if device.type == "cpu" else _planes_on_device(volume, device)
    resampled = torch.empty((len(w0), len(w1), len(w2)), dtype=torch.float32, device=device)
    for rows_0, columns_0 in blocks_0:
        part = planes_of(columns_0)
        first = torch.mm(w0[rows_0, columns_0], part.view(len(part), -1)).view(-1, *volume.shape[1:])
        second = torch.empty((len(first), len(w1), volume.shape[2]), dtype=torch.float32, device=device)
        for rows, columns in blocks_1:
            second[:, rows] = torch.matmul(w1[rows, columns], first[:, columns])
        flat_in, flat_out = second.view(-1, volume.shape[2]), resampled[rows_0].view(-1, len(w2))
        for rows, columns in blocks_2:
            flat_out[:, rows] = torch.mm(flat_in[:, columns], w2[rows, columns].T)
    values: Float32 = resampled.cpu().numpy()
    return values


def _planes_on_cpu(volume: NDArray[np.generic]) -> Callable[[slice], Tensor]:
    """Reads planes of the first axis as contiguous float32."""
    return lambda planes: torch.from_numpy(np.array(volume[planes], dtype=np.float32, order="C"))


def _planes_on_device(volume: NDArray[np.generic], device: torch.device) -> Callable[[slice], Tensor]:
    """The same of a volume that is sent as a whole, in its own dtype."""
    # A file that is mapped for reading cannot be a tensor; a copy can.
    sent = torch.from_numpy(np.require(volume, requirements=["W"])).to(device)
    return lambda planes: sent[planes].to(torch.float32).contiguous()


def _blocks(weights: Float32) -> list[tuple[slice, slice]]:
    """Rows of the band in blocks, each with the columns that are not all zero in it."""
    blocks: list[tuple[slice, slice]] = []
    for start in range(0, len(weights), _BLOCK_ROWS):
        rows = slice(start, min(start + _BLOCK_ROWS, len(weights)))
        used = np.flatnonzero(weights[rows].any(axis=0))
        # A band cut down to a box may have rows without any weight: they give zeros.
        columns = slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 1)
        blocks.append((rows, columns))
    return blocks
