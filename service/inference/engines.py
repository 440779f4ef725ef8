"""Engines: what runs the backbone. Windows go in; voxel features and pooled features come out.

Each engine gets the verified bytes of the ONNX file, never a path.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.errors import EngineUnavailable, PrecisionNotOffered
from service.imaging.geometry import Shape
from service.inference.bundle import Bundle
from service.inference.manifest import Precision

Float32 = NDArray[np.float32]
DEFAULT_PRECISION = "fp32"


class EngineName(StrEnum):
    """The engines a caller may ask for."""

    AUTO = "auto"  #: the first that the precision is offered for and that is installed: openvino, then onnxruntime
    OPENVINO = "openvino"  #: OpenVINO on the CPU
    ONNXRUNTIME = "onnxruntime"  #: onnxruntime on the CPU


class Engine(Protocol):
    """Runs the backbone on this machine."""

    name: str
    precision: str  #: which of the bundle's precisions it runs

    def run(self, windows: Float32) -> tuple[Float32, Float32]:
        """Features (B, 8, D/s, H/s, W/s) and pooled features (B, 256) of normalised windows (B, 1, D, H, W).

        Raises EngineUnavailable when the engine fails on them.
        """


_Compiled = Callable[[dict[str, Float32]], Mapping[str, Float32]]


class OpenVINOEngine:
    """OpenVINO on the CPU, compiled for one size of window: a network of free size takes 1 GB more for Swin UNETR.

    Windows of a batch run one after the other, so that none depends on the others.
    """

    name = EngineName.OPENVINO.value

    def __init__(self, backbone: bytes, precision: Precision, window: Shape, threads: int | None = None) -> None:
        """Compile the network for windows of this size. `threads` None leaves the number to OpenVINO.

        ImportError when it is not installed; ValueError when the processor does not compute in the precision.
        """
        import openvino

        core = openvino.Core()
        if precision.hint and precision.hint.upper() not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ValueError(f"this processor does not compute in {precision.hint}")
        self.precision = precision.name
        # f32 explicitly: on CPUs with bf16 units OpenVINO would choose bf16 by itself, and masks would differ.
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": precision.hint or "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        network = core.read_model(backbone, b"")

        def compile_for(size: Shape) -> _Compiled:
            sized = network.clone()
            sized.reshape({"window": [1, 1, *size]})
            compiled: _Compiled = core.compile_model(sized, "CPU", options)
            return compiled

        self._compile_for = compile_for
        self._window = window
        self._compiled = {window: compile_for(window)}

    def run(self, windows: Float32) -> tuple[Float32, Float32]:
        """See Engine.run."""
        with _typed_failures(self.name):
            x, y, z = windows.shape[2:]
            compiled = self._compiled_for((x, y, z))
            results = [compiled({"window": window[None]}) for window in windows]
            features, pooled = (np.concatenate([result[name] for result in results]) for name in ("features", "pooled"))
            return features, pooled

    def _compiled_for(self, size: Shape) -> _Compiled:
        """The network for windows of this size; of the sizes that no job has, only the last is kept."""
        if size not in self._compiled:
            self._compiled = {self._window: self._compiled[self._window], size: self._compile_for(size)}
        return self._compiled[size]


class OnnxRuntimeEngine:
    """onnxruntime on the CPU: slower than OpenVINO, and available on more machines."""

    name = EngineName.ONNXRUNTIME.value

    def __init__(self, backbone: bytes, precision: Precision, window: Shape, threads: int | None = None) -> None:
        """Read the network; it takes windows of any size. `threads` None leaves the number to onnxruntime.

        ImportError when it is not installed; ValueError for a precision that it would have to be hinted.
        """
        import onnxruntime

        if precision.hint is not None:
            raise ValueError(f"it does not compute in {precision.hint}")
        self.precision = precision.name
        options = onnxruntime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(backbone, options, providers=["CPUExecutionProvider"])

    def run(self, windows: Float32) -> tuple[Float32, Float32]:
        """See Engine.run."""
        with _typed_failures(self.name):
            features, pooled = self._session.run(["features", "pooled"], {"window": windows})
            return features, pooled


_ENGINES: dict[
    EngineName, Callable[[bytes, Precision, Shape, int | None], Engine]
] = {  # in the order that `auto` tries
    EngineName.OPENVINO: OpenVINOEngine,
    EngineName.ONNXRUNTIME: OnnxRuntimeEngine,
}


def open_engine(
    bundle: Bundle, name: str = EngineName.AUTO, *, precision: str = DEFAULT_PRECISION, threads: int | None = None
) -> Engine:
    """An engine for the bundle's backbone of that precision; with `auto` the first that the bundle offers it for.

    Raises PrecisionNotOffered when the bundle lacks the precision, or offers it for other engines only.
    EngineUnavailable when the engine, or with `auto` every one that it is offered for, is unknown, not installed, or
    cannot run it on this machine; the message says what to install or what else is offered.
    """
    if name not in list(EngineName):
        raise EngineUnavailable(f"There is no engine {name}; choose {', '.join(EngineName)}.")
    chosen = bundle.precision(precision)
    candidates = [engine for engine in _ENGINES if name in (EngineName.AUTO, engine) and engine in chosen.engines]
    if not candidates:
        raise PrecisionNotOffered(
            f"{bundle.manifest.name} does not offer {precision} for {name}; it offers {bundle.offer}."
        )
    reasons: list[str] = []
    for candidate in candidates:
        try:
            return _ENGINES[candidate](
                bundle.backbone(chosen), chosen, bundle.manifest.sliding_window.roi_size, threads
            )
        except ImportError:
            reasons.append(f"{candidate} is not installed (pip install 'viscera[cpu]')")
        except Exception as error:  # noqa: BLE001  # the engines publish no common exception type
            reasons.append(f"{candidate} cannot run {precision} ({_first_line(error)})")
    raise EngineUnavailable(f"{'; '.join(reasons)}. {bundle.manifest.name} offers {bundle.offer}.")


class _typed_failures:  # noqa: N801  # reads as the statement that it is
    """Turns whatever an engine raises into EngineUnavailable."""

    def __init__(self, engine: str) -> None:
        self._engine = engine

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            raise EngineUnavailable(f"{self._engine} failed on a window: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
