"""Does the exported graph give the torch model's logits, on every engine there is? Measured, never assumed.

Compared are logits after the folded head, so that one number covers the backbone, the head and the folding:
max |engine - torch| / max |torch| over a window, the worst window counting.
"""

import importlib.util
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from model_export.errors import ExportError, ParityError
from model_export.head import FoldedHead
from model_export.onnx import INPUT_NAME, OUTPUT_NAMES, fixed_window
from model_export.sample import trunk_window
from training.config import ModelConfig
from training.networks.universal import UniversalModel

FP32_TOLERANCE = 1e-4
THREADS = 2  # fixed: the order of additions, hence the last digit, depends on the number of threads

Array: TypeAlias = NDArray[np.float32]
Backbone: TypeAlias = Callable[[Array], tuple[Array, Array]]  # windows -> voxel features, pooled features
Windows: TypeAlias = Mapping[str, Array]  # what is in it -> (B,1,D,H,W)


@dataclass(frozen=True)
class EngineParity:
    """The worst relative error of one engine, and the window it occurred on. NaN: logits that are not finite."""

    engine: str
    max_relative_error: float
    window: str
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the error is within the tolerance; an error of NaN is not."""
        return self.max_relative_error <= self.tolerance


def parity_windows(config: ModelConfig, size_multiple: int) -> dict[str, Array]:
    """Windows that differ in content and batch, in size too where the graph leaves it free; normalised."""
    low, high = config.output_range
    fixed = fixed_window(config)
    small = fixed or (3 * size_multiple,) * 3
    odd = fixed or (2 * size_multiple, 3 * size_multiple, 4 * size_multiple)
    noise = np.random.default_rng(7).uniform(low, high, (2, 1, *odd))
    return {
        "random": noise.astype(np.float32),
        "air": np.full((1, 1, *small), low, dtype=np.float32),
        "trunk": trunk_window(config.roi_size, config),
    }


def relative_error(measured: NDArray[np.floating], reference: NDArray[np.floating]) -> float:
    """max |measured - reference| / max |reference|; NaN when either is not finite, inf when only the reference is 0."""
    if not (np.isfinite(measured).all() and np.isfinite(reference).all()):
        return math.nan
    difference = float(np.abs(measured.astype(np.float64) - reference).max())
    scale = float(np.abs(reference).max())
    if scale == 0.0:
        return 0.0 if difference == 0.0 else math.inf
    return difference / scale


def available_engines() -> tuple[str, ...]:
    """Names of the engines installed here that parity can be measured on."""
    return tuple(name for name in _OPENERS if importlib.util.find_spec(name) is not None)


def open_backbone(engine: str, onnx_path: Path) -> Backbone:
    """The graph, ready to run in float32 on the CPU with `THREADS` threads."""
    return _OPENERS[engine](onnx_path)


def measure_parity(
    model: UniversalModel,
    onnx_path: Path,
    head: FoldedHead,
    windows: Windows,
    tolerance: float = FP32_TOLERANCE,
) -> tuple[EngineParity, ...]:
    """The parity of each installed engine with the model in eval mode. Raises ExportError when none is installed."""
    engines = available_engines()
    if not engines:
        raise ExportError("Parity needs an engine: install onnxruntime or openvino (the extra `cpu`).")
    references = {name: _torch_logits(model, window) for name, window in windows.items()}
    return tuple(
        _worst(engine, open_backbone(engine, onnx_path), head, windows, references, tolerance) for engine in engines
    )


def check_parity(parities: Iterable[EngineParity]) -> None:
    """Raises ParityError for the first engine that is off."""
    for parity in parities:
        if not parity.holds:
            raise ParityError(
                f"{parity.engine} is off by {parity.max_relative_error:.1e} of the largest logit on the window "
                f"{parity.window!r}; allowed: {parity.tolerance:.0e}."
            )


def _worst(
    engine: str,
    backbone: Backbone,
    head: FoldedHead,
    windows: Windows,
    references: Windows,
    tolerance: float,
) -> EngineParity:
    errors = {
        name: relative_error(head.logits(*backbone(window)), references[name]) for name, window in windows.items()
    }
    # NaN is no larger than anything; it has to win nevertheless.
    worst = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
    return EngineParity(engine, errors[worst], worst, tolerance)


def _torch_logits(model: UniversalModel, window: Array) -> Array:
    with torch.inference_mode():
        logits: Array = model(torch.from_numpy(window)).numpy()
    return logits


def _open_onnxruntime(onnx_path: Path) -> Backbone:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(onnx_path, options, providers=["CPUExecutionProvider"])

    def run(window: Array) -> tuple[Array, Array]:
        features, pooled = session.run(list(OUTPUT_NAMES), {INPUT_NAME: window})
        return features, pooled

    return run


def _open_openvino(onnx_path: Path) -> Backbone:
    import openvino

    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": THREADS}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(onnx_path), "CPU", settings)

    def run(window: Array) -> tuple[Array, Array]:
        results = compiled({INPUT_NAME: window})
        features, pooled = (results[name] for name in OUTPUT_NAMES)
        return features, pooled

    return run


_OPENERS: dict[str, Callable[[Path], Backbone]] = {
    "onnxruntime": _open_onnxruntime,
    "openvino": _open_openvino,
}
