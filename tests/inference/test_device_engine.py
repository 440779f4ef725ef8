"""The engine of a GPU, with the provider of the CPU: the same bindings, the same answers, and no silent fallback."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch

from service.errors import EngineUnavailable, InsufficientDeviceMemory, PrecisionNotOffered
from service.inference import engines
from service.inference.bundle import Bundle
from service.inference.device_engine import DeviceEngine, Providers
from service.inference.engines import open_engine
from service.inference.failures import typed_failures
from service.inference.manifest import Parity, Precision
from service.inference.predictor import Predictor
from tests.support.tiny_bundle import expected_logits

CPU = torch.device("cpu")


def device_engine(
    bundle: Bundle, *, batch_size: int = 1, providers: Providers = (("CPUExecutionProvider", {}),)
) -> DeviceEngine:
    fp32 = bundle.precision("fp32")
    outputs = bundle.manifest.backbone
    return DeviceEngine("cuda", bundle.backbone(fp32), fp32, outputs, providers, CPU, batch_size=batch_size, threads=1)


def random_windows(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32))


@pytest.mark.parametrize("shape", [(1, 1, 32, 32, 32), (3, 1, 16, 32, 48)])
def test_bound_tensors_hold_what_the_engine_of_the_cpu_gives(tiny_bundle: Bundle, shape: tuple[int, ...]) -> None:
    windows = random_windows(*shape)
    bound = device_engine(tiny_bundle).run(windows)
    copied = open_engine(tiny_bundle, "onnxruntime", threads=1).run(windows)
    for mine, other in zip(bound, copied, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)


def test_windows_need_not_be_contiguous(tiny_bundle: Bundle) -> None:
    windows = random_windows(1, 1, 32, 16, 48).transpose(2, 4)
    features, _ = device_engine(tiny_bundle).run(windows)
    expected, _ = device_engine(tiny_bundle).run(windows.contiguous())
    torch.testing.assert_close(features, expected, rtol=0, atol=0)


def test_a_result_outlives_the_next_run(tiny_bundle: Bundle) -> None:
    engine = device_engine(tiny_bundle)
    features, _ = engine.run(torch.zeros((1, 1, 16, 16, 16)))
    engine.run(torch.ones((1, 1, 16, 16, 16)))
    assert (features == 0.0).all()


def test_logits_are_what_the_bundle_was_made_to_say(tiny_bundle: Bundle) -> None:
    windows = random_windows(2, 32, 32, 16)
    logits = Predictor(tiny_bundle, device_engine(tiny_bundle))(windows)
    np.testing.assert_allclose(logits, expected_logits(windows[:, None].numpy()), atol=1e-3)


def test_a_provider_that_was_silently_left_out_cannot_run(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """What onnxruntime does when its library of the provider cannot be loaded: a line on stderr, and the CPU."""

    class FallenBack:
        def __init__(self, *_: object, **__: object) -> None: ...

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "InferenceSession", FallenBack)
    with pytest.raises(ValueError, match="could not load its CUDAExecutionProvider: it needs the CUDA and cuDNN"):
        device_engine(tiny_bundle, providers=[("CUDAExecutionProvider", {})])


@pytest.mark.parametrize(
    ("name", "provider"), [("cuda", "CUDAExecutionProvider"), ("tensorrt", "TensorrtExecutionProvider")]
)
def test_why_a_gpu_cannot_be_used(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, name: str, provider: str
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EngineUnavailable, match=rf"{name} cannot run fp32 .*without {provider}.*viscera\[gpu\]"):
        open_engine(tiny_bundle, name)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [provider, "CPUExecutionProvider"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineUnavailable, match="torch sees no CUDA device"):
        open_engine(tiny_bundle, name)


def test_auto_takes_the_gpu_where_there_is_one(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "cuda_engine", lambda *_: device_engine(tiny_bundle))
    assert open_engine(tiny_bundle).name == "cuda"
    assert open_engine(tiny_bundle, auto=engines.CPU_ENGINES).name == "openvino"


def test_a_gpu_is_never_hinted(tiny_bundle: Bundle) -> None:
    parity = (Parity(engine="onnxruntime", max_relative_error=0.01, tolerance=None),)
    bf16 = Precision(name="bf16", file="backbone.onnx", hint="bf16", parity=parity)
    manifest = tiny_bundle.manifest.model_copy(update={"precisions": (*tiny_bundle.manifest.precisions, bf16)})
    with pytest.raises(PrecisionNotOffered, match="does not offer bf16 for cuda"):
        open_engine(replace(tiny_bundle, manifest=manifest), "cuda", precision="bf16")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("bfc_arena.cc: Failed to allocate memory for requested buffer of size 1811939328"),
        RuntimeError("CUDA failure 2: out of memory ; GPU=0"),
        RuntimeError("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED"),
    ],
)
def test_a_gpu_without_memory_is_told_from_other_failures(error: Exception) -> None:
    with (
        pytest.raises(InsufficientDeviceMemory, match="cuda failed on a window"),
        typed_failures("cuda", torch.device("cuda")),
    ):
        raise error
    with pytest.raises(EngineUnavailable) as caught, typed_failures("onnxruntime", CPU):
        raise error
    assert not isinstance(caught.value, InsufficientDeviceMemory)
