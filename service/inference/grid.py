"""The model grid: the scan's own axes, permuted and flipped to the closest RAS, at the bundle's spacing, cropped.

An oblique scan keeps its rotation: axes are exchanged and reversed, never turned, so each axis of the model grid runs
along one axis of the source, and all resampling is one axis at a time. The centre of the first voxel (after flipping)
is the same point on both grids: model index = source index * source spacing / model spacing.

Slices of a tilted gantry lie shifted against each other. The model grid is rectangular all the same: two axes run along
the slices, the third along their normal, and each slice has its own place on the first two (`Shear`).
"""

from dataclasses import dataclass, replace
from typing import Self, TypeVar

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from service.imaging.geometry import Geometry, Shape

Box = tuple[slice, slice, slice]
_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True, eq=False)
class ClosestRAS:
    """How the source's axes become the closest to RAS: model axis a follows source axis axes[a], reversed or not."""

    axes: tuple[int, int, int]
    reversed: tuple[bool, bool, bool]

    @classmethod
    def of(cls, geometry: Geometry) -> Self:
        """From the affine alone; unambiguous for any invertible affine."""
        orientation = io_orientation(geometry.affine)  # type: ignore[no-untyped-call]  # row = source axis: (RAS axis, +1 or -1)
        axes = [0, 0, 0]
        flips = [False, False, False]
        for source_axis, (ras_axis, sign) in enumerate(orientation):
            axes[int(ras_axis)], flips[int(ras_axis)] = source_axis, sign < 0
        return cls((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))

    def view(self, array: NDArray[_Scalar]) -> NDArray[_Scalar]:
        """A source array (i, j, k) seen along the closest RAS axes; shares memory, so it can be written through."""
        i, j, k = (slice(None, None, -1) if flip else slice(None) for flip in self.reversed)
        return array.transpose(self.axes)[i, j, k]

    def source_box(self, box: Box, source_shape: Shape) -> Box:
        """The box of the source array that `box` of the view covers."""
        found = [slice(0), slice(0), slice(0)]
        for a, (axis, flip) in enumerate(zip(self.axes, self.reversed, strict=True)):
            n = source_shape[axis]
            found[axis] = slice(n - box[a].stop, n - box[a].start) if flip else box[a]
        return found[0], found[1], found[2]

    def box_of_source(self, box: Box, source_shape: Shape) -> Box:
        """The box of the view that covers `box` of the source array; undoes `source_box`."""
        i, j, k = (
            slice(source_shape[axis] - box[axis].stop, source_shape[axis] - box[axis].start) if flip else box[axis]
            for axis, flip in zip(self.axes, self.reversed, strict=True)
        )
        return i, j, k

    def source_array(self, seen: NDArray[_Scalar]) -> NDArray[_Scalar]:
        """An array along the closest RAS axes as the source would hold it; undoes `view`."""
        i, j, k = (slice(None, None, -1) if flip else slice(None) for flip in self.reversed)
        inverse = np.argsort(self.axes)
        return np.ascontiguousarray(seen[i, j, k].transpose(inverse))

    def geometry(self, source: Geometry) -> Geometry:
        """Geometry of `view` of an array on the grid `source`."""
        affine = source.affine.copy()
        for a, (axis, flip) in enumerate(zip(self.axes, self.reversed, strict=True)):
            column = source.affine[:3, axis]
            affine[:3, a] = -column if flip else column
            if flip:
                affine[:3, 3] += (source.shape[axis] - 1) * column
        i, j, k = (source.shape[axis] for axis in self.axes)
        return Geometry((i, j, k), affine)


@dataclass(frozen=True)
class Shear:
    """How the slices of a tilted stack lie on the whole model grid; all along the closest RAS axes.

    Slice s along `axis` has its first voxel at first[a] + s * per_slice[a] on each axis a, in model voxels; both are 0
    on `axis` itself.
    """

    axis: int
    first: tuple[float, float, float]
    per_slice: tuple[float, float, float]

    def shift(self, a: int, index: float) -> float:
        """Where slice `index` begins on axis `a`, in model voxels."""
        return self.first[a] + index * self.per_slice[a]


@dataclass(frozen=True, eq=False)
class ModelGrid:
    """Where the network's voxels lie.

    `whole` is the shape of the whole scan at the model's spacing, `crop` the box of it that goes through the network,
    and `geometry` the grid inside the crop (axes x, y, z; voxel index -> RAS mm). `steps` are the model voxels from one
    source voxel to the next along each of its axes. `shear` is None for a source grid that is rectangular.
    """

    to_ras: ClosestRAS
    whole: Shape
    crop: Box
    geometry: Geometry
    steps: tuple[float, float, float]
    shear: Shear | None = None

    @property
    def shape(self) -> Shape:
        """Voxels inside the crop along x, y, z."""
        return self.geometry.shape


def whole_grid(source: Geometry, spacing_mm: tuple[float, float, float]) -> ModelGrid:
    """The model grid over the whole scan.

    As MONAI's Spacing: round((n - 1) * source spacing / model spacing) + 1 voxels, at least one, whose last centre may
    lie up to half a voxel before or behind the last of the source.
    """
    to_ras = ClosestRAS.of(source)
    canonical = to_ras.geometry(source)
    if canonical.sheared_axis is not None:
        return _upright_grid(to_ras, canonical, canonical.sheared_axis, spacing_mm)
    affine = canonical.affine.copy()
    shape = [1, 1, 1]
    for a, (n, own, target) in enumerate(zip(canonical.shape, canonical.spacing_mm, spacing_mm, strict=True)):
        affine[:3, a] *= target / own
        shape[a] = int(np.round((n - 1) * own / target + 1.0))
    whole = (shape[0], shape[1], shape[2])
    x, y, z = (own / target for own, target in zip(canonical.spacing_mm, spacing_mm, strict=True))
    return ModelGrid(to_ras, whole, full_box(whole), Geometry(whole, affine), (x, y, z))


def _upright_grid(
    to_ras: ClosestRAS, canonical: Geometry, axis: int, spacing_mm: tuple[float, float, float]
) -> ModelGrid:
    """The model grid over slices that are stacked along a leaning `axis`: large enough for all of them."""
    slices = canonical.shape[axis]
    own_mm = np.array(canonical.spacing_mm)
    unit = canonical.affine[:3, :3] / own_mm
    leaning = canonical.affine[:3, axis]
    shift_mm = leaning @ unit  # from slice to slice, along each axis
    shift_mm[axis] = 0.0
    upright = leaning - unit @ shift_mm
    own_mm[axis] = np.linalg.norm(upright)
    unit[:, axis] = upright / own_mm[axis]
    # The slice that lies lowest begins the grid.
    first_mm = -np.minimum(0.0, (slices - 1) * shift_mm)
    extent_mm = (np.array(canonical.shape) - 1) * own_mm + np.abs((slices - 1) * shift_mm)
    affine = np.eye(4)
    affine[:3, :3] = unit * spacing_mm
    affine[:3, 3] = canonical.affine[:3, 3] - unit @ first_mm
    x, y, z = (int(n) for n in np.round(extent_mm / spacing_mm + 1.0))
    shear = Shear(axis, _triple(first_mm / spacing_mm), _triple(shift_mm / spacing_mm))
    return ModelGrid(
        to_ras, (x, y, z), full_box((x, y, z)), Geometry((x, y, z), affine), _triple(own_mm / spacing_mm), shear
    )


def _triple(values: NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z


def cropped(grid: ModelGrid, box: Box) -> ModelGrid:
    """The grid inside `box`, given in voxels of `grid` (which is not cropped yet)."""
    affine = grid.geometry.affine.copy()
    affine[:3, 3] = grid.geometry.to_ras_mm([side.start for side in box])
    return replace(grid, crop=box, geometry=Geometry(box_shape(box), affine))


def full_box(shape: Shape) -> Box:
    """The box that covers an array of that shape."""
    i, j, k = (slice(0, n) for n in shape)
    return i, j, k


def box_shape(box: Box) -> Shape:
    """Edge lengths of a box in voxels."""
    i, j, k = (side.stop - side.start for side in box)
    return i, j, k


def bounding_box(mask: NDArray[np.bool_]) -> Box | None:
    """The smallest box that holds every true voxel; None for an empty mask."""
    sides: list[slice] = []
    for other_axes in ((1, 2), (0, 2), (0, 1)):
        hits = np.flatnonzero(mask.any(axis=other_axes))
        if not len(hits):
            return None
        sides.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return sides[0], sides[1], sides[2]


def relative(box: Box, to: Box) -> Box:
    """`box` in indices that count from the first voxel of `to`."""
    i, j, k = (slice(side.start - first.start, side.stop - first.start) for side, first in zip(box, to, strict=True))
    return i, j, k


def absolute(box: Box, within: Box) -> Box:
    """The inverse of `relative`: `box` counts from the first voxel of `within`."""
    i, j, k = (
        slice(first.start + side.start, first.start + side.stop) for side, first in zip(box, within, strict=True)
    )
    return i, j, k


def intersection(one: Box, other: Box) -> Box | None:
    """The voxels in both boxes; None when there are none."""
    i, j, k = (slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
    return (i, j, k) if min(side.stop - side.start for side in (i, j, k)) > 0 else None


def grown(box: Box, margin: tuple[int, int, int], shape: Shape) -> Box:
    """The box with `margin` voxels more on each side, as far as the array of that shape reaches."""
    i, j, k = (
        slice(max(side.start - more, 0), min(side.stop + more, n))
        for side, more, n in zip(box, margin, shape, strict=True)
    )
    return i, j, k
