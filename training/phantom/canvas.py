"""The grid that a patient is painted on, and the two coordinate systems of the phantom.

World: RAS millimetres as in NIfTI. x grows to the patient's RIGHT, y to the front, z to the head; so the liver lies at
positive x and the spleen at negative x.
Body: the same axes in the frame of a reference patient (origin in the middle of vertebra L1, mm). Anatomy is
written in body coordinates; a smooth random map takes world to body, which makes every patient's shapes organic.

Smooth fields (that map, depth below the skin, the diaphragm) are computed on one coarse lattice and interpolated, so
that a patient is the same on every grid and in every crop.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.labels import BY_NAME
from training.phantom.tissues import Tissue

FloatArray = NDArray[np.float32]
Mask = NDArray[np.bool_]
Box = tuple[slice, slice, slice]

LATTICE_MM = 6.0
LATTICE_LOW = np.array([-330.0, -210.0, -460.0])
LATTICE_HIGH = np.array([330.0, 280.0, 460.0])


def bit(label: str) -> np.uint32:
    """The label's bit in a packed label array."""
    return np.uint32(1 << BY_NAME[label].channel)


def lattice_axes() -> tuple[FloatArray, FloatArray, FloatArray]:
    """World positions of the coarse lattice along x, y, z (mm)."""
    x, y, z = (
        np.arange(low, high + 1e-6, LATTICE_MM, dtype=np.float32)
        for low, high in zip(LATTICE_LOW, LATTICE_HIGH, strict=True)
    )
    return x, y, z


def _linear_weights(positions: NDArray[np.float64], axis: int, size: int) -> FloatArray:
    """Interpolation matrix (positions, lattice points); beyond the lattice its border value holds."""
    where = np.clip((positions - LATTICE_LOW[axis]) / LATTICE_MM, 0, size - 1.001)
    low = where.astype(int)
    weights = np.zeros((len(positions), size), np.float32)
    rows = np.arange(len(positions))
    weights[rows, low] = 1 - (where - low)
    weights[rows, low + 1] = where - low
    return weights


@dataclass(frozen=True)
class Fields:
    """Smooth fields of one patient on the coarse lattice, each (X, Y, Z) float32."""

    body: tuple[FloatArray, FloatArray, FloatArray]  #: body coordinates of each lattice point (mm)
    cavity: FloatArray  #: distance to the inner trunk wall (mm), negative inside
    muscle: FloatArray  #: distance to the outer surface of the muscles (mm), negative inside
    fat: FloatArray  #: thickness of subcutaneous fat above the nearest muscle (mm)
    diaphragm: FloatArray  #: height above the diaphragm (mm), positive in the chest
    noise: tuple[FloatArray, FloatArray]  #: unit noise for the surfaces of organs
    reach_mm: float  #: how far a body point may lie from its place under the inverse pose
    pose: NDArray[np.float64]  #: (4, 4) body -> world, without the warp


class Canvas:
    """Tissue and labels of a grid while it is painted; axes X, Y, Z as in the world."""

    def __init__(self, fields: Fields, shape: tuple[int, int, int], affine: NDArray[np.float64]) -> None:
        spacing = np.diag(affine)[:3]
        if not np.allclose(affine[:3, :3], np.diag(spacing)) or (spacing <= 0).any():
            raise ValueError("The phantom's grid must be RAS and axis-aligned: a positive diagonal affine.")
        self.shape = shape
        self.spacing: NDArray[np.float64] = spacing
        self.origin: NDArray[np.float64] = affine[:3, 3]
        self.tissue: NDArray[np.uint8] = np.zeros(shape, np.uint8)
        self.labels: NDArray[np.uint32] = np.zeros(shape, np.uint32)
        self._fields = fields
        self._weights = [
            _linear_weights(self.origin[a] + spacing[a] * np.arange(shape[a]), a, fields.cavity.shape[a])
            for a in range(3)
        ]
        self.x, self.y, self.z = (self.upsample(field) for field in fields.body)
        self.cavity = self.upsample(fields.cavity)
        self.diaphragm = self.upsample(fields.diaphragm)
        self._noise = (self.upsample(fields.noise[0]), self.upsample(fields.noise[1]))

    def upsample(self, field: FloatArray) -> FloatArray:
        """A lattice field on this grid (X, Y, Z)."""
        wx, wy, wz = self._weights
        out = wx @ field.reshape(len(field), -1)  # one large product for each axis, not one for each plane
        out = (out.reshape(-1, field.shape[2]) @ wz.T).reshape(self.shape[0], field.shape[1], self.shape[2])
        return np.asarray(np.matmul(wy, out), np.float32)

    @property
    def fields(self) -> Fields:
        """The patient's smooth fields."""
        return self._fields

    @property
    def everything(self) -> Box:
        """The box of the whole grid."""
        return (slice(0, self.shape[0]), slice(0, self.shape[1]), slice(0, self.shape[2]))

    def box(self, low: Iterable[float], high: Iterable[float]) -> Box | None:
        """Voxels that a shape between two body points may touch; None when the shape is off the grid."""
        corners = np.array(np.meshgrid(*zip(low, high, strict=True), indexing="ij")).reshape(3, -1)
        world = self._fields.pose[:3, :3] @ corners + self._fields.pose[:3, 3:]
        start = (world.min(1) - self._fields.reach_mm - self.origin) / self.spacing
        stop = (world.max(1) + self._fields.reach_mm - self.origin) / self.spacing
        first = np.maximum(np.floor(start).astype(int), 0)
        last = np.minimum(np.ceil(stop).astype(int) + 1, self.shape)
        if (last <= first).any():
            return None
        return (slice(first[0], last[0]), slice(first[1], last[1]), slice(first[2], last[2]))

    def noise(self, box: Box, phase: float) -> FloatArray:
        """Unit surface noise in a box; another `phase` (radians) gives an organ its own shape."""
        first, second = self._noise
        return np.float32(np.cos(phase)) * first[box] + np.float32(np.sin(phase)) * second[box]

    def is_tissue(self, box: Box, *tissues: Tissue) -> Mask:
        """Where the box holds one of the tissues."""
        table = np.zeros(256, bool)
        table[list(tissues)] = True
        found: Mask = table[self.tissue[box]]
        return found

    def is_free(self, box: Box) -> Mask:
        """Where nothing but visceral fat has been painted: an organ may grow there."""
        return np.asarray(self.tissue[box] == Tissue.VISCERAL_FAT)

    def paint(self, box: Box, mask: Mask, tissue: Tissue, label: str | None = None) -> None:
        """Replace tissue in the mask, and its labels by the given one (none: cleared)."""
        self.tissue[box][mask] = tissue
        self.labels[box][mask] = bit(label) if label else np.uint32(0)

    def has_label(self, box: Box, *labels: str) -> Mask:
        """Where the box carries one of the labels."""
        wanted = np.uint32(sum(int(bit(label)) for label in labels))
        return np.asarray((self.labels[box] & wanted) != 0)
