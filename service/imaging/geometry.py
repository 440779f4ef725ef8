"""Where voxels lie in the patient.

One convention throughout: `affine` maps voxel indices (i, j, k) to millimetres in RAS+ (x to the patient's Right,
y to Anterior, z to Superior), as in NIfTI. DICOM speaks LPS: the first two axes change sign,
here and in no other place.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

Affine = NDArray[np.float64]  # (4, 4): voxel index -> mm, RAS+
Shape = tuple[int, int, int]

#: Cosine of the angle between two voxel axes that pass for perpendicular. 0.002 is 0.11 degrees: 1 mm of displacement
#: over 500 mm. Rounding of direction cosines to 4 decimals stays below 0.0002; a gantry tilt of 1 degree is 0.017.
MAX_AXIS_COSINE = 2e-3

LPS_FROM_RAS: Affine = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Geometry:
    """The grid of a volume: its shape in voxels and its affine (voxel index -> RAS mm).

    The affine is finite and invertible; construction refuses anything else with ValueError.
    """

    shape: Shape
    affine: Affine

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise ValueError("The affine is not a finite 4 x 4 matrix.")
        if min(self.shape) < 1 or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise ValueError("The affine is singular or the shape is empty.")
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Geometry) and self.shape == other.shape and np.array_equal(self.affine, other.affine)

    __hash__ = None  # type: ignore[assignment]  # an array is not hashable

    @cached_property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along i, j, k."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)

    @cached_property
    def sheared_axis(self) -> int | None:
        """The voxel axis that leans on the plane of the other two, as the slices of a tilted gantry do; None if none.

        Where two axes lean on each other alone, either can be said to lean: the one nearer to the body's long axis is
        taken, along which slices are stacked.

        Raises:
            ValueError: all three axes lean on each other, as no stack of slices does.
        """
        unit = self.affine[:3, :3] / np.array(self.spacing_mm)
        leaning = np.abs(unit.T @ unit - np.eye(3)) > MAX_AXIS_COSINE
        if not leaning.any():
            return None
        candidates = [axis for axis in range(3) if not np.delete(np.delete(leaning, axis, 0), axis, 1).any()]
        if not candidates:
            raise ValueError("All three voxel axes lean on each other.")
        return max(candidates, key=lambda axis: float(abs(unit[2, axis])))

    @cached_property
    def tilt_degrees(self) -> float:
        """Angle between the sheared axis and the normal of the other two; 0 for a rectangular grid."""
        axis = self.sheared_axis
        if axis is None:
            return 0.0
        first, second = (self.affine[:3, other] for other in range(3) if other != axis)
        normal = np.cross(first, second)
        leaning = self.affine[:3, axis]
        cosine = abs(float(normal @ leaning)) / float(np.linalg.norm(normal) * np.linalg.norm(leaning))
        return float(np.degrees(np.arccos(min(1.0, cosine))))

    @cached_property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in millilitres (the determinant, so shear counts)."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    def to_ras_mm(self, ijk: ArrayLike) -> NDArray[np.float64]:
        """Voxel indices (..., 3) to RAS millimetres (..., 3)."""
        ras_mm: NDArray[np.float64] = np.asarray(ijk, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]
        return ras_mm

    def to_lps_mm(self, ijk: ArrayLike) -> NDArray[np.float64]:
        """Voxel indices (..., 3) to LPS millimetres (..., 3), as DICOM states positions."""
        lps_mm: NDArray[np.float64] = self.to_ras_mm(ijk) * np.array([-1.0, -1.0, 1.0])
        return lps_mm
