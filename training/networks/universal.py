"""The CLIP-Driven Universal Model: one backbone, and per-label heads generated from text embeddings.

Liu et al., ICCV 2023 (arXiv 2301.00785), section 3.2. Shapes and constants: the released model. Legend:
B batch, C labels, D H W a window along the RAS axes x y z, s the backbone's feature stride, V voxels.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.config import ModelConfig
from training.networks.backbones import build_backbone

TEXT_CHANNELS = 512  # CLIP ViT-B/32 text features
EMBEDDING_CHANNELS = 256  # both branches meet at this width
_NORM_GROUPS = 16  # of the group norms that read the backbone; fewer where 16 do not divide the channels
FEATURE_CHANNELS = 8  # voxel features that the generated heads read

# The 153 numbers of one head, in the controller's order: two 8x8 layers, one 8x1 layer, their three biases.
HEAD_SIZES = (64, 64, 8, 8, 8, 1)
HEAD_PARAMETERS = sum(HEAD_SIZES)

PRIOR_LOGIT = -3.0
HEAD_INITIAL_STD = 0.07


def apply_heads(features: Tensor, params: Tensor, *, leak: float = 0.0) -> Tensor:
    """Logits (B,C,*grid) of the generated heads on voxel features (B,8,*grid); `params` is (B,C,153).

    `leak` is the slope of the ReLU below 0: the paper's has none. Equal to the paper's grouped 1x1x1 convolutions on
    features repeated C times, without repeating them.
    """
    batch, labels, _ = params.shape
    grid = features.shape[2:]
    w1, w2, w3, b1, b2, b3 = torch.split(params, list(HEAD_SIZES), dim=-1)
    flat = features.reshape(batch, FEATURE_CHANNELS, -1)
    first = w1.reshape(batch, labels * 8, 8)
    hidden = _rectify(torch.baddbmm(b1.reshape(batch, labels * 8, 1), first, flat), leak)
    hidden = hidden.reshape(batch * labels, 8, -1)
    hidden = _rectify(torch.baddbmm(b2.reshape(-1, 8, 1), w2.reshape(-1, 8, 8), hidden), leak)
    logits = torch.baddbmm(b3.reshape(-1, 1, 1), w3.reshape(-1, 1, 8), hidden)
    return logits.reshape(batch, labels, *grid)


def _rectify(hidden: Tensor, leak: float) -> Tensor:
    return functional.leaky_relu(hidden, leak) if leak else torch.relu(hidden)


class UniversalModel(nn.Module):
    """Backbone, text branch and controller.

    `text_embedding` is a buffer, so a checkpoint needs no text encoder: (C,512) text features, which `text_to_vision`
    brings to the 256 channels of the image branch, or (C,256) learned in place of them (the reference's
    `rand_embedding`), which the controller reads as they are. Input windows are normalised as `config` says; logits
    come at the backbone's feature stride. Raises ValueError for an embedding of another shape.
    """

    text_embedding: Tensor

    def __init__(self, config: ModelConfig, text_embedding: Tensor) -> None:
        super().__init__()
        widths = (TEXT_CHANNELS, EMBEDDING_CHANNELS)
        if text_embedding.ndim != 2 or text_embedding.shape[1] not in widths:
            raise ValueError(
                f"Text embeddings must be (labels, {widths[0]}) or (labels, {widths[1]}), "
                f"not {tuple(text_embedding.shape)}."
            )
        self.config = config
        self.backbone = build_backbone(config)
        self.feature_stride = self.backbone.feature_stride
        self.register_buffer("text_embedding", text_embedding.float())
        self.gap = nn.Sequential(
            _group_norm(self.backbone.bottleneck_channels),
            nn.ReLU(),
            nn.AdaptiveAvgPool3d(1),
            nn.Conv3d(self.backbone.bottleneck_channels, EMBEDDING_CHANNELS, 1),
        )
        self.feature_head = nn.Sequential(
            _group_norm(self.backbone.decoder_channels),
            nn.ReLU(),
            nn.Conv3d(self.backbone.decoder_channels, FEATURE_CHANNELS, 1),
        )
        reads_text = text_embedding.shape[1] == TEXT_CHANNELS
        self.text_to_vision = nn.Linear(TEXT_CHANNELS, EMBEDDING_CHANNELS) if reads_text else None
        self.controller = nn.Linear(2 * EMBEDDING_CHANNELS, HEAD_PARAMETERS)

    def backbone_outputs(self, window: Tensor) -> tuple[Tensor, Tensor]:
        """Voxel features (B,8,D/s,H/s,W/s) and pooled features (B,256) of a window (B,1,D,H,W)."""
        return self.read_out(*self.backbone(window))

    def read_out(self, bottleneck: Tensor, decoded: Tensor) -> tuple[Tensor, Tensor]:
        """What the heads see of the backbone's two outputs: voxel features and pooled features."""
        return self.feature_head(decoded), self.gap(bottleneck).flatten(1)

    def image_weight(self) -> Tensor:
        """The controller's image part W_image (153,256)."""
        return self.controller.weight[:, :EMBEDDING_CHANNELS]

    def text_rows(self, text: Tensor | None = None) -> Tensor:
        """The controller's text part with its bias, one row per label: (C,153); or those of other text features."""
        if text is None:
            text = self.text_embedding
        if self.text_to_vision is not None:
            text = torch.relu(self.text_to_vision(text))
        return functional.linear(text, self.controller.weight[:, EMBEDDING_CHANNELS:], self.controller.bias)

    def head_params(self, pooled: Tensor) -> Tensor:
        """The generated heads (B,C,153); linear in cat(image, text), so the two parts add."""
        return functional.linear(pooled, self.image_weight())[:, None] + self.text_rows()[None]

    def forward(self, window: Tensor, channels: Tensor | None = None) -> Tensor:
        """Logits (B,C,D/s,H/s,W/s), or of the given channels only."""
        features, pooled = self.backbone_outputs(window)
        params = self.head_params(pooled)
        if channels is not None:
            params = params[:, channels]
        return apply_heads(features, params)

    @torch.no_grad()
    def scale_logits(self, factor: float) -> None:
        """Multiplies all logits, by way of the generated heads' last layer."""
        last_layer = [*range(sum(HEAD_SIZES[:2]), sum(HEAD_SIZES[:3])), -1]  # its weights and its bias
        self.controller.weight[last_layer] *= factor
        self.controller.bias[last_layer] *= factor

    def reset_heads(self) -> None:
        """Initial heads fit for training from scratch.

        The generated layers get He's scale (std 0.5 for 8 inputs) on whitened text rows, where the default is a third
        of it and three such layers in a row pass hardly any signal; and all logits start at `PRIOR_LOGIT`, as rare
        labels should (Lin et al. 2017, section 3.3), so that training does not begin with driving them all down.
        """
        nn.init.normal_(self.controller.weight, std=HEAD_INITIAL_STD)
        nn.init.zeros_(self.controller.bias)
        nn.init.constant_(self.controller.bias[-1:], PRIOR_LOGIT)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(_NORM_GROUPS, channels), channels)


def count_parameters(module: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in module.parameters())
