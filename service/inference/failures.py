"""What engines and torch raise, as errors of the service."""

import torch

from service.errors import EngineUnavailable, InsufficientDeviceMemory

# onnxruntime and the libraries of CUDA publish no exception type for it, only these words.
_OUT_OF_MEMORY = (
    "out of memory",
    "failed to allocate memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)


class typed_failures:  # noqa: N801  # reads as the statement that it is
    """Turns whatever an engine raises into EngineUnavailable, or InsufficientDeviceMemory where that is the reason."""

    def __init__(self, engine: str, device: torch.device) -> None:
        """`device` is where the engine runs: the memory of the host is nobody's to economise."""
        self._engine = engine
        self._device = device

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, EngineUnavailable):
            return
        if isinstance(error, Exception):
            short = self._device.type != "cpu" and is_out_of_memory(error)
            typed = InsufficientDeviceMemory if short else EngineUnavailable
            raise typed(f"{self._engine} failed on a window: {first_line(error)}") from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether the error says that a device has no memory left."""
    words = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(phrase in words for phrase in _OUT_OF_MEMORY)


def first_line(error: BaseException) -> str:
    """Of its message, or the name of its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
