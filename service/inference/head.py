"""The text-driven head: a small perceptron per label, 8 -> 8 -> 8 -> 1, applied to every voxel's features.

Source: the parameter generator of Liu et al., ICCV 2023 (arXiv 2301.00785), section 3.2; here the text part is in K.
A label's 153 parameters lie in the order  w1 64 | w2 64 | w3 8 | b1 8 | b2 8 | b3 1,  weights row-major, out x in.

Axes in names: B window, C label, V voxel.
"""

from functools import cache

import torch
from torch import Tensor

CHANNELS = 8
_SIZES = (CHANNELS * CHANNELS, CHANNELS * CHANNELS, CHANNELS, CHANNELS, CHANNELS, 1)
PARAMETERS_PER_LABEL = sum(_SIZES)  # 153

# Hidden layers are 64 bytes for each voxel and label. Two cores with level-2 caches of 2 MB hold those of 2048 voxels
# and 32 labels; where caches are smaller, larger blocks pay, for fewer calls (measured on two cores), and on a GPU
# larger ones still, which keep it busy.
_BLOCK_VOXELS, _SMALL_BLOCK_VOXELS, _BUSY_BLOCK_VOXELS = 4096, 2048, 65536
_LARGE_CACHE_BYTES = 2 * 1024**2


def head_params(pooled: Tensor, w_image: Tensor, k: Tensor) -> Tensor:
    """Parameters (B, C, 153) of each label for each window, from its pooled features (B, 256).

    `w_image` is (153, 256), `k` is (C, 153); a subset of the rows of `k` gives that subset of the labels.
    """
    return (pooled @ w_image.T)[:, None, :] + k[None, :, :]


def head_logits(features: Tensor, params: Tensor, into: Tensor | None = None) -> Tensor:
    """Logits (C, V) of one window, from its voxel features (8, V) and the labels' parameters (C, 153). float32.

    They are written to `into`, where it is given.
    """
    labels, voxels = params.shape[0], features.shape[1]
    w1, w2, w3, b1, b2, b3 = torch.split(params, list(_SIZES), dim=1)
    w1_CFF, w2_CFF = w1.reshape(labels, CHANNELS, CHANNELS), w2.reshape(labels, CHANNELS, CHANNELS)
    w3_C1F = w3.reshape(labels, 1, CHANNELS)
    # relu(w x + b) is max(w x, -b) + b, and what is added last goes through the next layer beforehand. So a product is
    # written once: with a shift of its own, memory would be filled with that first.
    b1_CF1 = b1[:, :, None]
    b2_CF1 = torch.baddbmm(b2[:, :, None], w2_CFF, b1_CF1)
    b3_C11 = torch.baddbmm(b3[:, :, None], w3_C1F, b2_CF1)
    least1_CF1, least2_CF1 = -b1_CF1, -b2_CF1

    logits = features.new_empty((labels, voxels)) if into is None else into
    step = min(_block_voxels(features.device.type), voxels)
    # One pair for all blocks: memory that is new is cleared first, which takes as long as the products.
    first_CFV, second_CFV = features.new_empty((2, labels, CHANNELS, step))
    for start in range(0, voxels, step):
        # All labels read the same features, and still a product per label is twice as fast as one of 8 x C rows.
        block_CFV = features[:, start : start + step].expand(labels, -1, -1)
        first, second = (hidden[:, :, : block_CFV.shape[2]] for hidden in (first_CFV, second_CFV))
        torch.maximum(torch.bmm(w1_CFF, block_CFV, out=first), least1_CF1, out=first)
        torch.maximum(torch.bmm(w2_CFF, first, out=second), least2_CF1, out=second)
        logits[:, start : start + step] = torch.baddbmm(b3_C11, w3_C1F, second)[:, 0]
    return logits


@cache
def _block_voxels(device: str) -> int:
    if device != "cpu":
        return _BUSY_BLOCK_VOXELS
    large = torch.cpu.get_capabilities().get("l2_cache_size", 0) >= _LARGE_CACHE_BYTES
    return _SMALL_BLOCK_VOXELS if large else _BLOCK_VOXELS
