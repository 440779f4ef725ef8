"""Parity is measured: right weights pass on every engine, a wrong weight is seen, NaN never passes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from model_export import parity as parity_module
from model_export.engines import available_engines
from model_export.errors import ParityError
from model_export.head import fold_head
from model_export.manifest import thresholds_of
from model_export.parity import (
    EngineParity,
    MaskAgreement,
    PrecisionParity,
    Reference,
    check_parity,
    dice_text,
    measure_precision,
    relative_error,
    torch_reference,
)
from model_export.precisions import BF16, FP16, FP32
from model_export.sample import make_sample, trunk_window
from model_export.windows import MeasuringWindows, synthetic_windows
from training.checkpoint import Checkpoint
from training.config import ModelConfig
from training.networks.universal import UniversalModel


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint) -> Reference:
    """The cartoon trunk stands in for a scan: nothing has to be drawn."""
    synthetic = synthetic_windows(checkpoint.config, 16, make_sample(checkpoint.model, checkpoint.config))
    return torch_reference(checkpoint.model, synthetic, MeasuringWindows("phantom", (synthetic["trunk"],)))


def test_slow_networks_are_measured_on_fewer_windows(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    window = np.zeros((1, 1, 16, 16, 16), np.float32)
    measuring = MeasuringWindows("scan", (window,) * 4)
    assert len(torch_reference(checkpoint.model, {}, measuring).measuring.windows) == 4
    monkeypatch.setattr(parity_module, "WINDOWS_SECONDS", 0.0)
    fewer = torch_reference(checkpoint.model, {}, measuring)
    assert len(fewer.measuring.windows) == parity_module.LEAST_WINDOWS == 2
    assert list(fewer.windows) == list(fewer.logits) == ["scan 1", "scan 2"]


def measure(checkpoint: Checkpoint, path: Path, reference: Reference) -> PrecisionParity:
    return measure_precision(FP32, path, fold_head(checkpoint.model), reference, thresholds_of(checkpoint))


def _alter_largest_weight(source: Path, target: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    model = onnx.load(source)
    largest = max(model.graph.initializer, key=lambda tensor: math.prod(tensor.dims))
    largest.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(largest)), largest.name))
    onnx.save(model, target)


def test_every_engine_holds_by_a_wide_margin(
    written_bundle: Path, checkpoint: Checkpoint, reference: Reference
) -> None:
    parity = measure(checkpoint, written_bundle / "backbone.onnx", reference)
    assert [engine.engine for engine in parity.measured] == list(available_engines())
    assert parity.offered == parity.measured
    for engine in parity.measured:
        assert 0.0 < engine.max_relative_error < 1e-5
        assert engine.lowest_dice is not None
        assert engine.lowest_dice[1] > 0.999
        assert engine.seconds > 0.0
        assert engine.torch_seconds == reference.seconds > 0.0
    check_parity(parity)


@pytest.mark.parametrize("change", [lambda weight: weight * 1.01, lambda weight: weight * np.float32(np.nan)])
def test_a_wrong_weight_is_refused(
    written_bundle: Path,
    checkpoint: Checkpoint,
    reference: Reference,
    tmp_path: Path,
    change: Callable[[np.ndarray], np.ndarray],
) -> None:
    altered = tmp_path / "backbone.onnx"
    _alter_largest_weight(written_bundle / "backbone.onnx", altered, change)
    parity = measure(checkpoint, altered, reference)
    assert len(parity.measured) == len(available_engines())
    assert parity.offered == ()
    with pytest.raises(ParityError, match=r"onnxruntime in fp32: (off by|logits are not finite)"):
        check_parity(parity)


def test_a_file_that_no_engine_can_load_is_refused(
    checkpoint: Checkpoint, reference: Reference, tmp_path: Path
) -> None:
    (tmp_path / "backbone.onnx").write_bytes(b"not a graph")
    parity = measure(checkpoint, tmp_path / "backbone.onnx", reference)
    assert parity.unable.keys() == set(available_engines())
    with pytest.raises(ParityError, match=r"onnxruntime in fp32: cannot run backbone\.onnx"):
        check_parity(parity)


def off_on(reference: Reference, name: str, rounding: float) -> Reference:
    """As if torch had said something else on a window, and were itself off by `rounding` on every one."""
    other = reference.logits | {name: reference.logits[name] + 1.0}
    return replace(reference, logits=other, rounding=lambda _name: rounding, unsteady=set())


def test_a_window_on_which_torch_itself_is_off_says_nothing(
    written_bundle: Path, checkpoint: Checkpoint, reference: Reference
) -> None:
    """Only where it has one value, and only when torch is off by more than an engine may be."""
    path = written_bundle / "backbone.onnx"
    left_out = measure(checkpoint, path, off_on(reference, "air", 2e-4))
    assert [engine.unsteady for engine in left_out.measured] == [("air",)] * len(available_engines())
    assert left_out.offered == left_out.measured
    assert all(engine.max_relative_error < 1e-5 for engine in left_out.measured)
    assert measure(checkpoint, path, off_on(reference, "air", 0.5e-4)).offered == ()
    assert measure(checkpoint, path, off_on(reference, "random", 2e-4)).offered == ()
    known = off_on(reference, "air", 2e-4)
    measure(checkpoint, path, known)
    other = measure_precision(BF16, path, fold_head(checkpoint.model), known, thresholds_of(checkpoint))
    assert all(engine.unsteady == ("air",) for engine in other.measured)


def test_rounding_is_that_of_torch_in_float32(reference: Reference) -> None:
    """Norms as they are initialised, without a bias, make noise of a window of one value; of others they do not."""
    assert 0.0 < reference.rounding("air") < 1e-5
    config = ModelConfig(architecture="unet", feature_size=8)
    torch.manual_seed(0)
    model = UniversalModel(config, torch.randn(3, 512) * 0.4).eval()
    windows = {"air": np.zeros((1, 1, 32, 32, 32), np.float32), "trunk": trunk_window((32, 32, 32), config)}
    untrained = torch_reference(model, windows, MeasuringWindows("phantom", (windows["trunk"],)))
    assert untrained.rounding("air") > 1e-3
    assert untrained.rounding("trunk") < 1e-4


EXACT = EngineParity(FP32, "onnxruntime", 1e-4, "air", 0.0, "phantom", 1, {"liver": 0.99, "spleen": 1.0}, 1.0, 2.0)


@pytest.mark.parametrize(
    ("parity", "fault"),
    [
        (EXACT, None),
        (replace(EXACT, max_relative_error=1.1e-4), "off by 1.1e-04 of the largest logit on the window 'air'"),
        (replace(EXACT, max_relative_error=math.nan), "not finite on the window 'air'"),
        (replace(EXACT, dice={}), None),  # logits decide for fp32
        (replace(EXACT, precision=FP16, max_relative_error=0.5), None),  # masks decide for fp16
        (replace(EXACT, precision=FP16, max_relative_error=math.nan), "not finite"),
        (replace(EXACT, precision=BF16, dice={"liver": 0.98999}), r"Dice 0\.989 of liver; needed: 0\.99"),
        (replace(EXACT, precision=BF16, dice={}), "no label is predicted in any window"),
    ],
)  # fmt: skip
def test_what_decides_is_the_logits_in_fp32_and_the_masks_below(parity: EngineParity, fault: str | None) -> None:
    assert parity.holds == (fault is None)
    if fault is not None:
        assert parity.fault is not None
        with pytest.raises(ParityError, match=fault):
            check_parity(PrecisionParity(parity.precision, (parity,), {}))


def test_dice_by_hand() -> None:
    """Four voxels in two windows. liver: 2 and 1 voxels, 1 common. spleen: none. aorta, above 0.9 only: logit 2.2."""

    def logits(*rows: Mapping[str, float] | tuple[float, float]) -> np.ndarray:
        return np.array(rows, np.float32).reshape(1, 3, 2, 1, 1)

    agreement = MaskAgreement({"liver": 0.5, "spleen": 0.5, "aorta": 0.9})
    agreement.add(logits((1, 1), (-1, -1), (2, 2)), logits((1, -1), (-1, -1), (2, 2)))
    agreement.add(logits((0, -1), (-1, -1), (3, 3)), logits((0, 0), (-1, -1), (3, 3)))
    assert agreement.dice == {"liver": 2 / 3, "aorta": 1.0}


def test_dice_is_not_rounded_up() -> None:
    assert dice_text(0.98999) == "0.989"
    assert dice_text(1.0) == "1.000"


def test_relative_error_by_hand() -> None:
    reference = np.array([1.0, -4.0, 2.0])
    assert relative_error(np.array([1.0, -3.0, 2.5]), reference) == 0.25  # 1 of 4
    assert relative_error(reference, reference) == 0.0
    assert relative_error(np.zeros(3), np.zeros(3)) == 0.0
    assert relative_error(np.ones(3), np.zeros(3)) == math.inf
    assert math.isnan(relative_error(np.array([1.0, math.nan, 2.0]), reference))
    assert math.isnan(relative_error(reference, np.array([1.0, math.inf, 2.0])))
