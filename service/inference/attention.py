"""Masks of shifted windows where OpenVINO sees them, for a Swin transformer that it runs in bfloat16.

OpenVINO computes an attention (scores, softmax, values) in one step that never writes the scores down. In a block
whose windows are shifted, MONAI's WindowAttention adds the mask in five dimensions and goes back to four, and two
reshapes keep OpenVINO from seeing the attention. A scan runs one window at a time, so the mask fits the scores as they
are. Measured on Swin UNETR in bfloat16, two cores: 4 % less time for the backbone; in float32 none, so there the graph
stays as it is.

Needs OpenVINO, as `service.inference.winograd` does.
"""

from openvino import Model, Node
from openvino import opset13 as op


def add_masks_to_scores(network: Model) -> int:
    """Replaces in place the masks of a network of static shape that are added to reshaped scores; how many."""
    found = [(softmax, added) for softmax in network.get_ordered_ops() if (added := _masked(softmax)) is not None]
    for softmax, added in found:
        scores, mask = added.input_value(0).get_node().input_value(0), added.input_value(1)
        windows, _, rows, columns = list(mask.get_shape())[1:]
        masked = op.add(scores, op.reshape(mask, [windows, 1, rows, columns], False))
        softmax.input(0).replace_source_output(masked.output(0))
    network.validate_nodes_and_infer_types()
    return len(found)


def _masked(softmax: Node) -> Node | None:
    """The sum of scores (1, windows, heads, n, n) and mask (1, windows, 1, n, n) that is reshaped for this softmax."""
    if softmax.get_type_name() != "Softmax" or softmax.input_value(0).get_node().get_type_name() != "Reshape":
        return None
    added = softmax.input_value(0).get_node().input_value(0).get_node()
    if added.get_type_name() != "Add" or added.input_value(0).get_node().get_type_name() != "Reshape":
        return None
    scores, mask = added.input_value(0), added.input_value(1)
    before, after = scores.get_node().input_value(0), softmax.input_value(0)
    shape = list(scores.get_shape())
    if len(shape) != 5 or shape[0] != 1 or list(mask.get_shape()) != [1, shape[1], 1, *shape[3:]]:
        return None
    return added if list(before.get_shape()) == list(after.get_shape()) == shape[1:] else None
