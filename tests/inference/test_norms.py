"""Instance norms in one step: those that the exporter writes are found, and stay what they were."""

import warnings

import numpy as np
import openvino
import pytest
import torch
from openvino import opset13 as op
from torch import nn

from model_export.instance_norm import use_blockwise_instance_norms
from service.inference.norms import normalize_in_one_step
from tests.support.openvino_models import run_in_float32

CHANNELS, EDGE = 6, 16


@pytest.fixture(scope="module", params=[True, False], ids=["with weights", "without"])
def torch_norms(request: pytest.FixtureRequest) -> nn.Module:
    """Two norms, at two resolutions, with means far from 0."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv3d(1, CHANNELS, 3, padding=1),
        nn.InstanceNorm3d(CHANNELS, affine=request.param),
        nn.LeakyReLU(0.01),
        nn.Conv3d(CHANNELS, CHANNELS, 2, stride=2),
        nn.InstanceNorm3d(CHANNELS, eps=1e-2, affine=request.param),
    )
    for norm in (network[1], network[4]):
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 2.0)
            nn.init.normal_(norm.bias)
    nn.init.normal_(network[0].bias, 3.0)
    return network.eval()


@pytest.fixture(scope="module")
def exported(torch_norms: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> openvino.Model:
    """The same as the exporter writes it."""
    example = torch.zeros(1, 1, EDGE, EDGE, EDGE)
    network = nn.Sequential(*torch_norms)
    use_blockwise_instance_norms(network, example, EDGE)
    network.eval()
    path = tmp_path_factory.mktemp("norms") / "norms.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch calls its own deprecated class
        torch.onnx.export(network, (example,), path, dynamo=True, opset_version=20, external_data=False, verbose=False)
    model: openvino.Model = openvino.Core().read_model(path)
    return model


@torch.no_grad()
def test_it_gives_what_torch_gives(torch_norms: nn.Module, exported: openvino.Model) -> None:
    window = torch.rand(1, 1, EDGE, EDGE, EDGE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    model = exported.clone()
    assert normalize_in_one_step(model) == 2
    kinds = [node.get_type_name() for node in model.get_ordered_ops()]
    assert kinds.count("MVN") == 2
    assert "AvgPool" not in kinds
    np.testing.assert_allclose(run_in_float32(model, window.numpy()), torch_norms(window).numpy(), atol=1e-4)


def norm(*, mean_of: str, epsilon: object = np.float32(1e-5)) -> openvino.Model:
    """A norm as the exporter writes it; with the mean of other features it is none."""
    window = op.parameter([1, 2, 8, 8, 8], np.float32)
    features = op.multiply(window, np.float32(3.0))
    source = {"the features": features, "other features": window}[mean_of]
    centered = op.subtract(features, mean(source))
    variance = mean(op.multiply(centered, centered))
    rate = op.divide(np.float32(1.0), op.sqrt(op.add(variance, epsilon)))
    return openvino.Model([op.result(op.multiply(centered, rate))], [window])


def mean(features: openvino.Node) -> openvino.Node:
    sides = {"strides": [4] * 3, "pads_begin": [0] * 3, "pads_end": [0] * 3, "kernel_shape": [4] * 3}
    return op.reduce_mean(op.avg_pool(features, exclude_pad=False, **sides), np.array([2, 3, 4]), keep_dims=True)


def test_the_mean_has_to_be_that_of_the_features() -> None:
    assert normalize_in_one_step(norm(mean_of="the features")) == 1
    other = norm(mean_of="other features")
    before = [node.get_friendly_name() for node in other.get_ordered_ops()]
    assert normalize_in_one_step(other) == 0
    assert [node.get_friendly_name() for node in other.get_ordered_ops()] == before


def test_one_epsilon_for_all_channels() -> None:
    each_its_own = norm(mean_of="the features", epsilon=np.array([1e-5, 1e-3], np.float32).reshape(1, 2, 1, 1, 1))
    assert normalize_in_one_step(each_its_own) == 0
