"""Longest and perpendicular diameter of a lesion in one slice, from the corners of its pixels.

The two numbers of a radiology report (RECIST 1.1: Eisenhauer et al. 2009, longest diameter in the plane of
measurement; WHO 1979: times the longest one at a right angle). A pixel is an area, not a point: the outline runs
through pixel corners, so a single pixel of 1 x 1 mm measures 1.41 mm (its diagonals), and n pixels in a row measure
the diagonal of their rectangle.

Definition, on the convex hull of the corners of the component's pixels, in millimetres:

    longest        the largest distance between two points of the hull (maximum Feret diameter)
    perpendicular  the longest straight line inside the hull at a right angle to it

Pixels need be neither square nor upright: the two steps of the grid are vectors in patient millimetres.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull

from service.imaging.geometry import Geometry

Plane = NDArray[np.float64]  # (n, 2)
Segment = NDArray[np.float64]  # (2, 2): two end points

_TIE = 1e-9  # relative: two lengths this close count as equal, so that the answer does not hang on rounding


@dataclass(frozen=True)
class Diameters:
    """The two diameters of one slice and where they lie.

    The segments are (2, 3) arrays of continuous voxel indices (i, j, k): pixel centres are whole numbers, corners end
    in .5.
    """

    longest_mm: float
    perpendicular_mm: float
    longest_segment: NDArray[np.float64]
    perpendicular_segment: NDArray[np.float64]
    slice_index: int


def measure_slice(pixels: NDArray[np.bool_], steps_mm: NDArray[np.float64]) -> tuple[float, float, Segment, Segment]:
    """Longest and perpendicular diameter (mm) of a 2-D mask, and their end points in continuous pixel indices.

    Args:
        pixels: (rows, columns), at least one True.
        steps_mm: (2, d): the vector in mm, in any space, from a pixel to the next along each axis.

    Raises:
        ValueError: no pixel is set.
    """
    if not pixels.any():
        raise ValueError("An empty slice has no diameter.")
    to_plane = _plane_basis(steps_mm)
    hull = _hull(_outline_corners(pixels) @ to_plane)
    longest = _longest_segment(hull)
    perpendicular = _longest_chord_across(hull, longest)
    to_pixels = np.linalg.inv(to_plane)
    return _length(longest), _length(perpendicular), longest @ to_pixels, perpendicular @ to_pixels


def measure_component(
    component: NDArray[np.bool_], start: tuple[int, int, int], geometry: Geometry, slice_axis: int
) -> Diameters:
    """Diameters of a 3-D component in the slice where its longest diameter is largest.

    Args:
        component: (i, j, k) mask of the component, cut out of the volume at `start`.
        start: voxel index of the mask's first voxel in the volume.
        geometry: the volume's grid.
        slice_axis: 0, 1 or 2: the axis across the slices. Of equal slices the lowest in the patient counts, whichever
            way the array runs.
    """
    in_plane = [axis for axis in range(3) if axis != slice_axis]
    steps_mm = geometry.affine[:3, in_plane].T
    slices = np.moveaxis(component, slice_axis, 0)
    bounds = [_box_diagonal(pixels, steps_mm) for pixels in slices]
    best: tuple[float, float, Segment, Segment] | None = None
    best_index = -1
    upwards = 1 if geometry.affine[2, slice_axis] >= 0.0 else -1
    for index in sorted(range(len(bounds)), key=lambda n: (-bounds[n], n)):
        if bounds[index] == 0.0 or (best is not None and bounds[index] < best[0] * (1.0 - _TIE)):
            break  # no later slice can hold a longer diameter than its own box
        measured = measure_slice(slices[index], steps_mm)
        if best is None or _beats(measured[0], upwards * index, best[0], upwards * best_index):
            best, best_index = measured, index
    if best is None:
        raise ValueError("An empty component has no diameter.")
    slice_index = start[slice_axis] + best_index
    longest, perpendicular = (_to_volume(segment, start, in_plane, slice_axis, slice_index) for segment in best[2:])
    return Diameters(best[0], best[1], longest, perpendicular, slice_index)


def _beats(length: float, height: int, best: float, best_height: int) -> bool:
    if abs(length - best) <= _TIE * best:
        return height < best_height
    return length > best


def _to_volume(
    segment: Segment, start: tuple[int, int, int], in_plane: list[int], slice_axis: int, slice_index: int
) -> NDArray[np.float64]:
    points = np.empty((2, 3))
    points[:, in_plane] = segment + np.array(start, dtype=np.float64)[in_plane]
    points[:, slice_axis] = slice_index
    return points


def _plane_basis(steps_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """(2, 2) matrix from pixel steps to orthonormal millimetres in the plane that the two steps span."""
    first, second = np.asarray(steps_mm, dtype=np.float64)
    along = first / np.linalg.norm(first)
    across = second - (second @ along) * along
    return np.array([[np.linalg.norm(first), 0.0], [second @ along, np.linalg.norm(across)]])


def _outline_corners(pixels: NDArray[np.bool_]) -> Plane:
    """Corners of the first and last pixel of each row: they hold every vertex of the convex hull."""
    rows = np.flatnonzero(pixels.any(axis=1))
    occupied = pixels[rows]
    first = occupied.argmax(axis=1) - 0.5
    last = pixels.shape[1] - 1 - occupied[:, ::-1].argmax(axis=1) + 0.5
    half_a_row = np.array([0.5, 0.0])
    ends = np.concatenate([np.stack([rows, first], axis=1), np.stack([rows, last], axis=1)])
    return np.concatenate([ends - half_a_row, ends + half_a_row])


def _box_diagonal(pixels: NDArray[np.bool_], steps_mm: NDArray[np.float64]) -> float:
    """The longer diagonal (mm) of the pixels' bounding box: no diameter is longer. 0 if there is no pixel."""
    rows = np.flatnonzero(pixels.any(axis=1))
    if rows.size == 0:
        return 0.0
    columns = np.flatnonzero(pixels.any(axis=0))
    height = (rows[-1] - rows[0] + 1) * steps_mm[0]
    width = (columns[-1] - columns[0] + 1) * steps_mm[1]
    return float(max(np.linalg.norm(height + width), np.linalg.norm(height - width)))


def _hull(points: Plane) -> Plane:
    """Vertices of the convex hull, in order."""
    vertices: Plane = points[ConvexHull(points).vertices]
    return vertices


def _longest_segment(hull: Plane) -> Segment:
    squared = ((hull[:, None] - hull[None]) ** 2).sum(axis=-1)
    longest = squared.max()
    # Of equal diameters (a rectangle has two) take the first: argmax alone would follow the rounding error.
    first = int(np.argmax(squared.ravel() >= longest * (1.0 - _TIE)))
    return hull[list(divmod(first, len(hull)))]


def _longest_chord_across(hull: Plane, axis: Segment) -> Segment:
    """The longest chord of the hull at a right angle to `axis`.

    The chord's length is a concave, piecewise linear function of the place along the axis, and bends only at
    vertices: so the longest chord passes through a vertex.
    """
    along = (axis[1] - axis[0]) / np.linalg.norm(axis[1] - axis[0])
    across = np.array([-along[1], along[0]])
    place, height = hull @ along, hull @ across
    next_place, next_height = np.roll(place, -1), np.roll(height, -1)
    span = next_place - place
    upright = np.abs(span) < 1e-12
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (place[:, None] - place[None]) / span[None]  # (vertex, edge): where the edge passes the vertex's place
    share[:, upright] = 0.0
    crossed = (share >= -1e-9) & (share <= 1.0 + 1e-9)
    crossed[:, upright] = np.abs(place[:, None] - place[None, upright]) < 1e-9
    at = height[None] + np.clip(share, 0.0, 1.0) * (next_height - height)[None]
    lowest = np.minimum(np.where(crossed, at, np.inf).min(axis=1), height)
    highest = np.maximum(np.where(crossed, at, -np.inf).max(axis=1), height)
    lengths = highest - lowest
    best = int(np.argmax(lengths >= lengths.max() * (1.0 - _TIE)))
    return np.array([place[best] * along + level * across for level in (lowest[best], highest[best])])


def _length(segment: Segment) -> float:
    return float(np.linalg.norm(segment[1] - segment[0]))
