"""Masks: one bit per label and voxel, on the exact grid of the source volume.

Each label has its bits in a box around it. So anatomy takes tens of megabytes however long the scan is, and any part of
a label is unpacked alone.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from service.imaging.geometry import Geometry
from service.inference.grid import Box as Box  # part of what a LabelMask is
from service.inference.grid import absolute, bounding_box, box_shape, full_box, intersection, relative
from service.inference.manifest import Label

Bools = NDArray[np.bool_]

# Planes of the scan whose masks are laid together at once for the digest.
_HASHED_PLANES = 8


class LabelMask:
    """One label's mask: nothing outside a box that is given at the start, one bit per voxel inside.

    Every box counts in voxels of the source volume.
    """

    def __init__(self, within: Box | None) -> None:
        """An empty mask with room for voxels in `within`."""
        i, j, k = within or (slice(0, 0), slice(0, 0), slice(0, 0))
        # Bytes hold eight voxels along k, the first at a multiple of 8, so that parts of the scan meet on whole bytes.
        #: The box that has room for voxels; along k it may reach beyond the scan.
        self.room: Box = (i, j, slice(k.start // 8 * 8, -(-k.stop // 8) * 8))
        rows, columns, depth = box_shape(self.room)
        self._bits = np.zeros((rows, columns, depth // 8), np.uint8)

    @classmethod
    def of(cls, box: Box, inside: Bools) -> "LabelMask":
        """The mask that is `inside` the box."""
        mask = cls(box)
        mask.add(box, inside)
        return mask

    def bounds(self) -> Box | None:
        """The smallest box that holds every voxel; None for an empty mask."""
        coarse = bounding_box(self._bits != 0)
        if coarse is None:
            return None
        depth = np.unpackbits(np.bitwise_or.reduce(self._bits, axis=(0, 1)), bitorder="little")
        hits = np.flatnonzero(depth)
        return absolute((coarse[0], coarse[1], slice(int(hits[0]), int(hits[-1]) + 1)), self.room)

    def read(self, box: Box) -> Bools:
        """The mask in any box of the volume, contiguous in memory."""
        shared = intersection(box, self.room)
        if shared == box:
            return self._unpacked(box)
        inside = np.zeros(box_shape(box), np.bool_)
        if shared is not None:
            inside[relative(shared, box)] = self._unpacked(shared)
        return inside

    def add(self, box: Box, inside: Bools) -> None:
        """Set the voxels that are true `inside` a box of the room."""
        whole_bytes, bits = self._aligned(box, inside)
        self._bits[whole_bytes] |= bits

    def remove(self, box: Box, outside: Bools) -> None:
        """Clear the voxels that are true in `outside`, shape of a box of the room."""
        whole_bytes, bits = self._aligned(box, outside)
        self._bits[whole_bytes] &= ~bits

    def _unpacked(self, box: Box) -> Bools:
        whole_bytes, lead = self._bytes_of(box)
        depth = box[2].stop - box[2].start
        bits = np.unpackbits(self._bits[whole_bytes], axis=2, count=lead + depth, bitorder="little")
        return np.ascontiguousarray(bits[..., lead:]).view(np.bool_)

    def _aligned(self, box: Box, inside: Bools) -> tuple[Box, NDArray[np.uint8]]:
        """The bytes that hold a box, and what is true inside as bits of such bytes."""
        whole_bytes, lead = self._bytes_of(box)
        if lead:
            inside = np.pad(inside, ((0, 0), (0, 0), (lead, 0)))
        return whole_bytes, np.packbits(inside, axis=2, bitorder="little")

    def _bytes_of(self, box: Box) -> tuple[Box, int]:
        """Where the bytes of a box are, and how many bits of the first lie before it."""
        i, j, k = relative(box, self.room)
        return (i, j, slice(k.start // 8, -(-k.stop // 8))), k.start % 8


@dataclass(frozen=True, eq=False)
class Masks:
    """The masks of `labels` on the source grid, one for each label in the same order; masks may overlap.

    `lesion_probability` has an entry for each lesion label whose mask is not empty: uint8, 0 to 255 for 0 to 1, of the
    voxels of its mask in the order of the volume.
    """

    labels: tuple[Label, ...]
    of_labels: tuple[LabelMask, ...]
    geometry: Geometry
    lesion_probability: Mapping[str, NDArray[np.uint8]]

    def mask(self, name: str) -> Bools:
        """The mask of one label, shape == geometry.shape; KeyError when there is no such label."""
        for label, mask in zip(self.labels, self.of_labels, strict=True):
            if label.name == name:
                return mask.read(full_box(self.geometry.shape))
        raise KeyError(name)

    def packed(self, box: Box) -> NDArray[np.uint32 | np.uint64]:
        """All masks in a box of the volume: bit n of a voxel belongs to labels[n]."""
        packed = np.zeros(box_shape(box), np.uint32 if len(self.labels) <= 32 else np.uint64)
        for bit, mask in enumerate(self.of_labels):
            shared = intersection(mask.room, box)
            if shared is not None:
                packed[relative(shared, box)] |= mask.read(shared) * packed.dtype.type(1 << bit)
        return packed

    @cached_property
    def sha256(self) -> str:
        """Hex digest over shape, affine, label names and every bit: equal masks on equal grids have equal digests."""
        digest = hashlib.sha256()
        digest.update(repr(tuple(self.geometry.shape)).encode())
        digest.update(np.ascontiguousarray(self.geometry.affine, dtype="<f8").tobytes())
        digest.update("\n".join(label.name for label in self.labels).encode())
        planes, rows, columns = self.geometry.shape
        for first in range(0, planes, _HASHED_PLANES):
            slab = slice(first, min(first + _HASHED_PLANES, planes)), slice(0, rows), slice(0, columns)
            packed = self.packed(slab)
            digest.update(packed.astype(packed.dtype.newbyteorder("<"), copy=False).data)
        return digest.hexdigest()
