"""The line from upload to findings through a running service with the default bundle: good input and bad."""

import gzip
import json
import os
import signal
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml
from jsonschema import Draft202012Validator
from pydicom.dataset import Dataset

from service.client import Viscera
from tests.support.dicom_series import axial_affine, body_hu, write_ct_series
from tests.support.enhanced_ct import write_enhanced_ct
from tests.support.service_process import running_service, settled_files
from training.phantom.phantom import ABDOMEN, draw_phantom
from training.phantom.write import write_dicom, write_nifti

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Viscera, Path]]:
    data_dir = tmp_path_factory.mktemp("service")
    with running_service(data_dir) as (viscera, _):
        yield viscera, data_dir


@pytest.fixture(scope="module")
def phantom_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    phantom = draw_phantom(41, spacing_mm=(2.5, 2.5, 4.0), field_of_view=ABDOMEN)
    write_dicom(phantom, folder / "dicom")
    write_nifti(phantom, folder / "nifti")
    return folder


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _run(viscera: Viscera, path: Path) -> dict[str, object]:
    return viscera.wait(viscera.submit(_files(path))["id"])


def test_dicom_study_gives_findings_and_masks_on_its_own_grid(
    service: tuple[Viscera, Path], phantom_folder: Path, tmp_path: Path
):
    viscera, _ = service
    job = _run(viscera, phantom_folder / "dicom")
    assert job["status"] == "succeeded", job
    findings = viscera.findings(str(job["id"]))
    schemas = yaml.safe_load((ROOT / "openapi.yaml").read_text())
    Draft202012Validator({**schemas, "$ref": "#/components/schemas/Findings"}).validate(findings)
    organs = {organ["label"]: organ for organ in findings["organs"]}
    assert organs["liver"]["volume_ml"] > 500

    reference = nibabel.load(phantom_folder / "nifti" / "ct.nii.gz")
    for artifact in viscera.artifacts(str(job["id"])):
        viscera.download(str(job["id"]), artifact["name"], tmp_path)
    mask = nibabel.load(tmp_path / "masks" / "liver.nii.gz")
    truth = nibabel.load(phantom_folder / "nifti" / "labels" / "liver.nii.gz")
    assert len(list((tmp_path / "masks").iterdir())) == 32
    # The DICOM series runs left and posterior, the NIfTI file right and anterior: the same voxels after reorientation.
    mask = nibabel.as_closest_canonical(mask)
    assert mask.shape == reference.shape
    np.testing.assert_allclose(mask.affine, reference.affine, atol=1e-3)
    found, there = np.asarray(mask.dataobj) > 0, np.asarray(truth.dataobj) > 0
    assert 2 * (found & there).sum() / (found.sum() + there.sum()) > 0.8


def _text_as_nifti(folder: Path) -> Path:
    path = folder / "ct.nii.gz"
    path.write_text("This is not a volume.")
    return path


def _volume(folder: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path = folder / "ct.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


def _truncated(folder: Path) -> Path:
    path = _volume(folder, body_hu((40, 40, 20)), axial_affine())
    path.write_bytes(path.read_bytes()[:2000])
    return path


def _four_dimensional(folder: Path) -> Path:
    return _volume(folder, np.zeros((20, 20, 20, 3), np.int16))


def _rgb(folder: Path) -> Path:
    return _volume(folder, np.zeros((20, 20, 20), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])))


def _affine_bytes(folder: Path, row: tuple[float, float, float, float]) -> Path:
    """A file whose first sform row is written over, since nibabel would not write it."""
    path = _volume(folder, body_hu((40, 40, 20)), axial_affine())
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[280:296] = np.array(row, "<f4").tobytes()
    raw[252:254] = b"\0\0"  # no qform to fall back on
    path.write_bytes(gzip.compress(bytes(raw)))
    return path


def _nan_affine(folder: Path) -> Path:
    return _affine_bytes(folder, (np.nan, 0, 0, 0))


def _singular_affine(folder: Path) -> Path:
    return _affine_bytes(folder, (0, 0, 0, 0))


def _zip(folder: Path, entries: dict[str, bytes]) -> Path:
    path = folder / "study.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def _series(folder: Path, name: str, slices: int = 12, **overrides: object) -> Path:
    target = folder / name
    write_ct_series(target, body_hu((32, 28, slices)), axial_affine(), **overrides)
    return target


def _two_patients(folder: Path) -> Path:
    both = folder / "both"
    for name in ("a", "b"):
        _series(both, name, PatientID=f"patient {name}", StudyInstanceUID=f"1.2.3.{ord(name)}")
    return both


def _empty_file(folder: Path) -> Path:
    path = folder / "ct.nii.gz"
    path.touch()
    return path


def _pixel_bomb_of_frames(folder: Path) -> Path:
    def claim(dataset: Dataset) -> None:
        frames = list(dataset.PerFrameFunctionalGroupsSequence)
        dataset.PerFrameFunctionalGroupsSequence = (frames * 1000)[:10_000]
        dataset.Rows = dataset.Columns = 65535
        dataset.NumberOfFrames = 10_000

    return write_enhanced_ct(folder / "frames.dcm", body_hu(), np.eye(4), change=claim)


def _pixel_bomb_of_nifti(folder: Path) -> Path:
    header = nibabel.Nifti2Header()
    header["dim"][:4] = (3, 65535, 65535, 10_000)
    header["datatype"], header["bitpix"], header["vox_offset"], header["sform_code"] = 4, 16, 544, 1
    path = folder / "bomb.nii"
    path.write_bytes(header.binaryblock + bytes(4) + bytes(5000))
    return path


BAD: dict[str, tuple[Callable[[Path], Path], set[str]]] = {
    "text file": (_text_as_nifti, {"unreadable-upload"}),
    "truncated gzip": (_truncated, {"unreadable-upload", "decode-failed"}),
    "4-D": (_four_dimensional, {"unsupported-volume"}),
    "RGB": (_rgb, {"unsupported-volume"}),
    "NaN affine": (_nan_affine, {"invalid-geometry"}),
    "singular affine": (_singular_affine, {"invalid-geometry"}),
    "empty zip": (lambda folder: _zip(folder, {}), {"empty-upload"}),
    "zip slip": (lambda folder: _zip(folder, {"../../evil.dcm": b"x" * 200}), {"unsafe-archive"}),
    "zip bomb": (lambda folder: _zip(folder, {"bomb.dcm": bytes(80_000_000)}), {"unsafe-archive"}),
    "pixel bomb in slices": (
        lambda folder: _series(folder, "bomb", Rows=65535, Columns=65535),
        {"upload-too-large"},
    ),
    "pixel bomb in frames": (_pixel_bomb_of_frames, {"upload-too-large"}),
    "pixel bomb in a NIfTI header": (_pixel_bomb_of_nifti, {"upload-too-large", "invalid-geometry"}),
    "MR series": (
        lambda folder: _series(folder, "mr", Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4"),
        {"unsupported-modality"},
    ),
    "MR in a CT class": (lambda folder: _series(folder, "mr", Modality="MR"), {"unsupported-modality"}),
    "three slices": (lambda folder: _series(folder, "short", slices=3), {"too-few-slices"}),
    "two patients": (_two_patients, {"multiple-patients"}),
    "0..1": (lambda folder: _volume(folder, np.random.default_rng(0).random((20, 20, 20), np.float32)), {"not-hu"}),
    "0..255": (
        lambda folder: _volume(folder, np.random.default_rng(0).integers(0, 256, (20, 20, 20)).astype(np.int16)),
        {"not-hu"},
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_fails_with_a_typed_problem_and_leaves_nothing(
    service: tuple[Viscera, Path], tmp_path: Path, name: str
):
    viscera, data_dir = service
    before = settled_files(data_dir)
    make, codes = BAD[name]
    job = _run(viscera, make(tmp_path))
    assert job["status"] == "failed"
    error = job["error"]
    assert isinstance(error, dict)
    assert error["type"].rpartition("/")[2] in codes, error
    assert error["detail"].endswith(".")
    assert len(error["detail"]) > 30, "says what is wrong and what to do"
    text = json.dumps(job)
    assert "Traceback" not in text
    assert str(data_dir) not in text
    assert "patient a" not in text
    assert settled_files(data_dir) == before


def test_empty_file_is_refused_at_the_door(service: tuple[Viscera, Path], tmp_path: Path):
    viscera, data_dir = service
    before = settled_files(data_dir)
    with pytest.raises(Exception, match="empty") as refused:
        viscera.submit([_empty_file(tmp_path)])
    assert refused.value.code == "empty-upload"  # type: ignore[attr-defined]
    assert settled_files(data_dir) == before


def test_service_works_on_after_all_that(service: tuple[Viscera, Path], phantom_folder: Path):
    viscera, _ = service
    job = _run(viscera, phantom_folder / "nifti" / "ct.nii.gz")
    assert job["status"] == "succeeded", job


def test_job_is_done_once_after_sigkill_of_the_worker_and_a_restart(phantom_folder: Path, tmp_path: Path):
    data_dir = tmp_path / "data"
    with running_service(data_dir) as (viscera, process):
        job_id = str(viscera.submit(_files(phantom_folder / "dicom"))["id"])
        deadline = time.monotonic() + 90
        while viscera.job(job_id)["stage"] != "inference":
            assert time.monotonic() < deadline
            assert viscera.job(job_id)["status"] in {"queued", "running"}
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)  # the server; its workers die with it
    with running_service(data_dir) as (viscera, _):
        job = viscera.wait(job_id)
        assert job["status"] == "succeeded", job
        assert job["attempts"] == 2
        assert len([name for name in settled_files(data_dir) if name.endswith("findings.json")]) == 1
