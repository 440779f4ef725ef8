"""The scan as a NIfTI file: HU as int16."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.imaging.geometry import Geometry
from service.reporting.nifti import nifti_header, write_nifti

_SLICES_PER_SLAB = 16
_INT16 = np.iinfo(np.int16)


def write_scan(path: Path, geometry: Geometry, hu: NDArray[np.int16] | NDArray[np.float32], description: str) -> None:
    """Write HU (i, j, k); fractions are rounded, and what lies outside int16 is set to its end."""
    write_nifti(path, nifti_header(geometry, np.int16, description=description), _int16_slabs(hu))


def _int16_slabs(hu: NDArray[np.int16] | NDArray[np.float32]) -> Iterator[NDArray[np.generic]]:
    for first in range(0, hu.shape[2], _SLICES_PER_SLAB):
        slab = hu[..., first : first + _SLICES_PER_SLAB]
        yield slab if slab.dtype == np.int16 else np.rint(np.clip(slab, _INT16.min, _INT16.max)).astype(np.int16)
