"""Intervals of a statistic over patients: what other patients of the same kind would have shown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

_T = TypeVar("_T")
RESAMPLES = 1000
_SEED = 0


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % bootstrap interval; NaN where there is nothing to say."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "-"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def bootstrap(
    patients: Sequence[_T], statistic: Callable[[Sequence[_T]], float], *, resamples: int = RESAMPLES
) -> Interval:
    """The statistic of all patients, and between which values it lies in 95 % of draws with replacement.

    Draws for which the statistic is NaN are left out. The same patients give the same interval.
    """
    if not patients:
        return Interval(float("nan"), float("nan"), float("nan"))
    rng = np.random.default_rng(_SEED)
    draws = rng.integers(len(patients), size=(resamples, len(patients)))
    drawn = np.array([statistic([patients[i] for i in draw]) for draw in draws])
    drawn = drawn[~np.isnan(drawn)]
    value = statistic(patients)
    if not len(drawn):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(value, float(low), float(high))
