"""The masked loss, worked out by hand on two voxels."""

import math

import pytest
import torch

from training.losses import masked_dice_bce

TWO_THIRDS = math.log(2.0)  # the logit of probability 2/3


def loss_of(logits: list, target: list, supervised: list, **options: float | torch.Tensor):
    """Pairs [b][c] of two voxels each."""
    logits_BCX = torch.tensor(logits, dtype=torch.float64, requires_grad=True)[..., None, None]
    target_BCX = torch.tensor(target, dtype=torch.float64)[..., None, None]
    return masked_dice_bce(logits_BCX, target_BCX, torch.tensor(supervised), **options)


def test_two_voxels() -> None:
    """p = 2/3, 1/3 against 1, 0: overlap 2/3, sums 1 and 1; each voxel costs log 3/2."""
    loss = loss_of([[[TWO_THIRDS, -TWO_THIRDS]]], [[[1, 0]]], [[True]])
    assert loss.dice.item() == pytest.approx(1 - (2 * 2 / 3 + 1) / (1 + 1 + 1))
    assert loss.cross_entropy.item() == pytest.approx(math.log(1.5))
    assert loss.total.item() == pytest.approx(loss.dice.item() + loss.cross_entropy.item())


def test_partly_filled_voxels() -> None:
    """p = 1/2 everywhere against occupancies 1/4 and 3/4: overlap 1/2; cross-entropy log 2 whatever the target."""
    loss = loss_of([[[0, 0]]], [[[0.25, 0.75]]], [[True]])
    assert loss.dice.item() == pytest.approx(1 - (2 * 0.5 + 1) / (1 + 1 + 1))
    assert loss.cross_entropy.item() == pytest.approx(math.log(2))


def test_perfect_prediction_costs_nothing() -> None:
    loss = loss_of([[[40, -40], [40, 40]]], [[[1, 0], [1, 1]]], [[True, True]])
    assert loss.total.item() == pytest.approx(0, abs=1e-12)


def test_wrong_prediction_costs_nearly_all_of_dice() -> None:
    loss = loss_of([[[-40, 40]]], [[[1, 0]]], [[True]])
    assert loss.dice.item() == pytest.approx(1 - 1 / 3)  # the smoothing voxel
    assert loss.cross_entropy.item() == pytest.approx(40)


def test_label_absent_from_the_batch_is_left_to_cross_entropy() -> None:
    loss = loss_of([[[0, 0]]], [[[0, 0]]], [[True]])
    assert loss.dice.item() == 0
    assert loss.cross_entropy.item() == pytest.approx(math.log(2))


def test_a_false_volume_costs_its_share_of_itself_and_the_half_cost() -> None:
    """Label 0 is in sample 0 only; in sample 1 it is predicted with 1/2 + 1/2, label 1 in both with 2/3 + 1/3."""
    logits = [[[40, -40], [TWO_THIRDS, -TWO_THIRDS]], [[0, 0], [TWO_THIRDS, -TWO_THIRDS]]]
    loss = loss_of(logits, [[[1, 0], [0, 0]], [[0, 0], [0, 0]]], [[True, True], [True, True]], half_cost_voxels=3.0)
    assert loss.false_volume.item() == pytest.approx(1 / (1 + 3))
    assert loss.total.item() == pytest.approx((loss.dice + loss.cross_entropy + loss.false_volume).item())


def test_no_false_volume_where_a_label_was_not_annotated_or_no_price_is_set() -> None:
    pair = ([[[0, 0], [-40, -40]]], [[[0, 0], [0, 0]]])
    assert loss_of(*pair, [[False, True]], half_cost_voxels=3.0).false_volume.item() == pytest.approx(0, abs=1e-12)
    assert loss_of(*pair, [[True, True]]).false_volume.item() == 0
    assert loss_of([[[0, 0]]], [[[1, 0]]], [[True]], half_cost_voxels=3.0).false_volume.item() == 0


def test_dice_is_over_the_batch_as_one_set() -> None:
    """Sample 0 has the label, sample 1 has none of it but p = 1/2 there: its voxels count as predicted."""
    loss = loss_of([[[40, -40]], [[0, 0]]], [[[1, 0]], [[0, 0]]], [[True], [True]])
    assert loss.dice.item() == pytest.approx(1 - (2 * 1 + 1) / (1 + 1 + 1 + 1))
    assert loss.cross_entropy.item() == pytest.approx(math.log(2) / 2)


def test_labels_weigh_alike_however_often_supervised() -> None:
    """Label 0 costs log 2 in both samples, label 1 log 3/2 in one: the mean of the two labels, not of three pairs."""
    loss = loss_of(
        [[[0, 0], [-TWO_THIRDS, -TWO_THIRDS]], [[0, 0], [9, 9]]],
        [[[0, 0], [0, 0]], [[0, 0], [0, 0]]],
        [[True, True], [True, False]],
    )
    assert loss.cross_entropy.item() == pytest.approx((math.log(2) + math.log(1.5)) / 2)


def test_unsupervised_pairs_have_no_value_and_no_gradient() -> None:
    logits = torch.randn((2, 3, 2, 2, 2), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = (logits < 0.3).double()
    supervised = torch.tensor([[True, False, True], [False, False, True]])
    changed = torch.where(supervised[..., None, None, None], logits, 50.0)
    values = []
    for variant in (logits, changed):
        variant.requires_grad_()
        loss = masked_dice_bce(variant, target, supervised)
        loss.total.backward()
        values.append(loss.total.item())
        moved = variant.grad.abs().sum(dim=(2, 3, 4)) > 0
        assert moved.tolist() == supervised.tolist()
    assert values[0] == values[1]


def test_nothing_supervised_is_zero_and_differentiable() -> None:
    logits = torch.zeros((1, 2, 1, 1, 2), requires_grad=True)
    loss = masked_dice_bce(logits, torch.ones_like(logits).detach(), torch.zeros((1, 2), dtype=torch.bool))
    loss.total.backward()
    assert loss.total.item() == 0
    assert logits.grad.abs().max() == 0


def test_a_label_of_weight_three_has_three_quarters_of_the_say() -> None:
    """Label 0 costs nothing, label 1 has Dice loss 1 - 7/9 and cross-entropy log 3/2 (`test_two_voxels`)."""
    logits, target = [[[40, -40], [TWO_THIRDS, -TWO_THIRDS]]], [[[1, 0], [1, 0]]]
    loss = loss_of(logits, target, [[True, True]], label_weight=torch.tensor([1.0, 3.0]))
    assert loss.dice.item() == pytest.approx(0.75 * (1 - 7 / 9))
    assert loss.cross_entropy.item() == pytest.approx(0.75 * math.log(1.5))


def test_the_weight_of_a_label_without_voxels_takes_no_say_from_the_others() -> None:
    """Only label 0 has voxels, so its Dice is the mean whatever label 1 weighs."""
    logits, target = [[[TWO_THIRDS, -TWO_THIRDS], [0, 0]]], [[[1, 0], [0, 0]]]
    loss = loss_of(logits, target, [[True, True]], label_weight=torch.tensor([1.0, 9.0]))
    assert loss.dice.item() == pytest.approx(1 - 7 / 9)


def test_rare_voxels_weigh_more() -> None:
    """One voxel of four is filled: at exponent 1 it weighs (3/4) / (1/4) = 3, as much as the other three together."""
    logits = torch.tensor([2.0, -1.0, -1.0, -1.0], dtype=torch.float64).reshape(1, 1, 4, 1, 1)
    target = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64).reshape(1, 1, 4, 1, 1)
    loss = masked_dice_bce(logits, target, torch.tensor([[True]]), rarity_exponent=1.0)
    filled, empty = math.log1p(math.exp(-2.0)), math.log1p(math.exp(-1.0))
    assert loss.cross_entropy.item() == pytest.approx((3 * filled + 3 * empty) / 6)
    half = masked_dice_bce(logits, target, torch.tensor([[True]]), rarity_exponent=0.5)
    root = math.sqrt(3.0)
    assert half.cross_entropy.item() == pytest.approx((root * filled + 3 * empty) / (root + 3))
    assert half.dice.item() == pytest.approx(loss.dice.item())


def test_each_label_has_its_own_exponent() -> None:
    logits = torch.randn((2, 2, 2, 2, 2), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    target = (torch.rand(logits.shape, generator=torch.Generator().manual_seed(3)) < 0.2).double()

    def cross_entropy(channels: slice, exponent: float | torch.Tensor) -> float:
        supervised = torch.ones(2, 2, dtype=torch.bool)[:, channels]
        pair = (logits[:, channels], target[:, channels])
        return masked_dice_bce(*pair, supervised, rarity_exponent=exponent).cross_entropy.item()

    both = cross_entropy(slice(0, 2), torch.tensor([0.0, 0.7]))
    apart = (cross_entropy(slice(0, 1), 0.0) + cross_entropy(slice(1, 2), 0.7)) / 2
    assert both == pytest.approx(apart)
    assert both != pytest.approx(cross_entropy(slice(0, 2), 0.0))
