"""From a volume in HU to what the network was trained on: model grid, foreground crop, scaled intensities."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.imaging.geometry import Geometry
from service.imaging.volume import Volume
from service.inference.grid import Box, ModelGrid, bounding_box, cropped, full_box, whole_grid
from service.inference.manifest import ForegroundCrop, Interpolation, Preprocessing
from service.inference.resampling import AxisWeights, axis_weights, resample

Float32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class NetworkInput:
    """The scan as the network sees it.

    `values` is float32 in the bundle's output range, shape == grid.shape, axes x, y, z; `background` is the value of
    what lies outside.
    """

    values: Float32
    grid: ModelGrid
    background: float


def preprocess(volume: Volume, preprocessing: Preprocessing) -> NetworkInput:
    """The volume on the model grid, cropped to its foreground, clipped and scaled."""
    whole = whole_grid(volume.geometry, preprocessing.spacing_mm)
    weights = _to_model_grid(whole, volume.geometry, preprocessing)
    hu = resample(whole.to_ras.view(volume.hu), weights)
    box = _foreground(hu, preprocessing.foreground_crop)
    low, high = preprocessing.intensity_range_hu
    out_low, out_high = preprocessing.output_range
    values = np.clip(hu[box], low, high)
    values -= low
    values *= (out_high - out_low) / (high - low)
    values += out_low
    return NetworkInput(np.ascontiguousarray(values), cropped(whole, box), background=out_low)


def _to_model_grid(grid: ModelGrid, source: Geometry, preprocessing: Preprocessing) -> AxisWeights:
    canonical = grid.to_ras.geometry(source)
    interpolation = Interpolation(preprocessing.interpolation)
    x, y, z = (
        axis_weights(n_in, np.arange(n_out) * (target / own), interpolation, step=target / own)
        for n_in, n_out, own, target in zip(
            canonical.shape, grid.whole, canonical.spacing_mm, preprocessing.spacing_mm, strict=True
        )
    )
    return x, y, z


def _foreground(hu: Float32, crop: ForegroundCrop | None) -> Box:
    everything = full_box((hu.shape[0], hu.shape[1], hu.shape[2]))
    if crop is None:
        return everything
    # A scan of air alone has no foreground; it is searched as a whole rather than refused.
    return bounding_box(hu > crop.above_hu) or everything
