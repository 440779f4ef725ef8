"""Logits of a whole scan in little memory: of each label, only those near its surface.

A label fills a small part of a scan, and nothing that is made of its logits looks further than a voxel of the model
grid beyond its mask. So of every slab that leaves the sliding windows those blocks are kept that lie near what exceeds
the label's threshold, and the rest is forgotten; deep inside an organ it is enough to know that one is inside. The
masks are those that all logits would give.

Legend: C labels, X Y Z the feature grid, which has one voxel for `stride` voxels of the model grid along each axis;
E the edge of a block.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, minimum_filter

from service.inference.grid import Box, ModelGrid, bounding_box, box_shape, relative
from service.inference.manifest import Label

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
    """Finished logits of the planes from z = `start` on: float32 (C, X, Y, planes)."""

    start: int
    values: Float32


@dataclass(frozen=True, eq=False)
class LabelLogits:
    """One label's logits on the feature grid, as far as they are kept.

    A layer has the kept blocks of E planes, float32 (n, E, E, E), and `numbers` int32 (X/E, Y/E), rounded up: a block's
    number among them, or that it was forgotten or lies inside. `above` is the box around all voxels that exceed the
    threshold, None without any.
    """

    layers: tuple["Layer", ...]
    above: Box | None

    def read(self, box: Box) -> Float32:
        """The logits in a box of the feature grid."""
        x, y, z = (slice(side.start // BLOCK_EDGE, -(-side.stop // BLOCK_EDGE)) for side in box)
        covered = box_shape((x, y, z))
        values = np.full(tuple(edge for n in covered for edge in (n, BLOCK_EDGE)), FORGOTTEN)
        for layer, by_block in zip(self.layers[z], values.transpose(4, 0, 2, 1, 3, 5), strict=True):
            numbers = layer.numbers[x, y]
            by_block[numbers == _INSIDE_BLOCK] = INSIDE
            kept = numbers >= 0
            by_block[kept] = layer.blocks[numbers[kept]]
        i, j, k = (n * BLOCK_EDGE for n in covered)
        first = (slice(x.start * BLOCK_EDGE, 0), slice(y.start * BLOCK_EDGE, 0), slice(z.start * BLOCK_EDGE, 0))
        return values.reshape(i, j, k)[relative(box, first)]


@dataclass(frozen=True, eq=False)
class Layer:
    """See LabelLogits."""

    numbers: NDArray[np.int32]
    blocks: Float32


@dataclass(frozen=True, eq=False)
class Logits:
    """Logits of `labels` on the feature grid of `grid`; `kept` has those of each label."""

    labels: tuple[Label, ...]
    stride: int
    grid: ModelGrid
    kept: tuple[LabelLogits, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the feature grid."""
        x, y, z = (-(-n // self.stride) for n in self.grid.shape)
        return x, y, z


def gather_logits(slabs: Iterable[Slab], labels: tuple[Label, ...], stride: int, grid: ModelGrid) -> Logits:
    """Keeps of each slab what matters. The slabs come in order and leave no plane out."""
    gatherers = [_Gatherer(label) for label in labels]
    for slab in slabs:
        for gatherer, values in zip(gatherers, slab.values, strict=True):
            gatherer.add(slab.start, values)
    return Logits(labels, stride, grid, tuple(gatherer.finish() for gatherer in gatherers))


def logit(probability: float) -> np.float32:
    """The logit of a probability."""
    return np.float32(np.log(probability / (1.0 - probability)))


class _Gatherer:
    """Takes one label's planes from z = 0 up, and decides on a layer of blocks as soon as the next one is there."""

    def __init__(self, label: Label) -> None:
        self._cut = logit(label.threshold)
        # Of a lesion every probability is looked at, of an organ only those near its surface.
        self._keeps_inside = label.kind.is_lesion
        self._pending: Float32 | None = None  # (X, Y, planes), X and Y filled up to whole blocks; not yet decided on
        self._some_above: list[NDArray[np.bool_]] = []  # of every layer: which blocks have a voxel above the threshold
        self._all_above: list[NDArray[np.bool_]] = []
        self._layers: list[Layer] = []
        self._above: Box | None = None

    def add(self, start: int, values: Float32) -> None:
        """Planes (X, Y, planes) from z = `start` on."""
        found = bounding_box(values > self._cut)
        if found is not None:
            self._above = _around(self._above, (found[0], found[1], _moved(found[2], start)))
        padded = np.pad(values, [(0, -n % BLOCK_EDGE) for n in values.shape[:2]] + [(0, 0)], constant_values=FORGOTTEN)
        self._pending = padded if self._pending is None else np.concatenate([self._pending, padded], axis=2)
        self._decide()

    def finish(self) -> LabelLogits:
        """What was kept, after the last plane."""
        assert self._pending is not None
        rest = -self._pending.shape[2] % BLOCK_EDGE
        self._pending = np.pad(self._pending, [(0, 0), (0, 0), (0, rest)], constant_values=FORGOTTEN)
        self._decide(last=True)
        return LabelLogits(tuple(self._layers), self._above)

    def _decide(self, *, last: bool = False) -> None:
        assert self._pending is not None
        layers = self._pending.shape[2] // BLOCK_EDGE
        x, y = (n // BLOCK_EDGE for n in self._pending.shape[:2])
        whole = self._pending[:, :, : layers * BLOCK_EDGE]
        by_block = whole.reshape(x, BLOCK_EDGE, y, BLOCK_EDGE, layers, BLOCK_EDGE).transpose(4, 0, 2, 1, 3, 5)
        for layer in by_block[len(self._some_above) - len(self._layers) :]:
            above = layer > self._cut
            self._some_above.append(above.any(axis=(2, 3, 4)))
            self._all_above.append(above.all(axis=(2, 3, 4)))
        decided = layers if last else max(layers - 1, 0)
        for layer in by_block[:decided]:
            self._keep(layer)
        self._pending = self._pending[:, :, decided * BLOCK_EDGE :].copy()

    def _keep(self, layer: Float32) -> None:
        """What becomes of the blocks (X/E, Y/E, E, E, E) of the lowest layer that is not decided on."""
        here = len(self._layers)
        neighbours = slice(max(here - 1, 0), here + 2)
        near = maximum_filter(np.any(self._some_above[neighbours], axis=0), size=3, mode="constant", cval=False)
        inside = minimum_filter(np.all(self._all_above[neighbours], axis=0), size=3, mode="constant", cval=True)
        if self._keeps_inside:
            inside[:] = False
        kept = near & ~inside
        numbers = np.where(inside, np.int32(_INSIDE_BLOCK), np.int32(_FORGOTTEN_BLOCK))
        numbers[kept] = np.arange(np.count_nonzero(kept))
        self._layers.append(Layer(numbers, layer[kept]))


def _moved(side: slice, by: int) -> slice:
    return slice(side.start + by, side.stop + by)


def _around(one: Box | None, other: Box) -> Box:
    if one is None:
        return other
    x, y, z = (slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
    return x, y, z
