"""A new label is learnt from a checkpoint and the old ones are kept, on phantoms, by the documented commands.

A small network learns the 32 labels. Then six scans come whose trunk alone is annotated: the network fills in the
organs itself, and is trained further on them and on phantoms, as the recipe `finetune` does. Measured on phantoms that
neither run has seen.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.inferers.utils import sliding_window_inference
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional
from typer.testing import CliRunner

from tests.support.assembly import save, small_phantom
from training import cli
from training.checkpoint import load_checkpoint
from training.labels import ORGANS
from training.store import open_case, scan_names

FIRST = """
name = "first"
seed = 1
whiten_text = true
steps = 1500
batch_size = 2
patch = 48
learning_rate = 4e-3
weight_decay = 1e-4
warmup_steps = 20
gradient_clip = 2.0
ema_decay = 0.98
organ_rarity_exponent = 0.5
deep_supervision = 1.0
head_leak = 0.1
lesion_windows = 0.0
label_windows = 0.9
loss_plane_stride = 1
mixed_precision = false
phantoms = 10
validation_phantoms = 1
validation_samples = 0
validate_every = 2000
save_every = 500
loader_processes = 0

[model]
channels = [16, 16, 16, 32]
spacing_mm = [6.0, 6.0, 6.0]
roi_size = [48, 48, 48]
overlap = 0.25
"""
#: What the second run does otherwise: half scans, a low rate, and no scaffolds, which only help a fresh network along.
FINE = {
    'name = "first"': 'name = "fine"\nscans = 0.5\nhead_learning_rate_factor = 0.25',
    "steps = 1500": "steps = 200",
    "learning_rate = 4e-3": "learning_rate = 5e-4",
    "organ_rarity_exponent = 0.5\n": "",
    "deep_supervision = 1.0\n": "",
    "head_leak = 0.1\n": "",
}
TRUNK = """
name = "trunk"
display_name = "Trunk"
kind = "organ"
color = [230, 220, 200]
type = { value = "22943007", meaning = "Trunk" }
"""
OWN = """
name: own
title: Trunks
image: "{case}/ct.nii.gz"
label: "{case}/seg.nii.gz"
values:
  1: [trunk]
"""
UNSEEN = range(5000, 5003)


def command(*arguments: str | Path) -> None:
    ended = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert ended.exit_code == 0, ended.output


def trunk_of(hu: NDArray[np.int16]) -> NDArray[np.bool_]:
    """The patient, lungs and bowel gas included."""
    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(hu > -300)
    return filled


@torch.no_grad()
def dice(checkpoint: Path) -> tuple[float, float]:
    """On unseen phantoms, all voxels of a label as one set: the mean over the organs, and that of the trunk (or 0)."""
    model = load_checkpoint(checkpoint).model
    names = [organ.channel for organ in ORGANS]
    overlap, total = np.zeros(26), np.zeros(26)
    for seed in UNSEEN:
        phantom = small_phantom(seed)
        truth = np.stack([*(phantom.labels >> np.uint32(c) & np.uint32(1) for c in names), trunk_of(phantom.hu)])
        beyond = [(0, -size % 16) for size in phantom.hu.shape]  # both at the features' stride of 2
        image = np.pad(np.clip(phantom.hu, -1000, 1000) / np.float32(1000), beyond, constant_values=-1)
        occupancy = functional.avg_pool3d(torch.from_numpy(np.pad(truth, [(0, 0), *beyond]).astype(np.float32)), 2)
        logits = sliding_window_inference(
            torch.from_numpy(image)[None, None], (48, 48, 48), 2, model, overlap=0.25, mode="gaussian", cval=-1.0
        )
        predicted = (logits[0, [*names, *range(32, logits.shape[1])]] > 0).numpy()  # type: ignore[index]
        for row, mask in enumerate(predicted):
            wanted = occupancy[row].numpy() >= 0.5
            overlap[row] += 2.0 * np.count_nonzero(mask & wanted)
            total[row] += np.count_nonzero(mask) + np.count_nonzero(wanted)
    each = overlap / np.maximum(total, 1.0)
    return float(each[:25].mean()), float(each[25])


@pytest.mark.slow
@pytest.mark.timeout(3600)  # two trainings, an export and six segmentations
def test_a_new_label_is_learnt_and_the_old_ones_are_kept(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    files = {"first.toml": FIRST, "fine.toml": FIRST, "trunk.toml": TRUNK, "own.yaml": OWN}
    for change in FINE.items():
        files["fine.toml"] = files["fine.toml"].replace(*change)
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    first, fine = tmp_path / "first" / "model.pt", tmp_path / "fine" / "model.pt"
    command("train", "--recipe", tmp_path / "first.toml", "--run", first.parent)
    for seed in range(100, 106):
        phantom = small_phantom(seed)
        save(phantom.hu, phantom.affine, tmp_path / "own" / str(seed) / "ct.nii.gz")
        save(trunk_of(phantom.hu).astype(np.uint8), phantom.affine, tmp_path / "own" / str(seed) / "seg.nii.gz")
    command(
        "harmonize", tmp_path / "own", "--as", tmp_path / "own.yaml", "--label", tmp_path / "trunk.toml",
        "--out", tmp_path / "store", "--recipe", tmp_path / "fine.toml",
    )  # fmt: skip
    command("pseudo-label", tmp_path / "store", "--out", tmp_path / "more", "--checkpoint", first)
    organs = sum(1 << organ.channel for organ in ORGANS)
    more = [open_case(tmp_path / "more", name).supervised for name in scan_names(tmp_path / "more")]
    assert set(more) == {organs | 1 << 32}
    fine.parent.mkdir()
    (fine.parent / "store").symlink_to(first.parent / "store")
    command(
        "train", "--recipe", tmp_path / "fine.toml", "--run", fine.parent, "--store", tmp_path / "more",
        "--start-from", first,
    )  # fmt: skip
    organs_before, _ = dice(first)
    organs_after, trunk = dice(fine)
    assert organs_before > 0.4  # else there is nothing to forget
    assert organs_after >= organs_before - 0.01
    assert trunk > 0.6
