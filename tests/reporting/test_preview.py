"""The scan as a file: whole, and every n-th voxel of it and of the label map as the preview."""

import nibabel as nib
import numpy as np
import pytest

from service.reporting.artifacts import write_artifacts
from service.reporting.findings import measure
from service.reporting.outputs import OutputPlan
from service.reporting.preview import MAX_SIZE, preview_geometry, preview_steps, write_preview_ct
from service.request import Output
from tests.support.reporting import PROVENANCE, box_mask, scan

SHAPE = (300, 40, 530)
AFFINE = np.array([[0.0, 0.7, 0.0, -9.0], [-0.8, 0.0, 0.0, 5.0], [0.0, 0.0, 1.5, 40.0], [0.0, 0.0, 0.0, 1.0]])
PLAN = OutputPlan(frozenset({Output.LABEL_MAP, Output.PREVIEW, Output.SCAN}))


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    hu = np.arange(np.prod(SHAPE), dtype=np.int64).reshape(SHAPE) % 3000 - 1000
    painted = {
        "liver": box_mask(SHAPE, (20, 290), (5, 35), (100, 520)),
        "liver_tumor": box_mask(SHAPE, (50, 61), (10, 20), (200, 301)),
    }
    volume, masks = scan(hu.astype(np.int16), painted, AFFINE)
    folder = tmp_path_factory.mktemp("result")
    write_artifacts(folder, volume, masks, measure(volume, masks, PROVENANCE), PLAN)
    return folder, volume


def test_it_has_at_most_256_voxels_along_an_axis():
    assert preview_steps((256, 257, 1025)) == (1, 2, 5)
    assert preview_steps((1, 512, 513)) == (1, 2, 3)
    assert MAX_SIZE == 256


def test_its_voxels_are_voxels_of_the_source_in_their_place(result):
    folder, volume = result
    preview = nib.load(folder / "preview" / "ct.nii.gz")
    assert preview.shape == (150, 40, 177)
    assert preview.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asarray(preview.dataobj), volume.hu[::2, :, ::3])
    np.testing.assert_allclose(
        preview.affine @ (140, 30, 100, 1), (*volume.geometry.to_ras_mm((280, 30, 300)), 1), atol=1e-4
    )
    np.testing.assert_allclose(preview.affine, preview_geometry(volume.geometry).affine, rtol=1e-6)


def test_the_whole_scan_lies_on_the_grid_of_the_label_map(result):
    folder, volume = result
    whole, label_map = nib.load(folder / "ct.nii.gz"), nib.load(folder / "segmentation.nii.gz")
    assert whole.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asarray(whole.dataobj), volume.hu)
    np.testing.assert_array_equal(whole.affine, label_map.affine)


def test_its_labels_are_those_of_the_label_map(result):
    folder, _ = result
    whole = nib.load(folder / "segmentation.nii.gz")
    preview = nib.load(folder / "preview" / "labels.nii.gz")
    np.testing.assert_array_equal(np.asarray(preview.dataobj), np.asarray(whole.dataobj)[::2, :, ::3])
    assert set(np.unique(np.asarray(preview.dataobj))) == {0, 6, 27}
    assert preview.header.extensions[0].get_content() == whole.header.extensions[0].get_content()


def test_values_beyond_int16_are_set_to_its_end(tmp_path):
    volume, _ = scan(np.array([[[-4e4, 4e4, 12.6]]], np.float32), {})
    write_preview_ct(tmp_path / "ct.nii.gz", volume)
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "ct.nii.gz").dataobj), [[[-32768, 32767, 13]]])
