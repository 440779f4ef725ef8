"""The backbones by their name in the configuration.

A backbone turns a window (B,1,D,H,W) into a bottleneck (B, bottleneck_channels, ...) and decoder features
(B, decoder_channels, D/s, H/s, W/s), s its `feature_stride`. D, H and W are multiples of its `size_multiple`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias, Union

from training.config import Architecture, ModelConfig
from training.networks.compact import Compact
from training.networks.unet import UNet

if TYPE_CHECKING:
    from training.networks.dints import DiNTS
    from training.networks.swin_unetr import SwinUnetr
    from training.networks.unetpp import UNetPlusPlus

Backbone: TypeAlias = Union[Compact, "SwinUnetr", UNet, "UNetPlusPlus", "DiNTS"]

#: Decoder channels of the published weights, by architecture.
PUBLISHED_FEATURE_SIZES: dict[Architecture, int] = {"swin_unetr": 48, "unet": 64, "unetpp": 32, "dints": 32}


def build_backbone(config: ModelConfig) -> Backbone:
    """The backbone that `config` describes, with random weights. Raises ValueError for a width it cannot have."""
    return _BUILDERS[config.architecture](config)


def feature_stride(config: ModelConfig) -> int:
    """Window voxels per feature voxel and axis, without building the network."""
    return Compact.feature_stride if config.architecture == "compact" else UNet.feature_stride


def _feature_size(config: ModelConfig) -> int:
    return config.feature_size or PUBLISHED_FEATURE_SIZES[config.architecture]


# MONAI is imported by the networks made of its blocks only: it takes seconds, and `compact` does without.
def _swin_unetr(config: ModelConfig) -> Backbone:
    from training.networks.swin_unetr import SwinUnetr

    return SwinUnetr(_feature_size(config), config.patch_merging)


def _unetpp(config: ModelConfig) -> Backbone:
    from training.networks.unetpp import UNetPlusPlus

    return UNetPlusPlus(_feature_size(config))


def _dints(config: ModelConfig) -> Backbone:
    from training.networks.dints import DiNTS

    return DiNTS(_feature_size(config))


_BUILDERS: dict[Architecture, Callable[[ModelConfig], Backbone]] = {
    "compact": lambda config: Compact(config.channels),
    "swin_unetr": _swin_unetr,
    "unet": lambda config: UNet(_feature_size(config)),
    "unetpp": _unetpp,
    "dints": _dints,
}
