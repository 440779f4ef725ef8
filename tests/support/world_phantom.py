"""An asymmetric phantom given in patient coordinates, so that it can be scanned on any grid and looked for in any mask.

    liver        a ball to the right, in front and below      60 HU
    tumor        a ball inside it                            185 HU
    bone         a ball to the left, in front and above      700 HU

around them fat of -60 HU, so that each surface of the hand-made bundle's labels lies halfway between two values.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

CENTER_RAS_MM: Final = np.array([5.0, -10.0, 20.0])
BALLS: Final = {  # center from CENTER_RAS_MM and radius, mm
    "liver": (np.array([12.0, 6.0, -5.0]), 17.0),
    "liver_tumor": (np.array([17.0, 9.0, -8.0]), 7.5),
    "bone": (np.array([-18.0, 12.0, 14.0]), 9.0),
}
_HU: Final = {"liver": 60, "liver_tumor": 185, "bone": 700}
SHAPE: Final = (40, 40, 28)
SPACING_MM: Final = (2.0, 2.0, 3.0)


def grid(
    directions: NDArray[np.float64],
    spacing_mm: tuple[float, float, float] = SPACING_MM,
    shape: tuple[int, int, int] = SHAPE,
) -> NDArray[np.float64]:
    """RAS affine of a grid around the phantom's centre; the columns of `directions` (3, 3) are those of i, j, k."""
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing_mm
    affine[:3, 3] = CENTER_RAS_MM - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def places(affine: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """RAS mm of every voxel (..., 3)."""
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


def masks_at(ras_mm: NDArray[np.float64]) -> dict[str, NDArray[np.bool_]]:
    """Which places (..., 3) lie in each ball."""
    return {
        name: np.linalg.norm(ras_mm - (CENTER_RAS_MM + center), axis=-1) < radius
        for name, (center, radius) in BALLS.items()
    }


def hu_at(ras_mm: NDArray[np.float64], seed: int = 0) -> NDArray[np.int16]:
    """HU at places (..., 3), with a little noise."""
    hu = np.full(ras_mm.shape[:-1], -60.0)
    for name, mask in masks_at(ras_mm).items():
        hu[mask] = _HU[name]
    return np.rint(hu + np.random.default_rng(seed).normal(0, 3, hu.shape)).astype(np.int16)


def center_lps_mm(name: str) -> NDArray[np.float64]:
    """Centre of a ball in patient coordinates as DICOM has them."""
    return (CENTER_RAS_MM + BALLS[name][0]) * [-1.0, -1.0, 1.0]
