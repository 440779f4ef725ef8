"""Whole evaluations of masks that a service would have written: scores, tables, figures, page."""

import csv
import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.support.assembly import KIDNEYS, mask_of, small_phantom, write_chaos, write_kits21, write_lits
from tests.support.training import bits
from training import cli
from training.commands import CommandError
from training.datasets.description import read_description
from training.datasets.errors import NoCases, UnreadableFile
from training.datasets.harmonize import Grid, harmonize
from training.datasets.submission import write_submission
from training.evaluation import run as evaluation_run
from training.evaluation.run import evaluate_subjects
from training.evaluation.subjects import Subject, subjects_of_dataset, subjects_of_store
from training.labels import LABELS
from training.phantom.phantom import Phantom

run = CliRunner().invoke


@cache
def patient(_seed: int = 2) -> Phantom:
    """Phantom 2 with one liver tumour, of 4 x 4 x 4 voxels, 14 ml."""
    phantom = small_phantom(2)
    labels = phantom.labels.copy()
    x, y, z = np.median(np.argwhere(mask_of(labels, "liver")), axis=0).astype(int)
    labels[mask_of(labels, "liver_tumor")] = bits("liver")
    labels[x : x + 4, y : y + 4, z : z + 4] = bits("liver", "liver_tumor")
    return replace(phantom, labels=labels)


def write_result(folder: Path, affine: np.ndarray, masks: dict[str, np.ndarray], probability: float = 0.8) -> None:
    """Masks and lesions as `viscera segment` leaves them."""
    (folder / "masks").mkdir(parents=True)
    lesions = []
    for name, mask in masks.items():
        nibabel.save(nibabel.Nifti1Image(mask.astype(np.uint8), affine), folder / "masks" / f"{name}.nii.gz")
        if name.endswith(("tumor", "cyst")) and mask.any():
            where = np.argwhere(mask)
            box = {"start": where.min(0).tolist(), "stop": (where.max(0) + 1).tolist()}
            lesions.append({"label": name, "max_probability": probability, "bounding_box_voxel": box})
    (folder / "findings.json").write_text(json.dumps({"lesions": lesions}))


def masks_of(phantom: Phantom, *names: str) -> dict[str, np.ndarray]:
    return {name: mask_of(phantom.labels, name) for name in names}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that finds every label of phantom 2 as it is, on the study's own grid, but no left kidney."""

    def segment(studies: list[Path], out: Path, bundle: str | None) -> None:
        phantom = patient()
        for study in studies:
            if study.is_dir():
                affine, flip = phantom.affine, slice(None)
            else:
                affine = nibabel.load(study).affine
                flip = slice(None, None, -1) if affine[0, 0] < 0 else slice(None)
            masks = {label.name: mask_of(phantom.labels, label.name)[flip] for label in LABELS}
            masks["kidney_left"][:] = False
            write_result(out / study.name.removesuffix(".gz").removesuffix(".nii"), affine, masks)

    monkeypatch.setattr(evaluation_run, "segment", segment)


def evaluate(subjects: list[Subject], out: Path) -> evaluation_run.Evaluation:
    return evaluate_subjects(subjects, out, weights=None, title="A test", processes=1)[0]


@pytest.mark.usefixtures("service")
def test_a_dataset_is_scored_on_its_own_grid(tmp_path: Path) -> None:
    """Files run against RAS; the result does too, and every voxel of the truth is met."""
    write_lits(tmp_path / "lits", [2], patient)
    evaluation = evaluate(subjects_of_dataset(tmp_path / "lits", read_description("lits")), tmp_path / "out")
    (scan,) = evaluation.scans
    assert (scan.name, scan.patient) == ("0", "lits/0")
    assert scan.overlaps.keys() == {"liver", "liver_tumor"}
    assert scan.overlaps["liver"].dice > 0.95  # the dataset's liver holds its tumours
    assert scan.overlaps["liver_tumor"].dice == 1.0
    lesions = scan.lesions["liver_tumor"]
    assert lesions.diseased
    assert set(lesions.found_at) == {0.8}  # its probability, by the box in the order of the file
    assert lesions.false_at == ()


@pytest.mark.usefixtures("service")
def test_slices_are_put_together_as_a_study(tmp_path: Path) -> None:
    write_chaos(tmp_path / "chaos", [2])
    evaluation = evaluate(subjects_of_dataset(tmp_path / "chaos", read_description("chaos")), tmp_path / "out")
    assert evaluation.scans[0].overlaps["liver"].dice == 1.0
    assert len(list((tmp_path / "out" / "studies" / "1").iterdir())) == small_phantom(2).hu.shape[2]


@pytest.mark.usefixtures("service")
def test_a_missed_organ_and_a_report_of_it(tmp_path: Path) -> None:
    write_kits21(tmp_path / "kits", [2])
    harmonize(
        tmp_path / "kits", read_description("kits21"), tmp_path / "store", Grid((6.0, 6.0, 6.0), None), processes=1
    )
    subjects = subjects_of_store(tmp_path / "store", None)
    out = tmp_path / "out"
    evaluation = evaluate(subjects, out)
    (scan,) = evaluation.scans
    assert scan.overlaps["kidney_right"].dice == 1.0
    missed = scan.overlaps["kidney_left"]
    assert (missed.dice, missed.nsd, missed.hd95_mm) == (0.0, 0.0, None)
    assert scan.false_ml.keys() | scan.overlaps.keys() >= {"kidney_tumor", "kidney_cyst"}
    said = (out / "evaluation.md").read_text()
    assert "1 scans of 1 patients" in said
    assert "| Right kidney | 1 | 1.000 (1.000 to 1.000) | 1.000 (1.000 to 1.000) | 3 | 0.0 | +0.0 | 0.0 | 0 |" in said
    assert "| Left kidney | 1 | 0.000 (0.000 to 0.000) | 0.000 (0.000 to 0.000) | 3 | - | -100.0 | 100.0 | 1 |" in said
    assert "- kits21-case_00000: mean Dice 0.5" in said
    rows = list(csv.DictReader((out / "scans.csv").read_text().splitlines()))
    assert [row["dice"] for row in rows if row["label"] == "kidney_left"] == ["0"]
    page = (out / "evaluation.html").read_text()
    assert "worst kidney_left 0.000" in page
    assert page.count("data:image/png;base64,") >= 2
    with Image.open(out / "figures" / "dice.png") as figure:
        assert figure.width > 400


@pytest.mark.usefixtures("service")
def test_scans_that_cannot_be_scored_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A truth that is broken, a study that the service refuses, and one that goes well."""
    write_lits(tmp_path / "lits", [2, 2, 2])
    batch = tmp_path / "lits" / "Training Batch 1"
    (batch / "segmentation-1.nii").write_bytes(b"nothing")
    all_of_them = evaluation_run.segment

    def refuse_one(studies: list[Path], out: Path, bundle: str | None) -> None:
        all_of_them([study for study in studies if study.name != "2.nii"], out, bundle)
        raise CommandError("exit status 1")

    monkeypatch.setattr(evaluation_run, "segment", refuse_one)
    out = tmp_path / "out"
    evaluation = evaluate(subjects_of_dataset(tmp_path / "lits", read_description("lits")), out)
    assert [scan.name for scan in evaluation.scans] == ["0"]
    assert evaluation.refused.keys() == {"1", "2"}
    said = (out / "evaluation.md").read_text()
    assert "- 1: UnreadableFile. segmentation-1.nii is not a readable NIfTI file" in said
    assert "- 2: The service refused the scan" in said


def test_a_service_that_fails_altogether_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lits(tmp_path / "lits", [2])
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(CommandError, match="`viscera segment` failed"):
        evaluate(subjects_of_dataset(tmp_path / "lits", read_description("lits")), tmp_path / "out")


def test_a_submission_has_the_datasets_own_values(tmp_path: Path) -> None:
    """KiTS: kidneys of both sides are 1, a tumour in one is 2."""
    phantom = small_phantom(2)
    masks = masks_of(phantom, *KIDNEYS, "kidney_cyst", "spleen") | {"kidney_tumor": np.zeros(phantom.hu.shape, bool)}
    inside = np.argwhere(masks["kidney_right"])[0]
    masks["kidney_tumor"][tuple(inside)] = True
    write_result(tmp_path / "results" / "case_00000", phantom.affine, masks)
    result = run(cli.app, ["submit", str(tmp_path / "results"), "--as", "kits21", "--out", str(tmp_path / "kits")])
    assert result.exit_code == 0, result.output
    image = nibabel.load(tmp_path / "kits" / "case_00000.nii.gz")
    values = np.asarray(image.dataobj)
    np.testing.assert_allclose(image.affine, phantom.affine)
    assert values[tuple(inside)] == 2
    np.testing.assert_array_equal(values > 0, masks["kidney_right"] | masks["kidney_left"] | masks["kidney_cyst"])


@pytest.mark.parametrize("name", ["btcv", "msd_hepatic_vessel", "msd_liver", "word"])
def test_values_go_to_labels_and_back(name: str, tmp_path: Path) -> None:
    """Each value of a made-up label map comes back from our masks of it."""
    table = read_description(name).values
    values = np.repeat(np.array([0, *table], np.uint8), 8).reshape(-1, 2, 4)
    masks: dict[str, np.ndarray] = {}
    for value, names in table.items():
        for label in names:
            for single in {"adrenal_glands": ["adrenal_gland_right", "adrenal_gland_left"]}.get(label, [label]):
                masks[single] = masks.get(single, np.zeros(values.shape, bool)) | (values == value)
    write_result(tmp_path / "results" / "study", np.eye(4), masks)
    (path,) = write_submission(tmp_path / "results", read_description(name), tmp_path / "out")
    np.testing.assert_array_equal(np.asarray(nibabel.load(path).dataobj), values)


def test_submissions_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(NoCases, match="holds no results"):
        write_submission(tmp_path, read_description("lits"), tmp_path / "out")
    write_result(tmp_path / "results" / "study", np.eye(4), {"liver": np.zeros((3, 3, 3), bool)})
    with pytest.raises(UnreadableFile, match="no readable mask of liver_tumor"):
        write_submission(tmp_path / "results", read_description("lits"), tmp_path / "out")


@pytest.mark.parametrize(("arguments", "said"), [
    (["--dataset", "d", "--store", "s"], "not both"),
    (["--dataset", "d"], "--dataset needs --as"),
    (["--bundle", "a", "--checkpoint", "b.pt"], "not both"),
    (["--store", "s", "--split", "holdout"], "No split 'holdout'; known: train, validation, test, all"),
])  # fmt: skip
def test_options_that_do_not_go_together(arguments: list[str], said: str, tmp_path: Path) -> None:
    result = run(cli.app, ["evaluate", "--out", str(tmp_path), *arguments])
    assert result.exit_code != 0
    assert said in str(result.exception)
