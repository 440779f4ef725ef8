"""The `dints` backbone: the network that DiNTS found for 3D medical segmentation, from MONAI's cells.

He et al., CVPR 2021 (arXiv 2103.15954); the codes below are that search's result, as the released model (Liu et al.,
ICCV 2023, arXiv 2301.00785) uses it. Four resolutions, 1/2 to 1/16 of the window, run side by side through twelve
blocks; in a block ten paths lead from a resolution to itself or its neighbours. Names are MONAI's, and so are the keys
of published weights.
"""

import contextlib
import io

import numpy as np
from monai.networks.nets.dints import TopologyInstance
from torch import Tensor, nn

RESOLUTIONS = 4

#: The resolution that each path comes from, and the one it leads to; 0 is the finest.
PATHS = ((0, 0), (1, 0), (0, 1), (1, 1), (2, 1), (1, 2), (2, 2), (3, 2), (2, 3), (3, 3))

#: Which resolutions the window enters at (the first row of the search's `node_a`).
INPUTS = "1110"

#: One row per block, one digit per path: whether the path is there (`arch_code_a`).
ACTIVE = (
    "1011111010", "1111011011", "1111111011", "1011111110", "1111011111", "1011111111",
    "1111010111", "1111110011", "1111011111", "1111011111", "1110011111", "1100000111",
)  # fmt: skip

#: The same for the cell on the path (`arch_code_c`): 0 skip, 1 a 3x3x3, 2 a 3x3x1, 3 a 3x1x3, 4 a 1x3x3 convolution.
CELLS = (
    "1313212011", "1031021243", "3002101210", "4221211013", "1140041111", "2000444111",
    "4300240103", "1100340413", "1002000011", "1423443031", "2023020032", "4400143021",
)  # fmt: skip


class _Stem(nn.Module):
    """Layers in a row, one level deeper, as the published keys have it."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.mod = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        features = self.mod(features)
        return features


def _conv(in_channels: int, out_channels: int, stride: int = 1) -> nn.Module:
    return nn.Conv3d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def _norm(channels: int) -> nn.Module:
    return nn.InstanceNorm3d(channels, affine=True)


def _resize(factor: float) -> nn.Module:
    return nn.Upsample(scale_factor=factor, mode="trilinear", align_corners=True)


def _code(rows: tuple[str, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.array([[int(digit) for digit in row] for row in rows], dtype=np.int64)


class DiNTS(nn.Module):
    """(B,1,D,H,W) -> bottleneck (B,16f,D/16,H/16,W/16) and decoder (B,f,D,H,W); f is `feature_size`.

    D, H and W are multiples of 16 and at least 32: an instance norm needs more than one voxel.
    """

    feature_stride = 1
    size_multiple = 16

    def __init__(self, feature_size: int = 32) -> None:
        super().__init__()
        widths = [feature_size * 2**depth for depth in range(RESOLUTIONS + 1)]
        self.bottleneck_channels, self.decoder_channels = widths[-1], widths[0]
        with contextlib.redirect_stdout(io.StringIO()):  # MONAI prints advice on window sizes
            self.dints_space = TopologyInstance(
                [_code(ACTIVE), _code(CELLS)],
                channel_mul=feature_size / 32,
                num_blocks=len(ACTIVE),
                num_depths=RESOLUTIONS,
            )
        self.stem_down = nn.ModuleDict()
        self.stem_up = nn.ModuleDict()
        for depth in range(RESOLUTIONS):
            outer, inner = widths[depth], widths[depth + 1]
            self.stem_down[str(depth)] = _Stem(
                _resize(1 / 2**depth), _conv(1, outer), _norm(outer), nn.ReLU(), _conv(outer, inner, 2), _norm(inner)
            )
            self.stem_up[str(depth)] = _Stem(nn.ReLU(), _conv(inner, outer), _norm(outer), _resize(2))

    def forward(self, window: Tensor) -> tuple[Tensor, Tensor]:
        """The coarsest resolution after the last block, and all of them brought back to the window's grid."""
        nodes: list[Tensor | None] = [
            self.stem_down[str(depth)](window) if entered == "1" else None for depth, entered in enumerate(INPUTS)
        ]
        for block, active in enumerate(ACTIVE):
            nodes = self._block(block, active, nodes)
        bottleneck = nodes[-1]
        assert bottleneck is not None
        decoded: Tensor = self.stem_up[str(RESOLUTIONS - 1)](bottleneck)
        for depth in reversed(range(RESOLUTIONS - 1)):
            decoded = self.stem_up[str(depth)](_sum(nodes[depth], decoded))
        return bottleneck, decoded

    def _block(self, block: int, active: str, nodes: list[Tensor | None]) -> list[Tensor | None]:
        """The sums of what arrives at each resolution; None where nothing does."""
        sums: list[Tensor | None] = [None] * RESOLUTIONS
        for path, (source, target) in enumerate(PATHS):
            if active[path] == "1":
                cell = self.dints_space.cell_tree[str((block, path))]
                sums[target] = _sum(sums[target], cell(nodes[source], None))
        return sums


def _sum(first: Tensor | None, second: Tensor) -> Tensor:
    return second if first is None else first + second
