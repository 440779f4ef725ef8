"""Predictor and model: logits that were worked out by hand, subsets of labels, and the self-test that refuses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from service.errors import EngineUnavailable, PrecisionNotOffered, SelfTestFailed
from service.inference.bundle import Bundle, Head
from service.inference.engines import open_engine
from service.inference.head import head_logits
from service.inference.manifest import Parity
from service.inference.model import Model, load_bundle
from service.inference.predictor import Predictor
from tests.support.tiny_bundle import expected_logits, head_rows, read_manifest, write_manifest, write_tiny_bundle

Float32 = NDArray[np.float32]


def random_windows(batch: int) -> Float32:
    return np.random.default_rng(1).uniform(-1, 1, (batch, 32, 32, 16)).astype(np.float32)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_logits_are_what_the_bundle_was_made_to_say(tiny_bundle: Bundle, engine: str) -> None:
    windows = random_windows(2)
    logits = Predictor(tiny_bundle, open_engine(tiny_bundle, engine, threads=1))(torch.from_numpy(windows))
    assert logits.dtype == torch.float32
    np.testing.assert_allclose(logits, expected_logits(windows[:, None]), atol=1e-3)


def test_each_window_has_its_own_parameters(tiny_bundle: Bundle) -> None:
    """The pooled features of a window enter its parameters: here its mean is added to the last bias."""
    w_image = np.zeros((153, 256), np.float32)
    w_image[152, 7] = 1.0
    bundle = replace(tiny_bundle, head=Head(w_image, tiny_bundle.head.k))
    windows = random_windows(2)
    windows[1] += 0.5

    logits = Predictor(bundle, open_engine(bundle, "onnxruntime", threads=1))(torch.from_numpy(windows))

    expected = expected_logits(windows[:, None]) + windows.mean(axis=(1, 2, 3)).reshape(2, 1, 1, 1, 1)
    np.testing.assert_allclose(logits, expected, atol=1e-3)


def test_a_subset_of_labels_is_a_subset_of_the_rows(tiny_model: Model) -> None:
    windows = torch.from_numpy(random_windows(1))
    subset = tiny_model.predictor.for_labels(tiny_model.bundle.labels_for(["lung", "bone"]))
    assert [label.name for label in subset.labels] == ["bone", "lung"]
    np.testing.assert_array_equal(subset(windows), tiny_model.predictor(windows)[:, [1, 2]])


def test_a_lesion_brings_the_hosts_that_confine_it(tiny_model: Model) -> None:
    tumor = tiny_model.bundle.labels_for(["liver_tumor"])
    assert [label.name for label in tiny_model.predictor.for_labels(tumor).labels] == ["liver", "liver_tumor"]
    assert [label.name for label in tiny_model.predictor.for_labels(tumor, "none").labels] == ["liver_tumor"]


def test_logits_of_given_windows(tiny_model: Model) -> None:
    """The documented call: both shapes of windows, all labels, nothing blended or thresholded."""
    windows = random_windows(2)
    logits = tiny_model.logits(windows)
    assert logits.shape == (2, 4, 16, 16, 8)
    np.testing.assert_array_equal(logits, tiny_model.logits(windows[:, None]))
    np.testing.assert_array_equal(logits, tiny_model.predictor(torch.from_numpy(windows)))


def test_a_batch_of_windows_gives_the_logits_of_each(tiny_model: Model) -> None:
    windows = random_windows(3)
    one_by_one = np.concatenate([tiny_model.logits(window[None]) for window in windows])
    np.testing.assert_allclose(tiny_model.logits(windows), one_by_one, rtol=1e-5, atol=1e-5)


def test_a_spent_answer_gives_its_memory_and_nothing_else(tiny_model: Model) -> None:
    one, other = (torch.from_numpy(windows) for windows in random_windows(2)[:, None])
    expected = tiny_model.predictor(other)
    spent = tiny_model.predictor(one)
    again = tiny_model.predictor(other, spent)
    assert again.data_ptr() == spent.data_ptr()
    torch.testing.assert_close(again, expected, rtol=0, atol=0)
    of_two = tiny_model.predictor(torch.cat([one, other]), spent)  # of another shape: memory of its own
    torch.testing.assert_close(spent, expected, rtol=0, atol=0)
    torch.testing.assert_close(of_two[1:], expected)


@pytest.mark.parametrize("shape", [(32, 32, 32), (1, 3, 32, 32, 32), (1, 32, 32, 24), (1, 0, 16, 16)])
def test_windows_of_another_shape_are_refused(tiny_model: Model, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(B, D, H, W\)"):
        tiny_model.logits(np.zeros(shape, np.float32))


def test_a_precision_that_the_bundle_lacks_is_refused(tiny_path: Path) -> None:
    with pytest.raises(PrecisionNotOffered, match=r"no precision 'int4'; it has fp32 \("):
        load_bundle(tiny_path, engine="onnxruntime", precision="int4")


def test_a_loaded_model_has_passed_its_self_test(tiny_path: Path) -> None:
    model = load_bundle(tiny_path, engine="openvino", threads=1)
    model.predictor.self_test()
    assert model.predictor.engine.name == "openvino"


def test_a_bundle_whose_sample_is_not_reproduced_is_refused(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path)
    rows = head_rows()
    rows[1, 152] += 1.0  # one bias of one label: 1 of 130 in logits
    save_file({"W_image": np.zeros((153, 256), np.float32), "K": rows}, path / "head.safetensors")
    write_manifest(path, read_manifest(path))  # the hashes are true; only the numbers are not
    with pytest.raises(SelfTestFailed, match=r"viscera-tiny .* in logits"):
        load_bundle(path, engine="onnxruntime", threads=1)


def test_a_small_bias_near_the_threshold_is_refused_by_its_probability(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path)
    rows = head_rows()
    rows[1, 152] += 0.3  # 2e-3 of the largest logit, but 0.07 in probability where the logit is 0
    save_file({"W_image": np.zeros((153, 256), np.float32), "K": rows}, path / "head.safetensors")
    write_manifest(path, read_manifest(path))
    with pytest.raises(SelfTestFailed, match="in probability"):
        load_bundle(path, engine="onnxruntime", threads=1)


class _Broken:
    """An engine whose numbers are wrong in a way that the sample must notice."""

    name = "broken"
    precision = "fp32"
    device = torch.device("cpu")
    batch_size = 1

    def __init__(self, features: Float32) -> None:
        self._features = torch.from_numpy(features)

    def run(self, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._features, torch.zeros((1, 256))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.full((1, 8, 24, 24, 24), np.nan, np.float32), "not finite"),
        (np.zeros((1, 8, 48, 48, 48), np.float32), "shape"),
        (np.zeros((1, 8, 24, 24, 24), np.float32), "differs"),
    ],
)
def test_a_broken_engine_fails_the_self_test(tiny_bundle: Bundle, features: Float32, message: str) -> None:
    with pytest.raises(SelfTestFailed, match=message):
        Predictor(tiny_bundle, _Broken(features)).self_test()


@pytest.mark.parametrize(("stated", "passes"), [(1e-7, False), (0.02, True)])
def test_the_self_test_allows_twice_what_the_manifest_states(tiny_bundle: Bundle, stated: float, passes: bool) -> None:
    """Features off by 3 percent, as a short number format may be."""
    window = tiny_bundle.sample.window
    features, _ = open_engine(tiny_bundle, "onnxruntime", threads=1).run(torch.from_numpy(window))
    engine = _Broken(features.numpy() * np.float32(1.03))
    engine.name = "onnxruntime"
    parity = Parity(engine="onnxruntime", max_relative_error=stated, tolerance=None, max_probability_error=0.5)
    precision = tiny_bundle.precision("fp32").model_copy(update={"parity": (parity,)})
    manifest = tiny_bundle.manifest.model_copy(update={"precisions": (precision,)})
    predictor = Predictor(replace(tiny_bundle, manifest=manifest), engine)
    if passes:
        predictor.self_test()
    else:
        with pytest.raises(SelfTestFailed, match="onnxruntime in fp32 differs"):
            predictor.self_test()


def test_an_answer_that_is_not_finite_is_an_error_and_not_an_empty_mask(tiny_bundle: Bundle) -> None:
    predictor = Predictor(tiny_bundle, _Broken(np.full((1, 8, 24, 24, 24), np.nan, np.float32)))
    with pytest.raises(EngineUnavailable, match="broken gave logits that are not finite"):
        predictor(torch.from_numpy(tiny_bundle.sample.window[:, 0]))


def test_the_head_module_reads_the_hand_made_rows() -> None:
    """The fixture itself: bone is 100 * (v - 0.3) at v = 0.5."""
    features = torch.zeros((8, 1))
    features[0] = 0.5
    logits = head_logits(features, torch.from_numpy(head_rows()))
    assert logits[1].item() == pytest.approx(20.0, abs=1e-4)
