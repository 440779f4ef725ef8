"""Volumes that labels can have. What lies outside is worth a look; it also tells label orders apart."""

from collections.abc import Iterable, Mapping

import numpy as np

from training.datasets.errors import AmbiguousLabelOrder
from training.labels import PAIRS

#: Millilitres between which nearly every adult's organ lies, wide on purpose: only blunders are to be found.
PLAUSIBLE_ML: dict[str, tuple[float, float]] = {
    "spleen": (20, 2500), "kidney_right": (30, 700), "kidney_left": (30, 700), "gallbladder": (1, 400),
    "esophagus": (2, 150), "liver": (400, 6000), "stomach": (25, 3000), "aorta": (10, 900),
    "inferior_vena_cava": (5, 400), "portal_and_splenic_vein": (2, 200), "pancreas": (8, 300),
    "adrenal_gland_right": (0.3, 40), "adrenal_gland_left": (0.3, 40), "duodenum": (5, 400),
    "hepatic_vessel": (1, 400), "lung_right": (200, 6000), "lung_left": (200, 6000), "colon": (50, 4000),
    "small_intestine": (50, 4000), "rectum": (5, 800), "urinary_bladder": (5, 2000), "prostate": (2, 400),
    "femur_head_left": (10, 250), "femur_head_right": (10, 250), "celiac_trunk": (0.1, 30),
}  # fmt: skip
_FAR = 4.0  # robust standard deviations of log volume
_ENOUGH = 8  # volumes of a label before the spread among them means anything


def implausible(name: str, volume_ml: float, *, cut: bool) -> str | None:
    """Why a volume cannot be right; None if it can. A structure cut by the field of view may be small."""
    low, high = PLAUSIBLE_ML.get(name, (0.0, np.inf))
    if volume_ml > high:
        return f"{name} of {volume_ml:.0f} ml is larger than {high:g} ml"
    if 0 < volume_ml < low and not cut:
        return f"{name} of {volume_ml:.2g} ml is smaller than {low:g} ml"
    return None


def far_from_the_rest(volumes_ml: Mapping[str, float]) -> set[str]:
    """Keys of volumes of one label that lie far from the others, by median and median deviation of their logarithm."""
    present = {key: np.log(volume) for key, volume in volumes_ml.items() if volume > 0}
    if len(present) < _ENOUGH:
        return set()
    values = np.array(list(present.values()))
    center = np.median(values)
    spread = 1.4826 * float(np.median(np.abs(values - center))) or 1e-6
    return {key for key, value in present.items() if abs(value - center) > _FAR * spread}


def choose_order(orders: Mapping[str, Mapping[int, tuple[str, ...]]], volumes_ml: Iterable[Mapping[int, float]]) -> str:
    """The label order under which most volumes of a few cases are plausible.

    `volumes_ml` are volumes by label value. Raises AmbiguousLabelOrder unless one order fits clearly best.
    """
    cases = list(volumes_ml)
    fits: dict[str, float] = {}
    for order, table in orders.items():
        checks = [
            implausible(_bulkiest(names), case[value], cut=False) is None
            for case in cases
            for value, names in table.items()
            if case.get(value, 0.0) > 0
        ]
        unknown = sum(1 for case in cases for value in case if value not in table)
        fits[order] = sum(checks) / (len(checks) + unknown) if checks else 0.0
    ranked = sorted(fits, key=lambda order: fits[order], reverse=True)
    best = ranked[0]
    if fits[best] < 0.9 or (len(ranked) > 1 and fits[best] - fits[ranked[1]] < 0.05):
        said = ", ".join(f"{order} {100 * fit:.0f} %" for order, fit in fits.items())
        raise AmbiguousLabelOrder(f"Volumes do not tell which label order this is ({said}); name it with --order.")
    return best


def _bulkiest(names: tuple[str, ...]) -> str:
    """The name to judge by: for both organs of a pair, the limits of twice one of them are close to those of one."""
    return PAIRS.get(names[0], (names[0],))[0]
