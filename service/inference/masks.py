"""Masks: one bit per label and voxel, on the exact grid of the source volume.

All labels share one unsigned integer per voxel, no wider than their number asks for: uint32 up to 32 labels, uint64 up
to `manifest.MAX_LABELS`.
"""

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.imaging.geometry import Geometry, Shape
from service.inference.grid import Box as Box  # part of what a LesionProbability is
from service.inference.manifest import Label

Packed: TypeAlias = NDArray[np.unsignedinteger[Any]]  # uint32 or uint64


def empty_packed(shape: Shape, labels: int) -> Packed:
    """Masks without a voxel, with room for that many labels."""
    return np.zeros(shape, np.uint32 if labels <= 32 else np.uint64)


def bit_mask(packed: Packed, bit: int) -> np.unsignedinteger[Any]:
    """The number that has only this bit, in the type of `packed`: numpy mixes no widths in its bit operations."""
    return packed.dtype.type(1 << bit)


def has_bit(packed: Packed, bit: int) -> NDArray[np.bool_]:
    """Where a bit is set; the shape is that of `packed`, which may be any part of the masks."""
    # Only the byte that holds the bit is looked at: no second array as large as `packed`.
    byte, place = divmod(bit, 8)
    of_voxels = packed.getfield(np.uint8, byte if sys.byteorder == "little" else packed.itemsize - 1 - byte)
    marked = of_voxels >> np.uint8(place)
    marked &= np.uint8(1)
    return marked.view(np.bool_)


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

    `packed` has shape == geometry.shape, indexed (i, j, k); bit n belongs to labels[n], and masks may overlap.
    `lesion_probability` has an entry for each lesion label whose mask is not empty.
    """

    labels: tuple[Label, ...]
    packed: Packed
    geometry: Geometry
    lesion_probability: Mapping[str, LesionProbability]

    def mask(self, name: str) -> NDArray[np.bool_]:
        """The mask of one label, shape == geometry.shape; KeyError when there is no such label."""
        for bit, label in enumerate(self.labels):
            if label.name == name:
                return has_bit(self.packed, bit)
        raise KeyError(name)

    @cached_property
    def sha256(self) -> str:
        """Hex digest over shape, affine, label names and every bit: equal masks on equal grids have equal digests."""
        digest = hashlib.sha256()
        digest.update(repr(tuple(self.geometry.shape)).encode())
        digest.update(np.ascontiguousarray(self.geometry.affine, dtype="<f8").tobytes())
        digest.update("\n".join(label.name for label in self.labels).encode())
        digest.update(np.ascontiguousarray(self.packed, dtype=self.packed.dtype.newbyteorder("<")).data)
        return digest.hexdigest()
