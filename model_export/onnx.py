"""The backbone as an ONNX graph that any engine can run, with no trace of the machine that wrote it.

`window` (B,1,D,H,W) -> `features` (B,8,D/s,H/s,W/s), `pooled` (B,256), all float32. B is free; D, H and W are free
multiples of the backbone's `size_multiple`, or those of `roi_size` where the network depends on them. Batch norm is
folded into the convolutions by the exporter's optimiser.
"""

import copy
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from model_export.errors import ExportError
from model_export.group_norm import BlockwiseGroupNorm
from model_export.instance_norm import use_blockwise_instance_norms
from training.config import ModelConfig
from training.networks.universal import UniversalModel

OPSET = 20
INPUT_NAME = "window"
OUTPUT_NAMES = ("features", "pooled")

_AXES = ("depth", "height", "width")
_LARGEST_WINDOW = 1024  # voxels along an axis, the bound that torch.export wants for a free size
_LARGEST_BATCH = 1024
_NORM_BLOCK = 8  # edge of the blocks that a group norm averages first: 512 voxels

# Attention masks, paddings and the size of the last attention windows follow from the window's size.
_FIXED_WINDOW = frozenset({"swin_unetr"})


def fixed_window(config: ModelConfig) -> tuple[int, int, int] | None:
    """The only window size that the graph of this architecture takes; None: any multiple of its `size_multiple`."""
    return config.roi_size if config.architecture in _FIXED_WINDOW else None


class _BackboneGraph(nn.Module):
    """What goes into the graph: everything before the generated heads, with norms that engines sum exactly."""

    def __init__(self, model: UniversalModel, example: Tensor, multiple: int) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)  # the caller's model keeps its own norms
        use_blockwise_instance_norms(self.model.backbone, example, multiple)
        norm = self.model.feature_head[0]
        if isinstance(norm, nn.GroupNorm):
            block = math.gcd(_NORM_BLOCK, multiple // model.feature_stride)
            self.model.feature_head[0] = BlockwiseGroupNorm(norm, block)

    def forward(self, window: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.backbone_outputs(window)


def export_backbone(model: UniversalModel, path: Path) -> None:
    """Writes the graph of a model in eval mode; the same weights give the same bytes.

    Raises ExportError when a batch norm could not be folded.
    """
    fixed = fixed_window(model.config)
    multiple = model.backbone.size_multiple if fixed is None else math.gcd(*fixed)
    # Free sizes of three different values: torch.export would take equal ones for one and the same size.
    example = torch.zeros(2, 1, *(fixed or (2 * multiple, 3 * multiple, 4 * multiple)))
    sizes: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)}
    if fixed is None:
        for axis, name in enumerate(_AXES, start=2):
            sizes[axis] = multiple * torch.export.Dim(name, min=1, max=_LARGEST_WINDOW // multiple)
    with _quiet_exporter():
        program = torch.onnx.export(
            _BackboneGraph(model, example, multiple).eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            output_names=list(OUTPUT_NAMES),
            dynamic_shapes={INPUT_NAME: sizes},
            external_data=False,
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    _strip(graph)
    if fixed is None:
        _name_axes(graph, model.feature_stride)
    if any(node.op_type == "BatchNormalization" for node in graph.graph.node):
        raise ExportError("A batch norm of the backbone was not folded into its convolution; it must follow one.")
    onnx.checker.check_model(graph, full_check=True)
    path.write_bytes(graph.SerializeToString(deterministic=True))


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silences the two remarks of torch's exporter that say nothing about the model."""
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registry.level
    registry.setLevel(logging.ERROR)  # "torchvision is not installed": no operator of it is used
    try:
        with warnings.catch_warnings():
            # torch 2.13 calls its own deprecated class while it copies the graph's signature.
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            yield
    finally:
        registry.setLevel(level)


def _strip(proto: Any) -> None:  # noqa: ANN401  # any protobuf message of onnx
    """Removes stack traces (they hold paths of this machine), exporter notes and inferred shapes, at every depth."""
    if isinstance(proto, onnx.TensorProto):
        return
    for field, value in proto.ListFields():
        if field.name in ("metadata_props", "doc_string", "value_info"):
            proto.ClearField(field.name)
        elif field.message_type is not None:
            for child in value if _repeated(field) else (value,):
                _strip(child)


def _repeated(field: Any) -> bool:  # noqa: ANN401  # a protobuf FieldDescriptor
    return bool(field.is_repeated)


def _name_axes(graph: onnx.ModelProto, stride: int) -> None:
    """Names the free sizes of inputs and outputs, which the exporter calls by its own symbols (`8*s86`)."""
    feature_axes = _AXES if stride == 1 else tuple(f"{axis}/{stride}" for axis in _AXES)
    for value, axes in ((graph.graph.input[0], _AXES), (graph.graph.output[0], feature_axes)):
        dimensions = value.type.tensor_type.shape.dim
        for dimension, name in zip(dimensions[2:], axes, strict=True):
            dimension.dim_param = name
