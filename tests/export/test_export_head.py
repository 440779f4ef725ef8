"""The folded head against the unfolded model."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model_export import head as head_module
from model_export.head import FoldedHead, fold_head, read_head, write_head
from model_export.parity import relative_error
from training.checkpoint import Checkpoint


def _torch_outputs(checkpoint: Checkpoint) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    window = torch.rand((2, 1, 32, 16, 32), generator=torch.Generator().manual_seed(3)) * 2 - 1
    with torch.inference_mode():
        features, pooled = checkpoint.model.backbone_outputs(window)
        return features.numpy(), pooled.numpy(), checkpoint.model(window).numpy()


def test_fold_equals_the_unfolded_model(checkpoint: Checkpoint) -> None:
    features, pooled, logits = _torch_outputs(checkpoint)
    head = fold_head(checkpoint.model)
    assert head.W_image.shape == (153, 256)
    assert head.K.shape == (32, 153)
    assert relative_error(head.logits(features, pooled), logits) < 1e-6


def test_slabs_of_planes_are_the_whole(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 planes of 8 x 16 voxels, three at a time."""
    monkeypatch.setattr(head_module, "_SLAB_VOXELS", 3 * 8 * 16 + 5)
    features, pooled, logits = _torch_outputs(checkpoint)
    assert features.shape[2:] == (16, 8, 16)
    assert relative_error(fold_head(checkpoint.model).logits(features, pooled), logits) < 1e-6


def test_rows_of_the_text_part_are_labels(checkpoint: Checkpoint) -> None:
    features, pooled, logits = _torch_outputs(checkpoint)
    head = fold_head(checkpoint.model)
    subset = FoldedHead(head.W_image, head.K[[30, 5]])
    assert relative_error(subset.logits(features, pooled), logits[:, [30, 5]]) < 1e-6


def test_folded_row_is_the_formula_of_the_paper(checkpoint: Checkpoint) -> None:
    """K[c] = W_text relu(T clip[c] + t) + b, in float64 with numpy alone."""
    weights = {key: value.double().numpy() for key, value in checkpoint.model.state_dict().items()}
    text = weights["text_to_vision.weight"] @ weights["text_embedding"][7] + weights["text_to_vision.bias"]
    row = weights["controller.weight"][:, 256:] @ np.maximum(text, 0.0) + weights["controller.bias"]
    np.testing.assert_allclose(fold_head(checkpoint.model).K[7], row, atol=1e-5)


def test_head_survives_its_file(checkpoint: Checkpoint, tmp_path: Path) -> None:
    head = fold_head(checkpoint.model)
    write_head(head, tmp_path / "head.safetensors")
    again = read_head(tmp_path / "head.safetensors")
    np.testing.assert_array_equal(again.W_image, head.W_image)
    np.testing.assert_array_equal(again.K, head.K)
    assert (tmp_path / "head.safetensors").stat().st_mode & 0o044 == 0o044  # others may read a shared model
