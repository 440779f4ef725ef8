"""The `swin_unetr` backbone: MONAI's Swin UNETR blocks without the output block, and a patch merging of our own.

Hatamizadeh et al. 2022 (arXiv 2201.01266); depths, heads and windows of the released model (Liu et al., ICCV 2023,
arXiv 2301.00785). Names are MONAI's, and so are the keys of published weights. Legend: f is the feature size; inside
the transformer channels come last, (B,D,H,W,C).
"""

from collections.abc import Sequence

import torch
from monai.networks.blocks.patchembedding import PatchEmbed
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrUpBlock
from monai.networks.nets.swin_unetr import SwinTransformerBlock, compute_mask
from torch import Tensor, nn
from torch.nn import functional

from training.config import PatchMerging

Corners = tuple[tuple[int, int, int], ...]

#: The corners (d,h,w) of a 2x2x2 block, in the order in which their channels are joined.
CORNERS: dict[PatchMerging, Corners] = {
    "complete": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)),
    # What published weights were trained with: two corners twice, (1,1,0) and (0,1,1) never. Any other order computes
    # something else with them, without a complaint.
    "duplicated": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)),
}

_HEADS = (3, 6, 12, 24)  # attention heads, by stage
_ATTENTION_EDGE = 7  # of the attention windows, in patches
_SHIFTS = (0, 3)  # of the windows along each axis, by block


class MergePatches(nn.Module):
    """(B,D,H,W,C) -> (B,D/2,H/2,W/2,2C): eight corners of each block joined, normalised, projected.

    D, H and W are even.
    """

    def __init__(self, channels: int, patch_merging: PatchMerging) -> None:
        super().__init__()
        self.corners = CORNERS[patch_merging]
        self.norm = nn.LayerNorm(8 * channels)
        self.reduction = nn.Linear(8 * channels, 2 * channels, bias=False)

    def join(self, features: Tensor) -> Tensor:
        """(B,D,H,W,C) -> (B,D/2,H/2,W/2,8C), corner by corner."""
        return torch.cat([features[:, d::2, h::2, w::2] for d, h, w in self.corners], dim=-1)

    def forward(self, features: Tensor) -> Tensor:
        """Half the grid, twice the channels."""
        merged: Tensor = self.reduction(self.norm(self.join(features)))
        return merged


class _Stage(nn.Module):
    """(B,C,D,H,W) -> (B,2C,D/2,H/2,W/2): attention in windows, in shifted windows, then the patch merging.

    A grid smaller than the attention window is one window and is not shifted.
    """

    def __init__(self, channels: int, heads: int, patch_merging: PatchMerging) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinTransformerBlock(channels, heads, (_ATTENTION_EDGE,) * 3, (shift,) * 3, qkv_bias=True)
            for shift in _SHIFTS
        )
        self.downsample = MergePatches(channels, patch_merging)

    def forward(self, features: Tensor) -> Tensor:
        edges = features.shape[2:]
        window = [min(edge, _ATTENTION_EDGE) for edge in edges]
        shift = [_SHIFTS[1] if edge > _ATTENTION_EDGE else 0 for edge in edges]
        padded = [-(-edge // step) * step for edge, step in zip(edges, window, strict=True)]
        mask = shift_mask(padded, window, shift, features.device)
        features = features.movedim(1, -1)
        for block in self.blocks:
            features = block(features, mask)
        merged: Tensor = self.downsample(features)
        return merged.movedim(-1, 1)


def shift_mask(padded: Sequence[int], window: Sequence[int], shift: Sequence[int], device: torch.device) -> Tensor:
    """What is added to the scores of each window, (windows, n, n): 0 within a region, -100 between two.

    Tokens of one region were neighbours before the shift. It is MONAI's compute_mask, of two windows along each axis at
    most: only the last one along an axis holds what the shift brought around, and those before it are alike. An engine
    computes the mask as it opens, and that of all windows at once took it 5 of 6 seconds.
    """
    counts = [edge // step for edge, step in zip(padded, window, strict=True)]
    kinds = [min(count, 2) for count in counts]
    edges = [kind * step for kind, step in zip(kinds, window, strict=True)]
    mask: Tensor = compute_mask(edges, window, shift, device)  # type: ignore[no-untyped-call]  # MONAI's
    tokens = mask.shape[-1]
    mask = mask.reshape(*kinds, tokens, tokens)
    for axis, (count, kind) in enumerate(zip(counts, kinds, strict=True)):
        mask = mask.index_select(axis, torch.tensor([0] * (count - 1) + [kind - 1], device=device))
    return mask.reshape(-1, tokens, tokens)


class _SwinTransformer(nn.Module):
    """(B,1,D,H,W) -> five states (B, f*2**i, D/2**(i+1), ...), i from 0, each normalised over its channels."""

    def __init__(self, feature_size: int, patch_merging: PatchMerging) -> None:
        super().__init__()
        # None is no norm, as in MONAI's own SwinTransformer; its annotation forgets that.
        self.patch_embed = PatchEmbed(2, 1, feature_size, norm_layer=None, spatial_dims=3)  # type: ignore[arg-type]
        self.layers1, self.layers2, self.layers3, self.layers4 = (
            nn.ModuleList([_Stage(feature_size * 2**depth, heads, patch_merging)])  # a list: the keys have an index
            for depth, heads in enumerate(_HEADS)
        )

    def forward(self, window: Tensor) -> list[Tensor]:
        """The states from fine to coarse."""
        states: list[Tensor] = [self.patch_embed(window)]
        for (stage,) in (self.layers1, self.layers2, self.layers3, self.layers4):
            states.append(stage(states[-1]))
        return [_normalise(state) for state in states]


def _normalise(state: Tensor) -> Tensor:
    """Layer norm over the channels of (B,C,D,H,W), without weights."""
    return functional.layer_norm(state.movedim(1, -1), [state.shape[1]]).movedim(-1, 1)


def _residual(in_channels: int, out_channels: int) -> nn.Module:
    block: nn.Module = UnetrBasicBlock(3, in_channels, out_channels, 3, 1, "instance", res_block=True)
    return block


def _up(in_channels: int, out_channels: int) -> nn.Module:
    block: nn.Module = UnetrUpBlock(3, in_channels, out_channels, 3, 2, "instance", res_block=True)
    return block


class SwinUnetr(nn.Module):
    """(B,1,D,H,W) -> bottleneck (B,16f,D/32,H/32,W/32) and decoder (B,f,D,H,W); f is `feature_size`.

    D, H and W are multiples of 32 and at least 64: an instance norm needs more than one voxel. Raises ValueError for a
    feature size that is not a multiple of 12, the least that all attention heads divide.
    """

    feature_stride = 1
    size_multiple = 32

    def __init__(self, feature_size: int = 48, patch_merging: PatchMerging = "complete") -> None:
        super().__init__()
        if feature_size % 12:
            raise ValueError(f"The feature size of swin_unetr is a multiple of 12, not {feature_size}.")
        f = feature_size
        self.bottleneck_channels, self.decoder_channels = 16 * f, f
        self.swinViT = _SwinTransformer(f, patch_merging)
        self.encoder1 = _residual(1, f)
        self.encoder2 = _residual(f, f)
        self.encoder3 = _residual(2 * f, 2 * f)
        self.encoder4 = _residual(4 * f, 4 * f)
        self.encoder10 = _residual(16 * f, 16 * f)
        self.decoder5 = _up(16 * f, 8 * f)
        self.decoder4 = _up(8 * f, 4 * f)
        self.decoder3 = _up(4 * f, 2 * f)
        self.decoder2 = _up(2 * f, f)
        self.decoder1 = _up(f, f)

    def forward(self, window: Tensor) -> tuple[Tensor, Tensor]:
        """The bottleneck and the decoder's output."""
        states = self.swinViT(window)
        bottleneck: Tensor = self.encoder10(states[4])
        decoded = self.decoder5(bottleneck, states[3])
        decoded = self.decoder4(decoded, self.encoder4(states[2]))
        decoded = self.decoder3(decoded, self.encoder3(states[1]))
        decoded = self.decoder2(decoded, self.encoder2(states[0]))
        decoded = self.decoder1(decoded, self.encoder1(window))
        return bottleneck, decoded
