"""From tissue to HU: texture, point spread, quantum noise. Works on any crop and spends one filter pass on it."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from training.phantom.tissues import TEXTURE_HU

#: Narrowest point spread in voxels: a voxel averages what lies in it, even under a sharp kernel.
LEAST_SIGMA = 0.4
#: Where the point spread ends, in sigmas.
TRUNCATE = 2.5
_COARSE = 3


def render_hu(
    tissue: NDArray[np.uint8],
    tissue_hu: NDArray[np.float32],
    rng: np.random.Generator,
    *,
    spacing_mm: tuple[float, float, float],
    noise_hu: float,
    kernel_mm: float,
    texture: bool = True,
) -> NDArray[np.int16]:
    """HU (X, Y, Z) of a tissue map.

    `kernel_mm` is the sigma of the Gaussian point spread; 0 or less gives a sharp kernel, with overshoot at edges.
    `noise_hu` is the standard deviation in the result; noise is as smooth as the kernel makes it.
    """
    hu = np.take(tissue_hu.astype(np.float32, copy=False), tissue)
    if texture:
        hu += np.take(texture_table(), tissue) * _slow_noise(rng, tissue.shape)
    sigma = [max(LEAST_SIGMA, kernel_mm / s) for s in spacing_mm]
    noise = rng.standard_normal(tissue.shape, dtype=np.float32)
    if kernel_mm > 0:
        gain = np.prod([noise_gain(s) for s in sigma])
        hu += noise * np.float32(noise_hu / gain)
        hu = _blur(hu, sigma)
    else:
        soft = _blur(hu, sigma)
        hu = soft + np.float32(0.35) * (soft - _blur(soft, [0.7] * 3))
        hu += noise * np.float32(noise_hu)
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16)


def _blur(hu: NDArray[np.float32], sigma: list[float]) -> NDArray[np.float32]:
    for axis, width in enumerate(sigma):
        hu = gaussian_filter1d(hu, width, axis=axis, mode="nearest", truncate=TRUNCATE)
    return hu


def noise_gain(sigma: float) -> float:
    """Standard deviation that is left of white noise after a Gaussian of `sigma` voxels along one axis."""
    return float(np.linalg.norm(gaussian_weights(sigma)))


def gaussian_weights(sigma: float) -> NDArray[np.float64]:
    """The point spread along one axis: an odd number of weights, their sum 1, as far as scipy's gaussian_filter goes
    with the same truncation."""
    radius = int(TRUNCATE * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return np.asarray(weights / weights.sum())


def texture_table() -> NDArray[np.float32]:
    """Standard deviation of each tissue's slow texture (HU): [256], indexed by `Tissue`."""
    table = np.zeros(256, np.float32)
    for tissue, strength in TEXTURE_HU.items():
        table[tissue] = strength
    return table


def _slow_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Unit noise that changes over about three voxels: a coarse grid, interpolated linearly along each axis."""
    coarse = rng.standard_normal([n // _COARSE + 2 for n in shape], dtype=np.float32)
    for axis, size in enumerate(shape):
        where = np.arange(size) / _COARSE
        low = where.astype(int)
        weights = np.zeros((size, coarse.shape[axis]), np.float32)
        rows = np.arange(size)
        weights[rows, low] = 1 - (where - low)
        weights[rows, low + 1] += where - low
        coarse = np.moveaxis(np.tensordot(weights, coarse, axes=(1, axis)), 0, axis)
    return coarse * np.float32(1.8)
