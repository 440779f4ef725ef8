"""Instance norm that engines compute as exactly as torch, for the exported graph only.

The exporter would write an InstanceNormalization, whose sums over a window's million voxels engines add up naively in
float32 (see `group_norm`): blocks are averaged first. A second trap is a channel that is almost constant, as behind
the first convolution of a window of air: the norm multiplies what is left of it by up to 1/sqrt(1e-5) = 316, the
rounding of its mean included. So the value of one voxel is subtracted first, which the norm does not notice and which
leaves exact zeros of a constant. Measured on a U-Net of a quarter of the published width, onnxruntime and OpenVINO
against torch: logits on a window of air 4e-4 without the shift, 1e-5 with it, which is torch's own distance from
float64; on tissue 2e-6.
"""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

_BLOCK = 8  # the largest edge of a block: 512 voxels


class BlockwiseInstanceNorm(nn.Module):
    """InstanceNorm3d on (B,C,D,H,W) float32 with the weights of `norm`, if it has any; equal to it up to rounding.

    D, H and W are multiples of `block`.
    """

    def __init__(self, norm: nn.InstanceNorm3d, block: int) -> None:
        super().__init__()
        self.block, self.eps = block, norm.eps
        weight = torch.ones(norm.num_features) if norm.weight is None else norm.weight.detach()
        bias = torch.zeros(norm.num_features) if norm.bias is None else norm.bias.detach()
        self.register_buffer("weight", weight.reshape(-1, 1, 1, 1))
        self.register_buffer("bias", bias.reshape(-1, 1, 1, 1))

    weight: Tensor
    bias: Tensor

    def forward(self, features: Tensor) -> Tensor:
        """The features, each channel normalised over its voxels; shape kept."""
        shifted = features - features[:, :, :1, :1, :1]
        centered = shifted - self._mean(shifted)
        variance = self._mean(centered * centered)
        return centered * (torch.rsqrt(variance + self.eps) * self.weight) + self.bias

    def _mean(self, features: Tensor) -> Tensor:
        """Mean over all voxels: (B,C,1,1,1). Blocks are equal, so the mean of their means is the mean."""
        return functional.avg_pool3d(features, self.block).mean((2, 3, 4), keepdim=True)


def use_blockwise_instance_norms(network: nn.Module, example: Tensor, multiple: int) -> None:
    """Replaces the instance norms of `network`, in place; `multiple` divides every edge that it will ever be given.

    At 1/s of the window's resolution every edge is a multiple of `multiple` / s, and so of the block that is chosen for
    it. A pass of `example` without numbers tells each norm's s.
    """
    for name, edge in _edges_at_norms(network, example).items():
        norm = network.get_submodule(name)
        assert isinstance(norm, nn.InstanceNorm3d)
        parent, _, child = name.rpartition(".")
        block = math.gcd(_BLOCK, multiple * edge // example.shape[2])
        setattr(network.get_submodule(parent), child, BlockwiseInstanceNorm(norm, block))


def _edges_at_norms(network: nn.Module, example: Tensor) -> dict[str, int]:
    """The first edge of what each instance norm sees of `example`; norms that see nothing are absent."""
    shadow = copy.deepcopy(network).to("meta")
    edges: dict[nn.Module, int] = {}

    def note(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        edges[norm] = inputs[0].shape[2]

    for module in shadow.modules():
        if isinstance(module, nn.InstanceNorm3d):
            module.register_forward_pre_hook(note)
    shadow(example.to("meta"))
    return {name: edges[module] for name, module in shadow.named_modules() if module in edges}
