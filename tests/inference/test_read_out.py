"""The end of a network in float32: what is rewritten, what stays, and that the product is the same."""

import numpy as np
import openvino
import pytest
import torch
from openvino import Node
from openvino import opset13 as op

from service.inference.bundle import Bundle, default_bundle_path, open_bundle
from service.inference.engines import OpenVINOEngine
from service.inference.read_out import read_out_in_float32
from tests.support.openvino_models import run_in_float32

EDGE = 6


def network(*, edge: int = 1, stride: int = 1, behind: bool = False) -> openvino.Model:
    """A large convolution, ReLU, and a convolution of one voxel with a shift; `behind`: it is not the last."""
    random = np.random.default_rng(0)
    window = op.parameter([1, 2, EDGE, EDGE, EDGE], np.float32)

    def convolution(x: Node, outputs: int, edge: int, stride: int) -> Node:
        weights = random.normal(size=(outputs, x.get_output_shape(0)[1], edge, edge, edge)).astype(np.float32)
        around = [edge // 2] * 3
        shift = random.normal(size=(1, outputs, 1, 1, 1)).astype(np.float32)
        return op.add(op.convolution(x, weights, [stride] * 3, around, around, [1] * 3), shift)

    last = convolution(op.relu(convolution(window, 5, 3, 1)), 4, edge, stride)
    return openvino.Model([op.result(op.relu(last) if behind else last)], [window])


def test_the_product_is_the_same() -> None:
    window = np.random.default_rng(1).normal(size=(1, 2, EDGE, EDGE, EDGE)).astype(np.float32)
    before = run_in_float32(network(), window)
    model = network()
    assert read_out_in_float32(model) == 1
    kinds = [node.get_type_name() for node in model.get_ordered_ops()]
    assert (kinds.count("Convolution"), kinds.count("ConvolutionBackpropData")) == (1, 1)
    np.testing.assert_allclose(run_in_float32(model, window), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "other", [network(edge=3), network(stride=2), network(behind=True)], ids=["of 27 voxels", "strided", "not the last"]
)
def test_any_other_convolution_stays(other: openvino.Model) -> None:
    assert read_out_in_float32(other) == 0


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(default_bundle_path())


def test_features_of_the_default_bundle_are_no_bfloat16(bundle: Bundle) -> None:
    """What an engine rounds to bfloat16 has its lower 16 bits empty. Where the processor computes in it."""
    try:
        engine = OpenVINOEngine(bundle.backbone(bundle.precision("bf16")), bundle.precision("bf16"), (32, 32, 32))
    except ValueError as error:
        pytest.skip(f"{error}: needs one with AVX-512 bf16 or AMX")
    for answer in engine.run(torch.rand(1, 1, 32, 32, 32)):
        lower_bits = answer.numpy().view(np.uint32) & 0xFFFF
        assert np.count_nonzero(lower_bits) > 0.9 * lower_bits.size
