"""The floor of a window's time: the backbone's operations over the rate at which this machine multiplies matrices."""

import time
from math import prod

import onnx
import torch

from service.imaging.geometry import Shape

_MATRIX_EDGE = 2048
_REPETITIONS = 5


def operations(backbone: bytes, window: Shape) -> int:
    """Multiplications and additions of one window's convolutions and matrix products, counted on the ONNX graph.

    Norms, activations and copies are left out: they wait for memory and not for arithmetic.
    """
    model = onnx.load_model_from_string(backbone)
    for dimension, size in zip(model.graph.input[0].type.tensor_type.shape.dim, (1, 1, *window), strict=True):
        dimension.dim_value = size
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True, strict_mode=True).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim)
    return sum(_operations(node, shapes) for node in graph.node)


def _operations(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    match node.op_type:
        case "Conv":
            return 2 * prod(shapes[node.output[0]]) * prod(shapes[node.input[1]][1:])
        case "ConvTranspose":
            return 2 * prod(shapes[node.input[0]]) * prod(shapes[node.input[1]][1:])
        case "MatMul":
            return 2 * prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
        case "Gemm":
            return 2 * prod(shapes[node.output[0]]) * max(shapes[node.input[1]])
    return 0


def matrix_rate() -> float:
    """Operations a second of a float32 matrix product, the best of a few."""
    matrix = torch.rand(_MATRIX_EDGE, _MATRIX_EDGE)
    seconds = []
    for _ in range(_REPETITIONS):
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        seconds.append(time.perf_counter() - start)
    return 2 * _MATRIX_EDGE**3 / min(seconds)
