"""Lesions of one label: which were found, which are false, and with what probability; of one scan and of many.

A lesion is found when predictions cover at least `detection.HIT_FRACTION` of it. A prediction is false when it touches
none. Curves come from the predictions' probabilities: at a threshold only those that reach it count.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from training.detection import HIT_FRACTION, LEAST_LESION_ML, bounding_box

Mask = NDArray[np.bool_]
_TOUCHING = np.ones((3, 3, 3), bool)
_ROUNDING = 1e-6
FALSE_POSITIVE_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
CALIBRATION_BINS = 10


@dataclass(frozen=True)
class LesionScores:
    """One label in one scan.

    `found_at` has an entry for each true lesion of at least `LEAST_LESION_ML`: the largest threshold at which it is
    found, None if it never is. `true_at` and `false_at` are the probabilities of predictions that touch a lesion and of
    those that touch none. `diseased`: the truth has any voxel.
    """

    diseased: bool
    found_at: tuple[float | None, ...]
    true_at: tuple[float, ...]
    false_at: tuple[float, ...]

    @property
    def called(self) -> float | None:
        """The largest threshold at which the scan is called diseased; None if it never is."""
        return max((*self.true_at, *self.false_at), default=None)


def score_lesions(
    components: NDArray[np.integer], probabilities: Mapping[int, float], truth: Mask, voxel_ml: float
) -> LesionScores:
    """Lesions of a scan: numbered predictions (0: none) with their probabilities, against the truth (X,Y,Z)."""
    box = bounding_box((components > 0) | truth)
    components, truth = components[box], truth[box]
    lesions, count = ndimage.label(truth, _TOUCHING)
    sizes = np.bincount(lesions.ravel(), minlength=count + 1)
    shared = np.zeros((count + 1, max(probabilities, default=0) + 1), np.int64)
    np.add.at(shared, (lesions.ravel(), components.ravel()), 1)
    shared[:, 0] = 0
    large = np.flatnonzero(sizes[1:] * voxel_ml >= LEAST_LESION_ML * (1.0 - _ROUNDING)) + 1
    touches = {number: bool(shared[1:, number].any()) for number in probabilities}
    return LesionScores(
        diseased=bool(truth.any()),
        found_at=tuple(_found_at(shared[lesion], int(sizes[lesion]), probabilities) for lesion in large),
        true_at=tuple(p for number, p in probabilities.items() if touches[number]),
        false_at=tuple(p for number, p in probabilities.items() if not touches[number]),
    )


def _found_at(shared: NDArray[np.int64], size: int, probabilities: Mapping[int, float]) -> float | None:
    covered = 0
    for number in sorted(probabilities, key=lambda n: probabilities[n], reverse=True):
        covered += int(shared[number])
        if shared[number] and covered >= HIT_FRACTION * size:
            return probabilities[number]
    return None


def sensitivity(scans: Sequence[LesionScores]) -> float:
    """Found lesions over all lesions; NaN without any."""
    every = [found for scan in scans for found in scan.found_at]
    return sum(found is not None for found in every) / len(every) if every else float("nan")


def false_positives_per_scan(scans: Sequence[LesionScores]) -> float:
    """False predictions over scans; NaN without any scan."""
    return sum(len(scan.false_at) for scan in scans) / len(scans) if scans else float("nan")


@dataclass(frozen=True)
class PatientLevel:
    """Is the patient diseased? NaN where there is no such patient."""

    sensitivity: float
    specificity: float

    @property
    def harmonic_mean(self) -> float:
        """Of both, as in the paper's table of tumour detection."""
        total = self.sensitivity + self.specificity
        return 2.0 * self.sensitivity * self.specificity / total if total else 0.0


def patient_level(scans: Sequence[LesionScores]) -> PatientLevel:
    """A scan is called diseased when anything is predicted."""
    diseased = [scan.called is not None for scan in scans if scan.diseased]
    healthy = [scan.called is None for scan in scans if not scan.diseased]
    return PatientLevel(*(float(np.mean(right)) if right else float("nan") for right in (diseased, healthy)))


def froc(scans: Sequence[LesionScores]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False positives per scan and sensitivity at every threshold, from the strictest on; empty without lesions."""
    found = np.array([at for scan in scans for at in scan.found_at if at is not None])
    false = np.array([at for scan in scans for at in scan.false_at])
    lesions = sum(len(scan.found_at) for scan in scans)
    if not lesions:
        return np.empty(0), np.empty(0)
    thresholds = np.unique(np.concatenate([found, false, [np.inf]]))[::-1]
    rates = np.array([np.count_nonzero(false >= t) for t in thresholds]) / len(scans)
    sensitivities = np.array([np.count_nonzero(found >= t) for t in thresholds]) / lesions
    return rates, sensitivities


def sensitivity_at(scans: Sequence[LesionScores], rate: float) -> float:
    """The best sensitivity at no more than `rate` false positives per scan; NaN without lesions."""
    rates, sensitivities = froc(scans)
    return float(sensitivities[rates <= rate].max()) if len(rates) else float("nan")


def froc_score(scans: Sequence[LesionScores]) -> float:
    """Mean sensitivity at `FALSE_POSITIVE_RATES`; NaN without lesions."""
    return float(np.mean([sensitivity_at(scans, rate) for rate in FALSE_POSITIVE_RATES]))


@dataclass(frozen=True)
class CalibrationBin:
    """Predictions whose probability lies in a bin: how many, their mean probability, and the share that is true."""

    count: int
    probability: float
    true_share: float


def calibration(scans: Sequence[LesionScores]) -> list[CalibrationBin]:
    """Bins of equal width of the predictions' probabilities that hold any."""
    at = [(p, True) for scan in scans for p in scan.true_at] + [(p, False) for scan in scans for p in scan.false_at]
    bins = []
    for number in range(CALIBRATION_BINS):
        inside = [pair for pair in at if min(int(pair[0] * CALIBRATION_BINS), CALIBRATION_BINS - 1) == number]
        if inside:
            probabilities, true = zip(*inside, strict=True)
            bins.append(CalibrationBin(len(inside), float(np.mean(probabilities)), float(np.mean(true))))
    return bins


def calibration_error(bins: Sequence[CalibrationBin]) -> float:
    """Expected calibration error: mean distance of probability and truth, by predictions; NaN without any."""
    total = sum(one.count for one in bins)
    if not total:
        return float("nan")
    return sum(one.count * abs(one.probability - one.true_share) for one in bins) / total
