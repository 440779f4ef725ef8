"""The window that a bundle carries for its self-test: small, from a seed, and with every kind of tissue in it.

Noise alone would exercise few of the network's paths, and a training phantom would tie the export to the training data;
so this is a cartoon of a trunk, drawn from ellipsoids in Hounsfield units. Axes x y z = right, anterior, superior.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model_export.engines import torch_inference
from model_export.onnx import fixed_window
from training.config import ModelConfig
from training.networks.universal import UniversalModel

SAMPLE_SIZE = (48, 48, 48)  # voxels; a multiple of 16, small enough to be checked at every start of a worker
SAMPLE_SEED = 20230102
SELF_TEST_TOLERANCE = 5e-3  # of max |difference| / max |logits|; rounding the logits to float16 takes a tenth of it

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class _Ellipsoid:
    """A tissue in window coordinates -1..1; later ones are drawn over earlier ones."""

    center: Vector
    semi_axes: Vector
    hu: float


_TRUNK = (
    _Ellipsoid((0.0, 0.0, 0.0), (0.95, 0.75, 9.0), -100.0),  # subcutaneous fat
    _Ellipsoid((0.0, 0.0, 0.0), (0.86, 0.66, 9.0), 55.0),  # muscle wall
    _Ellipsoid((0.0, 0.05, 0.0), (0.78, 0.55, 9.0), -95.0),  # visceral fat
    _Ellipsoid((0.42, 0.05, 0.9), (0.32, 0.45, 0.75), -850.0),  # right lung
    _Ellipsoid((-0.42, 0.05, 0.9), (0.30, 0.45, 0.75), -850.0),  # left lung
    _Ellipsoid((0.36, 0.10, -0.1), (0.40, 0.42, 0.45), 110.0),  # liver
    _Ellipsoid((0.45, 0.20, -0.15), (0.12, 0.12, 0.12), 60.0),  # liver lesion
    _Ellipsoid((-0.55, -0.12, -0.05), (0.18, 0.22, 0.28), 120.0),  # spleen
    _Ellipsoid((-0.28, 0.25, 0.0), (0.22, 0.18, 0.28), 30.0),  # stomach
    _Ellipsoid((-0.28, 0.34, 0.05), (0.14, 0.08, 0.18), -900.0),  # its gas
    _Ellipsoid((0.36, -0.25, -0.65), (0.14, 0.14, 0.28), 190.0),  # right kidney
    _Ellipsoid((-0.36, -0.25, -0.60), (0.14, 0.14, 0.28), 190.0),  # left kidney
    _Ellipsoid((-0.36, -0.32, -0.70), (0.08, 0.08, 0.08), 5.0),  # cyst
    _Ellipsoid((0.10, 0.22, -0.75), (0.30, 0.16, 0.14), 40.0),  # bowel
    _Ellipsoid((0.0, -0.42, 0.0), (0.17, 0.15, 9.0), 380.0),  # spine
    _Ellipsoid((0.0, -0.42, 0.0), (0.11, 0.10, 9.0), 180.0),  # its marrow
    _Ellipsoid((-0.05, -0.20, 0.0), (0.08, 0.08, 9.0), 220.0),  # aorta
    _Ellipsoid((0.12, -0.18, 0.0), (0.07, 0.06, 9.0), 140.0),  # inferior vena cava
)
_NOISE_HU = 12.0  # standard deviation, as in a portal venous scan of 2 mm slices


def normalise(image_hu: NDArray[np.float32], config: ModelConfig) -> NDArray[np.float32]:
    """HU clipped to the intensity range and mapped to the output range, float32, shape kept."""
    low, high = config.intensity_range_hu
    out_low, out_high = config.output_range
    scaled = (np.clip(image_hu, low, high) - low) / (high - low) * (out_high - out_low) + out_low
    return scaled.astype(np.float32)


def trunk_window(size: tuple[int, int, int], config: ModelConfig, seed: int = SAMPLE_SEED) -> NDArray[np.float32]:
    """A cartoon trunk (1,1,*size), normalised as the model wants it, float32. The same seed gives the same window."""
    x, y, z = np.meshgrid(*(np.linspace(-1.0, 1.0, n, dtype=np.float32) for n in size), indexing="ij", sparse=True)
    image_hu = np.full(size, -1000.0, dtype=np.float32)
    for tissue in _TRUNK:
        (cx, cy, cz), (ax, ay, az) = tissue.center, tissue.semi_axes
        inside = ((x - cx) / ax) ** 2 + ((y - cy) / ay) ** 2 + ((z - cz) / az) ** 2 <= 1.0
        image_hu[inside] = tissue.hu
    noise = np.random.default_rng(seed).normal(0.0, _NOISE_HU, size)
    return normalise(image_hu + noise.astype(np.float32), config)[None, None]


@dataclass(frozen=True)
class Sample:
    """`window` (1,1,48,48,48) float16, and the torch model's float32 `logits` on exactly that window, as float16.

    Where the graph takes one size only, the window has that size.
    """

    window: NDArray[np.float16]
    logits: NDArray[np.float16]


def make_sample(model: UniversalModel, config: ModelConfig) -> Sample:
    """The sample of a model in eval mode."""
    window = trunk_window(fixed_window(config) or SAMPLE_SIZE, config).astype(np.float16)
    with torch_inference():
        logits = model(torch.from_numpy(window.astype(np.float32))).numpy()
    return rounded_sample(window, logits)


def rounded_sample(window: NDArray[np.float16], logits: NDArray[np.float32]) -> Sample:
    """A sample of float32 logits."""
    with np.errstate(over="ignore"):  # a logit beyond 65504 becomes inf, which the writer of the bundle refuses
        return Sample(window, logits.astype(np.float16))


def write_sample(sample: Sample, path: Path) -> None:
    """Writes sample.npz; numpy dates its members 1980, so the same sample gives the same bytes."""
    np.savez_compressed(path, window=sample.window, logits=sample.logits)


def read_sample(path: Path) -> Sample:
    """The sample of a bundle. Raises KeyError when an array is missing and OSError or ValueError for a broken file."""
    with np.load(path, allow_pickle=False) as arrays:
        return Sample(arrays["window"], arrays["logits"])
