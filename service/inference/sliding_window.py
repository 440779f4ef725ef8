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

import torch
from torch import Tensor

from service.errors import InsufficientDeviceMemory
from service.imaging.geometry import Shape
from service.inference.accumulator import Accumulator
from service.inference.economy import Economy
from service.inference.grid import ModelGrid
from service.inference.logits import Logits, Slab, gather_logits
from service.inference.manifest import Label, SlidingWindow
from service.inference.preprocessing import NetworkInput
from service.inference.spool import Spool
from service.progress import Progress, Stage, no_progress


class WindowPredictor(Protocol):
    """What predict_windows asks of a predictor."""

    @property
    def labels(self) -> tuple[Label, ...]:
        """The labels, in the order of the logits' channels."""

    @property
    def feature_stride(self) -> int:
        """Model voxels per voxel of the logits, along each axis."""

    @property
    def device(self) -> torch.device:
        """Where windows are taken and logits given."""

    @property
    def batch_size(self) -> int:
        """How many windows it likes to take at once."""

    def __call__(self, windows: Tensor, spent: Tensor | None = None) -> Tensor:
        """Logits (B, C, D/s, H/s, W/s) of windows (B, D, H, W), float32 on `device`; maybe in the memory of `spent`, an
        earlier answer that is not needed any more."""


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
    economy: Economy | None = None,
    spool: Spool | None = None,
) -> Logits:
    """Logits on the feature grid, those near a label. A scan smaller than a window lies in the middle of background;
    at its lower and upper end it goes on for a few planes first, if the bundle says so.

    `progress` is told after each window and may raise to stop. `economy` is what may be taken of the device's memory,
    and knows afterwards what was; None: as much as the predictor likes. `spool` takes the logits.

    Raises EngineUnavailable when the engine fails, InsufficientDeviceMemory when the device is too small in any way.
    """
    slabs = blended_slabs(network_input, predictor, sliding_window, progress, economy)
    try:
        return gather_logits(slabs, predictor.labels, predictor.feature_stride, network_input.grid, spool)
    except torch.OutOfMemoryError as error:
        raise InsufficientDeviceMemory(f"The {predictor.device} has too little memory for the scan.") from error


def blended_slabs(
    network_input: NetworkInput,
    predictor: WindowPredictor,
    sliding_window: SlidingWindow,
    progress: Progress = no_progress,
    economy: Economy | None = None,
) -> Iterator[Slab]:
    """All logits on the feature grid, from the feet up, each slab as soon as its windows are through.

    A slab is a view of the accumulator, gone when the next one is asked for.
    """
    economy = economy or Economy(predictor.device, predictor.batch_size)
    stride, roi = predictor.feature_stride, sliding_window.roi_size
    axes = [
        _plan_axis(n, edge, sliding_window.overlap, stride)
        for n, edge in zip(network_input.grid.shape, roi, strict=True)
    ]
    x, y, z = axes
    ends = _continued(network_input.grid, z, roi[2], sliding_window.continued_planes)
    weight = importance_map((roi[0] // stride, roi[1] // stride, roi[2] // stride), sliding_window.sigma_scale)
    accumulator = Accumulator(len(predictor.labels), (x.length // stride, y.length // stride), weight)
    answers = _Answers(predictor, economy, network_input.background)
    scan = torch.from_numpy(network_input.values).to(predictor.device)

    columns = list(product(x.starts, y.starts))
    windows = len(columns) * len(z.starts)
    progress(Stage.INFERENCE, 0.0)
    for layer, (height, next_height) in enumerate(pairwise((*z.starts, z.length))):
        for first in range(0, len(columns), predictor.batch_size):
            batch = columns[first : first + predictor.batch_size]
            cut = [
                _cut_window(scan, (left, front, height), axes, ends, roi, network_input.background)
                for left, front in batch
            ]
            for column, ((left, front), logits) in enumerate(zip(batch, answers.of(cut), strict=True), first + 1):
                accumulator.add(logits, (left // stride, front // stride), economy)
                progress(Stage.INFERENCE, (layer * len(columns) + column) / windows)
        done = (next_height - height) // stride
        finished = Slab(height // stride, accumulator.finished(done))
        yield from _within_scan(finished, axes, network_input.grid.shape, stride)
        accumulator.forget(done)


class _Answers:
    """The logits of windows, as many at a time as the device has memory for. They last until the next are asked for."""

    def __init__(self, predictor: WindowPredictor, economy: Economy, background: float) -> None:
        self._predictor = predictor
        self._economy = economy
        self._background = background
        self._of_background: Tensor | None = None
        self._spent: Tensor | None = None

    def of(self, windows: list[Tensor]) -> list[Tensor]:
        """Logits (C, D/s, H/s, W/s) of each window (D, H, W). Nothing but background has one answer, wherever it is."""
        # Background is the lower end of the clipped range, so one look at the maximum is enough.
        empty = [bool(window.max() <= self._background) for window in windows]
        if self._of_background is None and any(empty):
            self._of_background = self._run([windows[empty.index(True)]])[0].clone()
        found = iter(self._run([window for window, nothing in zip(windows, empty, strict=True) if not nothing]))
        return [
            self._of_background if nothing and self._of_background is not None else next(found) for nothing in empty
        ]

    def _run(self, windows: list[Tensor]) -> list[Tensor]:
        logits: list[Tensor] = []
        latest: Tensor | None = None
        while len(logits) < len(windows):
            answer = self._attempt(windows[len(logits) : len(logits) + self._economy.batch_size])
            if isinstance(answer, Tensor):
                logits += answer
                latest = answer
            elif not self._economy.tighten():
                raise answer
        self._spent = latest
        return logits

    def _attempt(self, windows: list[Tensor]) -> Tensor | InsufficientDeviceMemory:
        spent, self._spent = self._spent, None
        try:
            return self._predictor(torch.stack(windows), spent)
        except InsufficientDeviceMemory as error:
            return InsufficientDeviceMemory(error.detail)  # the traceback holds what has to be freed


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


def importance_map(shape: tuple[int, int, int], sigma_scale: float) -> Tensor:
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


def _continued(grid: ModelGrid, z: _Axis, roi: int, planes: int) -> tuple[int, int]:
    """For how many planes a scan lower than a window goes on below and above: for none where the body crop left planes
    out, since it is known that nobody lies there."""
    height, crop = grid.shape[2], grid.crop[2]
    if height >= roi:
        return 0, 0
    below = min(planes, z.before) if crop.start == 0 else 0
    above = min(planes, roi - z.before - height) if crop.stop == grid.whole[2] else 0
    return below, above


def _cut_window(
    scan: Tensor,
    start: tuple[int, ...],
    axes: list[_Axis],
    ends: tuple[int, int],
    roi: tuple[int, int, int],
    background: float,
) -> Tensor:
    """A window of the scan, background around it; its first and last plane go on for so many planes (`ends`)."""
    window = scan.new_full(roi, background)
    source: list[slice] = []
    target: list[slice] = []
    for first, axis, edge, n in zip(start, axes, roi, scan.shape, strict=True):
        low = first - axis.before
        source.append(slice(max(low, 0), min(low + edge, n)))
        target.append(slice(max(-low, 0), max(-low, 0) + source[-1].stop - source[-1].start))
    window[tuple(target)] = scan[tuple(source)]
    low, high = target[2].start, target[2].stop
    window[:, :, low - ends[0] : low] = window[:, :, low : low + 1]
    window[:, :, high : high + ends[1]] = window[:, :, high - 1 : high]
    return window
