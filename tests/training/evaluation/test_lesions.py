"""Detection by hand: one picture of lesions, and lists of probabilities."""

import math

import numpy as np
import pytest

from training.detection import count_detections
from training.evaluation.bootstrap import Interval, bootstrap
from training.evaluation.lesions import (
    LesionScores,
    calibration,
    calibration_error,
    false_positives_per_scan,
    froc,
    froc_score,
    patient_level,
    score_lesions,
    sensitivity,
    sensitivity_at,
)

VOXEL_ML = 0.1  # the smallest lesion that counts has 5 voxels


def test_a_scan_by_hand() -> None:
    """Along one line: a lesion of 10 voxels hit twice, one of 10 that is missed, a speck of 2 that is hit."""
    truth, components = np.zeros((60, 1, 1), bool), np.zeros((60, 1, 1), np.int32)
    truth[0:10] = truth[20:30] = truth[40:42] = True
    components[0:1] = 1
    components[5:8] = 2
    components[41:44] = 3
    components[50:55] = 4
    scores = score_lesions(components, {1: 0.9, 2: 0.6, 3: 0.8, 4: 0.7}, truth, VOXEL_ML)
    assert scores.diseased
    assert scores.found_at == (0.9, None)  # one voxel is a tenth of the lesion
    assert scores.true_at == (0.9, 0.6, 0.8)  # the speck counts neither as found nor as a false alarm
    assert scores.false_at == (0.7,)
    counts = count_detections(components > 0, truth, VOXEL_ML)
    assert (counts.lesions, counts.found, counts.false_positives) == (2, 1, 1)


def test_a_lesion_is_found_when_enough_of_it_is_covered() -> None:
    truth, components = np.zeros((50, 1, 1), bool), np.zeros((50, 1, 1), np.int32)
    truth[0:40] = True
    components[0:3], components[10:13] = 1, 2
    assert score_lesions(components, {1: 0.9, 2: 0.5}, truth, VOXEL_ML).found_at == (0.5,)
    assert score_lesions(components, {1: 0.9, 2: 0.5}, ~truth, VOXEL_ML).found_at == (None,)


def test_nothing_is_there_and_nothing_is_found() -> None:
    scores = score_lesions(np.zeros((5, 5, 5), np.int32), {}, np.zeros((5, 5, 5), bool), VOXEL_ML)
    assert scores == LesionScores(diseased=False, found_at=(), true_at=(), false_at=())
    assert scores.called is None


SCANS = [
    LesionScores(True, (0.9, 0.5), (0.9, 0.5), (0.7,)),
    LesionScores(True, (None,), (), ()),
    LesionScores(False, (), (), (0.3,)),
    LesionScores(False, (), (), ()),
]


def test_rates() -> None:
    assert sensitivity(SCANS) == pytest.approx(2 / 3)
    assert false_positives_per_scan(SCANS) == pytest.approx(2 / 4)
    assert math.isnan(sensitivity(SCANS[2:]))
    assert math.isnan(false_positives_per_scan([]))


def test_patient_level() -> None:
    level = patient_level(SCANS)
    assert (level.sensitivity, level.specificity, level.harmonic_mean) == (0.5, 0.5, 0.5)
    assert patient_level(SCANS[:1] + SCANS[3:]).harmonic_mean == 1.0
    assert math.isnan(patient_level(SCANS[:2]).specificity)
    assert patient_level(SCANS[1:3]).harmonic_mean == 0.0


def test_froc_by_hand() -> None:
    """Thresholds infinity, 0.9, 0.7, 0.5, 0.3 over 4 scans with 3 lesions."""
    rates, sensitivities = froc(SCANS)
    assert rates.tolist() == [0, 0, 0.25, 0.25, 0.5]
    assert sensitivities == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert sensitivity_at(SCANS, 0.125) == pytest.approx(1 / 3)
    assert sensitivity_at(SCANS, 0.25) == pytest.approx(2 / 3)
    assert froc_score(SCANS) == pytest.approx((1 / 3 + 6 * 2 / 3) / 7)
    assert math.isnan(froc_score(SCANS[2:]))


def test_calibration_by_hand() -> None:
    bins = calibration(SCANS)
    assert [(one.count, one.probability, one.true_share) for one in bins] == [
        (1, 0.3, 0.0), (1, 0.5, 1.0), (1, 0.7, 0.0), (1, 0.9, 1.0),
    ]  # fmt: skip
    assert calibration_error(bins) == pytest.approx((0.3 + 0.5 + 0.7 + 0.1) / 4)
    assert math.isnan(calibration_error([]))
    assert calibration([LesionScores(True, (1.0,), (1.0,), ())])[0].probability == 1.0


def test_bootstrap_of_a_mean_is_about_two_standard_errors() -> None:
    values = np.random.default_rng(0).normal(5.0, 2.0, 100).tolist()
    interval = bootstrap(values, lambda drawn: float(np.mean(drawn)))
    half = 1.96 * np.std(values) / 10
    assert interval.value == pytest.approx(np.mean(values))
    assert interval.low == pytest.approx(interval.value - half, abs=0.08)
    assert interval.high == pytest.approx(interval.value + half, abs=0.08)
    assert bootstrap(values, lambda drawn: float(np.mean(drawn))) == interval


def test_bootstrap_of_too_little() -> None:
    assert str(bootstrap([], sensitivity)) == "-"
    assert str(bootstrap(SCANS[2:], sensitivity)) == "-"
    assert str(Interval(0.5, 0.25, 0.75)) == "0.500 (0.250 to 0.750)"
