"""The `unetpp` backbone: MONAI's BasicUNetPlusPlus without its final convolutions.

Zhou et al. 2018 (arXiv 1807.10165); widths and activations of the released model (Liu et al., ICCV 2023, arXiv
2301.00785). A node `upcat_i_j` lies at depth i, the j-th from the encoder; its output is x_i_j. Names are MONAI's, and
so are the keys of published weights.
"""

import torch
from monai.networks.nets.basic_unet import Down, TwoConv, UpCat
from torch import Tensor, nn

_ACTIVATION = ("LeakyReLU", {"negative_slope": 0.1, "inplace": True})
_NORM = ("instance", {"affine": True})


def _encoder(in_channels: int, out_channels: int) -> nn.Module:
    block: nn.Module = Down(3, in_channels, out_channels, _ACTIVATION, _NORM, True)
    return block


def _node(in_channels: int, skip_channels: int, out_channels: int, *, halves: bool = True) -> nn.Module:
    block: nn.Module = UpCat(3, in_channels, skip_channels, out_channels, _ACTIVATION, _NORM, True, halves=halves)
    return block


class UNetPlusPlus(nn.Module):
    """(B,1,D,H,W) -> bottleneck (B,8f,D/16,H/16,W/16) and decoder (B,f,D,H,W); f is `feature_size`.

    D, H and W are multiples of 16 and at least 32: an instance norm needs more than one voxel.
    """

    feature_stride = 1
    size_multiple = 16

    def __init__(self, feature_size: int = 32) -> None:
        super().__init__()
        f = feature_size
        self.bottleneck_channels, self.decoder_channels = 8 * f, f
        self.conv_0_0 = TwoConv(3, 1, f, _ACTIVATION, _NORM, True)
        self.conv_1_0 = _encoder(f, f)
        self.conv_2_0 = _encoder(f, 2 * f)
        self.conv_3_0 = _encoder(2 * f, 4 * f)
        self.conv_4_0 = _encoder(4 * f, 8 * f)
        self.upcat_0_1 = _node(f, f, f, halves=False)
        self.upcat_1_1 = _node(2 * f, f, f)
        self.upcat_2_1 = _node(4 * f, 2 * f, 2 * f)
        self.upcat_3_1 = _node(8 * f, 4 * f, 4 * f)
        self.upcat_0_2 = _node(f, 2 * f, f, halves=False)
        self.upcat_1_2 = _node(2 * f, 2 * f, f)
        self.upcat_2_2 = _node(4 * f, 4 * f, 2 * f)
        self.upcat_0_3 = _node(f, 3 * f, f, halves=False)
        self.upcat_1_3 = _node(2 * f, 3 * f, f)
        self.upcat_0_4 = _node(f, 4 * f, f, halves=False)

    def forward(self, window: Tensor) -> tuple[Tensor, Tensor]:
        """The bottleneck x_4_0 and the last node x_0_4."""
        x_0_0 = self.conv_0_0(window)
        x_1_0 = self.conv_1_0(x_0_0)
        x_2_0 = self.conv_2_0(x_1_0)
        x_3_0 = self.conv_3_0(x_2_0)
        x_4_0: Tensor = self.conv_4_0(x_3_0)
        x_0_1 = self.upcat_0_1(x_1_0, x_0_0)
        x_1_1 = self.upcat_1_1(x_2_0, x_1_0)
        x_2_1 = self.upcat_2_1(x_3_0, x_2_0)
        x_3_1 = self.upcat_3_1(x_4_0, x_3_0)
        x_0_2 = self.upcat_0_2(x_1_1, torch.cat([x_0_0, x_0_1], dim=1))
        x_1_2 = self.upcat_1_2(x_2_1, torch.cat([x_1_0, x_1_1], dim=1))
        x_2_2 = self.upcat_2_2(x_3_1, torch.cat([x_2_0, x_2_1], dim=1))
        x_0_3 = self.upcat_0_3(x_1_2, torch.cat([x_0_0, x_0_1, x_0_2], dim=1))
        x_1_3 = self.upcat_1_3(x_2_2, torch.cat([x_1_0, x_1_1, x_1_2], dim=1))
        x_0_4: Tensor = self.upcat_0_4(x_1_3, torch.cat([x_0_0, x_0_1, x_0_2, x_0_3], dim=1))
        return x_4_0, x_0_4
