"""The quick start of `viscera segment`: the model of load_bundle and the pipeline, and nothing else is changed."""

import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from service.errors import PrecisionNotOffered
from service.inference.model import load_bundle
from service.opening import open_with_pipeline
from service.pipeline import segment_study


@pytest.fixture(autouse=True)
def torch_threads() -> Iterator[None]:
    """The number of torch's threads is the process's, and put back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    gc.unfreeze()


def test_it_gives_the_model_of_load_bundle_and_the_pipeline(tiny_path: Path):
    model, pipeline = open_with_pipeline(tiny_path, engine="openvino", precision="fp32")
    expected = load_bundle(tiny_path, engine="openvino")
    windows = np.random.default_rng(7).normal(size=(1, 32, 32, 32)).astype(np.float32)
    assert model.bundle.sha256 == expected.bundle.sha256
    np.testing.assert_array_equal(model.logits(windows), expected.logits(windows))
    assert pipeline is segment_study


def test_threads_are_those_of_the_caller_who_runs_the_heads(tiny_path: Path):
    torch.set_num_threads(2)
    open_with_pipeline(tiny_path, engine="onnxruntime", precision="fp32", threads=1)
    assert torch.get_num_threads() == 1


def test_garbage_is_collected_again_and_what_was_opened_is_left_out(tiny_path: Path):
    gc.unfreeze()
    open_with_pipeline(tiny_path, engine="onnxruntime", precision="fp32")
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0


def test_a_refusal_is_that_of_load_bundle(tiny_path: Path):
    with pytest.raises(PrecisionNotOffered, match="no precision 'int4'"):
        open_with_pipeline(tiny_path, engine="onnxruntime", precision="int4")
    assert gc.isenabled()
