"""The evaluation: its scores by hand, its table, and how it calls the service."""

import math
import shutil
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.support.training import bits
from training import evaluate as evaluation
from training.detection import Detections
from training.evaluate import FIRST_TEST_SEED, EvaluationError, Scores, evaluate, to_markdown
from training.labels import LABELS
from training.phantom.phantom import Phantom
from training.phantom.tissues import Phase
from training.phantom.write import write_nifti

AFFINE = np.diag([5.0, 5.0, 5.0, 1.0])  # a voxel is 1/8 ml


def write_truth(folder: Path, seed: int) -> None:
    """8 voxels of spleen (1 ml), 3 of gallbladder (a sliver), twice 4 of liver tumour, 1 of kidney cyst (a sliver)."""
    labels = np.zeros((10, 6, 4), np.uint32)
    labels[0:2, 0:2, 0:2] = bits("spleen")
    labels[4, 0:3, 0] = bits("gallbladder")
    labels[6, 0:4, 0] = bits("liver_tumor")
    labels[9, 0:4, 0] = bits("liver_tumor")
    labels[6, 5, 3] = bits("kidney_cyst")
    phantom = Phantom(np.zeros(labels.shape, np.int16), labels, AFFINE, Phase.NATIVE, (), seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "draw_phantom", lambda _seed: phantom)
        evaluation._draw(folder, seed)
    # The same once more as a service would give it, to be copied.
    write_nifti(phantom, folder / "masks" / str(seed))


def edit(path: Path, *changes: tuple[tuple, int]) -> None:
    image = nibabel.load(path)
    mask = np.asarray(image.dataobj).copy()
    for where, value in changes:
        mask[where] = value
    nibabel.save(nibabel.Nifti1Image(mask, image.affine), path)


@pytest.fixture
def perfect_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives the truth as its masks."""

    def segment(folder: Path, seeds: range, bundle: str | None) -> None:
        for seed in seeds:
            shutil.copytree(folder / "masks" / str(seed) / "labels", folder / "segmented" / str(seed) / "masks")

    monkeypatch.setattr(evaluation, "_segment", segment)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in (FIRST_TEST_SEED, FIRST_TEST_SEED + 1):
        write_truth(tmp_path, seed)
    return tmp_path


def test_scores_by_hand() -> None:
    scores = Scores(scans=4)
    scores.dice["spleen"] += [1.0, 0.5]
    scores.dice["liver"] += [0.25]
    scores.dice["liver_tumor"] += [0.0]  # no organ
    scores.detections["liver_tumor"] += [Detections(3, 1, 2), Detections(0, 0, 1)]
    scores.detections["kidney_cyst"] += [Detections(1, 1, 0)]
    assert scores.mean_organ_dice == pytest.approx((0.75 + 0.25) / 2)
    assert scores.lesion_sensitivity == pytest.approx(2 / 4)
    assert scores.false_positives_per_scan == pytest.approx(3 / 4)


def test_scores_of_nothing() -> None:
    assert math.isnan(Scores().mean_organ_dice)
    assert Scores().lesion_sensitivity == 0
    assert Scores().false_positives_per_scan == 0


@pytest.mark.usefixtures("perfect_service")
def test_perfect_masks_score_perfectly(folder: Path) -> None:
    scores = evaluate(folder, bundle=None, scans=2)
    assert scores.scans == 2
    assert scores.dice == {"spleen": [1.0, 1.0], "liver_tumor": [1.0, 1.0]}
    assert scores.detections["liver_tumor"] == [Detections(2, 2, 0)] * 2
    assert scores.detections["kidney_cyst"] == [Detections(0, 0, 0)] * 2
    assert (scores.mean_organ_dice, scores.lesion_sensitivity, scores.false_positives_per_scan) == (1, 1, 0)


@pytest.mark.usefixtures("perfect_service")
def test_errors_are_counted_on_the_scans_own_grid(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the spleen is missed; one of two tumours too; a tumour and a cyst are seen where there is none."""
    copy = evaluation._segment

    def segment(folder: Path, seeds: range, bundle: str | None) -> None:
        copy(folder, seeds, bundle)
        masks = folder / "segmented" / str(FIRST_TEST_SEED) / "masks"
        edit(masks / "spleen.nii.gz", (np.s_[0, 0:2, 0:2], 0))
        edit(masks / "liver_tumor.nii.gz", (np.s_[9, :, :], 0), (np.s_[3, 4:6, 2], 1))
        edit(masks / "kidney_cyst.nii.gz", (np.s_[0, 5, 3], 1))

    monkeypatch.setattr(evaluation, "_segment", segment)
    scores = evaluate(folder, bundle=None, scans=1)
    assert scores.dice["spleen"] == [pytest.approx(2 * 4 / (4 + 8))]
    assert scores.dice["liver_tumor"] == [pytest.approx(2 * 4 / (6 + 8))]
    assert scores.detections["liver_tumor"] == [Detections(2, 1, 1)]
    assert scores.detections["kidney_cyst"] == [Detections(0, 0, 1)]
    assert scores.lesion_sensitivity == 0.5
    assert scores.false_positives_per_scan == 2


def test_table() -> None:
    scores = Scores(scans=2)
    scores.dice["spleen"] += [1.0, 0.5]
    scores.dice["liver_tumor"] += [0.5]
    scores.detections["liver_tumor"] += [Detections(3, 1, 2), Detections(1, 1, 1)]
    lines = to_markdown(scores).splitlines()
    assert lines[0].startswith(f"2 phantom scans of seeds {FIRST_TEST_SEED} to {FIRST_TEST_SEED + 1}, never trained on")
    assert "- mean organ Dice: **0.750**" in lines
    assert "- lesion sensitivity: **0.50**" in lines
    assert "- false-positive lesions per scan: **1.50**" in lines
    assert "| Spleen | 0.750 | 2 |  |  |" in lines
    assert "| Liver tumor | 0.500 | 1 | 2 of 4 | 3 |" in lines
    assert "| Colon | - | 0 |  |  |" in lines
    assert len([line for line in lines if line.startswith("| ")]) == 1 + len(LABELS)
    assert to_markdown(scores).endswith("|\n")


@pytest.fixture
def fake_viscera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `viscera` beside the interpreter that notes its arguments and fails when a bundle is called bad."""
    script = tmp_path / "bin" / "viscera"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/arguments\ncase "$*" in *bad*) exit 3;; esac\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script.with_name("python")))
    return tmp_path / "arguments"


def test_one_call_segments_all_scans(fake_viscera: Path) -> None:
    evaluation._segment(Path("e"), range(7, 9), "viscera-tiny")
    assert fake_viscera.read_text().split() == [
        "segment", "e/phantoms/7/7.nii.gz", "e/phantoms/8/8.nii.gz", "--out", "e/segmented", "--bundle", "viscera-tiny",
    ]  # fmt: skip
    evaluation._segment(Path("e"), range(7, 8), None)
    assert fake_viscera.read_text().split() == ["segment", "e/phantoms/7/7.nii.gz", "--out", "e/segmented/7"]


def test_failure_of_the_service_is_an_evaluation_error(fake_viscera: Path) -> None:
    with pytest.raises(EvaluationError, match=r"`viscera segment` failed: .*exit status 3"):
        evaluation._segment(Path("e"), range(7, 8), "bad")
    (fake_viscera.parent / "bin" / "viscera").unlink()
    with pytest.raises(EvaluationError, match="No such file"):
        evaluation._segment(Path("e"), range(7, 8), None)
