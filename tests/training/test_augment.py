"""From a case to a training window."""

import numpy as np
import pytest

from tests.support.training import TINY_CONFIG, bits, box_case
from training.augment import _cut_field_of_view, _thick_slices, draw_sample, normalise, occupancy_at_stride_2
from training.config import ModelConfig
from training.labels import BY_NAME, LABELS

RIGHT, LEFT, TUMOR = (BY_NAME[name].channel for name in ("kidney_right", "kidney_left", "kidney_tumor"))


def draws(count: int):
    case = box_case()
    return (draw_sample(case, TINY_CONFIG, 32, np.random.default_rng(number)) for number in range(count))


def test_occupancy_of_one_feature_voxel() -> None:
    """Codes 1 and 2 carry liver, 2 carries its tumour too: 3 + 2 of 8 voxels and 2 of 8."""
    labels = np.array([0, bits("liver"), bits("liver", "liver_tumor")], np.uint32)
    codes = np.array([1, 1, 1, 2, 2, 0, 0, 0], np.uint8).reshape(2, 2, 2)
    occupancy = occupancy_at_stride_2(codes, labels)
    assert occupancy.shape == (32, 1, 1, 1)
    assert {c: int(n) for c, n in enumerate(occupancy.ravel()) if n} == {5: 5, 26: 2}


def test_occupancy_equals_a_naive_count() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2**32, 40, dtype=np.uint32)
    labels[7] = 0xFFFFFFFF
    codes = rng.integers(0, 40, (6, 4, 8), dtype=np.uint8)
    codes[:2, :2, :2] = 7  # every field at its largest: none may carry into the next
    expected = np.zeros((32, 3, 2, 4), np.uint8)
    for x, y, z in np.ndindex(codes.shape):
        for channel in range(32):
            expected[channel, x // 2, y // 2, z // 2] += int(labels[codes[x, y, z]]) >> channel & 1
    np.testing.assert_array_equal(occupancy_at_stride_2(codes, labels), expected)
    assert expected[:, 0, 0, 0].tolist() == [8] * 32


def test_normalise_by_hand() -> None:
    hu = np.array([-2000, -1000, 0, 40, 1000, 3000], np.float32)
    np.testing.assert_allclose(normalise(hu, ModelConfig()), [-1, -1, 0, 0.04, 1, 1], atol=1e-6)
    narrow = ModelConfig(intensity_range_hu=(-175.0, 250.0), output_range=(0.0, 1.0))
    np.testing.assert_allclose(normalise(hu, narrow), [0, 0, 175 / 425, 215 / 425, 1, 1], atol=1e-6)
    assert normalise(hu.astype(np.int16), ModelConfig()).dtype == np.float32


def test_sample_is_what_the_network_takes() -> None:
    case = box_case(supervised=int(bits("kidney_right", "kidney_cyst")))
    sample = draw_sample(case, TINY_CONFIG, 32, np.random.default_rng(0))
    assert (sample.image.shape, sample.image.dtype) == ((1, 32, 32, 32), np.float32)
    assert (sample.occupancy.shape, sample.occupancy.dtype) == ((32, 16, 16, 16), np.uint8)
    assert -1 <= sample.image.min() < sample.image.max() <= 1
    assert sample.occupancy.max() <= 8
    assert [LABELS[c].name for c in np.flatnonzero(sample.supervised)] == ["kidney_right", "kidney_cyst"]


def test_sample_follows_its_generator() -> None:
    case = box_case()
    first, again, other = (draw_sample(case, TINY_CONFIG, 32, np.random.default_rng(n)) for n in (1, 1, 2))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.occupancy, again.occupancy)
    assert (first.image != other.image).any()


def test_image_and_occupancy_show_the_same_place() -> None:
    """The tumour is of metal, the rest is not."""
    seen = 0
    for sample in draws(80):
        image = sample.image[0].reshape(16, 2, 16, 2, 16, 2).mean(axis=(1, 3, 5))
        inside = sample.occupancy[TUMOR] == 8
        empty = (sample.occupancy == 0).all(axis=0)
        if inside.sum() >= 8 and empty.any():
            seen += 1
            assert image[inside].mean() > 0.8 > 0.2 > image[empty].mean()
    assert seen > 10


def test_left_and_right_are_never_flipped() -> None:
    seen = 0
    for sample in draws(150):
        right, left = (np.nonzero(sample.occupancy[channel] > 4)[0] for channel in (RIGHT, LEFT))
        if len(right) and len(left):
            seen += 1
            assert right.mean() > left.mean()
    assert seen > 30


def test_field_of_view_is_sometimes_a_slab() -> None:
    case = box_case()
    fat = int(case.codes[5, 7, 7])
    cuts = 0
    for number in range(400):
        codes = np.full((4, 4, 32), fat, np.uint8)
        _cut_field_of_view(codes, case, np.random.default_rng(number))
        scanned = (codes == fat).all(axis=(0, 1))
        assert ((codes == fat).any(axis=(0, 1)) == scanned).all()  # whole slices only
        assert (codes[:, :, ~scanned] == case.codes[0, 0, 0]).all()  # the rest is air
        assert scanned.sum() >= 8
        assert (np.diff(np.flatnonzero(scanned)) == 1).all()
        cuts += not scanned.all()
    assert 30 < cuts < 90  # 15 % of 400


@pytest.mark.parametrize("factor", [1.3, 2.0, 2.7])
def test_thick_slices_leave_alone_what_does_not_change_along_z(factor: float) -> None:
    hu = np.broadcast_to(np.array([-1000.0, 40.0, 900.0], np.float32)[:, None, None], (3, 4, 32))
    np.testing.assert_allclose(_thick_slices(hu, factor), hu, rtol=1e-6)


def test_thick_slices_smooth_along_z() -> None:
    hu = np.zeros((1, 1, 32), np.float32)
    hu[..., 16:] = 100.0
    thick = _thick_slices(hu, 2.7)[0, 0]
    assert thick.shape == (32,)
    assert (np.diff(thick) > -1e-3).all()
    np.testing.assert_allclose(thick[:12], 0, atol=1e-3)
    np.testing.assert_allclose(thick[20:], 100, atol=1e-3)
    assert ((thick > 1) & (thick < 99)).sum() >= 2


def test_share_of_windows_around_lesions_labels_and_anywhere() -> None:
    """The tumour is 5 x 6 x 8 of 40 x 36 x 44 voxels: windows of 32 around it show it, others often do not."""
    case = box_case()

    def middles(around: tuple[float, float]) -> float:
        samples = (draw_sample(case, TINY_CONFIG, 32, np.random.default_rng(n), around=around) for n in range(60))
        return float(np.mean([sample.occupancy[TUMOR].any() for sample in samples]))

    everywhere, lesions = middles((0.0, 0.0)), middles((1.0, 0.0))
    assert lesions > 0.95
    assert everywhere < 0.8
