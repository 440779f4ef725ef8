"""Three display planes of a volume in the radiological convention, whatever the orientation of its array.

Patient right is on the image's left; anterior is up in the axial plane, superior in the others; the sagittal plane is
seen from the patient's left, so anterior is on the image's left. In words of RAS: rows and columns always run towards
the lower coordinate. An oblique grid is shown along its own axes, each under the name of the nearest patient axis.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from service.imaging.geometry import Geometry
from service.imaging.volume import Volume
from service.inference.masks import Box, LabelMask, Masks
from service.reporting.regions import Compass
from service.reporting.schema import Findings

Item = TypeVar("Item", bound=np.generic)
Voxel = tuple[int, int, int]
Ranges = tuple[slice, slice, slice]  # for i, j, k: the part that is shown

_PLANES = (("Axial", 1, 0, 2), ("Coronal", 2, 0, 1), ("Sagittal", 2, 1, 0))  # name, RAS axis of rows, columns, normal
_HIGH_LETTER = "RAS"
_LOW_LETTER = "LPI"

_BODY_ABOVE_HU = -400
_MARGIN_MM = 12.0
_PROFILE_VOXELS = 2_000_000  # about as many voxels are looked at to find the best slices


@dataclass(frozen=True)
class DisplayPlane:
    """One slice, seen as an image: which voxel axis makes the rows, which the columns, and which way they run."""

    name: str
    geometry: Geometry
    row_axis: int
    column_axis: int
    normal_axis: int
    index: int
    flipped: tuple[bool, bool, bool]  # for i, j, k: shown against the index
    shown: Ranges
    letters: tuple[str, str, str, str]  # left, right, top, bottom

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the image, in voxels."""
        rows, columns = self.shown[self.row_axis], self.shown[self.column_axis]
        return rows.stop - rows.start, columns.stop - columns.start

    @property
    def pixel_mm(self) -> tuple[float, float]:
        """Height and width of a voxel in the image."""
        return self.geometry.spacing_mm[self.row_axis], self.geometry.spacing_mm[self.column_axis]

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width of the image."""
        return self.shape[0] * self.pixel_mm[0], self.shape[1] * self.pixel_mm[1]

    def take(self, volume: NDArray[Item]) -> NDArray[Item]:
        """The slice of an array on the volume's grid, (rows, columns) as shown."""
        return self._as_shown(volume[self._box])

    def take_mask(self, mask: LabelMask) -> NDArray[np.bool_]:
        """The slice of a mask in the volume, (rows, columns) as shown."""
        return self._as_shown(mask.read(self._box))

    @property
    def _box(self) -> Box:
        cut = list(self.shown)
        cut[self.normal_axis] = slice(self.index, self.index + 1)
        return cut[0], cut[1], cut[2]

    def _as_shown(self, box: NDArray[Item]) -> NDArray[Item]:
        image = box.squeeze(self.normal_axis)
        if self.row_axis > self.column_axis:
            image = image.T
        rows = slice(None, None, -1) if self.flipped[self.row_axis] else slice(None)
        columns = slice(None, None, -1) if self.flipped[self.column_axis] else slice(None)
        return image[rows, columns]

    def place(self, voxel: tuple[float, float, float]) -> tuple[float, float]:
        """(row, column) of a continuous voxel index, in voxels from the image's upper left corner."""
        row, column = (self._along(axis, voxel[axis]) for axis in (self.row_axis, self.column_axis))
        return row, column

    def _along(self, axis: int, position: float) -> float:
        span = self.shown[axis]
        if self.flipped[axis]:
            return float(span.stop) - 0.5 - position
        return position + 0.5 - float(span.start)


def display_planes(geometry: Geometry, point: Voxel, shown: Ranges) -> tuple[DisplayPlane, DisplayPlane, DisplayPlane]:
    """The axial, coronal and sagittal plane through a voxel."""
    compass = Compass(geometry)
    flipped = tuple(rising for _, rising in compass.nearest)
    planes = []
    for name, row_ras, column_ras, normal_ras in _PLANES:
        normal = compass.axis_towards(normal_ras)
        planes.append(
            DisplayPlane(
                name=name,
                geometry=geometry,
                row_axis=compass.axis_towards(row_ras),
                column_axis=compass.axis_towards(column_ras),
                normal_axis=normal,
                index=point[normal],
                flipped=(flipped[0], flipped[1], flipped[2]),
                shown=shown,
                letters=(
                    _HIGH_LETTER[column_ras],
                    _LOW_LETTER[column_ras],
                    _HIGH_LETTER[row_ras],
                    _LOW_LETTER[row_ras],
                ),
            )
        )
    return planes[0], planes[1], planes[2]


def best_point(masks: Masks, findings: Findings) -> Voxel:
    """The voxel worth showing: inside the largest lesion; else where most organs show best; else the middle."""
    if findings.lesions:
        largest = max(findings.lesions, key=lambda lesion: lesion.volume_ml)
        point = [round(place) for place in largest.centroid_voxel]
        point["ijk".index(findings.source.slice_axis)] = largest.slice_index
        return _inside(point, masks.geometry)
    return _organ_rich_point(masks)


def _organ_rich_point(masks: Masks) -> Voxel:
    """Along each axis the slice with the largest sum, over organs, of the organ's area relative to its largest area."""
    shape = masks.geometry.shape
    step = max(1, round((np.prod(shape, dtype=np.float64) / _PROFILE_VOXELS) ** (1 / 3)))
    scores = [np.zeros(-(-size // step)) for size in shape]
    for mask in (_sampled(bits, shape, step) for bits in masks.of_labels):
        if not mask.any():
            continue
        for axis, score in enumerate(scores):
            area = mask.sum(axis=tuple(other for other in range(3) if other != axis))
            score += area / area.max()
    if not any(score.any() for score in scores):
        return _inside([size // 2 for size in shape], masks.geometry)
    return _inside([int(score.argmax()) * step for score in scores], masks.geometry)


def _sampled(bits: LabelMask, shape: tuple[int, int, int], step: int) -> NDArray[np.bool_]:
    """Every `step`-th voxel of a mask along each axis of the volume."""
    i, j, k = shape
    planes = (bits.read((slice(place, place + 1), slice(0, j), slice(0, k))) for place in range(0, i, step))
    return np.concatenate([plane[:, ::step, ::step] for plane in planes])


def _inside(point: list[int], geometry: Geometry) -> Voxel:
    i, j, k = (min(max(place, 0), size - 1) for place, size in zip(point, geometry.shape, strict=True))
    return i, j, k


def body_ranges(volume: Volume, masks: Masks, point: Voxel) -> Ranges:
    """The part of the grid worth showing: the body and every mask in the three planes, with a margin; z in full."""
    shape, spacing_mm = volume.geometry.shape, volume.geometry.spacing_mm
    lows, highs = list(shape), [0, 0, 0]
    vertical = Compass(volume.geometry).axis_towards(2)
    for axis in range(3):
        i, j, k = (slice(point[a], point[a] + 1) if a == axis else slice(0, size) for a, size in enumerate(shape))
        in_plane = [other for other in range(3) if other != axis]
        kept = _body(volume.hu[i, j, k].squeeze(axis)) | (masks.packed((i, j, k)).squeeze(axis) != 0)
        for position, other in enumerate(in_plane):
            hits = np.flatnonzero(kept.any(axis=1 - position))
            if hits.size:
                lows[other] = min(lows[other], int(hits[0]))
                highs[other] = max(highs[other], int(hits[-1]) + 1)
    ranges = []
    for axis in range(3):
        margin = int(np.ceil(_MARGIN_MM / spacing_mm[axis]))
        if axis == vertical or lows[axis] >= highs[axis]:
            ranges.append(slice(0, shape[axis]))
        else:
            ranges.append(slice(max(0, lows[axis] - margin), min(shape[axis], highs[axis] + margin)))
    return ranges[0], ranges[1], ranges[2]


def _body(hu: NDArray[np.int16] | NDArray[np.float32]) -> NDArray[np.bool_]:
    """The largest connected piece above air in one slice; opened first, so that the table falls off."""
    dense = ndimage.binary_opening(hu > _BODY_ABOVE_HU, iterations=2)
    pieces, count = ndimage.label(dense)
    if count == 0:
        return np.zeros(hu.shape, dtype=np.bool_)
    body: NDArray[np.bool_] = pieces == 1 + int(np.bincount(pieces.ravel())[1:].argmax())
    return body
