"""Weights that bfloat16 holds exactly, for a network that is to run in it.

An engine that computes in bfloat16 rounds the weights, the shifts added to each convolution and whatever lies between
two layers. Weights and shifts are off in the same way at every voxel, and what they do to the logits adds up: measured
on the default bundle 2.4.0, logits near 0 were off by 0.065 (root mean square, a CT of chest and abdomen), 0.019 with
both rounded beforehand. A network of rounded weights is another one than was trained, as little as rounding makes it;
float32 and bfloat16 then give nearly the same masks.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from training.networks.universal import UniversalModel

_LAYERS = (nn.Conv3d, nn.ConvTranspose3d, nn.Linear)


@torch.no_grad()
def round_to_bfloat16(model: UniversalModel) -> None:
    """Rounds weights and shifts of every layer before the generated heads, in place, those of batch norms as the export
    folds them into the convolution before. The heads stay as they are: they run in float32.

    Raises ValueError for a batch norm that does not follow a convolution.
    """
    layers = (model.backbone, model.gap, model.feature_head)
    norms = {norm for part in layers for norm in part.modules() if isinstance(norm, nn.BatchNorm3d)}
    for part in layers:
        for sequence in part.modules():
            if not isinstance(sequence, nn.Sequential):
                continue
            for before, norm in zip(sequence, list(sequence)[1:], strict=False):
                if isinstance(before, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d):
                    _fold(before, norm)
                    norm.bias.copy_(_rounded(norm.bias))
                    norms.discard(norm)
    if norms:
        raise ValueError(f"{len(norms)} batch norms do not follow a convolution, so that neither can be rounded.")
    for part in layers:
        for layer in part.modules():
            if isinstance(layer, _LAYERS):
                layer.weight.copy_(_rounded(layer.weight))
                if layer.bias is not None:
                    layer.bias.copy_(_rounded(layer.bias))


def _fold(convolution: nn.Conv3d, norm: nn.BatchNorm3d) -> None:
    """Moves the norm's scale into the convolution and leaves a norm that only adds its shift; the same function."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, shift = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    convolution.weight.copy_(weight)
    if convolution.bias is not None:
        convolution.bias.zero_()
    norm.weight.fill_(1.0)
    norm.running_mean.zero_()
    norm.running_var.fill_(1.0 - norm.eps)  # to which eps is added before the root
    norm.bias.copy_(shift)


def _rounded(values: Tensor) -> Tensor:
    return values.to(torch.bfloat16).to(values.dtype)
