"""Names in published weights against ours: the whole difference between the two state dicts.

Published are the weights of the CLIP-Driven Universal Model (Liu et al., ICCV 2023, arXiv 2301.00785) and others in its
layout, such as SuPreM's. Their keys may start with `module.` (saved from a data-parallel model) and the backbone's with
`backbone.`; both appear with and without. Inside the backbone the names are the same as ours.
"""

import re
from dataclasses import dataclass

from training.config import Architecture

#: Ours to published, all keys that are not the backbone's.
HEAD_KEYS: dict[str, str] = {
    "text_embedding": "organ_embedding",
    "text_to_vision.weight": "text_to_vision.weight",
    "text_to_vision.bias": "text_to_vision.bias",
    "gap.0.weight": "GAP.0.weight",
    "gap.0.bias": "GAP.0.bias",
    "gap.3.weight": "GAP.3.weight",
    "gap.3.bias": "GAP.3.bias",
    "feature_head.0.weight": "precls_conv.0.weight",
    "feature_head.0.bias": "precls_conv.0.bias",
    "feature_head.2.weight": "precls_conv.2.weight",
    "feature_head.2.bias": "precls_conv.2.bias",
    "controller.weight": "controller.weight",  # theirs is that of a 1x1x1 convolution, (153,512,1,1,1)
    "controller.bias": "controller.bias",
}

#: The embedding where it was learned in place of text features: (C,256), and there is no `text_to_vision`.
LEARNED_EMBEDDING = "organ_embedding.weight"

#: Running statistics of the U-Net's batch norm. The reference never used them; see `training.networks.unet`.
_UNREAD = re.compile(r"(down|up)_tr\d+\.ops\.[01]\.bn1\.(running_mean|running_var|num_batches_tracked)")

_OURS = {published: ours for ours, published in HEAD_KEYS.items()} | {LEARNED_EMBEDDING: "text_embedding"}


@dataclass(frozen=True)
class PublishedBackbone:
    """How a backbone is recognised: the start of keys that only it has, and a weight with `feature_size` rows."""

    architecture: Architecture
    mark: str
    width_key: str


BACKBONES = (
    PublishedBackbone("swin_unetr", "swinViT.", "swinViT.patch_embed.proj.weight"),
    PublishedBackbone("unet", "down_tr64.", "up_tr64.ops.1.conv1.weight"),
    PublishedBackbone("unetpp", "upcat_0_4.", "upcat_0_4.convs.conv_1.conv.weight"),
    PublishedBackbone("dints", "dints_space.", "stem_up.0.mod.1.weight"),
)


def our_key(published: str) -> str | None:
    """Our name of a published key, whichever prefixes it has; None for one that is not read.

    A name that nobody knows is taken for one of the backbone's.
    """
    name = published.removeprefix("module.")
    if name in _OURS:
        return _OURS[name]
    name = name.removeprefix("backbone.")
    return None if _UNREAD.fullmatch(name) else f"backbone.{name}"


def published_key(ours: str) -> str:
    """The published name of one of our keys, with `backbone.` and without `module.`."""
    return HEAD_KEYS.get(ours, ours)
