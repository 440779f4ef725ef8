"""A written object that differs from the masks by one voxel, or lies elsewhere, is found out."""

import numpy as np
import pytest
from pydicom.dataelem import DataElement

from service.errors import VerificationFailed
from service.reporting.dicom.readback import (
    LEAST_DICE,
    fill,
    structure_set_dice,
    verify_binary,
    verify_labelmap,
    verify_structure_set,
)
from service.reporting.structures import lesions, organs
from service.request import SegType
from tests.support.dicom_result import Result, write_result


@pytest.fixture
def result(tmp_path) -> Result:
    return write_result(tmp_path)


def _altered(result: Result, name: str, alter) -> None:
    dataset = result.dataset(name)
    alter(dataset)
    dataset.save_as(result.folder / "dicom" / name)


def _flip_last_bit(dataset) -> None:
    bits = dataset.NumberOfFrames * dataset.Rows * dataset.Columns
    pixels = bytearray(dataset.PixelData)
    pixels[(bits - 1) // 8] ^= 1 << (bits - 1) % 8
    dataset.PixelData = bytes(pixels)


def _move_first_frame(dataset) -> None:
    position = dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    x, y, z = position.ImagePositionPatient
    position.ImagePositionPatient = [x + 1.5, y, z]  # one voxel


def _mirror(dataset) -> None:
    orientation = dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    orientation.ImageOrientationPatient = [-1, 0, 0, 0, 1, 0]


def _exchange_segments(dataset) -> None:
    first, second = dataset.SegmentSequence[:2]
    first.TrackingID, second.TrackingID = second.TrackingID, first.TrackingID


def _lose_a_segment(dataset) -> None:
    del dataset.SegmentSequence[-1]


@pytest.mark.parametrize("alter", [_flip_last_bit, _move_first_frame, _mirror, _exchange_segments, _lose_a_segment])
def test_a_changed_segmentation_fails(result, alter):
    path, structures = result.folder / "dicom" / "seg-organs.dcm", organs(result.masks)
    verify_binary(path, structures, result.masks.geometry)
    _altered(result, path.name, alter)
    with pytest.raises(VerificationFailed, match=r"seg-organs\.dcm was read back"):
        verify_binary(path, structures, result.masks.geometry)


def test_a_mask_with_one_voxel_more_than_the_file_fails(result):
    liver = next(organ for organ in organs(result.masks) if organ.id == "liver")
    voxel = slice(20, 21), slice(25, 26), slice(11, 12)
    assert not liver.bits.read(voxel).any()
    liver.bits.add(voxel, np.ones((1, 1, 1), np.bool_))
    with pytest.raises(VerificationFailed, match="slice 11 of liver"):
        verify_binary(result.folder / "dicom" / "seg-organs.dcm", organs(result.masks), result.masks.geometry)


def test_a_changed_labelmap_fails(tmp_path):
    result = write_result(tmp_path, seg_type=SegType.LABELMAP)
    path = result.folder / "dicom" / "seg-organs.dcm"
    painted = (organs(result.masks)[1], organs(result.masks)[0], organs(result.masks)[2])
    with pytest.raises(VerificationFailed):  # the kidney below, the vessel below the liver: another order
        verify_labelmap(path, painted[::-1], result.masks.geometry)

    def recolor(dataset) -> None:
        pixels = bytearray(dataset.PixelData)
        pixels[0] = 1
        dataset.PixelData = bytes(pixels)

    right = (painted[1], painted[2], painted[0])
    verify_labelmap(path, right, result.masks.geometry)
    _altered(result, path.name, recolor)
    with pytest.raises(VerificationFailed):
        verify_labelmap(path, right, result.masks.geometry)


def test_filled_contours_are_the_masks(result):
    structures = (*organs(result.masks), *lesions(result.masks))
    dice = structure_set_dice(result.folder / "dicom" / "rtstruct.dcm", structures, result.masks.geometry)
    assert dice == dict.fromkeys((structure.id for structure in structures), 1.0)


@pytest.mark.parametrize(("shift_mm", "message"), [((3.0, 0, 0), "has a Dice of"), ((0, 0, 1.2), "in a slice")])
def test_moved_contours_fail(result, shift_mm, message):
    def move(dataset) -> None:
        for contour in dataset.ROIContourSequence[0].ContourSequence:
            points = np.array(contour.ContourData, float).reshape(-1, 3) + shift_mm
            text = "\\".join(f"{value:.3f}" for value in points.ravel()).encode()
            tag = contour["ContourData"].tag
            contour[tag] = DataElement(tag, "OB", text + b" " * (len(text) % 2))

    _altered(result, "rtstruct.dcm", move)
    with pytest.raises(VerificationFailed, match=message):
        verify_structure_set(result.folder / "dicom" / "rtstruct.dcm", organs(result.masks), result.masks.geometry)


def test_a_lost_region_has_no_dice(result):
    _altered(result, "rtstruct.dcm", lambda dataset: dataset.ROIContourSequence.pop(0))
    dice = structure_set_dice(result.folder / "dicom" / "rtstruct.dcm", organs(result.masks), result.masks.geometry)
    assert (dice["liver"], dice["kidney_left"]) == (0.0, 1.0)
    assert LEAST_DICE == 0.97  # the docs say so


def test_fill_takes_the_voxels_whose_centres_lie_inside():
    square = np.array([[0.5, 0.5], [2.5, 0.5], [2.5, 3.5], [0.5, 3.5]])
    expected = np.zeros((5, 4), bool)
    expected[1:4, 1:3] = True
    assert np.array_equal(fill(square, 5, 4), expected)
    diamond = np.array([[1.0, 0.5], [1.5, 1.0], [1.0, 1.5], [0.5, 1.0]])
    assert np.argwhere(fill(diamond, 3, 3)).tolist() == [[1, 1]]
    with_hole = np.array([[-0.5, -0.5], [4.5, -0.5], [4.5, 4.5], [1.5, 1.5], [1.5, 3], [3, 3], [1.5, 1.5], [-0.5, 4.5]])
    assert not fill(with_hole, 5, 5)[4, 2]
