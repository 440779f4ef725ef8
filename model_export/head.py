"""The text-driven head with its text branch folded away: two matrices instead of a text encoder.

The controller is linear in cat(image, text), so the generated numbers of label c are
`params[c] = W_image @ pooled + K[c]`, and `K[c] = W_text @ relu(T @ clip[c] + t) + b` is the same for every scan.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save
from torch import Tensor

from training.networks.universal import UniversalModel, apply_heads

_SLAB_VOXELS = 2**15  # whose hidden layer, 256 values a voxel for 32 labels, is 32 MiB


@dataclass(frozen=True)
class FoldedHead:
    """`W_image` (153,256) and `K` (C,153), float32; a row of K is a label."""

    W_image: NDArray[np.float32]
    K: NDArray[np.float32]

    def logits(self, features: NDArray[np.float32], pooled: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (B,C,*grid) float32 of voxel features (B,8,*grid) and pooled features (B,256)."""
        with torch.inference_mode():
            image_part = torch.from_numpy(pooled) @ torch.from_numpy(self.W_image).T
            params = image_part[:, None] + torch.from_numpy(self.K)[None]
            logits: NDArray[np.float32] = logits_by_slab(torch.from_numpy(features), params).numpy()
        return logits


def logits_by_slab(features: Tensor, params: Tensor) -> Tensor:
    """`apply_heads` on a slab of planes at a time: the hidden layers of a whole window at stride 1 are gigabytes."""
    planes = max(1, _SLAB_VOXELS // features[0, 0, 0].numel())
    return torch.cat([apply_heads(slab, params) for slab in torch.split(features, planes, dim=2)], dim=2)


def fold_head(model: UniversalModel) -> FoldedHead:
    """The model's controller with its text embeddings baked in."""
    with torch.inference_mode():
        W_image = model.image_weight().float().cpu().numpy()
        K = model.text_rows().float().cpu().numpy()
    # Contiguous copies: safetensors writes the buffer as it lies, and W_image is a slice of the controller.
    return FoldedHead(np.ascontiguousarray(W_image), np.ascontiguousarray(K))


def write_head(head: FoldedHead, path: Path) -> None:
    """Writes head.safetensors; the same head gives the same bytes."""
    path.write_bytes(save({"W_image": head.W_image, "K": head.K}))  # save_file would make it readable to its owner only


def read_head(path: Path) -> FoldedHead:
    """The head of a bundle. Raises KeyError when a tensor is missing and OSError or ValueError for a broken file."""
    tensors = load_file(path)
    return FoldedHead(tensors["W_image"], tensors["K"])
