"""Masked Dice + binary cross-entropy: each label learns only from the cases in which it was annotated.

Paper section 3.3. Unlike the released code, labels weigh alike however many of them a case has, the Dice of a label is
taken over the batch's supervised voxels as one set, and a label with no voxel in the batch has none (an empty Dice has
no useful gradient). What is predicted of a label in a window without it can be charged by its volume instead: in the
cross-entropy, a mean over all voxels, a false lesion costs next to nothing. Where several processes share a batch, all
these sums are over the whole batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from training.parallel import sum_over_processes

SMOOTH = 1.0  # voxels, in numerator and denominator: a perfect prediction scores exactly 1


@dataclass(frozen=True)
class MaskedLoss:
    """Scalars; `total` is their sum."""

    total: Tensor
    dice: Tensor
    cross_entropy: Tensor
    false_volume: Tensor


def masked_dice_bce(
    logits: Tensor,
    target: Tensor,
    supervised: Tensor,
    *,
    label_weight: Tensor | None = None,
    rarity_exponent: float | Tensor | None = None,
    half_cost_voxels: float | None = None,
) -> MaskedLoss:
    """Loss of logits (B,C,*grid) against occupancies in 0..1 of the same shape; `supervised` is bool (B,C).

    A pair that is not supervised contributes neither value nor gradient. With no supervised pair at all the loss is 0.
    `label_weight` (C,) is the say of each label in the means over labels; None: all alike.
    In the cross-entropy a filled voxel of a label that fills the share f of its window weighs ((1 - f) / f) to the
    power `rarity_exponent`, one for all labels or (C,): 0 or None weighs all voxels alike, 1 gives both sides of
    a label the same say.
    Where a window has no voxel of a label, a predicted volume of v voxels costs v / (v + `half_cost_voxels`), in the
    mean over all such pairs; None: nothing.
    """
    weight = supervised.to(logits.dtype)
    grid = tuple(range(2, logits.ndim))
    cross_entropy_BC = _weighted_cross_entropy(logits, target, rarity_exponent)
    say = torch.ones_like(weight[0]) if label_weight is None else label_weight
    probability = torch.sigmoid(logits)
    volume, filled = probability.sum(dim=grid), target.sum(dim=grid)
    parts = [cross_entropy_BC, torch.ones_like(weight), (probability * target).sum(dim=grid), volume, filled]
    cross_entropy_C, count, overlap, predicted, present = sum_over_processes(
        torch.stack([(part * weight).sum(0) for part in parts])
    )
    cross_entropy = _mean_over_labels(cross_entropy_C, count, say)
    dice_C = 1.0 - (2.0 * overlap + SMOOTH) / (predicted + present + SMOOTH)
    has_voxels = (present > 0).to(logits.dtype)
    dice = _mean_over_labels(dice_C * has_voxels, has_voxels, say)
    false_volume = torch.zeros_like(dice)
    if half_cost_voxels is not None:
        absent = weight * (filled == 0)
        charged = (volume / (volume + half_cost_voxels) * absent).sum()
        charged, pairs = sum_over_processes(torch.stack([charged, absent.sum()]))
        false_volume = charged / pairs.clamp(min=1.0)
    return MaskedLoss(dice + cross_entropy + false_volume, dice, cross_entropy, false_volume)


def _weighted_cross_entropy(logits: Tensor, target: Tensor, rarity_exponent: float | Tensor | None) -> Tensor:
    """Binary cross-entropy of each pair (B,C), a weighted mean over its voxels."""
    grid = tuple(range(2, logits.ndim))
    each = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    if rarity_exponent is None:
        return each.mean(dim=grid)
    exponent = torch.as_tensor(rarity_exponent, dtype=logits.dtype, device=logits.device)
    voxels = target[0, 0].numel()
    share = target.mean(dim=grid, keepdim=True).clamp(1.0 / voxels, 1.0 - 1.0 / voxels)
    gain = ((1.0 - share) / share).pow(exponent.reshape(-1, *(1 for _ in grid))) - 1.0
    weight = 1.0 + gain * target
    return (each * weight).sum(dim=grid) / weight.sum(dim=grid)


def _mean_over_labels(total_C: Tensor, count_C: Tensor, say_C: Tensor) -> Tensor:
    """Mean within each label, then the weighted mean over the labels that have any; 0 when none has."""
    say = say_C * (count_C > 0)
    per_label = total_C / count_C.clamp(min=1.0)
    return (per_label * say).sum() / say.sum().clamp(min=torch.finfo(say.dtype).tiny)
