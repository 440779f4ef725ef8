"""From downloaded datasets to a service, by the documented commands: harmonize, train, evaluate, export, segment.

Five partially labelled datasets, cut from phantoms and laid out as they are downloaded. Two steps of training: what is
checked is that the line holds together.
"""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from tests.support.assembly import WRITERS, small_phantom
from training import cli
from training.checkpoint import load_checkpoint

RECIPE = """
name = "miniature"
seed = 1
steps = 2
batch_size = 2
patch = 48
learning_rate = 4e-3
weight_decay = 1e-4
warmup_steps = 1
gradient_clip = 2.0
ema_decay = 0.5
organ_rarity_exponent = 0.5
deep_supervision = 1.0
head_leak = 0.1
lesion_windows = 0.0
label_windows = 0.9
mixed_precision = false
scans = 1.0
phantoms = 0
validation_phantoms = 0
validation_samples = 0
validate_every = 1000
save_every = 1000
loader_processes = 0

[model]
channels = [16, 16, 16, 32]
spacing_mm = [6.0, 6.0, 6.0]
roi_size = [48, 48, 48]
foreground_above_hu = -300.0
overlap = 0.25
"""


def command(*arguments: str | Path) -> str:
    """What `viscera-train` prints."""
    ended = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert ended.exit_code == 0, ended.output
    return ended.output


@pytest.mark.timeout(900)  # it calls the exporter and the service: a minute of CPU, more on a busy machine
def test_from_downloads_to_masks(tmp_path: Path) -> None:
    recipe = ("--recipe", tmp_path / "miniature.toml")
    (tmp_path / "miniature.toml").write_text(RECIPE)
    for name, write in WRITERS.items():
        folder = write(tmp_path / "downloads" / name, [2])
        said = command("harmonize", folder, "--as", name, "--out", tmp_path / "store", *recipe, "--processes", "1")
        assert "written" in said
    command("train", *recipe, "--run", tmp_path / "run", "--store", tmp_path / "store")
    checkpoint = tmp_path / "run" / "model.pt"
    assert "scans of chaos (1 scans), ct_org (1 scans)" in load_checkpoint(checkpoint).training["data"]
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["scans"]["splits"]["train"] == dict.fromkeys(sorted(WRITERS), 1)
    # Exports a bundle and has the service segment with it.
    command(
        "evaluate", "--checkpoint", checkpoint, "--dataset", tmp_path / "downloads" / "lits", "--as", "lits",
        "--out", tmp_path / "evaluation", "--processes", "1",
    )  # fmt: skip
    report = (tmp_path / "evaluation" / "evaluation.md").read_text()
    assert report.startswith("# Evaluation on Liver Tumor Segmentation Benchmark")
    assert "| Liver | 1 |" in report
    command("submit", tmp_path / "evaluation" / "segmented", "--as", "lits", "--out", tmp_path / "submission")
    submitted = nibabel.load(tmp_path / "submission" / "0.nii.gz")
    assert submitted.shape == small_phantom(2).hu.shape
    assert set(np.unique(np.asarray(submitted.dataobj))) <= {0, 1, 2}
