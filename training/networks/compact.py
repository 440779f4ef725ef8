"""The `compact` backbone: a residual U-Net made for CPUs, at most 4 M parameters.

It works at half resolution from the first layer on: a stem of stride 2, features of stride 2. Most of its depth lies
at stride 4 (8 mm), the scale of lesions and of small organs. Batch norm, because it folds into the convolutions at
export and keeps absolute HU, which instance norm would wash out.
"""

import torch
from torch import Tensor, nn

# VOI windows (HU / 1000) that the input is seen through: lung, soft tissue, bone. A network given the whole
# range on one linear scale would have 40 HU of organ contrast in 2 % of its input range.
VOI_WINDOWS = ((-1.0, -0.2), (-0.16, 0.24), (0.1, 1.0))


class VoiWindows(nn.Module):
    """(B,1,D,H,W) HU/1000 -> (B,3,D,H,W), each VOI window clipped and mapped to -1..1."""

    def forward(self, image: Tensor) -> Tensor:
        """The three views of the image, stacked as channels."""
        views = [(image.clamp(low, high) - low) * (2.0 / (high - low)) - 1.0 for low, high in VOI_WINDOWS]
        return torch.cat(views, dim=1)


class ConvNormAct(nn.Sequential):
    """3x3x3 convolution, batch norm, ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Conv3d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm3d(channels),
            nn.ReLU(inplace=True),
        )


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions with an identity around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvNormAct(channels)
        self.second = nn.Sequential(nn.Conv3d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm3d(channels))

    def forward(self, features: Tensor) -> Tensor:
        """Same shape in and out."""
        return torch.relu(features + self.second(self.first(features)))

    def become_identity(self) -> None:
        """Gives every feature back as it came, if none is negative; the block can learn from there."""
        nn.init.zeros_(self.last_norm.weight)
        nn.init.zeros_(self.last_norm.bias)

    @property
    def last_norm(self) -> nn.BatchNorm3d:
        """The norm before the sum."""
        norm = self.second[1]
        assert isinstance(norm, nn.BatchNorm3d)
        return norm


class Down(nn.Sequential):
    """Halves the grid: 2x2x2 convolution of stride 2, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv3d(in_channels, out_channels, 2, stride=2, bias=False),
            nn.BatchNorm3d(out_channels),
            nn.ReLU(inplace=True),
        )


class Compact(nn.Module):
    """(B,1,D,H,W) -> bottleneck (B,Cb,D/16,H/16,W/16) and decoder (B,Co,D/2,H/2,W/2).

    D, H and W are multiples of 16. Skips are added, not concatenated: half the decoder's cost.
    """

    feature_stride = 2
    size_multiple = 16

    def __init__(self, channels: tuple[int, ...] = (32, 64, 96, 160)) -> None:
        super().__init__()
        c0, c1, c2, c3 = channels
        self.bottleneck_channels, self.decoder_channels = c3, c0
        self.stem = nn.Sequential(VoiWindows(), Down(3, c0))
        self.encoder0 = ConvNormAct(c0)
        self.encoder1 = nn.Sequential(Down(c0, c1), ResidualBlock(c1), ResidualBlock(c1))
        self.encoder2 = nn.Sequential(Down(c1, c2), ResidualBlock(c2))
        self.encoder3 = nn.Sequential(Down(c2, c3), ConvNormAct(c3))
        self.up2 = nn.ConvTranspose3d(c3, c2, 2, stride=2)
        self.decoder2 = ConvNormAct(c2)
        self.up1 = nn.ConvTranspose3d(c2, c1, 2, stride=2)
        self.decoder1 = ConvNormAct(c1)
        self.refine1 = ResidualBlock(c1)
        self.up0 = nn.ConvTranspose3d(c1, c0, 2, stride=2)
        self.decoder0 = ConvNormAct(c0)

    def forward(self, window: Tensor) -> tuple[Tensor, Tensor]:
        """The bottleneck and the decoder's output."""
        skip0 = self.encoder0(self.stem(window))
        skip1 = self.encoder1(skip0)
        skip2 = self.encoder2(skip1)
        bottleneck = self.encoder3(skip2)
        decoded = self.decoder2(skip2 + self.up2(bottleneck))
        decoded = self.refine1(self.decoder1(skip1 + self.up1(decoded)))
        decoded = self.decoder0(skip0 + self.up0(decoded))
        return bottleneck, decoded
