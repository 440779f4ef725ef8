"""Logits of a whole scan in little memory: of each label, only those near its surface.

A label fills a small part of a scan, and nothing that is made of its logits looks further than a voxel of the model
grid beyond its mask. So of every slab that leaves the sliding windows those blocks are kept that lie near what exceeds
the label's threshold, and the rest is forgotten; deep inside an organ it is enough to know that one is inside. The
masks are those that all logits would give.

What is kept is found where the slabs are, on a GPU or not; only that goes to the host, into a spool.

Legend: C labels, X Y Z the feature grid, which has one voxel for `stride` voxels of the model grid along each axis;
E the edge of a block.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import max_pool3d, pad

from service.imaging.geometry import Shape
from service.inference.grid import Box, ModelGrid, box_shape, relative
from service.inference.manifest import Label
from service.inference.spool import Spool

Float32 = NDArray[np.float32]

FORGOTTEN = np.float32(-1e4)
"""What a forgotten logit counts as: probability 0."""
INSIDE = np.float32(1e4)
"""What the logit of a voxel deep inside an organ counts as: probability 1."""

# A model voxel beside the mask is interpolated from feature voxels that lie at most 2 from one above the threshold, and
# one of the mask beside its surface from such that lie at most 2 from one below it (stride 2; at stride 1 it is 1). So
# 2 is the least edge with which a block's neighbours are enough to decide what becomes of it.
BLOCK_EDGE = 4

_FORGOTTEN_BLOCK, _INSIDE_BLOCK = -1, -2


@dataclass(frozen=True, eq=False)
class Slab:
    """Finished logits of the planes from z = `start` on: float32 (C, X, Y, planes), on any device."""

    start: int
    values: Tensor


@dataclass(frozen=True, eq=False)
class LabelLogits:
    """One label's logits on the feature grid, as far as they are kept.

    A layer is E planes. Each of `blocks` reads those that are kept of a layer, float32 (n, E, E, E); `numbers` int32
    (layers, X/E, Y/E), rounded up, say which of them a block is, or that it was forgotten or lies inside. `above` is
    the box around all voxels above the threshold, None without any.
    """

    numbers: NDArray[np.int32]
    blocks: tuple[Callable[[], Float32], ...]
    above: Box | None

    def read(self, box: Box) -> Float32:
        """The logits in a box of the feature grid."""
        x, y, z = (slice(side.start // BLOCK_EDGE, -(-side.stop // BLOCK_EDGE)) for side in box)
        covered = box_shape((x, y, z))
        values = np.full(tuple(edge for n in covered for edge in (n, BLOCK_EDGE)), FORGOTTEN)
        layers = zip(self.numbers[z, x, y], self.blocks[z], values.transpose(4, 0, 2, 1, 3, 5), strict=True)
        for numbers, blocks, by_block in layers:
            by_block[numbers == _INSIDE_BLOCK] = INSIDE
            kept = numbers >= 0
            if kept.any():
                by_block[kept] = blocks()[numbers[kept]]
        i, j, k = (n * BLOCK_EDGE for n in covered)
        first = (slice(x.start * BLOCK_EDGE, 0), slice(y.start * BLOCK_EDGE, 0), slice(z.start * BLOCK_EDGE, 0))
        return values.reshape(i, j, k)[relative(box, first)]


@dataclass(frozen=True, eq=False)
class Logits:
    """Logits of `labels` on the feature grid of `grid`; `kept` has those of each channel that is not forgotten yet."""

    labels: tuple[Label, ...]
    stride: int
    grid: ModelGrid
    kept: dict[int, LabelLogits]

    @property
    def shape(self) -> Shape:
        """Of the feature grid."""
        return _feature_shape(self.grid, self.stride)

    def forget(self, channel: int) -> None:
        """Give back the memory of one label's logits, which will not be asked for again."""
        del self.kept[channel]


def gather_logits(
    slabs: Iterable[Slab], labels: tuple[Label, ...], stride: int, grid: ModelGrid, spool: Spool | None = None
) -> Logits:
    """Keeps of each slab what matters, in the spool. The slabs come in order and leave no plane out."""
    spool = spool or Spool()
    gatherers = [_Gatherer(label, _feature_shape(grid, stride), spool) for label in labels]
    for slab in slabs:
        for gatherer, values in zip(gatherers, slab.values, strict=True):
            gatherer.add(slab.start, values)
    return Logits(labels, stride, grid, dict(enumerate(gatherer.finish() for gatherer in gatherers)))


def _feature_shape(grid: ModelGrid, stride: int) -> Shape:
    x, y, z = (-(-n // stride) for n in grid.shape)
    return x, y, z


def logit(probability: float) -> np.float32:
    """The logit of a probability."""
    return np.float32(np.log(probability / (1.0 - probability)))


class _Gatherer:
    """Takes one label's planes from z = 0 up, and decides on a layer of blocks as soon as the next one is there.

    What lasts is in arrays that are there from the beginning, or in the spool. A small one, made for each layer, would
    take a corner of memory that the large ones before it have left: no large one fits there again, and of a long scan
    the process grew by gigabytes.
    """

    def __init__(self, label: Label, shape: Shape, spool: Spool) -> None:
        """`shape` is that of the feature grid."""
        self._spool = spool
        self._cut = float(logit(label.threshold))
        # Of a lesion every probability is looked at, of an organ only those near its surface.
        self._keeps_inside = label.kind.is_lesion
        self._pending = torch.empty(0)  # (X, Y, planes), X and Y filled up to whole blocks; not yet decided on
        # Of the pending layers, and of the one below them: which blocks (X/E, Y/E, layers) have a voxel above the
        # threshold, and which have no other.
        self._some_above = torch.empty(0)
        self._all_above = torch.empty(0)
        x, y, z = (-(-n // BLOCK_EDGE) for n in shape)
        self._numbers = np.empty((z, x, y), np.int32)
        self._blocks: list[Callable[[], Float32]] = []
        self._above: Box | None = None

    def add(self, start: int, values: Tensor) -> None:
        """Planes (X, Y, planes) from z = `start` on."""
        found = _box_above(values, self._cut)
        if found is not None:
            self._above = _around(self._above, (found[0], found[1], _moved(found[2], start)))
        elif self._nothing_near():
            values = self._passed_by(values)
        x, y, _ = values.shape
        padded = pad(values, (0, 0, 0, -y % BLOCK_EDGE, 0, -x % BLOCK_EDGE), value=float(FORGOTTEN))
        self._pending = _on_top(self._pending, padded)
        self._decide()

    def _nothing_near(self) -> bool:
        """Whether nothing that is pending, nor the layer below it, has a voxel above the threshold."""
        return self._above is None or self._above[2].stop <= (len(self._blocks) - 1) * BLOCK_EDGE

    def _passed_by(self, values: Tensor) -> Tensor:
        """Forget all layers but the topmost, which the next planes may lie near; the planes that are left of `values`.

        Neither they nor what is pending have a voxel above the threshold. Most labels are nowhere in most of a scan.
        """
        pending = self._pending.shape[-1]
        layers = max((pending + values.shape[2]) // BLOCK_EDGE - 1, 0)
        if not layers:
            return values
        nothing = np.empty((0, BLOCK_EDGE, BLOCK_EDGE, BLOCK_EDGE), np.float32)
        for _ in range(layers):
            self._numbers[len(self._blocks)] = _FORGOTTEN_BLOCK
            self._blocks.append(self._spool.put(nothing))
        below = torch.zeros((*self._numbers.shape[1:], 1), dtype=torch.bool, device=values.device)
        self._some_above, self._all_above = below, below
        forgotten = layers * BLOCK_EDGE
        self._pending = self._pending[..., forgotten:].clone()
        return values[:, :, max(forgotten - pending, 0) :]

    def finish(self) -> LabelLogits:
        """What was kept, after the last plane."""
        self._pending = pad(self._pending, (0, -self._pending.shape[2] % BLOCK_EDGE), value=float(FORGOTTEN))
        self._decide(last=True)
        return LabelLogits(self._numbers, tuple(self._blocks), self._above)

    def _decide(self, *, last: bool = False) -> None:
        layers = self._pending.shape[2] // BLOCK_EDGE
        below = min(len(self._blocks), 1)
        whole = self._pending[:, :, : layers * BLOCK_EDGE].contiguous()
        by_block = _blocks(whole)
        known = self._some_above.shape[-1] - below if self._some_above.numel() else 0
        if known < layers:
            new = by_block[:, :, :, :, known:]
            self._some_above = _on_top(self._some_above, new.amax(1).amax(2).amax(3) > self._cut)
            self._all_above = _on_top(self._all_above, new.amin(1).amin(2).amin(3) > self._cut)
        decided = layers if last else layers - 1
        if decided < 1:
            return
        self._keep(whole, decided, below)
        self._pending = self._pending[:, :, decided * BLOCK_EDGE :].clone()
        self._some_above = self._some_above[:, :, below + decided - 1 :]
        self._all_above = self._all_above[:, :, below + decided - 1 :]

    def _keep(self, pending: Tensor, layers: int, below: int) -> None:
        """What becomes of the lowest layers of blocks of what is pending; `below` are known that are decided on."""
        here = slice(below, below + layers)
        near = _beside(self._some_above)[:, :, here]
        inside = ~_beside(~self._all_above)[:, :, here]
        if self._keeps_inside:
            inside = torch.zeros_like(inside)
        kept = (near & ~inside).permute(2, 0, 1)
        blocks: Float32 = _take(pending, kept).cpu().numpy()
        first = 0
        for is_kept, is_inside in zip(kept.cpu().numpy(), inside.permute(2, 0, 1).cpu().numpy(), strict=True):
            numbers = self._numbers[len(self._blocks)]
            numbers[:] = np.where(is_inside, np.int32(_INSIDE_BLOCK), np.int32(_FORGOTTEN_BLOCK))
            count = int(np.count_nonzero(is_kept))
            numbers[is_kept] = np.arange(count)
            self._blocks.append(self._spool.put(blocks[first : first + count]))
            first += count


def _blocks(values: Tensor) -> Tensor:
    """(X, Y, Z), all multiples of E, seen as (X/E, E, Y/E, E, Z/E, E)."""
    x, y, z = (n // BLOCK_EDGE for n in values.shape)
    return values.view(x, BLOCK_EDGE, y, BLOCK_EDGE, z, BLOCK_EDGE)


def _take(values: Tensor, which: Tensor) -> Tensor:
    """The blocks (n, E, E, E) of values (X, Y, Z) that are true in `which` (layers, X/E, Y/E), in its order.

    Row by row along z, which is several times faster than an index into a view of blocks.
    """
    _, y, z = (n // BLOCK_EDGE for n in values.shape)
    layer, i, j = which.nonzero(as_tuple=True)
    edge = torch.arange(BLOCK_EDGE, device=values.device)
    rows = (i[:, None, None] * BLOCK_EDGE + edge[:, None]) * (y * BLOCK_EDGE) + j[:, None, None] * BLOCK_EDGE + edge
    rows = rows * z + layer[:, None, None]
    return values.view(-1, BLOCK_EDGE).index_select(0, rows.flatten()).view(-1, BLOCK_EDGE, BLOCK_EDGE, BLOCK_EDGE)


def _beside(blocks: Tensor) -> Tensor:
    """The blocks that are true or touch one that is, by a corner at least; bool (X, Y, Z)."""
    return max_pool3d(blocks[None].float(), kernel_size=3, stride=1, padding=1)[0] > 0


def _box_above(values: Tensor, cut: float) -> Box | None:
    """The smallest box that holds every voxel above the cut; None without any."""
    over_x = values.amax(0)
    if not bool((over_x > cut).any()):
        return None
    highest = torch.cat([values.amax((1, 2)), over_x.amax(1), over_x.amax(0)])
    hits = np.split((highest > cut).cpu().numpy(), np.cumsum(values.shape[:2]))
    x, y, z = (slice(int(hit.argmax()), len(hit) - int(hit[::-1].argmax())) for hit in hits)
    return x, y, z


def _on_top(lower: Tensor, upper: Tensor) -> Tensor:
    """Both along z, on the device of the upper: the host takes over where a device runs out of memory."""
    return torch.cat([lower.to(upper.device), upper], dim=2) if lower.numel() else upper


def _moved(side: slice, by: int) -> slice:
    return slice(side.start + by, side.stop + by)


def _around(one: Box | None, other: Box) -> Box:
    if one is None:
        return other
    x, y, z = (slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
    return x, y, z
