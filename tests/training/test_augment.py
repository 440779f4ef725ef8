"""What is random about a training window."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from tests.support.training import TINY_CONFIG, bits, box_case
from training.augment import (
    WindowPlan,
    _draw_scanned,
    draw_plan,
    label_fields,
    other_contrast,
    plain_plan,
    point_spread,
    thick_slices,
)
from training.label_table import STANDARD
from training.labels import LABELS


def plan(number: int, **options: object) -> WindowPlan:
    return draw_plan(box_case(), TINY_CONFIG, 32, np.random.default_rng(number), **options)  # type: ignore[arg-type]


def test_a_plan_follows_its_generator() -> None:
    first, again, other = plan(1), plan(1), plan(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.center, other.center)
    assert not torch.equal(first.hu, other.hu)


def test_a_plan_says_what_was_annotated() -> None:
    case = box_case(supervised=int(bits("kidney_right", "kidney_cyst")))
    supervised = draw_plan(case, TINY_CONFIG, 32, np.random.default_rng(0)).supervised
    assert [LABELS[c].name for c in torch.nonzero(supervised).flatten()] == ["kidney_right", "kidney_cyst"]


def test_no_pose_flips_the_patient() -> None:
    for number in range(50):
        matrix = plan(number).matrix
        assert torch.linalg.det(matrix) > 0.5
        assert (torch.diagonal(matrix) > 0.6).all()


def test_a_case_as_it_lies_is_not_moved() -> None:
    plain = plain_plan(box_case(), TINY_CONFIG, (48, 48, 48), np.random.default_rng(0))
    assert torch.equal(plain.matrix, torch.eye(3))
    assert plain.center.tolist() == [23.5] * 3
    assert not plain.elastic.any()
    assert plain.scanned.tolist() == [0, 48]


def test_label_fields_by_hand() -> None:
    """Liver is channel 5, its tumour 26: nibbles 5 of the first and 10 of the second; the 33rd starts a third."""
    fields = label_fields(np.array([0, bits("liver"), bits("liver", "liver_tumor"), 1 << 32], np.uint64), 33)
    assert fields[:, 0].tolist() == [0, 0, 0]
    assert fields[:, 1].tolist() == [1 << 20, 0, 0]
    assert fields[:, 2].tolist() == [1 << 20, 1 << 40, 0]
    assert fields[:, 3].tolist() == [0, 0, 1]


@pytest.mark.parametrize("sigma", [0.4, 0.55, 0.62, 0.9])
def test_point_spread_is_the_gaussian_filter_of_scipy(sigma: float) -> None:
    line = np.random.default_rng(0).normal(0, 100, 20).astype(np.float32)
    expected = ndimage.gaussian_filter1d(line, sigma, mode="nearest", truncate=2.5)
    np.testing.assert_allclose(point_spread(20, sigma) @ line, expected, rtol=1e-4, atol=1e-3)


def test_field_of_view_is_sometimes_a_slab() -> None:
    slabs = [_draw_scanned(32, np.random.default_rng(number)) for number in range(400)]
    cut = [(start, stop) for start, stop in slabs if (start, stop) != (0, 32)]
    assert all(start >= 0 and stop <= 32 and stop - start >= 8 for start, stop in cut)
    assert 30 < len(cut) < 90  # 15 % of 400


@pytest.mark.parametrize("factor", [1.3, 2.0, 2.7])
def test_thick_slices_leave_alone_what_does_not_change_along_z(factor: float) -> None:
    np.testing.assert_allclose(thick_slices(32, factor).sum(axis=1), 1.0, rtol=1e-6)


def test_thick_slices_are_means_brought_back() -> None:
    """Slices of 3 voxels, 3 apart, of a step to 90 at voxel 4: means 0, 30 and 90 at 0, 3 and 6, lines between."""
    step = np.array([0, 0, 0, 0, 90, 90, 90, 90, 90], np.float32)
    expected = [0, 10, 20, 30, 50, 70, 90, 90, 90]
    np.testing.assert_allclose(thick_slices(9, 3.0) @ step, expected, atol=1e-4)


def test_share_of_windows_around_lesions_and_anywhere() -> None:
    """The tumour is 5 x 6 x 8 of 40 x 36 x 44 voxels, at (28, 17, 20)."""
    tumor = torch.tensor([28.0, 16.5, 19.5])

    def share(around: tuple[float, float]) -> float:
        near = [bool(((plan(n, around=around).center - tumor).abs() < 0.28 * 32 + 4).all()) for n in range(60)]
        return float(np.mean(near))

    assert share((1.0, 0.0)) == 1.0
    assert share((0.0, 0.0)) < 0.6


def test_another_contrast_changes_a_lesion_as_its_host_and_a_vessel_on_its_own() -> None:
    names = ((), ("liver",), ("liver", "liver_tumor"), ("liver", "hepatic_vessel"), ("aorta",), ("colon",))
    labels = np.array([bits(*of_code) for of_code in names], np.uint64)
    gained = torch.stack([other_contrast(labels, np.random.default_rng(seed), STANDARD) for seed in range(400)])
    assert gained.shape == (400, 256)
    assert (gained[:, 0] == 0).all()
    assert (gained[:, len(labels) :] == 0).all()
    torch.testing.assert_close(gained[:, 1], gained[:, 2], rtol=0.0, atol=0.0)
    assert (gained[:, 1] != gained[:, 3]).all()
    # Blood gains most, and with it all that enhances; what holds gas and stool only strays.
    assert gained[:, 4].max() > 100.0
    assert gained[:, 4].min() < -50.0
    assert torch.corrcoef(gained[:, [1, 4]].T)[0, 1] > 0.7
    assert gained[:, 5].abs().max() < 40.0
