"""Overlapping windows over the model grid, their logits blended on the feature grid, slab by slab along z.

Positions and weights are those of MONAI's sliding_window_inference (gaussian), with each position a multiple of the
feature stride s, so that windows meet on whole feature voxels. Blending happens before upsampling: s**3 times less
memory. Feature voxel f covers the model voxels f*s to f*s + s - 1.

All windows of one height come before the next, and a plane is finished as soon as no later window touches it. So the
accumulator is as high as a window, however long the scan.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from service.imaging.geometry import Shape
from service.inference.logits import Logits, Slab, gather_logits
from service.inference.manifest import Label, SlidingWindow
from service.inference.preprocessing import NetworkInput
from service.progress import Progress, Stage, no_progress

Float32 = NDArray[np.float32]


class WindowPredictor(Protocol):
    """What predict_windows asks of a predictor."""

    @property
    def labels(self) -> tuple[Label, ...]:
        """The labels, in the order of the logits' channels."""

    @property
    def feature_stride(self) -> int:
        """Model voxels per voxel of the logits, along each axis."""

    def __call__(self, windows: Float32) -> Float32:
        """Logits (B, C, D/s, H/s, W/s) of windows (B, D, H, W)."""


@dataclass(frozen=True)
class _Axis:
    """One axis of the padded model grid: its length, the background voxels before the scan, the windows' starts."""

    length: int
    before: int
    starts: tuple[int, ...]


def predict_windows(
    network_input: NetworkInput,
    predictor: WindowPredictor,
    sliding_window: SlidingWindow,
    progress: Progress = no_progress,
) -> Logits:
    """Logits on the feature grid, those near a label. A scan smaller than a window lies in the middle of background.

    `progress` is told after each window and may raise to stop. Raises EngineUnavailable when the engine fails.
    """
    slabs = blended_slabs(network_input, predictor, sliding_window, progress)
    return gather_logits(slabs, predictor.labels, predictor.feature_stride, network_input.grid)


def blended_slabs(
    network_input: NetworkInput,
    predictor: WindowPredictor,
    sliding_window: SlidingWindow,
    progress: Progress = no_progress,
) -> Iterator[Slab]:
    """All logits on the feature grid, from the feet up, each slab as soon as its windows are through.

    A slab is a view of the accumulator, gone when the next one is asked for.
    """
    stride, roi = predictor.feature_stride, sliding_window.roi_size
    axes = [
        _plan_axis(n, edge, sliding_window.overlap, stride)
        for n, edge in zip(network_input.grid.shape, roi, strict=True)
    ]
    x, y, z = axes
    weight = importance_map((roi[0] // stride, roi[1] // stride, roi[2] // stride), sliding_window.sigma_scale)
    open_shape = (x.length // stride, y.length // stride, roi[2] // stride)  # planes that a window may still touch
    blended = torch.zeros((len(predictor.labels), *open_shape))
    total_weight = torch.zeros(open_shape)

    columns = list(product(x.starts, y.starts))
    windows = len(columns) * len(z.starts)
    of_background: torch.Tensor | None = None
    progress(Stage.INFERENCE, 0.0)
    for layer, (height, next_height) in enumerate(pairwise((*z.starts, z.length))):
        for column, (left, front) in enumerate(columns, 1):
            window = _cut_window(network_input, (left, front, height), axes, roi)
            if of_background is not None and _is_background(window, network_input.background):
                logits = of_background  # nothing but background has one answer, wherever it lies
            else:
                logits = torch.from_numpy(predictor(window[None])[0])
                if _is_background(window, network_input.background):
                    of_background = logits
            box = tuple(
                slice(s // stride, (s + edge) // stride) for s, edge in zip((left, front), roi[:2], strict=True)
            )
            blended[(slice(None), *box)].addcmul_(logits, weight)
            total_weight[box] += weight
            progress(Stage.INFERENCE, (layer * len(columns) + column) / windows)
        done = (next_height - height) // stride
        finished = blended[..., :done].div_(total_weight[..., :done])
        yield from _within_scan(Slab(height // stride, finished.numpy()), axes, network_input.grid.shape, stride)
        for accumulator in (*blended, total_weight):
            still_open = accumulator[..., done:].clone()
            accumulator.zero_()[..., : still_open.shape[-1]] = still_open


def _within_scan(slab: Slab, axes: list[_Axis], shape: Shape, stride: int) -> Iterator[Slab]:
    """The slab without the padding, counted from the scan's first plane; nothing where all of it is padding."""
    x, y, z = (
        slice(axis.before // stride, axis.before // stride + -(-n // stride))
        for axis, n in zip(axes, shape, strict=True)
    )
    first = max(slab.start, z.start)
    last = min(slab.start + slab.values.shape[3], z.stop)
    if first < last:
        planes = slice(first - slab.start, last - slab.start)
        yield Slab(first - z.start, slab.values[:, x, y, planes])


def importance_map(shape: tuple[int, int, int], sigma_scale: float) -> torch.Tensor:
    """Gaussian weights of a window's voxels, float32: 1 at the centre, sigma = sigma_scale * edge, at least 0.001."""
    weight = torch.ones(())
    for n in shape:
        x = torch.arange(n, dtype=torch.float32) - (n - 1) / 2.0
        weight = weight.unsqueeze(-1) * torch.exp(x**2 / (-2.0 * (sigma_scale * n) ** 2))
    # The corners' weights are about 1e-11: without a floor a voxel seen by a corner alone would be divided by nothing.
    return weight.clamp(min=max(float(weight.min()), 1e-3))


def _plan_axis(n: int, roi: int, overlap: float, stride: int) -> _Axis:
    length = max(-(-n // stride) * stride, roi)
    before = (length - n) // 2 // stride * stride if n < roi else 0
    interval = max(int(roi * (1.0 - overlap)) // stride * stride, stride)
    return _Axis(length, before, (*range(0, length - roi, interval), length - roi))


def _cut_window(
    network_input: NetworkInput, start: tuple[int, ...], axes: list[_Axis], roi: tuple[int, int, int]
) -> Float32:
    window = np.full(roi, network_input.background, np.float32)
    source: list[slice] = []
    target: list[slice] = []
    for first, axis, edge, n in zip(start, axes, roi, network_input.grid.shape, strict=True):
        low = first - axis.before
        source.append(slice(max(low, 0), min(low + edge, n)))
        target.append(slice(max(-low, 0), max(-low, 0) + source[-1].stop - source[-1].start))
    window[tuple(target)] = network_input.values[tuple(source)]
    return window


def _is_background(window: Float32, background: float) -> bool:
    # background is the lower end of the clipped range, so one look at the maximum is enough.
    return bool(window.max() <= np.float32(background))
