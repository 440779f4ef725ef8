"""Engines: what runs the backbone. Windows go in; voxel features and pooled features come out.

Each engine gets the verified bytes of the ONNX file, never a path.
"""

from collections.abc import Callable, Collection, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from platformdirs import user_cache_path
from torch import Tensor

from service.errors import EngineUnavailable, PrecisionNotOffered
from service.imaging.geometry import Shape
from service.inference.bundle import Bundle
from service.inference.device_engine import cuda_engine, tensorrt_engine
from service.inference.failures import first_line, typed_failures
from service.inference.manifest import Precision

Float32 = NDArray[np.float32]
DEFAULT_PRECISION = "fp32"
AUTO_PRECISION = "auto"
"""The fastest that the bundle offers on this machine."""


class EngineName(StrEnum):
    """The engines a caller may ask for."""

    AUTO = "auto"  #: the first that the precision is offered for and that runs here: cuda, openvino, onnxruntime
    CUDA = "cuda"  #: onnxruntime on a GPU
    TENSORRT = "tensorrt"  #: TensorRT through onnxruntime on a GPU; compiles for minutes, once
    OPENVINO = "openvino"  #: OpenVINO on the CPU
    ONNXRUNTIME = "onnxruntime"  #: onnxruntime on the CPU


CPU_ENGINES = (EngineName.OPENVINO, EngineName.ONNXRUNTIME)
GPU_ENGINES = (EngineName.CUDA, EngineName.TENSORRT)
AUTO_ENGINES = (EngineName.CUDA, *CPU_ENGINES)
"""What `auto` tries, in this order."""


class Engine(Protocol):
    """Runs the backbone on this machine."""

    name: str
    precision: str  #: which of the bundle's precisions it runs
    device: torch.device  #: where windows and features lie
    batch_size: int  #: how many windows it takes at once to run well

    def run(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, 8, D/s, H/s, W/s) and pooled features (B, 256) of normalised windows (B, 1, D, H, W).

        All are float32 on `device`. Raises EngineUnavailable when the engine fails on them, InsufficientDeviceMemory
        when the device has no memory left.
        """


_Compiled = Callable[..., Mapping[str, Float32]]  # of openvino: CompiledModel.__call__


class OpenVINOEngine:
    """OpenVINO on the CPU, compiled for one size of window: a network of free size takes 1 GB more for Swin UNETR.

    Windows of a batch run one after the other, so that none depends on the others. In float32 most convolutions are
    Winograd's; in bfloat16 norms and attention are OpenVINO's own, or the end stays in float32. All of it computes what
    the ONNX file says, but for rounding.
    """

    name = EngineName.OPENVINO.value
    device = torch.device("cpu")
    batch_size = 1

    def __init__(self, backbone: bytes, precision: Precision, window: Shape, threads: int | None = None) -> None:
        """Compile the network for windows of this size. `threads` None leaves the number to OpenVINO.

        ImportError when it is not installed; ValueError when the processor does not compute in the precision.
        """
        import openvino

        from service.inference.attention import add_masks_to_scores
        from service.inference.norms import normalize_in_one_step
        from service.inference.read_out import read_out_in_float32
        from service.inference.winograd import multiply_less

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
            if precision.hint is None:
                multiply_less(sized)
            else:
                add_masks_to_scores(sized)
                if not normalize_in_one_step(sized):
                    read_out_in_float32(sized)
            compiled: _Compiled = core.compile_model(sized, "CPU", options)
            return compiled

        self._compile_for = compile_for
        self._window = window
        self._compiled = {window: compile_for(window)}

    def run(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """See Engine.run."""
        with typed_failures(self.name, self.device):
            x, y, z = windows.shape[2:]
            compiled = self._compiled_for((x, y, z))
            answers: dict[str, list[Tensor]] = {"features": [], "pooled": []}
            for window in windows.numpy():
                shared = compiled({"window": window[None]}, share_outputs=True)  # until the next window
                for name, answer in answers.items():
                    answer.append(torch.from_numpy(shared[name]).clone())
            features, pooled = (answer[0] if len(answer) == 1 else torch.cat(answer) for answer in answers.values())
            return features, pooled

    def _compiled_for(self, size: Shape) -> _Compiled:
        """The network for windows of this size; of the sizes that no job has, only the last is kept."""
        if size not in self._compiled:
            self._compiled = {self._window: self._compiled[self._window], size: self._compile_for(size)}
        return self._compiled[size]


class OnnxRuntimeEngine:
    """onnxruntime on the CPU: slower than OpenVINO, and available on more machines."""

    name = EngineName.ONNXRUNTIME.value
    device = torch.device("cpu")
    batch_size = 1

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

    def run(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """See Engine.run."""
        with typed_failures(self.name, self.device):
            features, pooled = self._session.run(["features", "pooled"], {"window": windows.numpy()})
            return torch.from_numpy(features), torch.from_numpy(pooled)


def open_engine(
    bundle: Bundle,
    name: str = EngineName.AUTO,
    *,
    precision: str = DEFAULT_PRECISION,
    threads: int | None = None,
    cache: Path | None = None,
    auto: Collection[EngineName] = AUTO_ENGINES,
) -> Engine:
    """An engine for the bundle's backbone of that precision; with `auto` the first that the bundle offers it for.

    The precision `auto` is the fastest of an engine: fp16 on a GPU, bf16 where the processor gains from it, else fp32.
    `cache` is the folder for what TensorRT compiles, by default in the user's cache; `auto` is what `auto` tries.

    Raises PrecisionNotOffered when the bundle lacks the precision, or offers it for other engines only.
    EngineUnavailable when the engine, or with `auto` every one that it is offered for, is unknown, not installed, or
    cannot run it on this machine; the message says what to install or what else is offered.
    """
    if name not in list(EngineName):
        raise EngineUnavailable(f"There is no engine {name}; choose {', '.join(EngineName)}.")
    asked = auto if name == EngineName.AUTO else (EngineName(name),)
    candidates = [(engine, chosen) for engine in asked for chosen in precisions_to_try(bundle, engine, precision)]
    if not candidates:
        raise PrecisionNotOffered(
            f"{bundle.manifest.name} does not offer {precision} for {name}; it offers {bundle.offer}."
        )
    reasons: list[str] = []
    for engine, chosen in candidates:
        try:
            return _open(engine, bundle, chosen, threads, cache)
        except ImportError:
            extra = "gpu" if engine in GPU_ENGINES else "cpu"
            reasons.append(f"{engine} is not installed (pip install 'viscera[{extra}]')")
        except Exception as error:  # noqa: BLE001  # the engines publish no common exception type
            reasons.append(f"{engine} cannot run {chosen.name} ({first_line(error)})")
    raise EngineUnavailable(f"{'; '.join(dict.fromkeys(reasons))}. {bundle.manifest.name} offers {bundle.offer}.")


def precisions_to_try(bundle: Bundle, engine: EngineName, asked: str) -> list[Precision]:
    """Those to try with the engine, as far as the bundle offers them for it; PrecisionNotOffered when it has none such.

    On a GPU fp16 is faster, on a CPU only what an engine is hinted to compute in: bfloat16, and that not on each that
    has it.
    """
    if asked != AUTO_PRECISION:
        chosen = bundle.precision(asked)
        return [chosen] if is_offered(chosen, engine) else []
    faster = [
        precision
        for precision in bundle.manifest.precisions
        if precision.name != DEFAULT_PRECISION
        and (engine in GPU_ENGINES or (precision.hint is not None and _bfloat16_is_faster()))
    ]
    return [chosen for chosen in (*faster, bundle.precision(DEFAULT_PRECISION)) if is_offered(chosen, engine)]


def _bfloat16_is_faster() -> bool:
    """Whether the processor multiplies faster in bfloat16 than in float32. Intel's since Sapphire Rapids do so with AMX
    alone, which virtual machines may lack: their AVX-512 takes twice as long (measured)."""
    has = torch.cpu.get_capabilities()
    halved = has.get("avx512_fp16") and "AMD" not in has.get("cpu_name", "")
    return bool(has.get("amx_bf16") or has.get("bf16") or (has.get("avx512_bf16") and not halved))


def is_offered(precision: Precision, engine: EngineName) -> bool:
    """Whether the engine may run the precision: where onnxruntime may on the CPU, it may on a GPU.

    A bundle is measured on engines of the CPU. What a GPU makes of it, the self-test tells.
    """
    if engine in GPU_ENGINES:
        return precision.hint is None and EngineName.ONNXRUNTIME in precision.engines
    return engine in precision.engines


def _open(name: EngineName, bundle: Bundle, precision: Precision, threads: int | None, cache: Path | None) -> Engine:
    """That engine; raises whatever keeps it from running here."""
    backbone, window = bundle.backbone(precision), bundle.manifest.sliding_window.roi_size
    outputs = bundle.manifest.backbone
    match name:
        case EngineName.CUDA:
            return cuda_engine(name.value, backbone, precision, outputs, window, threads)
        case EngineName.TENSORRT:
            cache = cache or user_cache_path("viscera") / "tensorrt"
            return tensorrt_engine(name.value, backbone, precision, outputs, window, threads, cache=cache)
        case EngineName.OPENVINO:
            return OpenVINOEngine(backbone, precision, window, threads)
        case _:
            return OnnxRuntimeEngine(backbone, precision, window, threads)
