"""Masks: one bit per label and voxel, on the exact grid of the source volume."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from service.imaging.geometry import Geometry
from service.inference.grid import Box as Box  # part of what a LesionProbability is
from service.inference.manifest import Label


@dataclass(frozen=True, eq=False)
class LesionProbability:
    """Probability of one lesion label on the source grid, inside `box`, the bounding box of its mask.

    uint8, shape of the box; 0 to 255 for 0 to 1.
    """

    box: Box
    probability: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Masks:
    """The masks of `labels` on the source grid.

    `packed` is uint32, shape == geometry.shape, indexed (i, j, k); bit n belongs to labels[n], and masks may overlap.
    `lesion_probability` has an entry for each lesion label whose mask is not empty.
    """

    labels: tuple[Label, ...]
    packed: NDArray[np.uint32]
    geometry: Geometry
    lesion_probability: Mapping[str, LesionProbability]

    def mask(self, name: str) -> NDArray[np.bool_]:
        """The mask of one label, shape == geometry.shape; KeyError when there is no such label."""
        for bit, label in enumerate(self.labels):
            if label.name == name:
                bits: NDArray[np.bool_] = (self.packed & np.uint32(1 << bit)) != 0
                return bits
        raise KeyError(name)

    @cached_property
    def sha256(self) -> str:
        """Hex digest over shape, affine, label names and every bit: equal masks on equal grids have equal digests."""
        digest = hashlib.sha256()
        digest.update(repr(tuple(self.geometry.shape)).encode())
        digest.update(np.ascontiguousarray(self.geometry.affine, dtype="<f8").tobytes())
        digest.update("\n".join(label.name for label in self.labels).encode())
        digest.update(np.ascontiguousarray(self.packed, dtype="<u4").data)
        return digest.hexdigest()
