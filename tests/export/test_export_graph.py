"""The exported graph against the torch model: any batch and size, batch norm folded, nothing of this machine inside."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from model_export.group_norm import BlockwiseGroupNorm
from model_export.onnx import export_backbone
from training.checkpoint import Checkpoint


@pytest.mark.parametrize("shape", [(1, 1, 16, 16, 16), (3, 1, 32, 16, 48), (2, 1, 64, 80, 16)])
def test_any_batch_and_size_give_the_torch_features(
    written_bundle: Path, checkpoint: Checkpoint, shape: tuple[int, ...]
) -> None:
    session = onnxruntime.InferenceSession(written_bundle / "backbone.onnx", providers=["CPUExecutionProvider"])
    window = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)
    features, pooled = session.run(["features", "pooled"], {"window": window})
    with torch.inference_mode():
        expected_features, expected_pooled = checkpoint.model.backbone_outputs(torch.from_numpy(window))
    assert features.shape == (shape[0], 8, *(size // 2 for size in shape[2:]))
    assert pooled.shape == (shape[0], 256)
    np.testing.assert_allclose(features, expected_features.numpy(), atol=2e-5)
    np.testing.assert_allclose(pooled, expected_pooled.numpy(), atol=2e-5)


def test_graph_is_float32_with_named_free_axes_and_no_batch_norm(written_bundle: Path) -> None:
    model = onnx.load(written_bundle / "backbone.onnx")
    graph = model.graph
    window, features, pooled = (
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    )
    assert window == ["batch", 1, "depth", "height", "width"]
    assert features == ["batch", 8, "depth/2", "height/2", "width/2"]
    assert pooled == ["batch", 256]
    assert [value.name for value in (*graph.input, *graph.output)] == ["window", "features", "pooled"]
    assert all(value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT for value in (*graph.input, *graph.output))
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 20}


def test_graph_holds_no_trace_of_the_machine_that_wrote_it(written_bundle: Path) -> None:
    content = (written_bundle / "backbone.onnx").read_bytes()
    for trace in (b".py", b"site-packages", b"stack_trace", str(Path.cwd()).encode()):
        assert trace not in content


def test_same_weights_give_the_same_bytes(written_bundle: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    export_backbone(checkpoint.model, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (written_bundle / "backbone.onnx").read_bytes()


def test_export_leaves_the_model_as_it_was(checkpoint: Checkpoint) -> None:
    assert isinstance(checkpoint.model.feature_head[0], nn.GroupNorm)
    assert not checkpoint.model.training


def test_blockwise_group_norm_is_group_norm() -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 8)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    features = torch.randn(2, 8, 16, 8, 24) * 3.0 + 50.0  # far from zero, where float32 loses the variance first
    expected = norm.double()(features.double())
    with torch.inference_mode():
        torch.testing.assert_close(
            BlockwiseGroupNorm(norm.float(), 8)(features).double(), expected, atol=1e-5, rtol=1e-5
        )
