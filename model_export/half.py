"""The float16 form of an exported graph: half the bytes, float32 at both ends, and exact where float16 would not do.

Convolutions and matrix products, which hold the weights, and what merely passes values on are float16. Everything else
stays float32: norms square and average what would overflow or vanish in float16, and softmax and residual sums lose
digits. Worst logit of the default bundle on OpenVINO: off by 3e-3 of the largest, with everything in float16 by 8e-3.
"""

import sys
from collections.abc import Callable
from graphlib import TopologicalSorter
from pathlib import Path

import onnx

from model_export.errors import ExportError

_HALF = frozenset({
    "Conv", "ConvTranspose", "MatMul", "Gemm", "Relu", "LeakyRelu", "Clip", "Concat", "MaxPool",
})  # fmt: skip


def write_half(fp32_path: Path, path: Path) -> None:
    """Writes the float16 form of the graph at `fp32_path`; the same graph gives the same bytes.

    Raises ExportError when onnxruntime, whose converter it uses, is not installed.
    """
    convert = _converter()
    graph = onnx.load(fp32_path)
    exact = sorted({node.op_type for node in graph.graph.node} - _HALF)
    half = convert(graph, keep_io_types=True, op_block_list=exact)
    half.graph.ClearField("value_info")
    _drop_repeated_casts(half.graph)
    _join_casts(half.graph)
    _sort(half.graph)
    onnx.checker.check_model(half, full_check=True)
    path.write_bytes(half.SerializeToString(deterministic=True))


def _converter() -> Callable[..., onnx.ModelProto]:
    """onnxruntime's converter of graphs to float16."""
    search_path = list(sys.path)
    try:
        from onnxruntime.transformers.float16 import convert_float_to_float16
    except ModuleNotFoundError as error:
        raise ExportError(f"fp16 needs {error.name}: install the extra `cpu`, or leave fp16 out.") from error
    finally:
        sys.path[:] = search_path  # the package appends itself
    converter: Callable[..., onnx.ModelProto] = convert_float_to_float16
    return converter


def _drop_repeated_casts(graph: onnx.GraphProto) -> None:
    """Keeps one of the casts that write the same value.

    The converters of onnxruntime before 1.32 give a result that several float32 nodes read one cast for each of them,
    all of one name, which is no valid graph.
    """
    written: set[str] = set()
    kept = []
    for node in graph.node:
        if node.op_type != "Cast" or node.output[0] not in written:
            kept.append(node)
            written.update(node.output)
    del graph.node[:]
    graph.node.extend(kept)


def _join_casts(graph: onnx.GraphProto) -> None:
    """Lets a float32 node read another's result directly.

    The converter casts every result to float16 and back, also between two nodes that stay float32: a variance above
    65504 would become infinite inside a norm.
    """
    casts = [node for node in graph.node if node.op_type == "Cast"]
    before = {cast.output[0]: cast.input[0] for cast in casts if cast.attribute[0].i == onnx.TensorProto.FLOAT16}
    outputs = {value.name for value in graph.output}
    direct: dict[str, str] = {}
    for cast in casts:
        if cast.attribute[0].i != onnx.TensorProto.FLOAT or cast.input[0] not in before:
            continue
        if cast.output[0] in outputs:
            cast.CopyFrom(onnx.helper.make_node("Identity", [before[cast.input[0]]], list(cast.output), cast.name))
        else:
            direct[cast.output[0]] = before[cast.input[0]]
    for node in graph.node:
        node.input[:] = [direct.get(name, name) for name in node.input]
    joined = [node for node in graph.node if node.output[0] not in direct]
    read = {name for node in joined for name in node.input} | outputs
    kept = [node for node in joined if node.op_type != "Cast" or node.output[0] in read]
    del graph.node[:]
    graph.node.extend(kept)


def _sort(graph: onnx.GraphProto) -> None:
    """Puts each node behind those whose results it reads; the converter appends its casts at the end."""
    nodes = list(graph.node)
    maker = {name: index for index, node in enumerate(nodes) for name in node.output}
    needs = {index: {maker[name] for name in node.input if name in maker} for index, node in enumerate(nodes)}
    order = list(TopologicalSorter(needs).static_order())
    del graph.node[:]
    graph.node.extend(nodes[index] for index in order)
