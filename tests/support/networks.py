"""Networks of every architecture, as narrow as they go, with weights as after training."""

import torch

from training.config import ModelConfig
from training.networks.universal import UniversalModel

#: The narrowest width of each architecture that is still like the published one.
NARROW = {"swin_unetr": 12, "unet": 8, "unetpp": 8, "dints": 4}


def narrow_model(architecture: str, *, labels: int = 32, text_channels: int = 512, seed: int = 0) -> UniversalModel:
    """In eval mode, with weighted norms that do something."""
    config = ModelConfig(
        architecture=architecture, feature_size=NARROW[architecture], patch_merging="duplicated", output_range=(0, 1)
    )
    torch.manual_seed(seed)
    return settle_norms(UniversalModel(config, torch.randn(labels, text_channels) * 0.4))


def settle_norms(model: UniversalModel) -> UniversalModel:
    """The model in eval mode; without biases in its norms, a window of air would be nothing but amplified rounding."""
    for module in model.modules():
        if isinstance(module, torch.nn.InstanceNorm3d) and module.affine:
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0.0, 0.2)
    return model.eval()
