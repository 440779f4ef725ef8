"""Convolutions of 3 x 3 x 3 in less than half the multiplications, for a network that OpenVINO runs in float32.

Along the first axis a plain convolution multiplies three planes of weights for every plane that it gives: 18 products
for six planes. Winograd's minimal filtering F(6, 3) makes eight sums of the planes that six outputs look at, multiplies
each once, and adds the products up again: 8 for 18. Within a plane it stays a convolution of 3 x 3, which OpenVINO
runs at the rate of the processor's matrix products. Along one axis the sums move little memory. Along two there would
be about half as many multiplications again; in a trial, sums and compiling took most of that back.

The result is the convolution's but for rounding: differences are about 1e-5 of the largest value. In bfloat16 they
would be large, so only float32 is computed in this way.

Source: S. Winograd, Arithmetic Complexity of Computations, 1980; A. Lavin and S. Gray, CVPR 2016 (arXiv 1509.09308),
whose section 4.1 names the minimal algorithms. Here they are made from points by the Toom-Cook construction.

Needs OpenVINO, the only module of the service that does as it is imported.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import Node, Output
from openvino import opset13 as op

Float64 = NDArray[np.float64]

_TAPS = 3
_AXIS = 2  # of (B, C, X, Y, Z); the outermost of what OpenVINO keeps in memory behind the one window of a batch

# Outputs that are computed together, and the points at which: small, and in pairs of opposite sign, whose sums are
# shared. More points lose digits: with F(8, 3) differences are ten times as large.
_POINTS = {
    6: (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5),
    4: (0.0, 1.0, -1.0, 2.0, -2.0),
}

# Below, what is saved is less than what sums, weights and compiling (a tenth of a second each) cost.
_LEAST_CHANNELS = 16
_LEAST_PLANES = 12
_LEAST_PRODUCTS = 300_000_000


class MinimalFilter(NamedTuple):
    """F(m, 3): m outputs of a filter g of three taps over m + 2 inputs d are  outputs @ ((taps @ g) * (inputs @ d)).

    `inputs` (m + 2, m + 2), `taps` (m + 2, 3), `outputs` (m, m + 2). Rows of `inputs` are scaled so that no sum is
    larger than the largest input.
    """

    inputs: Float64
    taps: Float64
    outputs: Float64


def minimal_filter(points: Sequence[float]) -> MinimalFilter:
    """The filter that evaluates at these points and at infinity: len(points) - 1 outputs at once."""
    at = np.asarray(points)
    count = len(at) + 1
    many = count - _TAPS + 1
    inputs, taps, outputs = np.zeros((count, count)), np.zeros((count, _TAPS)), np.zeros((many, count))
    for row, point in enumerate(at):
        others = np.delete(at, row)
        inputs[row, :-1] = np.poly(others)[::-1]
        taps[row] = point ** np.arange(_TAPS) / np.prod(point - others)
        outputs[:, row] = point ** np.arange(many)
    inputs[-1] = np.poly(at)[::-1]
    taps[-1, -1] = outputs[-1, -1] = 1.0
    scale = np.abs(inputs).sum(axis=1, keepdims=True)
    return MinimalFilter(inputs / scale, taps * scale, outputs)


def multiply_less(network: openvino.Model) -> int:
    """Rewrites in place the convolutions of a network of static shape that gain from it; how many."""
    at_once = [(node, _outputs_at_once(node)) for node in network.get_ordered_ops()]
    gaining = [(node, many) for node, many in at_once if many]
    for node, many in gaining:
        rewritten = _rewritten(node, many)
        rewritten.set_friendly_name(node.get_friendly_name())
        for user in node.output(0).get_target_inputs():
            user.replace_source_output(rewritten.output(0))
    network.validate_nodes_and_infer_types()
    return len(gaining)


def _outputs_at_once(node: Node) -> int:
    """How many planes of a convolution are to be computed together; 0: the node is none, or stays as it is."""
    if node.get_type_name() != "Convolution" or node.input_value(1).get_node().get_type_name() != "Constant":
        return 0
    how = node.get_attributes()
    if any(list(how[name]) != [1, 1, 1] for name in ("strides", "dilations", "pads_begin", "pads_end")):
        return 0
    weights = node.input(1)
    outputs, channels, *taps = weights.get_shape()
    if taps != [_TAPS] * 3 or weights.get_element_type() != openvino.Type.f32:
        return 0
    planes, rows, columns = list(node.get_output_shape(0))[2:]
    products = outputs * channels * _TAPS**3 * planes * rows * columns
    if channels < _LEAST_CHANNELS or planes < _LEAST_PLANES or products < _LEAST_PRODUCTS:
        return 0
    return next((many for many in _POINTS if planes % many == 0), 0)


def _rewritten(node: Node, many: int) -> Node:
    inputs, taps, outputs = minimal_filter(_POINTS[many])
    weights_OIKYZ = node.input_value(1).get_node().data.astype(np.float64)
    weights_POIYZ = sum(np.multiply.outer(taps[:, k], weights_OIKYZ[:, :, k]) for k in range(_TAPS)).astype(np.float32)
    within_planes = [0, 1, 1]
    # An array as it is would be made a list of numbers first.
    products = [
        op.convolution(_sums(node.input_value(0), row, many), kernel, [1] * 3, within_planes, within_planes, [1] * 3)
        for row, kernel in zip(inputs, map(op.constant, weights_POIYZ[:, :, :, None]), strict=True)
    ]
    return _one_after_the_other(_totals(products, outputs))


def _sums(x: Output, row: Float64, many: int) -> Node:
    """Planes (B, C, X/m, Y, Z), each the sum of m + 2 neighbouring planes of `x` by a row of the filter's `inputs`.

    Most rows begin and end with a zero: those planes are not read, and then no plane of x is beyond its ends.
    """
    first, *_, last = np.flatnonzero(row)
    channels, after = x.get_shape()[1], len(row) - 1 - last
    kernel = row[first : last + 1].astype(np.float32)[:, None, None]
    kernel = op.constant(np.broadcast_to(kernel, (channels, 1, 1, *kernel.shape)).copy())
    return op.group_convolution(x, kernel, [many, 1, 1], [1 - first, 0, 0], [1 - after, 0, 0], [1, 1, 1])


def _totals(products: list[Node], outputs: Float64) -> list[Node]:
    """Every m-th plane of the result, from each first one on: (B, C, X/m, Y, Z), m of them.

    Opposite points have the same factors but for the sign of odd powers: their sum and their difference are made once.
    """
    first, *finite, last = products
    pairs = [(finite[n], finite[n + 1]) for n in range(0, len(finite), 2)]
    even = [op.add(plus, minus) for plus, minus in pairs]
    odd = [op.subtract(plus, minus) for plus, minus in pairs]
    totals = []
    for power, factors in enumerate(outputs[:, 1:-1:2]):
        terms = [
            term if factor == 1.0 else op.multiply(term, np.float32(factor))
            for term, factor in zip(odd if power % 2 else even, factors, strict=True)
        ]
        terms += [first] if power == 0 else []
        terms += [last] if power == len(outputs) - 1 else []
        total = terms[0]
        for term in terms[1:]:
            total = op.add(total, term)
        totals.append(total)
    return totals


def _one_after_the_other(totals: list[Node]) -> Node:
    """Planes in their order again. A reshape would make OpenVINO turn the memory of the whole tensor around."""
    planes = totals[0].get_output_shape(0)[_AXIS]
    split = [op.split(total, np.int64(_AXIS), planes) for total in totals]
    return op.concat([part.output(plane) for plane in range(planes) for part in split], _AXIS)
