"""Thresholds: the best cut by hand, and whole cases in windows side by side."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.training import TINY_CONFIG, box_case, tiny_recipe, write_box_store
from training.augment import plain_sample
from training.calibrate import BINS, best_thresholds, calibrate
from training.labels import BY_NAME, LABELS
from training.networks.universal import UniversalModel
from training.text import random_text_embedding


def counts(**bins: tuple[float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Filled and all voxels of one label, by the lower end of the bin in hundredths (`at_30=(filled, all)`)."""
    filled, seen = torch.zeros(1, BINS, dtype=torch.float64), torch.zeros(1, BINS, dtype=torch.float64)
    for name, (voxels, total) in bins.items():
        filled[0, int(name[3:])], seen[0, int(name[3:])] = voxels, total
    return filled, seen


def test_the_cut_with_the_best_dice() -> None:
    """At 0.3 are 10 filled voxels and nothing else: a cut at 0.3 finds 20 of 20 with none too many. A cut at 0.2 would
    take in 100 empty ones, one at 0.5 lose half."""
    filled, seen = counts(at_10=(0, 900), at_20=(0, 100), at_30=(10, 10), at_90=(10, 10))
    assert best_thresholds(filled, seen).item() == pytest.approx(0.3)


def test_of_equal_cuts_the_one_closest_to_a_half() -> None:
    assert best_thresholds(*counts(at_5=(0, 50), at_95=(20, 20))).item() == pytest.approx(0.5)


def test_no_cut_beyond_the_bounds() -> None:
    assert best_thresholds(*counts(at_10=(50, 50), at_20=(1, 1))).item() == pytest.approx(0.2)
    assert best_thresholds(*counts(at_79=(0, 500), at_99=(50, 50))).item() == pytest.approx(0.8)
    assert best_thresholds(*counts(at_85=(0, 500), at_99=(50, 50))).item() == pytest.approx(0.5)


def test_a_label_that_no_case_has_is_cut_at_a_half() -> None:
    assert best_thresholds(*counts(at_90=(0, 50))).item() == 0.5


def test_windows_side_by_side_hold_the_whole_case_once() -> None:
    case = box_case()
    rng = np.random.default_rng(0)
    total = np.zeros(len(LABELS))
    for x in (0, 32):
        for y in (0, 32):
            for z in (0, 32):
                sample = plain_sample(case, TINY_CONFIG, (x, y, z), rng)
                assert sample.image.shape == (1, 32, 32, 32)
                total += sample.occupancy.sum(axis=(1, 2, 3))
    for name, voxels in (("kidney_right", 10 * 16 * 24), ("kidney_tumor", 5 * 6 * 8), ("liver", 0)):
        assert total[BY_NAME[name].channel] == voxels, name


class OneThird(UniversalModel):
    """Says 0.35 inside both kidneys and next to nothing elsewhere: bone is the brightest tissue but for metal."""

    def forward(self, window: torch.Tensor, channels: torch.Tensor | None = None) -> torch.Tensor:
        bright = torch.nn.functional.avg_pool3d(window, 2) > 0.25
        return torch.where(bright, -0.62, -9.0).expand(-1, len(LABELS), -1, -1, -1)


def test_calibration_finds_the_cut_of_a_model_that_is_too_shy(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    write_box_store(tmp_path, recipe)
    model = OneThird(TINY_CONFIG, random_text_embedding(0)[0])
    thresholds = calibrate(model, tmp_path, recipe.training_seeds, torch.device("cpu"))
    assert thresholds.keys() == {label.name for label in LABELS}
    assert 0.2 <= thresholds["kidney_right"] <= 0.35
    assert thresholds["liver"] == 0.5
