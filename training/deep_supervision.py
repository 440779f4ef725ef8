"""Deep supervision of the decoder: a plain classifier beside the generated heads, in training only.

The generated heads read 8 features, and while they are still poor, small labels send the backbone no useful gradient.
A 1x1x1 convolution on the decoder's own features has no such bottleneck: with one class per voxel and rare classes
weighed up, it makes the features tell all labels apart early. It is neither exported nor kept in the final checkpoint.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.label_table import STANDARD, LabelTable, from_least_specific
from training.labels import LABELS
from training.parallel import sum_over_processes


class VoxelClassifier(nn.Sequential):
    """Decoder features (B,Co,*grid) -> class logits (B,1+C,*grid); class 0 is none of the labels."""

    def __init__(self, decoder_channels: int, labels: int = len(LABELS)) -> None:
        super().__init__(nn.BatchNorm3d(decoder_channels), nn.Conv3d(decoder_channels, 1 + labels, 1))


def most_specific_class(occupancy: Tensor, table: LabelTable = STANDARD) -> Tensor:
    """Classes (B,*grid) int64 of occupancies (B,C,*grid) in 0..1: 1 + the channel that fills at least 0.4 of the voxel.

    Of several the most specific one names the voxel: a vessel inside the liver before the liver, a lesion before its
    host. 0.4, not 0.5: of a vessel or a gland a few voxels wide the half-filled ones are most of it.
    """
    classes = torch.zeros((len(occupancy), *occupancy.shape[2:]), dtype=torch.int64, device=occupancy.device)
    for label in from_least_specific(table):
        classes.masked_fill_(occupancy[:, label.channel] >= 0.4, label.channel + 1)
    return classes


def marginal_cross_entropy(class_logits: Tensor, classes: Tensor, supervised: Tensor) -> Tensor:
    """Cross-entropy of class logits (B,1+C,*grid) against `classes`; `supervised` is bool (B,C).

    A class weighs the inverse square root of its number of voxels. In a case where a label was not annotated its voxels
    are counted among the background: the probability of "no annotated label" is the sum over background and every label
    without annotation (marginal loss, Shi et al., Medical Image Analysis 2021).
    """
    unknown = functional.pad(~supervised, (1, 0), value=True)[:, :, None, None, None]
    background = torch.logsumexp(class_logits.masked_fill(~unknown, -torch.inf), dim=1, keepdim=True)
    log_share = torch.cat([background, class_logits[:, 1:]], dim=1) - torch.logsumexp(class_logits, dim=1, keepdim=True)
    annotated = functional.pad(supervised, (1, 0), value=True)
    truth = torch.where(torch.gather(annotated, 1, classes.flatten(1)).view_as(classes), classes, 0)
    # bincount, but without waiting for the device
    count = log_share.new_zeros(class_logits.shape[1])
    count.scatter_add_(0, truth.flatten(), log_share.new_ones(()).expand(truth.numel()))
    weight = sum_over_processes(count).clamp(min=1.0).rsqrt()
    lost = functional.nll_loss(log_share, truth, weight, reduction="sum")
    both: Tensor = sum_over_processes(torch.stack([lost, (count * weight).sum()]))
    return both[0] / both[1]
