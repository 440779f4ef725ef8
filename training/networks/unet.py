"""The `unet` backbone: the plain 3D U-Net of the released model, layer for layer, under the names of its weights.

Sizes: Liu et al., ICCV 2023 (arXiv 2301.00785), the released U-Net: 19 M parameters at feature size 64. Its norm is a
batch norm that takes the statistics of the batch at hand in evaluation too, so a window's answer there depends on its
companions. With one window in the batch that is an instance norm, which this network has: its answers never depend on
the batch. The layers keep the name `bn1`, under which their weights are published.
"""

import torch
from torch import Tensor, nn


class _Unit(nn.Module):
    """3x3x3 convolution, instance norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.bn1 = nn.InstanceNorm3d(out_channels, eps=1e-5, affine=True)

    def forward(self, features: Tensor) -> Tensor:
        """(B,in,D,H,W) -> (B,out,D,H,W)."""
        return torch.relu(self.bn1(self.conv1(features)))


class _Level(nn.Module):
    """Two units of one resolution."""

    def __init__(self, in_channels: int, between: int, out_channels: int) -> None:
        super().__init__()
        self.ops = nn.Sequential(_Unit(in_channels, between), _Unit(between, out_channels))

    def forward(self, features: Tensor) -> Tensor:
        """(B,in,D,H,W) -> (B,out,D,H,W)."""
        features = self.ops(features)
        return features


class _UpLevel(nn.Module):
    """Doubles the grid, joins the skip behind the upsampled features, two units."""

    def __init__(self, in_channels: int, skip_channels: int) -> None:
        super().__init__()
        self.up_conv = nn.ConvTranspose3d(in_channels, in_channels, 2, stride=2)
        self.ops = nn.Sequential(_Unit(in_channels + skip_channels, skip_channels), _Unit(skip_channels, skip_channels))

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        """(B,in,D,H,W) and (B,skip,2D,2H,2W) -> (B,skip,2D,2H,2W)."""
        features = self.ops(torch.cat([self.up_conv(features), skip], dim=1))
        return features


class UNet(nn.Module):
    """(B,1,D,H,W) -> bottleneck (B,8f,D/8,H/8,W/8) and decoder (B,f,D,H,W); f is `feature_size`.

    D, H and W are multiples of 8 and at least 16.
    """

    feature_stride = 1
    size_multiple = 8

    def __init__(self, feature_size: int = 64) -> None:
        super().__init__()
        f = feature_size
        self.bottleneck_channels, self.decoder_channels = 8 * f, f
        self.down_tr64 = _Level(1, f // 2, f)
        self.down_tr128 = _Level(f, f, 2 * f)
        self.down_tr256 = _Level(2 * f, 2 * f, 4 * f)
        self.down_tr512 = _Level(4 * f, 4 * f, 8 * f)
        self.up_tr256 = _UpLevel(8 * f, 4 * f)
        self.up_tr128 = _UpLevel(4 * f, 2 * f)
        self.up_tr64 = _UpLevel(2 * f, f)
        self.pool = nn.MaxPool3d(2)

    def forward(self, window: Tensor) -> tuple[Tensor, Tensor]:
        """The bottleneck and the decoder's output."""
        skip64 = self.down_tr64(window)
        skip128 = self.down_tr128(self.pool(skip64))
        skip256 = self.down_tr256(self.pool(skip128))
        bottleneck = self.down_tr512(self.pool(skip256))
        decoded = self.up_tr256(bottleneck, skip256)
        decoded = self.up_tr128(decoded, skip128)
        return bottleneck, self.up_tr64(decoded, skip64)
