"""What counts as Hounsfield units: the range is stated in the refusal, and real CT of any kind passes."""

import numpy as np
import pytest

from service.errors import NotHounsfield
from service.imaging.hounsfield import ValueRange, accept_hounsfield, input_sha256, to_int16


def accepted(values) -> tuple[np.ndarray, tuple]:
    values = np.asarray(values)
    found = ValueRange()
    found.include(values)
    hu = to_int16(values)
    return hu, accept_hounsfield(hu, found)


def noise(mean: float, sd: float, shape=(12, 16, 16)) -> np.ndarray:
    return np.random.default_rng(1).normal(mean, sd, shape)


def test_rounding_keeps_every_value_within_half_a_hu():
    values = np.random.default_rng(0).uniform(-1024, 3071, 10_000).astype(np.float32)
    assert np.abs(to_int16(values) - values).max() <= 0.5
    assert to_int16(np.array([40000.0, -40000.0])).tolist() == [32767, -32768]


def test_a_ct_cropped_inside_the_body_passes():
    hu, notices = accepted(noise(50, 30))
    assert notices == ()
    assert hu.dtype == np.int16


def test_padding_is_clamped_and_counted():
    values = np.rint(noise(50, 30)).astype(np.int16)
    values[0, :, :8] = -3024  # 128 of 3072 voxels
    hu, (notice,) = accepted(values)
    assert (hu[0, :, :8] == -1024).all()
    assert hu.min() == -1024
    assert notice.code == "padding-clamped"
    assert notice.message.startswith("128 voxels (4.2%) below -1024 HU, down to -3024")


def test_metal_on_the_extended_scale_passes():
    values = noise(50, 30)
    values[4:6, 4:6, 4:6] = 30000
    assert accepted(values)[0].max() == 30000


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (np.random.default_rng(0).random((10, 10, 10)), "as after normalisation"),
        (np.random.default_rng(0).normal(0, 1, (10, 10, 10)), "as after normalisation"),
        (np.random.default_rng(0).integers(0, 256, (10, 10, 10)), r"run from 0 to 255, as in an 8-bit picture"),
        (np.full((10, 10, 10), 7), "Every voxel has the value 7"),
        (np.clip(noise(1064, 200), 0, 4095), "no value is negative.*offset by 1024"),
        (noise(0, 1e6), "beyond even the extended HU scale"),
        (noise(12000, 5000).clip(-1000, 30000), "exceed 3071 HU"),
        (np.clip(noise(-2000, 50), -2500, -1900), "almost none lies between"),
        (noise(-900, 30), "almost none lies between -300 and 300"),
    ],
)
def test_other_intensities_are_refused_with_their_range(values, sentence):
    with pytest.raises(NotHounsfield, match=sentence) as refusal:
        accepted(values)
    assert "Hounsfield units (water 0" in refusal.value.detail


def test_padding_does_not_hide_missing_rescale():
    values = np.clip(noise(1064, 200), 0, 4095)
    values[0] = -2000
    with pytest.raises(NotHounsfield, match="no value is negative"):
        accepted(values)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted(bad):
    values = noise(50, 30)
    values[3, 3, 3:5] = bad
    with pytest.raises(NotHounsfield, match=r"values, 2 in all. Set them to -1024"):
        accepted(values)


def test_the_input_hash_sees_voxels_and_geometry_and_nothing_else():
    hu = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    digest = input_sha256(hu, affine)
    assert digest == input_sha256(np.asfortranarray(hu), affine) == input_sha256(hu.astype(">i2"), affine)
    assert digest == input_sha256(hu, affine * np.where(affine == 0, -1, 1))  # -0.0 is 0.0
    assert digest != input_sha256(hu.transpose(0, 2, 1).reshape(2, 3, 4), affine)
    assert digest != input_sha256(hu, np.diag([1.0, 1.0, 2.5, 1.0]))
    assert digest != input_sha256(hu.reshape(2, 4, 3), affine)
