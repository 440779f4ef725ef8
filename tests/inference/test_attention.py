"""Masks of shifted windows: those that MONAI adds in five dimensions are found, and scores stay what they were."""

import warnings

import numpy as np
import openvino
import pytest
import torch
from monai.networks.nets.swin_unetr import SwinTransformerBlock, compute_mask
from openvino import opset13 as op
from torch import Tensor, nn

from service.inference.attention import add_masks_to_scores
from tests.support.openvino_models import run_in_float32

EDGE, WINDOW, CHANNELS, HEADS = 8, 4, 12, 3  # 8 windows of 64 tokens


class Block(nn.Module):
    """A block of a Swin transformer, its windows shifted or not."""

    def __init__(self, *, shift: int) -> None:
        super().__init__()
        windows, shifts = [WINDOW] * 3, [shift] * 3
        self.block = SwinTransformerBlock(CHANNELS, HEADS, windows, shifts, mlp_ratio=1.0, qkv_bias=True)
        self.mask = compute_mask([EDGE] * 3, windows, shifts, torch.device("cpu"))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, X, Y, Z, C)."""
        out: Tensor = self.block(tokens, self.mask)
        return out


def exported(block: Block, folder: pytest.TempPathFactory) -> openvino.Model:
    path = folder.mktemp("attention") / "block.onnx"
    example = torch.zeros(2, EDGE, EDGE, EDGE, CHANNELS)
    batch = {0: torch.export.Dim("batch", min=1)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch calls its own deprecated class
        torch.onnx.export(
            block,
            (example,),
            path,
            dynamo=True,
            opset_version=20,
            external_data=False,
            verbose=False,
            dynamic_shapes=(batch,),
        )
    return openvino.Core().read_model(path)


@torch.no_grad()
def test_one_window_of_the_scan_gives_what_torch_gives(tmp_path_factory: pytest.TempPathFactory) -> None:
    torch.manual_seed(0)
    block = Block(shift=WINDOW // 2).eval()
    nn.init.normal_(block.block.attn.relative_position_bias_table)
    model = exported(block, tmp_path_factory)
    tokens = torch.randn(1, EDGE, EDGE, EDGE, CHANNELS)
    model.reshape([1, EDGE, EDGE, EDGE, CHANNELS])
    assert add_masks_to_scores(model) == 1
    softmax = next(node for node in model.get_ordered_ops() if node.get_type_name() == "Softmax")
    assert softmax.input_value(0).get_node().get_type_name() == "Add"
    assert (block.mask < 0).any()  # or there would be nothing to see
    np.testing.assert_allclose(run_in_float32(model, tokens.numpy()), block(tokens).numpy(), atol=1e-5)


def test_windows_that_are_not_shifted_have_no_mask(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = exported(Block(shift=0).eval(), tmp_path_factory)
    model.reshape([1, EDGE, EDGE, EDGE, CHANNELS])
    assert add_masks_to_scores(model) == 0


def masked(*, batch: int, heads_of_mask: int = 1) -> openvino.Model:
    """Scores of `batch` times 5 windows with 3 heads and 4 tokens, masked in five dimensions."""
    scores = op.parameter([batch * 5, 3, 4, 4], np.float32)
    mask = op.constant(np.zeros((1, 5, heads_of_mask, 4, 4), np.float32))
    added = op.add(op.reshape(scores, [batch, 5, 3, 4, 4], False), mask)
    return openvino.Model([op.softmax(op.reshape(added, [batch * 5, 3, 4, 4], False), -1)], [scores])


def test_a_mask_is_for_one_window_of_the_scan_and_all_heads() -> None:
    assert add_masks_to_scores(masked(batch=1)) == 1
    assert add_masks_to_scores(masked(batch=2)) == 0
    assert add_masks_to_scores(masked(batch=1, heads_of_mask=3)) == 0
