"""Weights that bfloat16 holds, up to what the exported graph has."""

import copy
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from model_export.onnx import export_backbone
from tests.support.training import tiny_model
from training.networks.universal import UniversalModel
from training.rounding import round_to_bfloat16

BETWEEN = 1.0 + 2.0**-8  # halfway between two neighbours of bfloat16, of which 1 has the even last digit


@pytest.fixture
def model() -> UniversalModel:
    return tiny_model(3)


@pytest.fixture
def window() -> torch.Tensor:
    return torch.rand(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1


@torch.no_grad()
def test_a_weight_is_rounded_as_the_batch_norm_scales_it(model: UniversalModel) -> None:
    """A scale of 2 / sqrt(0.25), by hand."""
    convolution, norm = model.backbone.encoder0[0], model.backbone.encoder0[1]
    convolution.weight.fill_(BETWEEN)
    norm.eps = 0.0
    norm.running_var.fill_(0.25)
    norm.running_mean.fill_(0.125)
    norm.weight.fill_(2.0)
    norm.bias.fill_(0.5 + BETWEEN)
    round_to_bfloat16(model)
    assert (convolution.weight == 4.0).all()  # 4 * BETWEEN lies between 4 and 4.03125
    assert (norm.bias == 1.0).all()  # 0.5 + BETWEEN - 4 * 0.125, to the even neighbour
    probe = torch.tensor([3.0]).expand(1, len(norm.bias), 1, 1, 1)
    torch.testing.assert_close(norm(probe), probe + 1.0, rtol=0, atol=0)  # it only adds its shift


def exported_weights(model: UniversalModel, folder: Path) -> dict[str, torch.Tensor]:
    """What the graph's convolutions multiply with and add."""
    export_backbone(model, folder / "backbone.onnx")
    graph = onnx.load(folder / "backbone.onnx").graph
    values = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    names = [name for node in graph.node if node.op_type in ("Conv", "ConvTranspose") for name in node.input[1:]]
    return {name: values[name] for name in names}


def test_all_that_the_exported_convolutions_hold_is_bfloat16(model: UniversalModel, tmp_path: Path) -> None:
    before = exported_weights(model, tmp_path)
    round_to_bfloat16(model)
    after = exported_weights(model, tmp_path)
    assert len(after) >= 30  # 15 layers, each with its shift
    assert before.keys() == after.keys()
    for name, values in after.items():
        assert torch.equal(values, values.to(torch.bfloat16).float()), name
        torch.testing.assert_close(values, before[name], rtol=2**-8, atol=1e-6)
    assert any(not torch.equal(values, values.to(torch.bfloat16).float()) for values in before.values())


@torch.no_grad()
def test_the_network_stays_what_it_was_as_far_as_rounding_lets_it(model: UniversalModel, window: torch.Tensor) -> None:
    rounded = copy.deepcopy(model)
    round_to_bfloat16(rounded)
    expected, logits = model(window), rounded(window)
    assert 0.0 < (logits - expected).abs().max() < 0.05 * expected.abs().max()


@torch.no_grad()
def test_what_is_rounded_stays_as_it_is(model: UniversalModel, window: torch.Tensor) -> None:
    round_to_bfloat16(model)
    once = model(window)
    round_to_bfloat16(model)
    torch.testing.assert_close(model(window), once, rtol=0, atol=0)


def test_the_generated_heads_are_not_rounded(model: UniversalModel) -> None:
    before = copy.deepcopy(model.controller.state_dict())
    round_to_bfloat16(model)
    for name, values in model.controller.state_dict().items():
        assert torch.equal(values, before[name]), name


def test_a_batch_norm_of_its_own_is_refused(model: UniversalModel) -> None:
    model.backbone.encoder0 = nn.Sequential(nn.ReLU(), nn.BatchNorm3d(16))
    with pytest.raises(ValueError, match="1 batch norms do not follow a convolution"):
        round_to_bfloat16(model)
