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
