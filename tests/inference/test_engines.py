"""Engines: the same numbers from each, and a sentence instead of a traceback when one cannot run."""

import sys
from dataclasses import replace

import numpy as np
import openvino
import pytest
import torch

from service.errors import EngineUnavailable, PrecisionNotOffered
from service.inference import engines, norms, winograd
from service.inference.bundle import Bundle
from service.inference.engines import Engine, EngineName, OnnxRuntimeEngine, OpenVINOEngine, open_engine
from service.inference.manifest import Parity, Precision

BOTH = [EngineName.OPENVINO, EngineName.ONNXRUNTIME]


def random_windows(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32))


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("shape", [(1, 1, 32, 32, 32), (2, 1, 16, 32, 48)])
def test_features_and_pooled_of_any_batch_and_size(tiny_bundle: Bundle, name: str, shape: tuple[int, ...]) -> None:
    engine = open_engine(tiny_bundle, name, threads=1)
    windows = random_windows(*shape)

    features, pooled = engine.run(windows)

    assert engine.name == name
    batch, _, d, h, w = shape
    means = windows.reshape(batch, d // 2, 2, h // 2, 2, w // 2, 2).mean((2, 4, 6))
    assert features.shape == (batch, 8, d // 2, h // 2, w // 2)
    np.testing.assert_allclose(features[:, 0], means, atol=1e-6)
    np.testing.assert_allclose(features[:, 1], -means, atol=1e-6)
    assert pooled.shape == (batch, 256)
    np.testing.assert_allclose(pooled[:, 255], windows.mean((1, 2, 3, 4)), atol=1e-6)


@pytest.mark.parametrize("name", BOTH)
def test_a_result_outlives_the_next_run(tiny_bundle: Bundle, name: str) -> None:
    engine = open_engine(tiny_bundle, name, threads=1)
    features, _ = engine.run(torch.zeros((1, 1, 16, 16, 16)))
    engine.run(torch.ones((1, 1, 16, 16, 16)))
    assert (features == 0.0).all()


@pytest.mark.parametrize("name", BOTH)
def test_a_window_does_not_depend_on_its_batch(tiny_bundle: Bundle, name: str) -> None:
    engine = open_engine(tiny_bundle, name, threads=1)
    windows = random_windows(3, 1, 32, 16, 32)
    for together, alone in zip(
        engine.run(windows), zip(*(engine.run(w[None]) for w in windows), strict=True), strict=True
    ):
        np.testing.assert_allclose(together, torch.cat(alone), atol=1e-6)


def test_openvino_compiles_once_for_the_windows_of_scans_and_forgets_other_sizes(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    class Counting(openvino.Core):
        def compile_model(self, model: openvino.Model, device: str, options: dict[str, object]) -> object:
            sizes.append(tuple(model.input("window").shape)[2:])
            return super().compile_model(model, device, options)

    monkeypatch.setattr(openvino, "Core", Counting)
    engine = open_engine(tiny_bundle, "openvino", threads=1)
    for edge in (32, 16, 16, 32, 48, 32, 16):
        engine.run(random_windows(1, 1, edge, edge, edge))
    assert sizes == [(32, 32, 32), (16, 16, 16), (48, 48, 48), (16, 16, 16)]


def test_auto_prefers_openvino(tiny_bundle: Bundle) -> None:
    assert open_engine(tiny_bundle, "auto").name == EngineName.OPENVINO


def test_auto_falls_back_when_openvino_is_not_installed(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert isinstance(open_engine(tiny_bundle, "auto"), OnnxRuntimeEngine)
    with pytest.raises(EngineUnavailable, match=r"openvino is not installed \(pip install 'viscera\[cpu\]'\)"):
        open_engine(tiny_bundle, "openvino")


def test_no_engine_at_all_names_what_to_install(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineUnavailable, match=r"openvino is not .*; onnxruntime is not .*viscera\[cpu\]"):
        open_engine(tiny_bundle, "auto")


def test_an_unknown_engine_is_refused_with_the_choices(tiny_bundle: Bundle) -> None:
    with pytest.raises(EngineUnavailable, match="no engine abacus; choose auto, cuda, tensorrt, openvino"):
        open_engine(tiny_bundle, "abacus")


@pytest.mark.parametrize("name", ["auto", *BOTH])
def test_a_backbone_that_no_engine_can_load_is_a_typed_error(tiny_bundle: Bundle, name: str) -> None:
    damaged = replace(tiny_bundle, files={**tiny_bundle.files, "backbone.onnx": b"not a network"})
    with pytest.raises(EngineUnavailable, match="cannot run fp32"):
        open_engine(damaged, name)


@pytest.mark.parametrize("engine_class", [OpenVINOEngine, OnnxRuntimeEngine])
def test_a_failure_at_run_time_is_a_typed_error(
    tiny_bundle: Bundle, engine_class: type[OpenVINOEngine] | type[OnnxRuntimeEngine]
) -> None:
    fp32 = tiny_bundle.precision("fp32")
    engine = engine_class(tiny_bundle.backbone(fp32), fp32, (32, 32, 32), 1)
    with pytest.raises(EngineUnavailable, match=f"{engine.name} failed on a window"):
        engine.run(random_windows(1, 3, 32, 32, 32))


def with_bf16(bundle: Bundle, *engines: str) -> Bundle:
    """The bundle, offering bf16 for these engines too."""
    parity = tuple(Parity(engine=engine, max_relative_error=0.01, tolerance=None) for engine in engines)
    bf16 = Precision(name="bf16", file="backbone.onnx", hint="bf16", parity=parity)
    precisions = (*bundle.manifest.precisions, bf16)
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"precisions": precisions}))


def with_fp16(bundle: Bundle) -> Bundle:
    """The bundle, offering fp16 on the engines of a CPU too."""
    parity = tuple(Parity(engine=name, max_relative_error=0.01, tolerance=None) for name in BOTH)
    fp16 = Precision(name="fp16", file="backbone.onnx", parity=parity)
    precisions = (*bundle.manifest.precisions, fp16)
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"precisions": precisions}))


class _Processor(openvino.Core):
    """A processor of one's choice."""

    capabilities: tuple[str, ...] = ()

    def get_property(self, device: str, name: str) -> list[str]:
        assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
        return list(self.capabilities)


@pytest.mark.parametrize("name", ["auto", "openvino"])
def test_a_precision_runs_with_the_engine_that_it_is_offered_for(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    asked = {}

    class Processor(_Processor):
        capabilities = ("FP32", "BF16")

        def compile_model(self, model: object, device: str, options: dict[str, object]) -> None:
            asked.update(options)

    monkeypatch.setattr(openvino, "Core", Processor)
    engine = open_engine(with_bf16(tiny_bundle, "openvino"), name, precision="bf16")
    assert (engine.name, engine.precision) == ("openvino", "bf16")
    assert asked["INFERENCE_PRECISION_HINT"] == "bf16"


def test_only_float32_is_computed_in_fewer_multiplications_and_only_bf16_with_other_norms(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Processor(_Processor):
        capabilities = ("FP32", "BF16")

        def compile_model(self, model: object, device: str, options: dict[str, object]) -> None:
            assert model

    rewritten: dict[str, list[openvino.Model]] = {"convolutions": [], "norms": []}
    monkeypatch.setattr(openvino, "Core", Processor)
    monkeypatch.setattr(winograd, "multiply_less", rewritten["convolutions"].append)
    monkeypatch.setattr(norms, "normalize_in_one_step", rewritten["norms"].append)
    open_engine(with_bf16(tiny_bundle, "openvino"), "openvino", precision="bf16")
    assert [len(models) for models in rewritten.values()] == [0, 1]
    open_engine(tiny_bundle, "openvino")
    assert [len(models) for models in rewritten.values()] == [1, 1]
    for (model,) in rewritten.values():
        assert tuple(model.input("window").shape)[2:] == tiny_bundle.manifest.sliding_window.roi_size


def test_an_engine_that_a_precision_is_not_offered_for_is_refused(tiny_bundle: Bundle) -> None:
    offer = r"it offers fp32 \(onnxruntime and openvino\), bf16 \(openvino\)\."
    with pytest.raises(PrecisionNotOffered, match=f"does not offer bf16 for onnxruntime; {offer}"):
        open_engine(with_bf16(tiny_bundle, "openvino"), "onnxruntime", precision="bf16")


@pytest.mark.parametrize("name", ["auto", "openvino"])
def test_a_processor_that_does_not_compute_in_bf16_is_told_what_else_there_is(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(_Processor, "capabilities", ("FP32",))
    monkeypatch.setattr(openvino, "Core", _Processor)
    with pytest.raises(EngineUnavailable, match=r"this processor does not compute in bf16.*offers fp32 \(onnxruntime"):
        open_engine(with_bf16(tiny_bundle, "openvino"), name, precision="bf16")


@pytest.mark.parametrize("name", ["auto", "openvino"])
@pytest.mark.parametrize(
    ("processor", "fastest"),
    [
        ({"avx2": True}, "fp32"),
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC"}, "bf16"),
        ({"avx512_bf16": True, "avx512_fp16": True, "amx_bf16": True, "cpu_name": "Intel Xeon"}, "bf16"),
        ({"avx512_bf16": True, "avx512_fp16": True, "amx_bf16": False, "cpu_name": "Intel Xeon"}, "fp32"),
    ],
)
def test_the_automatic_precision_is_the_fastest_of_the_processor(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, name: str, processor: dict[str, bool | str], fastest: str
) -> None:
    monkeypatch.setattr(_Processor, "capabilities", ("FP32", "BF16") if "avx512_bf16" in processor else ("FP32",))
    monkeypatch.setattr(openvino, "Core", _Processor)
    monkeypatch.setattr(_Processor, "compile_model", lambda *_: None)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    engine = open_engine(with_fp16(with_bf16(tiny_bundle, "openvino")), name, precision="auto")
    assert (engine.name, engine.precision) == ("openvino", fastest)


def test_the_automatic_precision_is_fp16_on_a_gpu_that_can_and_fp32_elsewhere(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def cuda(name: str, _backbone: bytes, precision: Precision, *_: object) -> Engine:
        tried.append(precision.name)
        raise RuntimeError("no such device")

    monkeypatch.setattr(engines, "cuda_engine", cuda)
    bundle = with_fp16(with_bf16(tiny_bundle, "openvino"))
    with pytest.raises(EngineUnavailable, match=r"cuda cannot run fp16 .*; cuda cannot run fp32 "):
        open_engine(bundle, "cuda", precision="auto")
    assert tried == ["fp16", "fp32"]
    assert open_engine(bundle, "onnxruntime", precision="auto").precision == "fp32"


def test_onnxruntime_is_never_hinted(tiny_bundle: Bundle) -> None:
    with pytest.raises(EngineUnavailable, match="onnxruntime cannot run bf16"):
        open_engine(with_bf16(tiny_bundle, "onnxruntime"), "onnxruntime", precision="bf16")
