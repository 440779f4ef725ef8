"""What the graph is compared on: synthetic windows, and the fullest windows of a scan or phantom."""

from pathlib import Path
from typing import cast

import nibabel
import numpy as np
import pytest

from model_export import windows as windows_module
from model_export.errors import ScanRefused
from model_export.sample import Sample, make_sample, trunk_window
from model_export.scan import read_scan
from model_export.windows import measuring_windows, synthetic_windows
from tests.support.dicom_series import axial_affine, body_hu, write_ct_series
from training.checkpoint import Checkpoint
from training.config import ModelConfig
from training.networks.universal import UniversalModel

SPACING = (1.5, 2.0, 3.0)
CONFIG = ModelConfig(spacing_mm=SPACING, roi_size=(16, 16, 16))


def test_synthetic_windows_differ_in_content_size_and_batch(checkpoint: Checkpoint) -> None:
    windows = synthetic_windows(checkpoint.config, 16, make_sample(checkpoint.model, checkpoint.config))
    assert {name: window.shape for name, window in windows.items()} == {
        "random": (2, 1, 32, 48, 64),
        "air": (1, 1, 48, 48, 48),
        "sample": (1, 1, 48, 48, 48),
        "trunk": (1, 1, 48, 48, 64),  # the model's own window
    }
    assert all(window.dtype == np.float32 for window in windows.values())
    assert np.unique(windows["air"]).tolist() == [-1.0]
    tissues = np.histogram(windows["trunk"], bins=[-1, -0.9, -0.7, -0.2, 0.0, 0.2, 0.5])[0]
    assert (tissues > 100).sum() == 5  # air, lung, fat, soft tissue, bone; nothing between lung and fat but noise


def test_a_network_of_one_window_size_gets_no_window_twice() -> None:
    """Its sample is the cartoon trunk of that size already, and a window takes such a network seconds."""
    config = ModelConfig(architecture="swin_unetr")
    sample = make_sample_of(config)
    windows = synthetic_windows(config, 32, sample)
    assert {name: window.shape for name, window in windows.items()} == {
        "random": (2, 1, 96, 96, 96),
        "air": (1, 1, 96, 96, 96),
        "sample": (1, 1, 96, 96, 96),
    }
    np.testing.assert_allclose(windows["sample"], trunk_window(config.roi_size, config), atol=1e-3)


def make_sample_of(config: ModelConfig) -> Sample:
    """The sample of a network that says nothing."""
    return make_sample(cast("UniversalModel", lambda window: window), config)


def write_nifti(path: Path, hu: np.ndarray, affine: np.ndarray) -> Path:
    nibabel.save(nibabel.Nifti1Image(hu, affine), path)
    return path


def test_nifti_and_dicom_come_out_in_ras(tmp_path: Path) -> None:
    """The scan runs towards left and posterior, so RAS mirrors two axes; at its own spacing no voxel changes."""
    hu = body_hu()
    inside = (slice(1, -1),) * 3  # rounding may put the outermost planes just outside the scan
    expected = hu[::-1, ::-1, :][inside]
    write_ct_series(tmp_path / "dicom", hu, axial_affine(SPACING))
    (tmp_path / "dicom" / "notes.txt").write_text("not DICOM")
    nifti = write_nifti(tmp_path / "ct.nii.gz", hu, axial_affine(SPACING))
    for path in (nifti, tmp_path / "dicom"):
        np.testing.assert_allclose(read_scan(path, CONFIG)[inside], expected, atol=0.01)


def test_scans_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.nii").write_text("not an image")
    (tmp_path / "empty").mkdir()
    write_ct_series(tmp_path / "uneven", change=_move_a_slice)
    air = write_nifti(tmp_path / "air.nii", np.full((20, 20, 20), -1000, np.int16), np.eye(4))
    series = write_nifti(tmp_path / "series.nii", np.zeros((9, 9, 9, 2), np.int16), np.eye(4))
    for path, sentence in (
        (tmp_path / "absent.nii", "no NIfTI file and no DICOM series"),
        (tmp_path / "text.nii", "no NIfTI file and no DICOM series"),
        (tmp_path / "empty", "no CT series of 10 slices"),
        (tmp_path / "uneven", "not evenly spaced"),
        (air, "nothing but air"),
        (series, "has 4 dimensions"),
    ):
        with pytest.raises(ScanRefused, match=sentence):
            measuring_windows(CONFIG, path)


def _move_a_slice(dataset: object, k: int) -> None:
    if k == 5:
        dataset.ImagePositionPatient[2] += 1.0  # type: ignore[attr-defined]


def test_the_fullest_windows_come_first_and_air_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five tiles of 16 along x, hence four of full size and a cut one; one is full, one half full, the rest air."""
    hu = np.full((70, 16, 16), -1000, np.int16)
    hu[32:48] = 40
    hu[16:24] = 100
    scan = write_nifti(tmp_path / "ct.nii", hu, np.diag([*SPACING, 1.0]))
    found = measuring_windows(CONFIG, scan)
    assert found.source == "scan"
    assert [window.shape for window in found.windows] == [(1, 1, 16, 16, 16)] * 2
    np.testing.assert_allclose(found.windows[0], 0.04, atol=1e-5)  # 40 HU of -1000..1000 mapped to -1..1
    np.testing.assert_allclose(found.windows[1][0, 0, :8], 0.1, atol=1e-5)
    np.testing.assert_allclose(found.windows[1][0, 0, 8:], -1.0, atol=1e-5)
    monkeypatch.setattr(windows_module, "MEASURING_WINDOWS", 1)
    assert len(measuring_windows(CONFIG, scan).windows) == 1
