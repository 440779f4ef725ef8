"""A GPU that is short of memory: fewer windows at a time, blending on the host, then the CPU; each step is told."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from service.errors import EngineUnavailable, InsufficientDeviceMemory
from service.imaging.geometry import Geometry
from service.inference.accumulator import Accumulator
from service.inference.economy import LOW_MEMORY, Economy
from service.inference.engines import Engine
from service.inference.failures import typed_failures
from service.inference.grid import whole_grid
from service.inference.logits import Logits
from service.inference.model import Model
from service.inference.prediction import predict
from service.inference.predictor import Predictor
from service.inference.preprocessing import NetworkInput
from service.inference.sliding_window import predict_windows
from service.pipeline import segment_study
from service.request import SegmentationRequest
from tests.support.logits import all_values
from tests.support.nifti_files import write_nifti

CUDA = torch.device("cuda")


class Cramped:
    """An engine of a GPU that has room for so many windows at a time."""

    name = "cuda"
    precision = "fp32"
    device = torch.device("cpu")

    def __init__(self, engine: Engine, *, batch_size: int, room: int) -> None:
        self._engine = engine
        self.batch_size = batch_size
        self._room = room
        self.batches: list[int] = []

    def run(self, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with typed_failures(self.name, CUDA):
            if len(windows) > self._room:
                raise RuntimeError("Failed to allocate memory for requested buffer of size 1811939328")
        self.batches.append(len(windows))
        return self._engine.run(windows)


def cramped(model: Model, *, batch_size: int, room: int) -> tuple[Model, Cramped]:
    engine = Cramped(model.predictor.engine, batch_size=batch_size, room=room)
    return replace(model, predictor=Predictor(model.bundle, engine), open_on_cpu=lambda: model.predictor), engine


def scan() -> NetworkInput:
    """Three layers of four windows each."""
    values = np.random.default_rng(2).uniform(-0.9, 1.0, (48, 40, 64)).astype(np.float32)
    return NetworkInput(values, whole_grid(Geometry(values.shape, np.diag([2.0, 2.0, 2.0, 1.0])), (2.0,) * 3), -1.0)


def masks(logits: Logits) -> NDArray[np.bool_]:
    return all_values(logits) > 0


def plain(model: Model) -> NDArray[np.bool_]:
    return masks(predict_windows(scan(), model.predictor, model.bundle.manifest.sliding_window))


def steps(notices: object) -> list[str]:
    assert all(notice.code == LOW_MEMORY for notice in notices)
    return [notice.message.split(": ")[1].split(".")[0] for notice in notices]


@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_batches_give_the_masks_of_single_windows(tiny_model: Model, batch_size: int) -> None:
    model, engine = cramped(tiny_model, batch_size=batch_size, room=8)
    prediction = predict(scan(), model, model.predictor, model.bundle.manifest.sliding_window)
    assert max(engine.batches) == min(batch_size, 4)
    assert prediction.notices == ()
    np.testing.assert_array_equal(masks(prediction.logits), plain(tiny_model))


def test_half_the_windows_at_a_time_until_there_is_room(tiny_model: Model) -> None:
    model, engine = cramped(tiny_model, batch_size=4, room=1)
    prediction = predict(scan(), model, model.predictor, model.bundle.manifest.sliding_window)
    assert steps(prediction.notices) == [
        "windows went through the network 2 at a time",
        "windows went through the network 1 at a time",
    ]
    assert set(engine.batches) == {1}
    assert prediction.engine is engine
    np.testing.assert_array_equal(masks(prediction.logits), plain(tiny_model))


def test_after_the_single_window_the_host_blends_and_then_nothing_is_left() -> None:
    economy = Economy(CUDA, batch_size=2)
    assert [economy.tighten() for _ in range(3)] == [True, True, False]
    assert economy.accumulates_on.type == "cpu"
    assert steps(economy.notices) == [
        "windows went through the network 1 at a time",
        "logits were blended in the memory of the host",
    ]


def test_blending_goes_to_the_host_where_the_gpu_has_no_room(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = Accumulator._move

    def no_room(self: Accumulator, device: torch.device) -> None:
        if device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        move(self, device)

    monkeypatch.setattr(Accumulator, "_move", no_room)
    economy = Economy(CUDA, batch_size=1)
    logits = predict_windows(scan(), tiny_model.predictor, tiny_model.bundle.manifest.sliding_window, economy=economy)
    assert steps(economy.notices) == ["logits were blended in the memory of the host"]
    np.testing.assert_array_equal(masks(logits), plain(tiny_model))


def test_at_last_the_scan_begins_anew_on_the_cpu_and_the_result_says_so(tiny_model: Model, tmp_path: Path) -> None:
    model, engine = cramped(tiny_model, batch_size=2, room=0)
    hu = np.full((40, 40, 40), -1000, np.int16)
    hu[8:32, 8:32, 8:32] = 100
    upload = write_nifti(tmp_path / "ct.nii.gz", hu, np.diag([2.0, 2.0, 2.0, 1.0]))
    (tmp_path / "out").mkdir()

    findings = segment_study(upload, tmp_path / "out", model, SegmentationRequest())

    told = [warning for warning in findings.warnings if warning.code == LOW_MEMORY]
    assert steps(told) == [
        "windows went through the network 1 at a time",
        "the network ran on the CPU, with onnxruntime",
    ]
    assert findings.provenance.engine == "onnxruntime"
    assert engine.batches == []
    (tmp_path / "plain").mkdir()
    expected = segment_study(upload, tmp_path / "plain", tiny_model, SegmentationRequest())
    assert findings.provenance.mask_sha256 == expected.provenance.mask_sha256


def test_without_an_engine_of_the_cpu_it_is_a_typed_failure(tiny_model: Model) -> None:
    model, _ = cramped(tiny_model, batch_size=1, room=0)

    def none() -> Predictor:
        raise EngineUnavailable("openvino is not installed (pip install 'viscera[cpu]').")

    model = replace(model, open_on_cpu=none)
    with pytest.raises(InsufficientDeviceMemory, match=r"Failed to allocate.* The CPU cannot take over: openvino is"):
        predict(scan(), model, model.predictor, model.bundle.manifest.sliding_window)


def test_a_loaded_model_opens_itself_on_the_cpu(tiny_model: Model) -> None:
    predictor = tiny_model.open_on_cpu()
    assert predictor.device.type == "cpu"
    assert predictor.engine is not tiny_model.predictor.engine
    assert predictor.labels == tiny_model.predictor.labels
