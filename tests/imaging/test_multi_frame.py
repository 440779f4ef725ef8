"""Multi-frame CT: each frame is an image with its own place and rescale."""

import numpy as np
import pytest
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from service.errors import DecodeFailed, TooFewSlices, UnsupportedVolume, UploadTooLarge
from service.imaging.limits import ReadLimits
from tests.support.dicom_series import axial_affine, body_hu, write_ct_series
from tests.support.enhanced_ct import ENHANCED_CT, LEGACY_CONVERTED_CT, write_enhanced_ct
from tests.support.reading import notice_codes, read_upload

HU = body_hu((32, 28, 12))
SHUFFLED = [3, 0, 11, 7, 1, 9, 2, 10, 4, 8, 6, 5]


@pytest.mark.parametrize("sop_class", [ENHANCED_CT, LEGACY_CONVERTED_CT])
def test_frames_in_any_order_make_the_volume(tmp_path, sop_class):
    path = write_enhanced_ct(tmp_path / "a", HU, axial_affine(), sop_class=sop_class, order=SHUFFLED)
    volume = read_upload(path, tmp_path / "scratch")
    np.testing.assert_array_equal(volume.hu, HU)
    np.testing.assert_allclose(volume.geometry.affine, axial_affine(), atol=1e-6)
    assert volume.frame_numbers == tuple(SHUFFLED.index(k) + 1 for k in range(12))
    assert len(set(volume.sop_instance_uids)) == 1
    assert volume.notices == ()
    (candidate,) = volume.candidates
    assert (candidate.images, candidate.kernel, candidate.original) == (12, "soft", True)


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.name
)
def test_compressed_frames(tmp_path, syntax):
    hu = body_hu((64, 64, 12))
    path = write_enhanced_ct(tmp_path / "a", hu, axial_affine(), order=SHUFFLED, transfer_syntax=syntax)
    np.testing.assert_array_equal(read_upload(path, tmp_path).hu, hu)


def test_each_frame_has_its_own_rescale(tmp_path):
    slopes = [0.5 + 0.25 * (n % 3) for n in range(12)]
    path = write_enhanced_ct(tmp_path / "a", HU, axial_affine(), slopes=slopes)
    assert np.abs(read_upload(path, tmp_path).hu.astype(int) - HU).max() <= 1


def test_two_objects_of_one_series_are_one_stack(tmp_path):
    for part, frames in enumerate((range(6), range(6, 12))):
        write_enhanced_ct(
            tmp_path / f"part-{part}", HU, axial_affine(), order=frames,
            change=lambda dataset, part=part: setattr(dataset, "SOPInstanceUID", f"1.2.{part}"),
        )  # fmt: skip
    volume = read_upload(tmp_path, tmp_path / "scratch")
    np.testing.assert_array_equal(volume.hu, HU)
    assert volume.sop_instance_uids == ("1.2.0",) * 6 + ("1.2.1",) * 6
    assert volume.frame_numbers == (1, 2, 3, 4, 5, 6) * 2


def test_a_frame_that_is_missing_is_interpolated(tmp_path):
    path = write_enhanced_ct(tmp_path / "a", HU, axial_affine(), order=[k for k in range(12) if k != 5])
    volume = read_upload(path, tmp_path)
    assert notice_codes(volume) == ["slices-interpolated"]
    assert (volume.sop_instance_uids[5], volume.frame_numbers[4:7]) == ("", (5, 0, 6))
    halfway = (HU[..., 4].astype(float) + HU[..., 6]) / 2
    assert np.abs(volume.hu[..., 5] - halfway).max() <= 0.5
    np.testing.assert_array_equal(np.delete(volume.hu, 5, axis=2), np.delete(HU, 5, axis=2))


def without_places(dataset):
    del dataset.PerFrameFunctionalGroupsSequence


def with_too_few_groups(dataset):
    dataset.PerFrameFunctionalGroupsSequence = list(dataset.PerFrameFunctionalGroupsSequence)[:5]


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (without_places, UnsupportedVolume, "do not say where they lie"),
        (with_too_few_groups, DecodeFailed, "damaged header|states 12 frames and describes 5"),
    ],
)
def test_frames_without_a_place_are_refused(tmp_path, change, error, sentence):
    path = write_enhanced_ct(tmp_path / "a", HU, axial_affine(), change=change)
    with pytest.raises(error, match=sentence):
        read_upload(path, tmp_path)


def test_few_and_many_frames(tmp_path):
    path = write_enhanced_ct(tmp_path / "a", HU, axial_affine(), order=range(6))
    with pytest.raises(TooFewSlices, match="The series has 6 slices"):
        read_upload(path, tmp_path)
    path = write_enhanced_ct(tmp_path / "b", HU, axial_affine())
    with pytest.raises(UploadTooLarge, match="more than 11 images"):
        read_upload(path, tmp_path, ReadLimits(max_files=11))


def test_plain_images_with_several_frames_are_refused(tmp_path):
    write_ct_series(tmp_path / "a", HU[:, :, :1], NumberOfFrames=12)
    with pytest.raises(UnsupportedVolume, match="multi-frame"):
        read_upload(tmp_path / "a", tmp_path)
