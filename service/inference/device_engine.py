"""onnxruntime on a GPU: windows and features are torch tensors in its memory, and nothing is copied on the way.

onnxruntime is given the addresses of torch's tensors. Both queue their work on streams of the device, so each waits for
the other's stream before it touches what the other made.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from service.imaging.geometry import Shape
from service.inference.failures import typed_failures
from service.inference.manifest import Backbone, Precision

CUDA_PROVIDER = "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"
Providers = Sequence[tuple[str, dict[str, str]]]

MOST_WINDOWS = 2
"""Windows in a batch: one of 96**3 voxels fills a GPU, a second hides what is done between two."""
# What the network keeps of a window while it runs, bytes for a voxel: float32 of Swin UNETR, the largest there is.
_BYTES_PER_VOXEL = 4096


class DeviceEngine:
    """onnxruntime with an execution provider, on tensors of the device that the provider computes on."""

    def __init__(
        self,
        name: str,
        backbone: bytes,
        precision: Precision,
        outputs: Backbone,
        providers: Providers,
        device: torch.device,
        *,
        batch_size: int = 1,
        stream: "torch.cuda.Stream | None" = None,
        threads: int | None = None,
    ) -> None:
        """Read the network; the first of `providers` runs it, and what that cannot run goes to the next.

        `stream` is the one that the providers were told to use. Raises ImportError when onnxruntime is not installed,
        ValueError when it has silently left out the first provider, and whatever onnxruntime raises.
        """
        import onnxruntime

        self.name = name
        self.precision = precision.name
        self.device = device
        self.batch_size = batch_size
        self._outputs = outputs
        self._stream = stream
        options = onnxruntime.SessionOptions()
        options.use_deterministic_compute = True
        if threads is not None:
            options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(backbone, options, providers=list(providers), enable_fallback=0)
        if self._session.get_providers()[0] != providers[0][0]:
            raise ValueError(
                f"onnxruntime could not load its {providers[0][0]}: it needs the CUDA and cuDNN it was built for"
            )

    def run(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """See Engine.run."""
        with typed_failures(self.name, self.device):
            batch, _, *edges = windows.shape
            windows = windows.contiguous()
            on_features = [edge // self._outputs.feature_stride for edge in edges]
            features = torch.empty((batch, self._outputs.feature_channels, *on_features), device=self.device)
            pooled = torch.empty((batch, self._outputs.pooled_channels), device=self.device)
            binding = self._session.io_binding()
            binding.bind_input("window", *self._placed(windows))
            binding.bind_output("features", *self._placed(features))
            binding.bind_output("pooled", *self._placed(pooled))
            if self._stream is None:
                self._session.run_with_iobinding(binding)
            else:
                current = torch.cuda.current_stream(self.device)
                self._stream.wait_stream(current)
                self._session.run_with_iobinding(binding)
                current.wait_stream(self._stream)
            return features, pooled

    def _placed(self, tensor: Tensor) -> tuple[str, int, type[np.float32], tuple[int, ...], int]:
        """Device, its number, type, shape and address, as a binding takes them."""
        return self.device.type, self.device.index or 0, np.float32, tuple(tensor.shape), tensor.data_ptr()


def cuda_engine(
    name: str, backbone: bytes, precision: Precision, outputs: Backbone, window: Shape, threads: int | None = None
) -> DeviceEngine:
    """onnxruntime's CUDA provider on the first GPU; float32 is float32, without TF32.

    Raises ImportError and ValueError with the reason why it cannot run here.
    """
    device = _device(CUDA_PROVIDER)
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's own signature lacks types
    return DeviceEngine(
        name,
        backbone,
        precision,
        outputs,
        [(CUDA_PROVIDER, _cuda_options(device, stream))],
        device,
        batch_size=_batch_size(device, window),
        stream=stream,
        threads=threads,
    )


def tensorrt_engine(
    name: str,
    backbone: bytes,
    precision: Precision,
    outputs: Backbone,
    window: Shape,
    threads: int | None = None,
    *,
    cache: Path,
) -> DeviceEngine:
    """onnxruntime's TensorRT provider on the first GPU; what it compiles, in minutes, is kept in the folder `cache`.

    Raises ImportError and ValueError with the reason why it cannot run here.
    """
    device = _device(TENSORRT_PROVIDER)
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's own signature lacks types
    options = {
        "device_id": str(device.index),
        "user_compute_stream": str(stream.cuda_stream),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
        # Only for a file that holds float16: of a float32 file TensorRT would choose float16 wherever it is faster.
        "trt_fp16_enable": "1" if precision.name == "fp16" else "0",
    }
    return DeviceEngine(
        name,
        backbone,
        precision,
        outputs,
        [(TENSORRT_PROVIDER, options), (CUDA_PROVIDER, _cuda_options(device, stream))],
        device,
        batch_size=_batch_size(device, window),
        stream=stream,
        threads=threads,
    )


def _cuda_options(device: torch.device, stream: "torch.cuda.Stream") -> dict[str, str]:
    return {
        "device_id": str(device.index),
        "user_compute_stream": str(stream.cuda_stream),
        "use_tf32": "0",
        # The exhaustive search takes the algorithm that happened to be fastest, another one in another process, and
        # masks would differ.
        "cudnn_conv_algo_search": "HEURISTIC",
        # Doubling would set aside memory that torch then lacks.
        "arena_extend_strategy": "kSameAsRequested",
    }


def _device(provider: str) -> torch.device:
    """The GPU that both onnxruntime and torch see; ValueError with the reason where there is none."""
    import onnxruntime

    if provider not in onnxruntime.get_available_providers():
        raise ValueError(f"this onnxruntime is built without {provider}: pip install 'viscera[gpu]'")
    if not torch.cuda.is_available():
        raise ValueError("torch sees no CUDA device: it needs a GPU, its driver, and torch's build for CUDA")
    return torch.device("cuda", torch.cuda.current_device())


def _batch_size(device: torch.device, window: Shape) -> int:
    """Windows that the free memory takes at once, with as much left for the logits."""
    free, _ = torch.cuda.mem_get_info(device)
    x, y, z = window
    return max(1, min(MOST_WINDOWS, free // (2 * _BYTES_PER_VOXEL * x * y * z)))
