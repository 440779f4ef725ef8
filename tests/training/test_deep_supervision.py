"""The voxel classifier's targets and its marginal loss, by hand."""

import math

import pytest
import torch

from training.deep_supervision import VoxelClassifier, marginal_cross_entropy, most_specific_class
from training.labels import BY_NAME, LABELS

ALL = torch.ones(1, len(LABELS), dtype=torch.bool)


def channel(name: str) -> int:
    return BY_NAME[name].channel


def occupancy(*voxels: dict[str, float]) -> torch.Tensor:
    """(1,C,V,1,1): what fills each voxel."""
    filled = torch.zeros(1, len(LABELS), len(voxels), 1, 1)
    for number, voxel in enumerate(voxels):
        for name, share in voxel.items():
            filled[0, channel(name), number] = share
    return filled


def test_the_most_specific_label_names_the_voxel() -> None:
    classes = most_specific_class(
        occupancy(
            {},
            {"liver": 1.0},
            {"liver": 1.0, "hepatic_vessel": 0.5},
            {"liver": 1.0, "hepatic_vessel": 1.0, "liver_tumor": 0.5},
            {"liver": 1.0, "liver_tumor": 0.375},
            {"kidney_left": 0.375},
        )
    )
    expected = [0] + [1 + channel(name) for name in ("liver", "hepatic_vessel", "liver_tumor", "liver")] + [0]
    assert classes.dtype == torch.int64
    assert classes.flatten().tolist() == expected


def test_classifier_has_a_class_for_none_and_one_per_label() -> None:
    assert VoxelClassifier(16)(torch.zeros(2, 16, 3, 4, 5)).shape == (2, 33, 3, 4, 5)


def test_equal_logits_cost_the_log_of_the_number_of_classes() -> None:
    classes = most_specific_class(occupancy({}, {"liver": 1.0}))
    loss = marginal_cross_entropy(torch.zeros(1, 33, 2, 1, 1), classes, ALL)
    assert loss.item() == pytest.approx(math.log(33), rel=1e-6)


def test_agrees_with_cross_entropy_where_all_is_annotated() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 33, 8, 1, 1, generator=generator)
    classes = torch.tensor([0, 0, 0, 0, 1, 5, 5, 7]).reshape(1, 8, 1, 1)
    counts = torch.bincount(classes.flatten(), minlength=33)
    weight = 1.0 / counts.clamp(min=1).float().sqrt()
    expected = torch.nn.functional.cross_entropy(logits, classes, weight)
    assert marginal_cross_entropy(logits, classes, ALL).item() == pytest.approx(expected.item(), rel=1e-5)


def test_rare_classes_weigh_the_inverse_root_of_their_number() -> None:
    """Four background voxels at probability 1/2 and one of the spleen at 1/4: weights 1/2 and 1."""
    logits = torch.full((1, 33, 5, 1, 1), -torch.inf)
    spleen = 1 + channel("spleen")
    logits[:, 0], logits[:, spleen] = 0.0, 0.0
    logits[0, 0, 4], logits[0, spleen, 4] = math.log(3.0), 0.0
    classes = torch.tensor([0, 0, 0, 0, spleen]).reshape(1, 5, 1, 1)
    loss = marginal_cross_entropy(logits, classes, ALL)
    assert loss.item() == pytest.approx((4 * 0.5 * math.log(2) + math.log(4)) / (4 * 0.5 + 1), rel=1e-6)


def test_label_without_annotation_counts_as_background() -> None:
    """The liver was not annotated: calling a background voxel liver costs nothing and has no gradient to unlearn it."""
    supervised = ALL.clone()
    supervised[0, channel("liver")] = False
    logits = torch.zeros(1, 33, 1, 1, 1)
    logits[0, 1 + channel("liver")] = 40.0
    classes = torch.zeros(1, 1, 1, 1, dtype=torch.int64)
    assert marginal_cross_entropy(logits, classes, supervised).item() == pytest.approx(0.0, abs=1e-6)
    assert marginal_cross_entropy(logits, classes, ALL).item() == pytest.approx(40.0, rel=1e-3)


def test_gradients_are_finite() -> None:
    supervised = ALL.clone()
    supervised[0, 3:9] = False
    logits = torch.zeros(1, 33, 2, 1, 1, requires_grad=True)
    classes = torch.tensor([0, 5]).reshape(1, 2, 1, 1)  # class 5 was not annotated: taken as background
    marginal_cross_entropy(logits, classes, supervised).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 20].abs().sum() > 0
