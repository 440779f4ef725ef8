"""Thresholds: the best cut by hand, and whole cases in windows side by side."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.training import TINY_CONFIG, box_case, tiny_recipe, write_box_store
from training.calibrate import (
    BINS,
    LEAST_LESION_ML,
    LESION_PEAKS,
    LESION_VOLUMES_ML,
    OperatingPoint,
    WholeCase,
    best_thresholds,
    calibrate,
    choose_operating_points,
    operating_points,
    see_whole_case,
)
from training.labels import BY_NAME, LABELS, LESIONS, ORGANS
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


def test_a_label_that_no_case_has_has_a_peak_of_a_half() -> None:
    assert best_thresholds(*counts(at_90=(0, 50))).item() == 0.5


def test_a_whole_case_is_padded_to_windows_and_seen_in_place() -> None:
    """Bone is the brightest tissue but for metal, so what `OneThird` calls a kidney lies where the kidneys are."""
    model = OneThird(TINY_CONFIG, random_text_embedding(0)[0])
    case = see_whole_case(model, box_case(), np.random.default_rng(0), torch.device("cpu"))
    assert case.probability.shape == case.occupancy.shape == (32, 24, 24, 24)
    assert case.voxel_ml == pytest.approx(0.064)
    kidneys = case.occupancy[[BY_NAME["kidney_right"].channel, BY_NAME["kidney_left"].channel]].max(axis=0)
    assert case.probability[0][kidneys == 8].mean() > 0.3
    assert case.probability[0][kidneys == 0].mean() < 0.1


def lesion_case() -> WholeCase:
    """Liver in the lower half. Tumours: one of 27 voxels at 0.75; false ones of 27 at 0.55 in the liver, of 27 at 0.95
    outside of it, and a speck of 2 at 0.99 in it. A voxel has 0.064 ml, so 8 voxels make 0.5 ml."""
    probability = np.zeros((32, 20, 20, 20), np.float16)
    occupancy = np.zeros(probability.shape, np.uint8)
    tumor, liver = BY_NAME["liver_tumor"].channel, BY_NAME["liver"].channel
    probability[liver, :, :, :10] = 0.9
    probability[tumor, 2:5, 2:5, 2:5] = 0.75
    occupancy[tumor, 2:5, 2:5, 2:5] = 8
    probability[tumor, 10:13, 10:13, 2:5] = 0.55
    probability[tumor, 10:13, 10:13, 15:18] = 0.95
    probability[tumor, 16:18, 3, 3] = 0.99
    return WholeCase(probability, occupancy, np.ones(32, bool), 0.064)


def points_of(case: WholeCase) -> dict[tuple[float, float], OperatingPoint]:
    return {(point.peak, point.volume_ml): point for point in operating_points(case, BY_NAME["liver_tumor"])}


def test_lesions_at_each_peak_and_volume_by_hand() -> None:
    """27 voxels are 1.7 ml: at 2 ml both the true and the false one are too small."""
    points = points_of(lesion_case())
    assert list(points) == [(peak, ml) for ml in LESION_VOLUMES_ML for peak in LESION_PEAKS]
    assert points[0.5, 0.5] == OperatingPoint(0.5, 0.5, lesions=1, found=1, false_positives=1)
    assert points[0.7, 0.5] == OperatingPoint(0.7, 0.5, lesions=1, found=1, false_positives=0)
    assert points[0.8, 0.5] == OperatingPoint(0.8, 0.5, lesions=1, found=0, false_positives=0)
    assert points[0.5, 1.5] == OperatingPoint(0.5, 1.5, lesions=1, found=1, false_positives=1)
    assert points[0.5, 2.0] == OperatingPoint(0.5, 2.0, lesions=1, found=0, false_positives=0)
    assert LESION_VOLUMES_ML[0] == LEAST_LESION_ML == 0.5


def test_a_lesion_with_a_certain_core_is_found_in_its_whole_extent() -> None:
    """One voxel at 0.96 among 27 at 0.75: at a peak of 0.95 all of them still count."""
    case = lesion_case()
    case.probability[BY_NAME["liver_tumor"].channel, 3, 3, 3] = 0.96
    points = points_of(case)
    assert points[0.95, 1.5] == OperatingPoint(0.95, 1.5, lesions=1, found=1, false_positives=0)
    assert points[0.97, 0.5] == OperatingPoint(0.97, 0.5, lesions=1, found=0, false_positives=0)


def curve(*points: tuple[float, int, int], lesions: int = 10) -> list[OperatingPoint]:
    return [OperatingPoint(peak, 0.5, lesions, found, false) for peak, found, false in points]


def peaks(chosen: dict[str, OperatingPoint]) -> dict[str, float]:
    return {name: point.peak for name, point in chosen.items()}


def test_false_positives_are_spent_where_they_find_most() -> None:
    """Both begin at their most careful point, 3 + 1 found. Of 6 false ones to be spent, `a` finds four lesions for 4
    and `b` one for 4, so `a` has them, and nothing is left for the next step of `a` (2 for 10)."""
    curves = {
        "a": curve((0.3, 9, 14), (0.5, 7, 4), (0.9, 3, 0)),
        "b": curve((0.3, 2, 4), (0.9, 1, 0)),
    }
    assert peaks(choose_operating_points(curves, 6)) == {"a": 0.5, "b": 0.9}
    assert peaks(choose_operating_points(curves, 8)) == {"a": 0.5, "b": 0.3}
    assert peaks(choose_operating_points(curves, 18)) == {"a": 0.3, "b": 0.3}
    assert peaks(choose_operating_points(curves, 0)) == {"a": 0.9, "b": 0.9}


def test_of_equal_points_the_one_that_drops_least() -> None:
    equal = [OperatingPoint(peak, ml, 4, 3, 0) for ml, peak in ((1.0, 0.5), (0.5, 0.9), (0.5, 0.7), (2.0, 0.5))]
    assert choose_operating_points({"a": equal}, 0)["a"] == equal[2]


def test_a_lesion_type_that_no_case_has_has_a_peak_of_a_half_and_the_least_volume() -> None:
    (chosen,) = choose_operating_points({"a": curve((0.3, 0, 9), (0.9, 0, 0), lesions=0)}, 5).values()
    assert (chosen.peak, chosen.volume_ml) == (0.5, LEAST_LESION_ML)


class OneThird(UniversalModel):
    """Says 0.35 inside both kidneys and next to nothing elsewhere: bone is the brightest tissue but for metal."""

    def forward(self, window: torch.Tensor, channels: torch.Tensor | None = None) -> torch.Tensor:
        bright = torch.nn.functional.avg_pool3d(window, 2) > 0.25
        return torch.where(bright, -0.62, -9.0).repeat(1, len(LABELS), 1, 1, 1)


def test_calibration_finds_the_cut_of_a_model_that_is_too_shy(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    write_box_store(tmp_path, recipe)
    model = OneThird(TINY_CONFIG, random_text_embedding(0)[0])
    calibration = calibrate(model, tmp_path, recipe.training_seeds, torch.device("cpu"))
    assert calibration.thresholds.keys() == {organ.name for organ in ORGANS}
    assert calibration.lesion_peaks.keys() == {lesion.name for lesion in LESIONS}
    assert 0.2 <= calibration.thresholds["kidney_right"] <= 0.35
    assert calibration.thresholds["liver"] == 0.5
    assert calibration.lesion_volumes_ml == {
        lesion.name: LEAST_LESION_ML for lesion in LESIONS if lesion.name != "kidney_tumor"
    } | {"kidney_tumor": calibration.lesion_volumes_ml["kidney_tumor"]}
