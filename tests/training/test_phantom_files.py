"""Phantoms as files: NIfTI and DICOM hold the same voxels at the same places."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from training.labels import LABELS
from training.phantom.phantom import FieldOfView, Phantom, draw_phantom
from training.phantom.write import write_dicom, write_nifti


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return draw_phantom(4, spacing_mm=(3.0, 3.5, 5.0), field_of_view=FieldOfView(-60, 60))


def test_nifti_holds_ct_every_mask_and_the_lesions(phantom: Phantom, tmp_path: Path) -> None:
    path = write_nifti(phantom, tmp_path)
    image = nib.load(path)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    np.testing.assert_allclose(image.affine, phantom.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(image.dataobj), phantom.hu)
    packed = np.zeros(phantom.labels.shape, np.uint32)
    for label in LABELS:
        mask = np.asarray(nib.load(tmp_path / "labels" / f"{label.name}.nii.gz").dataobj).astype(np.uint32)
        packed |= mask << np.uint32(label.channel)
    np.testing.assert_array_equal(packed, phantom.labels)
    facts = json.loads((tmp_path / "phantom.json").read_text())
    assert facts["seed"] == 4
    assert [lesion["volume_ml"] for lesion in facts["lesions"]] == [lesion.volume_ml for lesion in phantom.lesions]


def test_dicom_series_gives_back_hu_and_affine(phantom: Phantom, tmp_path: Path) -> None:
    paths = write_dicom(phantom, tmp_path)
    assert paths == sorted(paths)
    slices = [pydicom.dcmread(path) for path in paths]
    assert len({s.SeriesInstanceUID for s in slices}) == len({s.FrameOfReferenceUID for s in slices}) == 1
    assert len({s.SOPInstanceUID for s in slices}) == len(slices)
    assert str(slices[0].PatientName) == "PHANTOM^4"
    heights = [float(s.ImagePositionPatient[2]) for s in slices]
    assert heights == sorted(heights)
    hu = np.stack([s.pixel_array * s.RescaleSlope + s.RescaleIntercept for s in slices], -1).astype(np.int16)
    first = slices[0]
    lps = np.eye(4)  # (column, row, slice) -> LPS
    row_mm, column_mm = first.PixelSpacing
    orientation = np.array(first.ImageOrientationPatient, float)
    lps[:3, 0], lps[:3, 1] = orientation[:3] * column_mm, orientation[3:] * row_mm
    lps[:3, 2] = (np.array(slices[-1].ImagePositionPatient) - first.ImagePositionPatient) / (len(slices) - 1)
    lps[:3, 3] = first.ImagePositionPatient
    image = nib.as_closest_canonical(nib.Nifti1Image(hu.transpose(1, 0, 2), np.diag([-1.0, -1, 1, 1]) @ lps))
    np.testing.assert_array_equal(np.asarray(image.dataobj), phantom.hu)
    np.testing.assert_allclose(image.affine, phantom.affine, atol=1e-4)


def test_dicom_files_are_the_same_each_time(phantom: Phantom, tmp_path: Path) -> None:
    one, two = write_dicom(phantom, tmp_path / "one"), write_dicom(phantom, tmp_path / "two")
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]
