"""Where each label lies: measuring and writing touch its voxels only inside its bounding box."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from service.imaging.geometry import Geometry
from service.inference.manifest import Label
from service.inference.masks import Box, LabelMask, Masks
from service.reporting.schema import BoundingBox, Side, VoxelAxis

_DIRECTIONS = (  # (towards lower, towards higher) RAS coordinate, for x, y, z
    (Side.LEFT, Side.RIGHT),
    (Side.POSTERIOR, Side.ANTERIOR),
    (Side.INFERIOR, Side.SUPERIOR),
)
_CODE_OF_SIDE = {side: side.value[0].upper() for pair in _DIRECTIONS for side in pair}


@dataclass(frozen=True)
class Region:
    """One label's mask and its bounding box, which is None when the mask is empty."""

    label: Label
    bits: LabelMask
    box: Box | None

    @property
    def start(self) -> tuple[int, int, int]:
        """First voxel of the box in the volume; (0, 0, 0) for an empty mask."""
        if self.box is None:
            return (0, 0, 0)
        return (self.box[0].start, self.box[1].start, self.box[2].start)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The label's mask (bool), shape of the box; shape (0, 0, 0) when empty."""
        return np.zeros((0, 0, 0), dtype=np.bool_) if self.box is None else self.bits.read(self.box)


def label_regions(masks: Masks) -> tuple[Region, ...]:
    """The region of every label, in the masks' order."""
    return tuple(Region(label, bits, bits.bounds()) for label, bits in zip(masks.labels, masks.of_labels, strict=True))


def bounding_box(box: Box) -> BoundingBox:
    """The same box as the findings state it."""
    i, j, k = box
    return BoundingBox(start=(i.start, j.start, k.start), stop=(i.stop, j.stop, k.stop))


@dataclass(frozen=True)
class Compass:
    """Which patient direction each voxel axis points to, and which axis is across the slices."""

    geometry: Geometry

    @cached_property
    def nearest(self) -> tuple[tuple[int, bool], ...]:
        """For i, j, k: the nearest RAS axis (0, 1, 2) and whether the index grows with it.

        The three axes are given out together, steepest first, so that an oblique grid never names one direction
        twice.
        """
        cosines = self.geometry.affine[:3, :3] / np.array(self.geometry.spacing_mm)
        free = np.abs(cosines)
        found: dict[int, tuple[int, bool]] = {}
        for _ in range(3):
            ras, voxel = (int(n) for n in np.unravel_index(int(free.argmax()), (3, 3)))
            found[voxel] = (ras, bool(cosines[ras, voxel] > 0.0))
            free[ras, :] = -1.0
            free[:, voxel] = -1.0
        return tuple(found[axis] for axis in range(3))

    @property
    def codes(self) -> tuple[str, str, str]:
        """Axis codes as in nibabel: the direction of growing i, j, k, such as ("R", "A", "S")."""
        i, j, k = (_CODE_OF_SIDE[self.side(axis, at_end=True)] for axis in range(3))
        return i, j, k

    def side(self, axis: int, *, at_end: bool) -> Side:
        """The patient's side that the low or the high end of a voxel axis faces."""
        ras, rising = self.nearest[axis]
        return _DIRECTIONS[ras][int(rising == at_end)]

    def axis_towards(self, ras: int) -> int:
        """The voxel axis nearest to RAS axis 0, 1 or 2."""
        return next(axis for axis in range(3) if self.nearest[axis][0] == ras)

    def sides_touched(self, box: Box) -> tuple[Side, ...]:
        """The sides of the volume that a box touches, in the order i, j, k, low end first."""
        touched = []
        for axis, (extent, size) in enumerate(zip(box, self.geometry.shape, strict=True)):
            if extent.start == 0:
                touched.append(self.side(axis, at_end=False))
            if extent.stop == size:
                touched.append(self.side(axis, at_end=True))
        return tuple(touched)


VOXEL_AXES = (VoxelAxis.I, VoxelAxis.J, VoxelAxis.K)
