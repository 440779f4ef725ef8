"""What was written, read back from the file and laid on the scan: it must be the masks again, voxel for voxel.

Reading goes its own way: pydicom's dataset, each frame or contour placed by its own coordinates (PS3.3 C.7.6.2.1.1) on
the grid of the volume, none of the arrays that were written. A SEG must be equal. An RT Structure Set holds outlines,
not voxels; each structure must be filled again with a Dice of at least `LEAST_DICE`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.utils import unpack_bits

from service.errors import VerificationFailed
from service.imaging.geometry import LPS_FROM_RAS, Geometry
from service.reporting.structures import Structure

LEAST_DICE: Final = 0.97

#: A place may differ from the grid's by this part of a voxel: positions are rounded, and slices a little uneven.
_PLACE_TOLERANCE: Final = 0.25

Frame = NDArray[np.bool_]


def verify_binary(path: Path, structures: Sequence[Structure], geometry: Geometry) -> None:
    """A BINARY SEG holds each structure, and nothing else, at its place.

    Raises:
        VerificationFailed: a voxel, a segment or the place of a frame differs.
    """
    dataset = pydicom.dcmread(path)
    by_number = {item.SegmentNumber: item.TrackingID for item in dataset.SegmentSequence}
    expected = {structure.id: structure for structure in structures}
    if len(by_number) != len(structures) or set(by_number.values()) != set(expected):
        raise _differs(path, "its segments are not the structures that were found")
    grid = _Grid(geometry)
    frames: dict[str, dict[int, int]] = {name: {} for name in expected}
    for index, (number, k) in enumerate(_binary_frames(dataset, grid, path)):
        frames[by_number[number]][k] = index
    bits = dataset.Rows * dataset.Columns
    for name, structure in expected.items():
        stored = frames[name]
        for k, frame in structure.frames(dataset.Rows, dataset.Columns):
            if k not in stored or not np.array_equal(_single_bits(dataset, stored.pop(k), bits), frame.ravel()):
                raise _differs(path, f"slice {k} of {name} is not the mask")
        if stored:
            raise _differs(path, f"{name} has voxels in slice {min(stored)}, where the mask has none")


def verify_labelmap(path: Path, structures: Sequence[Structure], geometry: Geometry) -> None:
    """A LABELMAP SEG shows each voxel's last structure, and nothing else, at its place.

    Raises:
        VerificationFailed: a voxel or the place of a frame differs.
    """
    dataset = pydicom.dcmread(path)
    number_of = {item.get("TrackingID"): item.SegmentNumber for item in dataset.SegmentSequence}
    pixels = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    grid = _Grid(geometry)
    frame_of = {k: index for index, k in enumerate(_placed_frames(dataset, grid, path))}
    wanted: dict[int, NDArray[np.unsignedinteger[Any]]] = {k: np.zeros_like(pixels[0]) for k in frame_of}
    for structure in structures:
        i, j, _ = structure.box
        for k, plane in structure.planes():
            if k not in wanted:
                raise _differs(path, f"slice {k} of {structure.id} is missing")
            # A structure that others cover wholly has no segment: nothing of it may be left when all are laid down.
            wanted[k][j, i][plane] = number_of.get(structure.id, np.iinfo(pixels.dtype).max)
    for k, index in frame_of.items():
        if not np.array_equal(pixels[index], wanted[k]):
            raise _differs(path, f"slice {k} is not the label map")


def verify_structure_set(path: Path, structures: Sequence[Structure], geometry: Geometry) -> None:
    """Each region of an RT Structure Set, filled, is its structure with a Dice of at least LEAST_DICE.

    Raises:
        VerificationFailed: a region is missing, off its slice or too different.
    """
    for name, dice in structure_set_dice(path, structures, geometry).items():
        if dice < LEAST_DICE:
            raise _differs(path, f"{name}, filled again, has a Dice of {dice:.3f} with the mask, below {LEAST_DICE}")


def structure_set_dice(path: Path, structures: Sequence[Structure], geometry: Geometry) -> dict[str, float]:
    """Dice of each region's filled contours with the structure of the same name; 0 for a region that is not there.

    Raises:
        VerificationFailed: a contour lies between slices or out of their plane.
    """
    dataset = pydicom.dcmread(path)
    name_of = {item.ROINumber: item.ROIName for item in dataset.StructureSetROISequence}
    contours = {name_of[item.ReferencedROINumber]: item.ContourSequence for item in dataset.ROIContourSequence}
    grid = _Grid(geometry)
    columns, rows, _ = geometry.shape
    dice: dict[str, float] = {}
    for structure in structures:
        filled = _filled(contours.get(structure.id, ()), grid, path)
        common = total = 0
        for k, frame in structure.frames(rows, columns):
            again = filled.pop(k, None)
            total += int(np.count_nonzero(frame))
            if again is not None:
                total += int(np.count_nonzero(again))
                common += int(np.count_nonzero(again & frame))
        total += sum(int(np.count_nonzero(extra)) for extra in filled.values())
        dice[structure.id] = 2.0 * common / total
    return dice


class _Grid:
    """The volume's grid as DICOM coordinates meet it."""

    def __init__(self, geometry: Geometry) -> None:
        self.shape = geometry.shape
        self._to_voxel = np.linalg.inv(LPS_FROM_RAS @ geometry.affine)

    def voxels(self, lps_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Continuous voxel indices (..., 3) of points in the patient."""
        ijk: NDArray[np.float64] = lps_mm @ self._to_voxel[:3, :3].T + self._to_voxel[:3, 3]
        return ijk

    def slice_of(self, corners_mm: NDArray[np.float64]) -> int | None:
        """The k of an image by the centres (3, 3) of its first, last-in-row and last-in-column voxels, if it is one."""
        columns, rows, slices = self.shape
        found = self.voxels(corners_mm)
        k = int(np.rint(found[0, 2]))
        expected = np.array([(0, 0, k), (columns - 1, 0, k), (0, rows - 1, k)])
        fits = float(np.abs(found - expected).max()) <= _PLACE_TOLERANCE
        return k if fits and 0 <= k < slices else None


def _binary_frames(dataset: Dataset, grid: _Grid, path: Path) -> Iterator[tuple[int, int]]:
    """(segment number, k) of each frame."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    places = _placed_frames(dataset, grid, path)
    for item, k in zip(dataset.PerFrameFunctionalGroupsSequence, places, strict=True):
        holder = item if "SegmentIdentificationSequence" in item else shared
        yield holder.SegmentIdentificationSequence[0].ReferencedSegmentNumber, k


def _placed_frames(dataset: Dataset, grid: _Grid, path: Path) -> Iterator[int]:
    """The k of each frame, from its position, orientation and pixel spacing."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    between_rows, between_columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, dtype=np.float64)
    along_row = orientation[:3] * between_columns * (dataset.Columns - 1)
    down_column = orientation[3:] * between_rows * (dataset.Rows - 1)
    for number, item in enumerate(dataset.PerFrameFunctionalGroupsSequence, start=1):
        first = np.array(item.PlanePositionSequence[0].ImagePositionPatient, dtype=np.float64)
        k = grid.slice_of(np.stack([first, first + along_row, first + down_column]))
        if (dataset.Columns, dataset.Rows) != grid.shape[:2] or k is None:
            raise _differs(path, f"frame {number} does not lie on the scan")
        yield k


def _single_bits(dataset: Dataset, index: int, bits: int) -> Frame:
    """The pixels of one frame of a BINARY SEG, flat: frames follow each other bit by bit."""
    start = index * bits
    piece = dataset.PixelData[start // 8 : (start + bits + 7) // 8]
    unpacked = unpack_bits(piece)
    assert isinstance(unpacked, np.ndarray)
    return unpacked[start % 8 : start % 8 + bits].astype(np.bool_)


def _filled(contours: Sequence[Dataset], grid: _Grid, path: Path) -> dict[int, Frame]:
    """Masks by k of all contours of a region, combined by parity."""
    columns, rows, _ = grid.shape
    masks: dict[int, Frame] = {}
    for contour in contours:
        points = grid.voxels(_contour_data(contour))
        k = int(np.rint(points[0, 2]))
        if float(np.abs(points[:, 2] - k).max()) > _PLACE_TOLERANCE:
            raise _differs(path, "a contour does not lie in a slice of the scan")
        mask = masks.setdefault(k, np.zeros((rows, columns), dtype=np.bool_))
        low = np.clip(np.floor(points[:, :2].min(axis=0)).astype(int), 0, None)
        high = np.clip(np.ceil(points[:, :2].max(axis=0)).astype(int) + 1, 0, (columns, rows))
        width, height = np.clip(high - low, 0, None).tolist()
        mask[low[1] : high[1], low[0] : high[0]] ^= fill(points[:, :2] - low, height, width)
    return masks


def _contour_data(contour: Dataset) -> NDArray[np.float64]:
    """The points (n, 3) of a contour in LPS mm, parsed at once: pydicom makes an object of each number."""
    stored = contour.get_item("ContourData")
    assert stored is not None
    assert isinstance(stored.value, bytes)
    return np.array(stored.value.rstrip().split(b"\\")).astype(np.float64).reshape(-1, 3)


def fill(points: NDArray[np.float64], rows: int, columns: int) -> Frame:
    """The pixels (rows, columns) whose centres lie inside a closed contour (points, 2) of (i, j), by parity.

    An edge takes part in row j if it begins at or above the row and ends below: each corner counts once.
    """
    x, y = points[:, 0], points[:, 1]
    x_next, y_next = np.roll(x, -1), np.roll(y, -1)
    first, last = np.ceil(np.minimum(y, y_next)), np.ceil(np.maximum(y, y_next))
    crossed = (last - first).astype(np.int64)
    edge = np.repeat(np.arange(x.size), crossed)
    row = np.repeat(first, crossed) + (np.arange(edge.size) - np.repeat(np.cumsum(crossed) - crossed, crossed))
    slope = (x_next - x)[edge] / (y_next - y)[edge]
    column = np.clip(np.ceil(x[edge] + (row - y[edge]) * slope), 0, columns).astype(np.int64)
    inside = (row >= 0) & (row < rows)
    toggles = np.zeros((rows, columns + 1), dtype=np.int32)
    np.add.at(toggles, (row[inside].astype(np.int64), column[inside]), 1)
    parity: Frame = (np.cumsum(toggles[:, :columns], axis=1) % 2).astype(np.bool_)
    return parity


def _differs(path: Path, how: str) -> VerificationFailed:
    return VerificationFailed(
        f"{path.name} was read back and {how}. The result was not published; tell the operator of the service."
    )
