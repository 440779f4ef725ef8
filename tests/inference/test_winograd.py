"""Convolutions in fewer multiplications: by hand, against torch's own, and left alone where they would not gain."""

import numpy as np
import openvino
import pytest
import torch
from openvino import opset13 as op
from torch.nn.functional import conv3d

from service.inference.winograd import minimal_filter, multiply_less
from tests.support.openvino_models import run_in_float32

F_2_3 = (0.0, 1.0, -1.0)


def network(
    weights: np.ndarray, shape: tuple[int, int, int], *, stride: int = 1, dilation: int = 1, pad: int = 1
) -> openvino.Model:
    """One convolution of windows of this shape."""
    window = op.parameter([1, weights.shape[1], *shape], np.float32, name="window")
    strides, dilations, pads = [stride] * 3, [dilation] * 3, [pad] * 3
    features = op.convolution(window, weights, strides, pads, pads, dilations)
    return openvino.Model([op.result(op.relu(features))], [window])


def random_weights(outputs: int, inputs: int, taps: int = 3) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((outputs, inputs, taps, taps, taps)).astype(np.float32)


def operations(model: openvino.Model) -> list[str]:
    return [node.get_type_name() for node in model.get_ordered_ops()]


def test_two_outputs_of_three_taps_take_four_products() -> None:
    """F(2, 3), the one that every text works out: inputs 1 2 3 4, taps 10 20 40 give 170 and 240 by hand."""
    inputs, taps, outputs = minimal_filter(F_2_3)
    assert (inputs.shape, taps.shape, outputs.shape) == ((4, 4), (4, 3), (2, 4))
    products = (taps @ [10.0, 20.0, 40.0]) * (inputs @ [1.0, 2.0, 3.0, 4.0])
    np.testing.assert_allclose(outputs @ products, [10 + 40 + 120, 20 + 60 + 160])


@pytest.mark.parametrize("points", [F_2_3, (0.0, 1.0, -1.0, 2.0, -2.0), (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)])
def test_a_minimal_filter_is_a_sliding_sum_of_products(points: tuple[float, ...]) -> None:
    inputs, taps, outputs = minimal_filter(points)
    random = np.random.default_rng(0)
    d, g = random.standard_normal(len(points) + 1), random.standard_normal(3)
    np.testing.assert_allclose(outputs @ ((taps @ g) * (inputs @ d)), np.correlate(d, g, "valid"), rtol=1e-12)
    np.testing.assert_allclose(np.abs(inputs).sum(axis=1), 1.0)


@pytest.mark.parametrize(
    ("shape", "products"),
    [((12, 65, 63), 8), ((24, 43, 45), 8), ((36, 34, 37), 8), ((16, 51, 54), 6), ((20, 48, 49), 6)],
    ids=str,
)
@pytest.mark.parametrize("channels", [(16, 16), (24, 17), (33, 8)], ids=str)
def test_it_gives_what_torch_gives(shape: tuple[int, int, int], products: int, channels: tuple[int, int]) -> None:
    """Six planes at once where they fit, else four; edges included, and no axis like another."""
    weights = random_weights(channels[1], channels[0])
    model = network(weights, shape)
    window = np.random.default_rng(0).standard_normal((1, channels[0], *shape)).astype(np.float32)
    expected = conv3d(torch.from_numpy(window).double(), torch.from_numpy(weights).double(), padding=1).relu().numpy()

    assert multiply_less(model) == 1

    assert operations(model).count("Convolution") == products
    np.testing.assert_allclose(run_in_float32(model, window), expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "model",
    [
        network(random_weights(16, 16), (72, 72, 72), stride=2),
        network(random_weights(16, 16), (36, 36, 36), dilation=2, pad=2),
        network(random_weights(16, 16), (38, 38, 38), pad=0),
        network(random_weights(72, 72, taps=1), (72, 72, 72), pad=0),
        network(random_weights(18, 15), (36, 36, 36)),
        network(random_weights(16, 16), (36, 35, 34)),
        network(random_weights(16, 16), (6, 99, 99)),
        network(random_weights(16, 16), (34, 40, 40)),
    ],
    ids=[
        "stride",
        "dilation",
        "no padding",
        "one tap",
        "few channels",
        "few products",
        "few planes",
        "planes of no multiple",
    ],
)
def test_other_convolutions_stay_as_they_are(model: openvino.Model) -> None:
    before = operations(model)
    assert multiply_less(model) == 0
    assert operations(model) == before


def test_float16_stays_as_it_is() -> None:
    """Its rounding would be much of the sums."""
    window = op.parameter([1, 16, 36, 36, 36], np.float16)
    weights = random_weights(16, 16).astype(np.float16)
    convolution = op.convolution(window, weights, [1] * 3, [1] * 3, [1] * 3, [1] * 3)
    assert multiply_less(openvino.Model([op.result(convolution)], [window])) == 0


def test_weights_that_are_computed_stay_as_they_are() -> None:
    """They are no constant: nothing is known of them before the network runs."""
    window = op.parameter([1, 16, 36, 36, 36], np.float32)
    weights = op.parameter([16, 16, 3, 3, 3], np.float32)
    model = openvino.Model(
        [op.result(op.convolution(window, weights, [1] * 3, [1] * 3, [1] * 3, [1] * 3))], [window, weights]
    )
    assert multiply_less(model) == 0
