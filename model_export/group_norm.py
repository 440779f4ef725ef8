"""Group norm whose sums stay exact on half a million values, for the exported graph only.

The exporter turns torch's GroupNorm into an InstanceNormalization over one long row of voxels, and engines add that row
up naively in float32. Measured on the `compact` backbone, 96^3 window, logits against float64: onnxruntime 2e-5,
OpenVINO 1e-5 (6e-5 when it fuses chained ReduceMeans). Averaging blocks of voxels first and then the blocks, which
no engine fuses, gives 3e-7 and 7e-7 at the same speed.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class BlockwiseGroupNorm(nn.Module):
    """GroupNorm on (B,C,D,H,W) float32 with the weights of `norm`; equal to it up to rounding.

    D, H and W are multiples of `block`.
    """

    def __init__(self, norm: nn.GroupNorm, block: int) -> None:
        super().__init__()
        self.groups, self.block, self.eps = norm.num_groups, block, norm.eps
        self.register_buffer("weight", norm.weight.detach().reshape(-1, 1, 1, 1))
        self.register_buffer("bias", norm.bias.detach().reshape(-1, 1, 1, 1))

    weight: Tensor
    bias: Tensor

    def forward(self, features: Tensor) -> Tensor:
        """The features, normalised within each group of channels; shape kept."""
        centered = features - self._group_mean(features)
        variance = self._group_mean(centered * centered)
        return centered * (torch.rsqrt(variance + self.eps) * self.weight) + self.bias

    def _group_mean(self, features: Tensor) -> Tensor:
        """Mean over each group's channels and all voxels, once per channel: (B,C,1,1,1)."""
        batch, channels = features.shape[:2]
        means = functional.avg_pool3d(features, self.block).mean((2, 3, 4))  # equal blocks: mean of means = mean
        grouped = means.reshape(batch, self.groups, channels // self.groups).mean(2, keepdim=True)
        return grouped.expand(-1, -1, channels // self.groups).reshape(batch, channels, 1, 1, 1)
