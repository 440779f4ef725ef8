"""What the exported graph is compared with torch on.

Synthetic windows differ in content, batch and size, and find what is wrong with a graph: logits alone are compared on
them. Measuring windows are of the model's own size and look like what it will be given, from a CT or from a phantom:
masks are compared on them, and seconds are taken.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from model_export.engines import Array
from model_export.errors import ScanRefused
from model_export.onnx import fixed_window
from model_export.sample import Sample, normalise, trunk_window
from model_export.scan import read_scan
from training.config import ModelConfig
from training.phantom.phantom import TRUNK, draw_phantom

Windows: TypeAlias = Mapping[str, Array]  # what is in it -> (B,1,D,H,W)

MEASURING_WINDOWS = 6  # at most; those with the most foreground show nearly all organs of a trunk
_PHANTOM_SEED = 2_000_003  # never trained, calibrated or evaluated on


@dataclass(frozen=True)
class MeasuringWindows:
    """`windows` (1,1,*roi_size) each, normalised float32; `source` is `scan` or `phantom`."""

    source: str
    windows: tuple[Array, ...]


def synthetic_windows(config: ModelConfig, size_multiple: int, sample: Sample) -> dict[str, Array]:
    """Windows that differ in content and batch, in size too where the graph leaves it free; the bundle's own sample."""
    low, high = config.output_range
    fixed = fixed_window(config)
    small = fixed or (3 * size_multiple,) * 3
    odd = fixed or (2 * size_multiple, 3 * size_multiple, 4 * size_multiple)
    noise = np.random.default_rng(7).uniform(low, high, (2, 1, *odd))
    windows = {
        "random": noise.astype(np.float32),
        "air": np.full((1, 1, *small), low, dtype=np.float32),
        "sample": sample.window.astype(np.float32),
    }
    if fixed is None:  # else the sample is that window already
        windows["trunk"] = trunk_window(config.roi_size, config)
    return windows


def measuring_windows(config: ModelConfig, scan: Path | None = None) -> MeasuringWindows:
    """Windows of a scan's foreground, or of a phantom's. Raises ScanRefused for a scan that cannot be used."""
    if scan is None:
        return MeasuringWindows("phantom", _foreground_windows(_phantom_hu(config.spacing_mm), config))
    windows = _foreground_windows(read_scan(scan, config), config)
    if not windows:
        raise ScanRefused(f"{scan.name} shows nothing but air; give a CT in Hounsfield units.")
    return MeasuringWindows("scan", windows)


@lru_cache(maxsize=1)
def _phantom_hu(spacing_mm: tuple[float, float, float]) -> NDArray[np.float32]:
    return draw_phantom(_PHANTOM_SEED, spacing_mm=spacing_mm, field_of_view=TRUNK).hu.astype(np.float32)


def _foreground_windows(hu: NDArray[np.float32], config: ModelConfig) -> tuple[Array, ...]:
    """The windows with the most foreground, of those that tile the volume without overlap."""
    above = config.intensity_range_hu[0] if config.foreground_above_hu is None else config.foreground_above_hu
    edges = config.roi_size
    padding = [(0, -size % edge) for size, edge in zip(hu.shape, edges, strict=True)]
    padded = np.pad(hu, padding, constant_values=min(above, config.intensity_range_hu[0]))
    starts = itertools.product(*(range(0, size, edge) for size, edge in zip(padded.shape, edges, strict=True)))
    boxes = [
        padded[tuple(slice(start, start + edge) for start, edge in zip(corner, edges, strict=True))]
        for corner in starts
    ]
    shown = {index: int(np.count_nonzero(box > above)) for index, box in enumerate(boxes)}
    fullest = sorted((index for index in shown if shown[index]), key=lambda index: -shown[index])
    return tuple(normalise(boxes[index], config)[None, None] for index in fullest[:MEASURING_WINDOWS])
