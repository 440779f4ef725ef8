"""Thresholds: the best cut by hand, and whole cases in windows side by side."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit

from tests.support.training import TINY_CONFIG, box_case, tiny_recipe, write_box_store
from training.calibrate import (
    BINS,
    FARTHEST,
    LEAST_LESION_ML,
    LESION_PEAKS,
    LESION_VOLUMES_ML,
    LesionField,
    OperatingPoint,
    WholeCase,
    best_threshold,
    calibrate,
    choose_operating_points,
    field_of_view,
    lesion_field,
    likeliest_scale,
    operating_points,
    see_whole_case,
)
from training.labels import BY_NAME, LABELS, LESIONS, ORGANS
from training.networks.universal import UniversalModel
from training.text import random_text_embedding

Counts = tuple[torch.Tensor, torch.Tensor]


def bin_of(logit: float) -> int:
    return int((logit + FARTHEST) / (2 * FARTHEST) * BINS)


def counts(*bins: tuple[float, float, float]) -> Counts:
    """Filled and all voxels of one label, by the logit at the lower end of their bin: (logit, filled, all)."""
    filled, seen = torch.zeros(BINS, dtype=torch.float64), torch.zeros(BINS, dtype=torch.float64)
    for logit, voxels, total in bins:
        filled[bin_of(logit)], seen[bin_of(logit)] = voxels, total
    return filled, seen


def cut(voxels: Counts, scale: float = 1.0) -> float:
    return best_threshold(*voxels, scale)


def probability(logit: float) -> float:
    return round(float(expit(logit)), 3)


def test_the_cut_with_the_best_dice() -> None:
    """At -1 are 10 filled voxels and nothing else: a cut at -1 finds 20 of 20 with none too many. A cut at -1.2 would
    take in 100 empty ones, one at 0 lose half."""
    voxels = counts((-3.0, 0, 900), (-1.2, 0, 100), (-1.0, 10, 10), (2.0, 10, 10))
    assert cut(voxels) == probability(-1.0)


def test_the_cut_moves_with_the_scale_and_the_voxels_above_it_stay() -> None:
    voxels = counts((-3.0, 0, 900), (-1.2, 0, 100), (-1.0, 10, 10), (2.0, 10, 10))
    assert cut(voxels, scale=0.5) == probability(-0.5)


def test_of_equal_cuts_the_one_closest_to_a_half() -> None:
    assert cut(counts((-3.0, 0, 50), (3.0, 20, 20))) == 0.5


def test_no_cut_beyond_the_bounds() -> None:
    shy = counts((-5.0, 50, 50), (-1.3, 1, 1), (-3.8, 1, 1))
    assert cut(shy) == probability(-3.8), "the last one from 0.02 on that loses nothing"
    bold = counts((1.0, 0, 500), (5.0, 50, 50))
    assert cut(bold) == 0.5


def test_a_label_that_no_case_has_is_cut_at_a_half() -> None:
    assert cut(counts((3.0, 0, 50))) == 0.5


def test_the_scale_by_hand() -> None:
    """Of 100 voxels at logit 4.05, the middle of a bin, 90 are filled: the likeliest probability is 0.9, whose logit is
    2.197, and 2.197 / 4.05 = 0.54. As many the other way round say the same."""
    filled, seen = counts((4.0, 90, 100))
    assert likeliest_scale(filled[None], seen[None]) == 0.54
    below, all_below = counts((-4.1, 10, 100))
    assert likeliest_scale(torch.stack([filled, below]), torch.stack([seen, all_below])) == 0.54
    assert likeliest_scale(torch.zeros(1, BINS), torch.zeros(1, BINS)) == 1.0


def test_a_whole_case_is_padded_to_windows_and_seen_in_place() -> None:
    """Bone is the brightest tissue but for metal, so what `Shy` calls a kidney lies where the kidneys are."""
    model = Shy(TINY_CONFIG, random_text_embedding(0)[0])
    case = see_whole_case(model, box_case(), np.random.default_rng(0), torch.device("cpu"))
    assert case.logits.shape == case.occupancy.shape == (32, 24, 24, 24)
    assert case.voxel_ml == pytest.approx(0.064)
    kidneys = case.occupancy[[BY_NAME["kidney_right"].channel, BY_NAME["kidney_left"].channel]].max(axis=0)
    assert case.logits[0][kidneys == 8].mean() > -2.0
    assert case.logits[0][kidneys == 0].mean() < -8.0


def test_a_phantom_is_calibrated_on_as_far_as_its_scan_reaches() -> None:
    """The scan of seed 1 reaches from -119 to 115 mm; plane 0 of 350 lies at -349 mm."""
    whole = replace(box_case(), codes=np.arange(350).astype(np.uint8).reshape(1, 1, 350))
    np.testing.assert_array_equal(field_of_view(whole, 1, 2.0).codes, whole.codes[:, :, 115:232])


def test_of_a_short_phantom_some_planes_are_left() -> None:
    short = replace(box_case(), codes=np.zeros((1, 1, 40), np.uint8))
    for seed in range(8):
        assert 32 <= field_of_view(short, seed, 2.0).codes.shape[2] <= 40


def lesion_case() -> WholeCase:
    """Liver in the lower half. Tumours: one of 27 voxels at logit 2.2 (probability 0.90, at half the scale 0.75); false
    ones of 27 at 0.4 (0.55) in the liver, of 27 at 6 outside of it, and a speck of 2 at 9 in it. A voxel has 0.064 ml,
    so 8 voxels make 0.5 ml."""
    logits = np.full((32, 20, 20, 20), -9.0, np.float16)
    occupancy = np.zeros(logits.shape, np.uint8)
    tumor, liver = BY_NAME["liver_tumor"].channel, BY_NAME["liver"].channel
    logits[liver, :, :, :10] = 2.0
    logits[tumor, 2:5, 2:5, 2:5] = 2.2
    occupancy[tumor, 2:5, 2:5, 2:5] = 8
    logits[tumor, 10:13, 10:13, 2:5] = 0.4
    logits[tumor, 10:13, 10:13, 15:18] = 6.0
    logits[tumor, 16:18, 3, 3] = 9.0
    return WholeCase(logits, occupancy, np.ones(32, bool), 0.064)


def field_of(case: WholeCase) -> LesionField:
    return lesion_field(case, BY_NAME["liver_tumor"])


def points_of(case: WholeCase, scale: float = 1.0, threshold: float = 0.5) -> dict[tuple[float, float], OperatingPoint]:
    points = operating_points(field_of(case), scale, threshold)
    return {(point.peak, point.volume_ml): point for point in points}


def test_a_lesion_lies_in_its_hosts_or_a_voxel_beside_them() -> None:
    field = field_of(lesion_case())
    assert field.logits.shape == (20, 20, 11)
    assert field.truth.sum() == 27
    assert (field.logits > 0.0).sum() == 27 + 27 + 2, "not the one outside of the liver"


def test_a_host_is_its_largest_component() -> None:
    case = lesion_case()
    case.logits[BY_NAME["liver"].channel, 9:14, 9:14, 14:19] = 2.0  # a scrap of liver around the tumour beside it
    assert (field_of(case).logits > 0.0).sum() == 27 + 27 + 2


def test_lesions_at_each_peak_and_volume_by_hand() -> None:
    """27 voxels are 1.7 ml: at 2 ml both the true and the false one are too small."""
    points = points_of(lesion_case())
    assert list(points) == [(peak, ml) for ml in LESION_VOLUMES_ML for peak in LESION_PEAKS]
    assert points[0.5, 0.5] == OperatingPoint(0.5, 0.5, lesions=1, found=1, false_positives=1)
    assert points[0.7, 0.5] == OperatingPoint(0.7, 0.5, lesions=1, found=1, false_positives=0)
    assert points[0.95, 0.5] == OperatingPoint(0.95, 0.5, lesions=1, found=0, false_positives=0)
    assert points[0.5, 1.5] == OperatingPoint(0.5, 1.5, lesions=1, found=1, false_positives=1)
    assert points[0.5, 2.0] == OperatingPoint(0.5, 2.0, lesions=1, found=0, false_positives=0)
    assert LESION_VOLUMES_ML[0] == LEAST_LESION_ML == 0.5


def test_peaks_are_of_the_scaled_logits() -> None:
    points = points_of(lesion_case(), scale=0.5)
    assert points[0.7, 0.5] == OperatingPoint(0.7, 0.5, lesions=1, found=1, false_positives=0)
    assert points[0.8, 0.5] == OperatingPoint(0.8, 0.5, lesions=1, found=0, false_positives=0)


def test_a_lower_threshold_finds_what_is_doubtful() -> None:
    case = lesion_case()
    case.logits[BY_NAME["liver_tumor"].channel, 2:5, 2:5, 2:5] = -2.0
    assert points_of(case)[0.0, 0.5].found == 0
    assert points_of(case, threshold=0.1)[0.0, 0.5] == OperatingPoint(0.0, 0.5, lesions=1, found=1, false_positives=1)


def test_a_lesion_with_a_certain_core_is_found_in_its_whole_extent() -> None:
    """One voxel at 3.4 (0.968) among 27 at 2.2: at a peak of 0.95 all of them still count."""
    case = lesion_case()
    case.logits[BY_NAME["liver_tumor"].channel, 3, 3, 3] = 3.4
    points = points_of(case)
    assert points[0.95, 1.5] == OperatingPoint(0.95, 1.5, lesions=1, found=1, false_positives=0)
    assert points[0.98, 0.5] == OperatingPoint(0.98, 0.5, lesions=1, found=0, false_positives=0)


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


def test_of_a_lesion_type_that_no_case_has_none_is_dropped() -> None:
    (chosen,) = choose_operating_points({"a": curve((0.3, 0, 9), (0.9, 0, 0), lesions=0)}, 5).values()
    assert (chosen.peak, chosen.volume_ml) == (0.0, LEAST_LESION_ML)


class Shy(UniversalModel):
    """Says 0.42 inside both kidneys and next to nothing elsewhere: bone is the brightest tissue but for metal."""

    def forward(self, window: torch.Tensor, channels: torch.Tensor | None = None) -> torch.Tensor:
        bright = torch.nn.functional.avg_pool3d(window, 2) > 0.25
        return torch.where(bright, -0.33, -9.0).repeat(1, len(LABELS), 1, 1, 1)


def test_calibration_of_a_model_that_is_too_shy(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    write_box_store(tmp_path, recipe)
    model = Shy(TINY_CONFIG, random_text_embedding(0)[0])
    weights = model.controller.weight.detach().clone()
    calibration = calibrate(model, tmp_path, recipe.training_seeds, torch.device("cpu"))
    scale = calibration.logit_scale
    assert torch.allclose(model.controller.weight[[128, 135, 152]], weights[[128, 135, 152]] * scale)
    assert torch.equal(model.controller.weight[136:152], weights[136:152])
    assert calibration.thresholds.keys() == {label.name for label in LABELS}
    assert {calibration.thresholds[organ.name] for organ in ORGANS} == {0.5}
    assert calibration.lesion_volumes_ml.keys() == {lesion.name for lesion in LESIONS}
    assert all(peak > calibration.thresholds[name] for name, peak in calibration.lesion_peaks.items())
    assert {name for name, ml in calibration.lesion_volumes_ml.items() if ml > LEAST_LESION_ML} <= {"kidney_tumor"}
