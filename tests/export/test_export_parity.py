"""Parity is measured: right weights pass on every engine, a wrong weight is seen, NaN never passes."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from model_export.errors import ParityError
from model_export.head import fold_head
from model_export.parity import (
    EngineParity,
    available_engines,
    check_parity,
    measure_parity,
    parity_windows,
    relative_error,
)
from training.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def windows(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return parity_windows(checkpoint.config, 16)


def _alter_largest_weight(source: Path, target: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    model = onnx.load(source)
    largest = max(model.graph.initializer, key=lambda tensor: math.prod(tensor.dims))
    largest.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(largest)), largest.name))
    onnx.save(model, target)


def test_windows_differ_in_content_size_and_batch(windows: dict[str, np.ndarray]) -> None:
    assert {name: window.shape for name, window in windows.items()} == {
        "random": (2, 1, 32, 48, 64),
        "air": (1, 1, 48, 48, 48),
        "trunk": (1, 1, 48, 48, 64),  # the model's own window
    }
    assert np.unique(windows["air"]).tolist() == [-1.0]
    tissues = np.histogram(windows["trunk"], bins=[-1, -0.9, -0.7, -0.2, 0.0, 0.2, 0.5])[0]
    assert (tissues > 100).sum() == 5  # air, lung, fat, soft tissue, bone; nothing between lung and fat but noise


def test_every_engine_holds_by_a_wide_margin(
    written_bundle: Path, checkpoint: Checkpoint, windows: dict[str, np.ndarray]
) -> None:
    parities = measure_parity(checkpoint.model, written_bundle / "backbone.onnx", fold_head(checkpoint.model), windows)
    assert [parity.engine for parity in parities] == list(available_engines())
    assert all(0.0 < parity.max_relative_error < 1e-5 for parity in parities)
    check_parity(parities)


@pytest.mark.parametrize("change", [lambda weight: weight * 1.01, lambda weight: weight * np.float32(np.nan)])
def test_a_wrong_weight_is_refused(
    written_bundle: Path,
    checkpoint: Checkpoint,
    windows: dict[str, np.ndarray],
    tmp_path: Path,
    change: Callable[[np.ndarray], np.ndarray],
) -> None:
    altered = tmp_path / "backbone.onnx"
    _alter_largest_weight(written_bundle / "backbone.onnx", altered, change)
    parities = measure_parity(checkpoint.model, altered, fold_head(checkpoint.model), {"air": windows["air"]})
    assert not any(parity.holds for parity in parities)
    with pytest.raises(ParityError, match="onnxruntime is off by"):
        check_parity(parities)


def test_the_worst_window_counts_and_nan_is_the_worst() -> None:
    nan = EngineParity("onnxruntime", math.nan, "air", 1e-4)
    assert not nan.holds
    assert EngineParity("onnxruntime", 1e-4, "air", 1e-4).holds


def test_relative_error_by_hand() -> None:
    reference = np.array([1.0, -4.0, 2.0])
    assert relative_error(np.array([1.0, -3.0, 2.5]), reference) == 0.25  # 1 of 4
    assert relative_error(reference, reference) == 0.0
    assert relative_error(np.zeros(3), np.zeros(3)) == 0.0
    assert relative_error(np.ones(3), np.zeros(3)) == math.inf
    assert math.isnan(relative_error(np.array([1.0, math.nan, 2.0]), reference))
    assert math.isnan(relative_error(reference, np.array([1.0, math.inf, 2.0])))
