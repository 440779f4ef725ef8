"""Logits of a whole scan in little memory: of each label, only those near what exceeds its threshold.

A label fills a small part of a scan, and nothing that is made of its logits looks further than a voxel of the model
grid beyond its mask. So of every slab that leaves the sliding windows a box per label is kept, and the rest is
forgotten: the masks are those that all logits would give. Legend: C labels, X Y Z the feature grid, which has one voxel
for `stride` voxels of the model grid along each axis.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.inference.grid import Box, ModelGrid, bounding_box, box_shape, grown, intersection, relative
from service.inference.manifest import Label

Float32 = NDArray[np.float32]

FORGOTTEN = np.float32(-1e4)
"""What a forgotten logit counts as: probability 0."""

# A voxel of the model grid that is interpolated above the threshold has a feature voxel above it less than 1 away; its
# neighbours lie at most 1 further (at stride 2 a half), and read feature voxels less than 1 away from themselves.
_HALO = 2


@dataclass(frozen=True, eq=False)
class Slab:
    """Finished logits of the planes from z = `start` on: float32 (C, X, Y, planes)."""

    start: int
    values: Float32


@dataclass(frozen=True, eq=False)
class Logits:
    """Logits of `labels` on the feature grid of `grid`, as far as they are kept.

    `parts` has the kept boxes of each label with their logits, which may overlap; `above` the box around all feature
    voxels that exceed the label's threshold, None without any.
    """

    labels: tuple[Label, ...]
    stride: int
    grid: ModelGrid
    parts: tuple[tuple[tuple[Box, Float32], ...], ...]
    above: tuple[Box | None, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the feature grid."""
        x, y, z = (-(-n // self.stride) for n in self.grid.shape)
        return x, y, z

    def read(self, channel: int, box: Box) -> Float32:
        """A label's logits in a box of the feature grid; FORGOTTEN where they were not kept."""
        values = np.full(box_shape(box), FORGOTTEN)
        for kept, part in self.parts[channel]:
            shared = intersection(kept, box)
            if shared is not None:
                values[relative(shared, box)] = part[relative(shared, kept)]
        return values


def gather_logits(slabs: Iterable[Slab], labels: tuple[Label, ...], stride: int, grid: ModelGrid) -> Logits:
    """Keeps of each slab what matters. The slabs come in order and leave no plane out."""
    cuts = [logit(label.threshold) for label in labels]
    parts: list[list[tuple[Box, Float32]]] = [[] for _ in labels]
    above: list[Box | None] = [None for _ in labels]
    tail: Slab | None = None  # the last planes of the slab before, which a voxel of this one may reach
    for slab in slabs:
        joined = slab if tail is None else Slab(tail.start, np.concatenate([tail.values, slab.values], axis=3))
        for channel, cut in enumerate(cuts):
            values = joined.values[channel]
            found = bounding_box(values > cut)
            if found is not None:
                box = grown(found, (_HALO,) * 3, (values.shape[0], values.shape[1], values.shape[2]))
                parts[channel].append((_lifted(box, joined.start), values[box].copy()))
                above[channel] = _around(above[channel], _lifted(found, joined.start))
        first = max(0, joined.values.shape[3] - _HALO)
        tail = Slab(joined.start + first, joined.values[..., first:].copy())
    return Logits(labels, stride, grid, tuple(tuple(kept) for kept in parts), tuple(above))


def logit(probability: float) -> np.float32:
    """The logit of a probability."""
    return np.float32(np.log(probability / (1.0 - probability)))


def _lifted(box: Box, planes: int) -> Box:
    return box[0], box[1], slice(box[2].start + planes, box[2].stop + planes)


def _around(one: Box | None, other: Box) -> Box:
    if one is None:
        return other
    x, y, z = (slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
    return x, y, z
