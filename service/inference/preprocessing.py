"""From a volume in HU to what the network was trained on: model grid, foreground crop, scaled intensities."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from service.imaging.hounsfield import AIR_HU
from service.imaging.volume import Volume
from service.inference.grid import Box, ModelGrid, Shear, bounding_box, cropped, full_box, whole_grid
from service.inference.manifest import ForegroundCrop, Interpolation, Preprocessing
from service.inference.resampling import axis_weights, resample

Float32 = NDArray[np.float32]

_CPU = torch.device("cpu")
_HALF_VOXEL = 0.5


@dataclass(frozen=True, eq=False)
class NetworkInput:
    """The scan as the network sees it.

    `values` is float32 in the bundle's output range, shape == grid.shape, axes x, y, z; `background` is the value of
    what lies outside.
    """

    values: Float32
    grid: ModelGrid
    background: float


def preprocess(volume: Volume, preprocessing: Preprocessing, device: torch.device = _CPU) -> NetworkInput:
    """The volume on the model grid, cropped to its foreground, clipped and scaled; a `device` may do the resampling."""
    whole = whole_grid(volume.geometry, preprocessing.spacing_mm)
    hu = _on_model_grid(volume, whole, preprocessing, device)
    box = _foreground(hu, preprocessing.foreground_crop)
    low, high = preprocessing.intensity_range_hu
    out_low, out_high = preprocessing.output_range
    values = np.clip(hu[box], low, high)
    values -= low
    values *= (out_high - out_low) / (high - low)
    values += out_low
    return NetworkInput(np.ascontiguousarray(values), cropped(whole, box), background=out_low)


def _on_model_grid(volume: Volume, grid: ModelGrid, preprocessing: Preprocessing, device: torch.device) -> Float32:
    """HU at every voxel of the whole model grid."""
    seen = grid.to_ras.view(volume.hu)
    interpolation = Interpolation(preprocessing.interpolation)
    if grid.shear is not None:
        return _upright(seen, grid, grid.shear, interpolation)
    canonical = grid.to_ras.geometry(volume.geometry)
    x, y, z = (
        axis_weights(n_in, np.arange(n_out) * (target / own), interpolation, step=target / own)
        for n_in, n_out, own, target in zip(
            canonical.shape, grid.whole, canonical.spacing_mm, preprocessing.spacing_mm, strict=True
        )
    )
    return resample(seen, (x, y, z), device)


def _upright(seen: NDArray[np.generic], grid: ModelGrid, shear: Shear, interpolation: Interpolation) -> Float32:
    """A tilted stack on the rectangular grid: each slice is laid where it belongs, then slices are interpolated.

    Where no slice reaches there is air. It is what lies around a patient, and an edge that went on would be anatomy
    that nobody scanned.
    """
    axis, slices, step = shear.axis, seen.shape[shear.axis], grid.steps[shear.axis]
    x, y, z = (slices if a == axis else n for a, n in enumerate(grid.whole))
    laid = np.empty((x, y, z), np.float32)
    for s in range(slices):
        here: list[slice] = [slice(None)] * 3
        here[axis] = slice(s, s + 1)
        above_air = seen[tuple(here)].astype(np.float32) - AIR_HU
        w0, w1, w2 = (
            np.ones((1, 1), np.float32) if a == axis else _laid(seen.shape[a], a, s, grid, shear, interpolation)
            for a in range(3)
        )
        laid[tuple(here)] = resample(above_air, (w0, w1, w2)) + AIR_HU
    w0, w1, w2 = (
        axis_weights(slices, np.arange(n) / step, interpolation, step=1.0 / step)
        if a == axis
        else np.eye(n, dtype=np.float32)
        for a, n in enumerate(grid.whole)
    )
    return resample(laid, (w0, w1, w2))


def _laid(n_in: int, a: int, s: int, grid: ModelGrid, shear: Shear, interpolation: Interpolation) -> Float32:
    """Weights that lay axis `a` of slice `s` on the model grid; 0 where the slice does not reach."""
    positions = (np.arange(grid.whole[a]) - shear.shift(a, s)) / grid.steps[a]
    weights = axis_weights(n_in, positions, interpolation, step=1.0 / grid.steps[a])
    weights[(positions < -_HALF_VOXEL) | (positions > n_in - 1 + _HALF_VOXEL)] = 0.0
    return weights


def _foreground(hu: Float32, crop: ForegroundCrop | None) -> Box:
    everything = full_box((hu.shape[0], hu.shape[1], hu.shape[2]))
    if crop is None:
        return everything
    # A scan of air alone has no foreground; it is searched as a whole rather than refused.
    return bounding_box(hu > crop.above_hu) or everything
