"""The engines that parity is measured on, opened as the service opens them."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from model_export.errors import ExportError
from model_export.onnx import INPUT_NAME, OUTPUT_NAMES
from model_export.precisions import Precision

THREADS = 2  # fixed: the order of additions, hence the last digit, depends on the number of threads

Array: TypeAlias = NDArray[np.float32]
Backbone: TypeAlias = Callable[[Array], tuple[Array, Array]]  # windows -> voxel features, pooled features


@contextmanager
def torch_inference() -> Iterator[None]:
    """torch without gradients, on `THREADS` threads like every engine, whatever this process had it set to."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


def available_engines() -> tuple[str, ...]:
    """Names of the engines installed here. Raises ExportError when there is none."""
    engines = tuple(name for name in _OPENERS if importlib.util.find_spec(name) is not None)
    if not engines:
        raise ExportError("Parity needs an engine: install onnxruntime or openvino (the extra `cpu`).")
    return engines


def reason_against(engine: str, precision: Precision) -> str | None:
    """Why the engine cannot compute in this precision on this machine; None: it can."""
    if precision.hint is None:
        return None
    if engine != "openvino":
        return f"does not compute in {precision.hint}"
    import openvino

    capabilities: list[str] = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision.hint.upper() in capabilities:
        return None
    return f"this processor does not compute in {precision.hint}"


def open_backbone(engine: str, path: Path, precision: Precision) -> Backbone:
    """The graph at `path`, ready to run in the precision, on the CPU with `THREADS` threads."""
    return _OPENERS[engine](path, precision)


def _open_onnxruntime(path: Path, precision: Precision) -> Backbone:
    import onnxruntime

    assert precision.hint is None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(window: Array) -> tuple[Array, Array]:
        features, pooled = session.run(list(OUTPUT_NAMES), {INPUT_NAME: window})
        return features, pooled

    return run


def _open_openvino(path: Path, precision: Precision) -> Backbone:
    import openvino

    # f32 explicitly: on processors with bf16 units OpenVINO would choose bf16 by itself.
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": precision.hint or "f32",
        "INFERENCE_NUM_THREADS": THREADS,
        "PERFORMANCE_HINT": "LATENCY",
    }
    core = openvino.Core()
    network = core.read_model(path)

    @lru_cache(maxsize=1)
    def compile_for(size: tuple[int, ...]) -> Callable[[dict[str, Array]], dict[str, Array]]:
        sized = network.clone()
        sized.reshape({INPUT_NAME: [1, 1, *size]})
        compiled: Callable[[dict[str, Array]], dict[str, Array]] = core.compile_model(sized, "CPU", settings)
        return compiled

    def run(windows: Array) -> tuple[Array, Array]:
        compiled = compile_for(windows.shape[2:])
        results = [compiled({INPUT_NAME: window[None]}) for window in windows]
        features, pooled = (np.concatenate([result[name] for result in results]) for name in OUTPUT_NAMES)
        return features, pooled

    return run


_OPENERS: dict[str, Callable[[Path, Precision], Backbone]] = {
    "onnxruntime": _open_onnxruntime,
    "openvino": _open_openvino,
}
