"""Instance norms in one step, for a network that OpenVINO runs in bfloat16.

A bundle's graph takes the means of blocks of voxels and then those of the blocks, so that float32 sums stay exact, and
subtracts one voxel before: seven passes over what may be the largest tensors of the network, each rounded to bfloat16.
OpenVINO's own norm (MVN) reads them, sums in float32 and rounds once. Measured on Swin UNETR in bfloat16, two cores:
7 % less time on a processor with the bf16 of AVX-512, 10 to 15 % less with AMX.

In float32 the graph stays as it is: there the logits of a window of air were 9e-4 of the largest off.

Needs OpenVINO, as `service.inference.winograd` does.
"""

from typing import NamedTuple

import numpy as np
from openvino import Model, Node, Output
from openvino import opset13 as op

_VOXEL_AXES = [2, 3, 4]  # of (B, C, X, Y, Z)


class _Norm(NamedTuple):
    """Where a norm lies in the graph: (features - mean) * rate, with the epsilon that is added to the variance."""

    features: Output
    centered: Node
    rate: Node
    epsilon: float


def normalize_in_one_step(network: Model) -> int:
    """Replaces in place the instance norms of a network of static shape, as the exporter writes them; how many."""
    found = [norm for node in network.get_ordered_ops() if (norm := _norm_with_square(node)) is not None]
    for norm in found:
        normalized = op.mvn(norm.features, np.array(_VOXEL_AXES), True, norm.epsilon, "inside_sqrt")
        ones = op.constant(np.ones(norm.rate.get_output_shape(0), np.float32))
        for user in norm.centered.output(0).get_target_inputs():
            user.replace_source_output(normalized.output(0))
        for user in norm.rate.output(0).get_target_inputs():
            user.replace_source_output(ones.output(0))
    network.validate_nodes_and_infer_types()
    return len(found)


def _norm_with_square(node: Node) -> _Norm | None:
    """The norm that `node` is the square of, on the way to the variance; None: it is no such square."""
    if node.get_type_name() != "Multiply" or node.input_value(0) != node.input_value(1):
        return None
    centered = node.input_value(0).get_node()
    if centered.get_type_name() != "Subtract" or not _is_mean(centered.input_value(1), centered.input_value(0)):
        return None
    variance = _user(_user(node, "AvgPool"), "ReduceMean")
    above_zero = _user(variance, "Add")
    rate = _user(_user(above_zero, "Sqrt"), "Divide")
    if variance is None or above_zero is None or rate is None or not _is_mean(variance.output(0), node.output(0)):
        return None
    epsilon = above_zero.input_value(1).get_node()
    if epsilon.get_type_name() != "Constant" or epsilon.data.size != 1:
        return None
    return _Norm(_unshifted(centered.input_value(0)), centered, rate, float(epsilon.data.item()))


def _is_mean(mean: Output, features: Output) -> bool:
    """Whether `mean` is that of all voxels of `features`, by way of blocks."""
    over_blocks = mean.get_node()
    if over_blocks.get_type_name() != "ReduceMean":
        return False
    axes, blocks = over_blocks.input_value(1).get_node(), over_blocks.input_value(0).get_node()
    if axes.get_type_name() != "Constant" or axes.data.tolist() != _VOXEL_AXES:
        return False
    return blocks.get_type_name() == "AvgPool" and bool(blocks.input_value(0) == features)


def _unshifted(features: Output) -> Output:
    """The features before one voxel of theirs was subtracted, which no norm notices."""
    node = features.get_node()
    if node.get_type_name() == "Subtract":
        voxel = node.input_value(1).get_node()
        if voxel.get_type_name() == "Slice" and voxel.get_output_shape(0)[2:] == [1, 1, 1]:
            return node.input_value(0)
    return features


def _user(node: Node | None, kind: str) -> Node | None:
    """The one node that uses this one's result, if it is of that kind."""
    users = [] if node is None else [user.get_node() for user in node.output(0).get_target_inputs()]
    return users[0] if len(users) == 1 and users[0].get_type_name() == kind else None
