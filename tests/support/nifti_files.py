"""Small NIfTI files, whole or spoilt on purpose."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from tests.support.dicom_series import body_hu

RAS_2MM = np.diag([2.0, 2.0, 2.0, 1.0])


def write_nifti(
    path: Path,
    values: NDArray[Any] | None = None,
    affine: NDArray[np.float64] | None = None,
    change: Callable[[Any], None] | None = None,
) -> Path:
    """Write values (default: `body_hu()`) with sform and qform; `change` may alter the nibabel image before."""
    image = nib.Nifti1Image(body_hu() if values is None else values, RAS_2MM if affine is None else affine)
    image.header.set_xyzt_units("mm")
    if change is not None:
        change(image)
    nib.save(image, path)
    return path


def patch_header(path: Path, offset: int, data: bytes) -> Path:
    """Overwrite bytes of a NIfTI-1 header in place, whatever a well-behaved writer would say."""
    raw = path.read_bytes()
    compressed = path.suffix == ".gz"
    whole = bytearray(gzip.decompress(raw) if compressed else raw)
    whole[offset : offset + len(data)] = data
    path.write_bytes(gzip.compress(whole, compresslevel=1) if compressed else bytes(whole))
    return path
