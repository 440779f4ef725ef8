"""A CT on disk, brought to a model's grid: the windows that precisions are measured on may come from one.

This is the exporter's own, plain reader. It does not look for what makes a scan unfit for diagnosis, as the service's
does; it wants a volume whose voxels look like a CT's.
"""

import zlib
from collections import defaultdict
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from nibabel.filebasedimages import ImageFileError
from nibabel.processing import resample_to_output
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError
from pydicom.pixels.processing import apply_rescale

from model_export.errors import ScanRefused
from training.config import ModelConfig

_AIR_HU = -1024
# What nibabel, pydicom and its decoders raise for files that are damaged or something else.
_UNREADABLE = (
    OSError, EOFError, ValueError, AttributeError, KeyError, RuntimeError, zlib.error,
    ImageFileError, HeaderDataError, WrapStructError,
)  # fmt: skip
_LEAST_SLICES = 10
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_scan(path: Path, config: ModelConfig) -> NDArray[np.float32]:
    """HU (X,Y,Z) float32 of a NIfTI file or a folder with a DICOM series: RAS, linearly at the config's spacing.

    Of several series in the folder the one with the most slices. Raises ScanRefused.
    """
    try:
        image = _read_series(path) if path.is_dir() else nibabel.Nifti1Image.from_filename(path)
        if len(image.shape) != 3:
            raise ScanRefused(f"{path.name} has {len(image.shape)} dimensions; a scan has three.")
        on_grid = resample_to_output(image, config.spacing_mm, order=1, cval=_AIR_HU)  # type: ignore[no-untyped-call]  # no annotations
        return np.asarray(on_grid.dataobj, dtype=np.float32)
    except _UNREADABLE as error:
        raise ScanRefused(f"{path.name} is no NIfTI file and no DICOM series that can be read: {error}") from error


def _read_series(folder: Path) -> nibabel.Nifti1Image:
    series: dict[str, list[pydicom.Dataset]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        try:
            slice_ = pydicom.dcmread(path)
        except InvalidDicomError:
            continue
        if slice_.get("Modality") == "CT" and "ImagePositionPatient" in slice_:
            series[str(slice_.get("SeriesInstanceUID"))].append(slice_)
    slices = max(series.values(), key=len, default=[])
    if len(slices) < _LEAST_SLICES:
        raise ScanRefused(f"{folder.name} has no CT series of {_LEAST_SLICES} slices or more.")
    return _stack(slices, folder.name)


def _stack(slices: list[pydicom.Dataset], name: str) -> nibabel.Nifti1Image:
    """The slices as one volume, indexed (column, row, slice) (DICOM PS3.3, C.7.6.2.1.1)."""
    along_row, along_column = np.reshape(np.asarray(slices[0].ImageOrientationPatient, float), (2, 3))
    normal = np.cross(along_row, along_column)
    slices = sorted(slices, key=lambda one: float(np.dot(normal, np.asarray(one.ImagePositionPatient, float))))
    positions = np.array([np.asarray(one.ImagePositionPatient, float) for one in slices])
    steps = np.diff(positions, axis=0)
    if np.ptp(steps, axis=0).max() > 0.1:  # mm
        raise ScanRefused(f"{name}: the slices of the series are not evenly spaced.")
    row_spacing, column_spacing = (float(spacing) for spacing in slices[0].PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = along_row * column_spacing, along_column * row_spacing
    affine[:3, 2], affine[:3, 3] = steps.mean(axis=0), positions[0]
    hu = np.stack([apply_rescale(one.pixel_array, one).T for one in slices], axis=-1).astype(np.float32)
    return nibabel.Nifti1Image(hu, _LPS_TO_RAS @ affine)  # type: ignore[no-untyped-call]  # no annotations
