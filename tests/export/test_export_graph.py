"""The exported graph against the torch model: any batch and size, batch norm folded, nothing of this machine inside."""

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from model_export.group_norm import BlockwiseGroupNorm
from model_export.instance_norm import BlockwiseInstanceNorm, use_blockwise_instance_norms
from model_export.onnx import export_backbone, fixed_window
from model_export.sample import Sample
from model_export.windows import synthetic_windows
from training.checkpoint import Checkpoint
from training.config import ModelConfig
from training.networks.unet import UNet


@pytest.mark.parametrize("shape", [(1, 1, 16, 16, 16), (3, 1, 32, 16, 48), (2, 1, 64, 80, 16)])
def test_any_batch_and_size_give_the_torch_features(
    written_bundle: Path, checkpoint: Checkpoint, shape: tuple[int, ...]
) -> None:
    session = onnxruntime.InferenceSession(written_bundle / "backbone.onnx", providers=["CPUExecutionProvider"])
    window = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)
    features, pooled = session.run(["features", "pooled"], {"window": window})
    # In float64: torch's own float32 rounding differs with the processor, by as much as the bound allows.
    exact = copy.deepcopy(checkpoint.model).double()
    with torch.inference_mode():
        expected_features, expected_pooled = exact.backbone_outputs(torch.from_numpy(window).double())
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


@pytest.mark.parametrize("affine", [True, False])
def test_blockwise_instance_norm_is_instance_norm(affine: bool) -> None:
    torch.manual_seed(0)
    norm = nn.InstanceNorm3d(6, affine=affine)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    features = torch.randn(2, 6, 16, 8, 24) * 3.0 + 50.0
    expected = norm.double()(features.double())
    with torch.inference_mode():
        torch.testing.assert_close(
            BlockwiseInstanceNorm(norm.float(), 4)(features).double(), expected, atol=1e-5, rtol=1e-5
        )


def test_constant_channel_is_normalised_to_the_bias_without_rounding() -> None:
    """0.1 has no exact binary form, and 4096 of it do not add up to 409.6; times 316 that would be seen."""
    norm = nn.InstanceNorm3d(1, affine=True)
    nn.init.constant_(norm.bias, 0.25)
    with torch.inference_mode():
        normalised = BlockwiseInstanceNorm(norm, 8)(torch.full((1, 1, 16, 16, 16), 0.1))
    assert torch.equal(normalised, torch.full_like(normalised, 0.25))


def test_blocks_fit_the_resolution_of_each_norm() -> None:
    """A window's edges are multiples of 8; those of the levels below of 4, 2 and 1."""
    backbone = UNet(8)
    use_blockwise_instance_norms(backbone, torch.zeros(1, 1, 16, 24, 32), 8)
    levels = (backbone.down_tr64, backbone.down_tr128, backbone.down_tr256, backbone.down_tr512, backbone.up_tr64)
    assert [level.ops[1].bn1.block for level in levels] == [8, 4, 2, 1, 8]
    assert not [module for module in backbone.modules() if isinstance(module, nn.InstanceNorm3d)]


def test_swin_unetr_is_only_asked_for_its_own_window() -> None:
    config = ModelConfig(architecture="swin_unetr", roi_size=(64, 64, 96))
    assert fixed_window(config) == (64, 64, 96)
    sample = Sample(np.zeros((1, 1, 64, 64, 96), np.float16), np.zeros((1, 32, 64, 64, 96), np.float16))
    assert {window.shape[2:] for window in synthetic_windows(config, 32, sample).values()} == {(64, 64, 96)}
    assert fixed_window(ModelConfig(architecture="unet")) is None
