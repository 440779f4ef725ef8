"""Where the voxels of a DICOM series lie: worked by hand, round trips, and the traps that are refused."""

import numpy as np
import pydicom
import pytest

from service.errors import InvalidGeometry
from service.imaging.dicom import read_dicom_images
from service.imaging.dicom_groups import sort_along_normal
from service.imaging.dicom_stack import stack_geometry
from tests.support.dicom_series import axial_affine, body_hu, write_ct_series
from tests.support.reading import notice_codes, read_upload

HU = body_hu((20, 18, 12))


def test_a_hand_worked_axial_series(tmp_path):
    """Three images, rows 4 x columns 6, pixels 0.5 mm between columns and 0.8 mm between rows, 3 mm apart.

    The first voxel of the lowest image lies at LPS (-10, -20, 5), that is RAS (10, 20, 5). One column further is
    0.5 mm to the patient's left (RAS x falls), one row further 0.8 mm to the back (RAS y falls), one slice 3 mm up.
    """
    paths = write_ct_series(
        tmp_path,
        np.zeros((6, 4, 3), dtype=np.int16),
        PixelSpacing=[0.8, 0.5],
        ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        ImagePositionPatient=lambda k: [-10, -20, [11, 5, 8][k]],
    )
    images = sort_along_normal([image for path in paths for image in read_dicom_images(path)])
    assert [image.position_mm[2] for image in images] == [5, 8, 11]
    geometry, _ = stack_geometry(images)
    assert geometry.shape == (6, 4, 3)
    np.testing.assert_allclose(geometry.affine, [[-0.5, 0, 0, 10], [0, -0.8, 0, 20], [0, 0, 3, 5], [0, 0, 0, 1]])
    np.testing.assert_allclose(geometry.to_lps_mm([2, 3, 1]), [-10 + 2 * 0.5, -20 + 3 * 0.8, 8])
    assert geometry.spacing_mm == pytest.approx((0.5, 0.8, 3.0))
    assert geometry.voxel_volume_ml == pytest.approx(0.0012)


def oblique(degrees: float) -> np.ndarray:
    """An axial affine turned about the left-right axis, as a whole: no shear."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = axial_affine()
    affine[:3, :3] = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ affine[:3, :3]
    return affine


def planes(i, j, k) -> np.ndarray:
    """RAS affine from the three voxel axes (mm), with an origin."""
    affine = np.eye(4)
    affine[:3, :3] = np.array([i, j, k], dtype=float).T
    affine[:3, 3] = [12, -7, 40]
    return affine


@pytest.mark.parametrize(
    "affine",
    [
        axial_affine(),
        planes([1.5, 0, 0], [0, 2, 0], [0, 0, 3]),  # RAS: both in-plane cosines negated
        planes([1.5, 0, 0], [0, -2, 0], [0, 0, 3]),  # rows towards the right: the normal points down
        planes([-1.5, 0, 0], [0, -2, 0], [0, 0, -3]),  # written from head to foot
        planes([0, -1.5, 0], [0, 0, -2], [-3, 0, 0]),  # sagittal
        planes([-1.5, 0, 0], [0, 0, -2], [0, 3, 0]),  # coronal
        oblique(30),
        oblique(-75),
    ],
)
def test_every_voxel_keeps_its_place(tmp_path, affine):
    """Slices may come in the other order, along the normal; the HU at any point of space may not change."""
    write_ct_series(tmp_path / "a", HU, affine)
    volume = read_upload(tmp_path / "a", tmp_path)
    normal_lps = np.cross(*(volume.geometry.affine[:3, :2] * [[-1], [-1], [1]]).T)
    step_lps = volume.geometry.affine[:3, 2] * [-1, -1, 1]
    assert normal_lps @ step_lps > 0
    where = np.array([[0, 0, 0], [19, 0, 0], [0, 17, 0], [0, 0, 11], [5, 4, 3], [19, 17, 11]])
    found = np.linalg.inv(volume.geometry.affine) @ affine @ np.c_[where, np.ones(len(where))].T
    ijk = np.rint(found[:3].T).astype(int)
    np.testing.assert_allclose(found[:3].T, ijk, atol=1e-4)
    np.testing.assert_array_equal(volume.hu[tuple(ijk.T)], HU[tuple(where.T)])
    flipped = affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 11], [0, 0, 0, 1.0]])
    assert any(np.allclose(volume.geometry.affine, candidate, atol=1e-5) for candidate in (affine, flipped))


def test_instance_numbers_and_thickness_are_not_believed(tmp_path):
    write_ct_series(tmp_path / "a", HU, InstanceNumber=lambda k: 100 - k, SliceThickness=10)
    volume = read_upload(tmp_path / "a", tmp_path)
    np.testing.assert_array_equal(volume.hu, HU)
    assert volume.geometry.spacing_mm[2] == pytest.approx(3.0)


def lps(x=-20.0, y=-30.0, z=-50.0):
    return [f"{x:.6g}", f"{y:.6g}", f"{z:.6g}"]


def tilted(k: int):
    """Steps of 3 mm along the normal with 0.748 mm sideways: tan 14 degrees."""
    return lps(y=-30 + 3 * k * np.tan(np.radians(14)), z=-50 + 3 * k)


@pytest.mark.parametrize(
    ("position", "sentence"),
    [
        (
            lambda k: lps(z=-50 + 3 * (k + 3 * (k > 5))),
            r"Slices are missing \(about 3\): neighbours are 3 mm apart, but up to 12 mm",
        ),
        (lambda k: lps(z=-50 + 3 * (k + (k > 5) + (k > 7))), r"\(about 2\).* a tenth of all"),
        (lambda k: tilted(k + 4 * (k > 5)), r"\(about 4\).* also tilted by 14\.0 degrees"),
        (
            lambda k: lps(y=-30 + 3.3 * k, z=-50 + 3 * k),
            r"tilted by 47\.7 degrees; up to 45 are read",
        ),
        (lambda k: lps(z=-50 + 3 * (k + 4 * (k > 5))), r"\(about 4\)"),
        (lambda k: lps(z=-50 + 3 * (k // 2)), "6 of 12 slices lie at the position of another"),
        (lambda k: lps(z=-50), "11 of 12 slices lie at the position"),
        (lambda k: lps(z=-50 + 3 * k + (k == 5) * 0.9), "unevenly spaced, 2.1 to 3.9 mm"),
        (lambda k: lps(x=-20 + (k == 5) * 2, z=-50 + 3 * k), "one is 2 mm from its even place"),
    ],
)
def test_uneven_stacks_are_refused_with_what_was_measured(tmp_path, position, sentence):
    write_ct_series(tmp_path / "a", HU, ImagePositionPatient=position)
    with pytest.raises(InvalidGeometry, match=sentence):
        read_upload(tmp_path / "a", tmp_path)


def test_a_missing_first_slice_is_only_a_shorter_scan(tmp_path):
    write_ct_series(tmp_path / "a", HU)[0].unlink()
    assert read_upload(tmp_path / "a", tmp_path).geometry.shape == (20, 18, 11)


def test_positions_rounded_to_a_tenth_are_even(tmp_path):
    """0.625 mm apart, written with one decimal: steps of 0.6 and 0.7."""
    write_ct_series(tmp_path / "a", HU, ImagePositionPatient=lambda k: lps(z=round(-50 + 0.625 * k, 1)))
    assert read_upload(tmp_path / "a", tmp_path).geometry.spacing_mm[2] == pytest.approx(0.625, abs=0.02)


def test_a_rounded_sideways_step_is_no_tilt(tmp_path):
    write_ct_series(tmp_path / "a", HU, ImagePositionPatient=lambda k: lps(y=-30 + 0.05 * (k > 5), z=-50 + 0.5 * k))
    axes = read_upload(tmp_path / "a", tmp_path).geometry.affine[:3, :3]
    np.testing.assert_allclose(axes, np.diag([-1.5, -2.0, 0.5]), atol=1e-9)


@pytest.mark.parametrize(
    ("orientation", "sentence"),
    [
        ([0, 0, 0, 0, 0, 0], "unit vectors"),
        ([2, 0, 0, 0, 1, 0], "unit vectors"),
        ([1, 0, 0, 1, 0, 0], "parallel"),
        ([1, 0, 0, 0.05, 0.99875, 0], "Rows and columns of the images are 2.8[67] degrees off a right angle"),
    ],
)
def test_impossible_orientations(tmp_path, orientation, sentence):
    write_ct_series(tmp_path / "a", HU, ImageOrientationPatient=orientation)
    with pytest.raises(InvalidGeometry, match=sentence):
        read_upload(tmp_path / "a", tmp_path)


@pytest.mark.parametrize("spacing", [[0, 0], [-1, -1], [1e-5, 1e-5], [500, 500]])
def test_impossible_spacings(tmp_path, spacing):
    write_ct_series(tmp_path / "a", HU, PixelSpacing=spacing)
    with pytest.raises(InvalidGeometry, match=r"not positive|voxel spacing is"):
        read_upload(tmp_path / "a", tmp_path)


def test_one_series_is_split_by_orientation_matrix_and_spacing(tmp_path):
    """A reformat and a larger matrix under the same SeriesInstanceUID do not spoil the stack."""
    write_ct_series(tmp_path / "a", HU, name="axial")
    write_ct_series(tmp_path / "a", HU[:, :, :2], oblique(80), name="turned", SOPInstanceUID=lambda k: f"1.2.{k}")
    write_ct_series(tmp_path / "a", body_hu((24, 18, 2)), name="matrix", SOPInstanceUID=lambda k: f"1.3.{k}")
    write_ct_series(tmp_path / "a", HU[:, :, :2], name="zoom", SOPInstanceUID=lambda k: f"1.4.{k}", PixelSpacing=[3, 3])
    volume = read_upload(tmp_path / "a", tmp_path)
    np.testing.assert_array_equal(volume.hu, HU)
    assert notice_codes(volume) == ["series-not-usable"] * 3


def test_two_phases_at_the_same_positions_are_not_mixed(tmp_path):
    write_ct_series(tmp_path / "a", HU, name="one")
    write_ct_series(tmp_path / "a", body_hu((20, 18, 12), 9), name="two", SOPInstanceUID=lambda k: f"1.2.{k}")
    with pytest.raises(InvalidGeometry, match="12 of 24 slices lie at the position of another"):
        read_upload(tmp_path / "a", tmp_path)


def test_without_uids_the_series_number_keeps_series_apart(tmp_path):
    for number, name in ((3, "a"), (4, "b")):
        write_ct_series(
            tmp_path / "s", body_hu((20, 18, 12), number), name=name, SeriesNumber=number, SeriesInstanceUID=""
        )
    volume = read_upload(tmp_path / "s", tmp_path)
    np.testing.assert_array_equal(volume.hu, body_hu((20, 18, 12), 3))
    assert notice_codes(volume) == ["series-selected", "series-ambiguous", "series-uid-missing"]


def test_the_written_series_is_what_pydicom_reads(tmp_path):
    """The writer of these tests against the attributes themselves."""
    path = write_ct_series(tmp_path, HU, oblique(30))[4]
    dataset = pydicom.dcmread(path)
    assert (dataset.pixel_array[7, 3] * dataset.RescaleSlope + dataset.RescaleIntercept) == HU[3, 7, 4]
    first = np.array(dataset.ImagePositionPatient, dtype=float)
    row, column = np.split(np.array(dataset.ImageOrientationPatient, dtype=float), 2)
    by_attributes = first + 3 * row * float(dataset.PixelSpacing[1]) + 7 * column * float(dataset.PixelSpacing[0])
    np.testing.assert_allclose(by_attributes * [-1, -1, 1], (oblique(30) @ [3, 7, 4, 1])[:3], atol=1e-6)
