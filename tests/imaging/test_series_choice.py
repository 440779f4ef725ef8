"""Which series is taken, by rule and by request, and how the result says so."""

import numpy as np
import pytest

from service.errors import SeriesNotFound, TooFewSlices
from service.imaging.kernels import kernel_kind
from service.imaging.study import read_study, read_volume, select_ct_series
from tests.support.dicom_series import axial_affine, body_hu, write_ct_series
from tests.support.nifti_files import write_nifti
from tests.support.reading import notice_codes, read_upload

HU = body_hu((20, 18, 12))


def write(folder, uid, number, spacing=3.0, slices=12, **more):
    hu = body_hu((20, 18, slices), number)
    affine = axial_affine((1.5, 2.0, spacing))
    write_ct_series(folder, hu, affine, name=f"s{number}", SeriesInstanceUID=uid, SeriesNumber=number, **more)
    return hu


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("B30f", "soft"), ("Br38f\\3", "soft"), ("B31s", "soft"), ("B70f", "sharp"), ("Bl57d", "sharp"),
        ("I31f", "soft"), ("FC08", "soft"), ("FC52", "sharp"), ("STANDARD", "soft"), ("LUNG", "sharp"),
        ("BONEPLUS", "sharp"), ("B", "soft"), ("YC", "sharp"), ("", "unknown"), ("Doe^Jane", "unknown"),
    ],
)  # fmt: skip
def test_kernels_of_the_makers(name, kind):
    assert kernel_kind(name) == kind


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ({"ConvolutionKernel": "B70f"}, {"ConvolutionKernel": "B30f"}, "Its kernel is sharp."),
        ({"spacing": 3.0}, {"spacing": 2.9, "slices": 13}, "Its slices of 3 mm are thicker than 2.9 mm."),
        ({"spacing": 5.0}, {"spacing": 2.5, "slices": 24}, "Its slices of 5 mm are too thick beside 2.5 mm."),
        ({"slices": 10}, {"slices": 30}, "Covers 30 mm, too little beside 90 mm."),
        ({"ImageType": ["DERIVED", "SECONDARY"]}, {}, "Derived, not original."),
    ],
)
def test_the_later_series_is_taken_where_the_rule_says_so(tmp_path, first, second, reason):
    write(tmp_path / "a", "1.2.1", 1, **first)
    expected = write(tmp_path / "a", "1.2.2", 2, **second)
    volume = read_upload(tmp_path / "a", tmp_path)
    np.testing.assert_array_equal(volume.hu, expected)
    taken, passed = volume.candidates
    assert (taken.series_uid, taken.chosen, passed.series_uid, passed.chosen) == ("1.2.2", True, "1.2.1", False)
    assert passed.reason == reason
    assert notice_codes(volume) == ["series-selected"]


def test_equal_series_are_told_and_the_first_is_taken(tmp_path):
    write(tmp_path / "a", "1.2.2", 2)
    expected = write(tmp_path / "a", "1.2.1", 1)
    volume = read_upload(tmp_path / "a", tmp_path)
    np.testing.assert_array_equal(volume.hu, expected)
    assert notice_codes(volume) == ["series-selected", "series-ambiguous"]


def test_the_request_goes_before_the_rule_and_before_other_patients(tmp_path):
    expected = write(tmp_path / "a", "1.2.1", 1, spacing=5.0)
    write(tmp_path / "a", "1.2.2", 2, PatientID="OTHER")
    write(tmp_path / "a", "1.2.3", 3, slices=4)
    study = read_study(tmp_path / "a", tmp_path)
    volume = read_volume(select_ct_series(study, "1.2.1"))
    np.testing.assert_array_equal(volume.hu, expected)
    assert volume.candidates[0].reason == "Asked for by its UID."
    assert volume.candidates[1].reason == "Another series was asked for."
    with pytest.raises(SeriesNotFound, match=r"has 3 CT series, and none with the SeriesInstanceUID 1\.9"):
        select_ct_series(study, "1.9")
    with pytest.raises(TooFewSlices):
        select_ct_series(study, "1.2.3")


def test_a_nifti_has_no_series_to_ask_for(tmp_path):
    with pytest.raises(SeriesNotFound, match="NIfTI"):
        select_ct_series(read_study(write_nifti(tmp_path / "a.nii", HU), tmp_path), "1.2")


@pytest.mark.parametrize(
    "different", [{"ConvolutionKernel": "LUNG"}, {"AcquisitionNumber": 2}, {"ImageType": ["DERIVED", "SECONDARY"]}]
)
def test_two_reconstructions_under_one_uid_are_two_stacks(tmp_path, different):
    write_ct_series(tmp_path / "a", HU, name="a", AcquisitionNumber=1, ConvolutionKernel="STANDARD")
    more = {"AcquisitionNumber": 1, "ConvolutionKernel": "STANDARD", **different}
    write_ct_series(tmp_path / "a", body_hu((20, 18, 12), 9), name="b", SOPInstanceUID=lambda k: f"1.2.{k}", **more)
    volume = read_upload(tmp_path / "a", tmp_path)
    np.testing.assert_array_equal(volume.hu, HU)
    assert len(volume.candidates) == 2


def test_a_change_of_spacing_parts_a_series(tmp_path):
    """12 slices of 5 mm, then 14 of 2 mm: each part is even, and the finer one covers too little."""
    heights = [5.0 * k for k in range(12)] + [55 + 2.0 * n for n in range(1, 15)]
    write_ct_series(
        tmp_path / "a", body_hu((20, 18, 26)), ImagePositionPatient=lambda k: ["-20", "-30", f"{heights[k]:g}"]
    )
    volume = read_upload(tmp_path / "a", tmp_path)
    np.testing.assert_array_equal(volume.hu, body_hu((20, 18, 26))[:, :, :12])
    assert [(one.slices, one.slice_spacing_mm) for one in volume.candidates] == [(12, 5.0), (14, 2.0)]


@pytest.mark.parametrize(("keyword", "value"), [("FrameOfReferenceUID", "1.2"), ("PatientPosition", "HFS")])
def test_attributes_that_are_not_needed_may_be_missing(tmp_path, keyword, value):
    write_ct_series(tmp_path / "a", HU, **{keyword: lambda k: None if k % 2 else value})
    np.testing.assert_array_equal(read_upload(tmp_path / "a", tmp_path).hu, HU)


def test_a_missing_modality_is_told(tmp_path):
    write_ct_series(tmp_path / "a", HU, Modality=None)
    volume = read_upload(tmp_path / "a", tmp_path)
    np.testing.assert_array_equal(volume.hu, HU)
    assert notice_codes(volume) == ["modality-missing"]


def test_dose_pages_are_no_slices(tmp_path):
    write_ct_series(tmp_path / "a", HU)
    write_ct_series(tmp_path / "a", HU[:, :, :1], name="dose", ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"])
    volume = read_upload(tmp_path / "a", tmp_path)
    np.testing.assert_array_equal(volume.hu, HU)
    assert notice_codes(volume) == ["other-skipped"]
