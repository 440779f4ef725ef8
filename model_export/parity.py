"""Does the exported graph give the torch model's logits and masks, in every precision, on every engine there is?

Measured, never assumed. Compared is what comes out of the folded head, so that one number covers the backbone, the head
and the folding. Seconds are those of the backbone alone, torch and engine on the same number of threads: the head costs
the same whatever ran in front of it.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from model_export.engines import Array, Backbone, available_engines, open_backbone, reason_against, torch_inference
from model_export.errors import ParityError
from model_export.head import FoldedHead, logits_by_slab
from model_export.precisions import Precision
from model_export.windows import MeasuringWindows, Windows
from training.networks.universal import UniversalModel

LEAST_WINDOWS = 2
"""Measuring windows that every network is measured on."""
WINDOWS_SECONDS = 12.0
"""Torch gets no further measuring window after this time: what takes seconds a window is measured on fewer."""

_Window = TypeVar("_Window")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Reference:
    """What torch makes of all windows: `logits` by window, those of measuring windows under their number.

    `measuring` are those that it was given time for; `seconds` is the median of the time for one of them. `rounding` is
    how far the logits of a window are from torch's own in float64, by its name: costly, so computed when asked for.
    `unsteady` are the windows that were found to say nothing about a graph.
    """

    measuring: MeasuringWindows
    windows: Windows
    logits: Windows
    seconds: float
    rounding: Callable[[str], float]
    unsteady: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class EngineParity:
    """How far one engine in one precision is from torch.

    Errors are the worst over all windows; `max_relative_error` is NaN where logits are not finite, and occurred on
    `worst_window`. `dice` is by label, over the voxels (of the features' grid) of all measuring windows, of which there
    are `windows`; a label that neither torch nor the engine predicts is not in it. Seconds are for one such window.
    `unsteady` are windows that were left out: one value everywhere, on which torch itself is off by its own rounding.
    """

    precision: Precision
    engine: str
    max_relative_error: float
    worst_window: str
    max_probability_error: float
    source: str
    windows: int
    dice: Mapping[str, float]
    seconds: float
    torch_seconds: float
    unsteady: tuple[str, ...] = ()

    @property
    def lowest_dice(self) -> tuple[str, float] | None:
        """The label whose masks agree least, and its Dice; None where no label is predicted."""
        return min(self.dice.items(), key=lambda item: item[1], default=None)

    @property
    def fault(self) -> str | None:
        """Why the precision is not within its tolerance on this engine; None: it is."""
        error, allowed = self.max_relative_error, self.precision.max_relative_error
        if math.isnan(error):
            return f"logits are not finite on the window {self.worst_window!r}"
        if allowed is not None and not error <= allowed:
            return (
                f"off by {error:.1e} of the largest logit on the window {self.worst_window!r}; allowed: {allowed:.0e}"
            )
        if (needed := self.precision.least_dice) is None:
            return None
        if self.lowest_dice is None:
            return "no label is predicted in any window, so there are no masks to compare"
        label, dice = self.lowest_dice
        return None if dice >= needed else f"Dice {dice_text(dice)} of {label}; needed: {needed:g}"

    @property
    def holds(self) -> bool:
        """Whether the precision is within its tolerance on this engine."""
        return self.fault is None


@dataclass(frozen=True)
class PrecisionParity:
    """One precision on every installed engine; `unable` says of an engine that was not measured why."""

    precision: Precision
    measured: tuple[EngineParity, ...]
    unable: Mapping[str, str]

    @property
    def offered(self) -> tuple[EngineParity, ...]:
        """The engines that the bundle may run it with."""
        return tuple(parity for parity in self.measured if parity.holds)


def torch_reference(model: UniversalModel, synthetic: Windows, measuring: MeasuringWindows) -> Reference:
    """What the model, in eval mode, makes of the synthetic windows and of as many measuring windows as time allows."""
    windows: dict[str, Array] = {}
    logits: dict[str, Array] = {}
    seconds: list[float] = []

    def look_at(name: str, window: Array) -> float:
        windows[name] = window
        (features, pooled), elapsed = _timed(model.backbone_outputs, torch.from_numpy(window))
        logits[name] = logits_by_slab(features, model.head_params(pooled)).numpy()
        return elapsed

    with torch_inference():
        for name, window in synthetic.items():
            look_at(name, window)
        for number, window in enumerate(measuring.windows):
            if number >= LEAST_WINDOWS and sum(seconds) > WINDOWS_SECONDS:
                break
            seconds.append(look_at(_numbered(measuring, number), window))

    @cache
    def rounding(name: str) -> float:
        with torch_inference():
            exact = copy.deepcopy(model).double()(torch.from_numpy(windows[name]).double())
        return relative_error(logits[name], exact.numpy())

    seen = replace(measuring, windows=measuring.windows[: len(seconds)])
    return Reference(seen, windows, logits, median(seconds), rounding)


def measure_precision(
    precision: Precision,
    onnx_path: Path,
    head: FoldedHead,
    reference: Reference,
    thresholds: Mapping[str, float],
) -> PrecisionParity:
    """The precision on each installed engine; `thresholds` are of the probability, by label, in the head's order.

    Raises ExportError when no engine is installed.
    """
    measured: list[EngineParity] = []
    unable: dict[str, str] = {}
    for engine in available_engines():
        if reason := reason_against(engine, precision):
            unable[engine] = reason
            continue
        try:
            # In no name of this frame, so that an engine's gigabytes are free when the next one opens.
            measured.append(
                _measure(precision, engine, open_backbone(engine, onnx_path, precision), head, reference, thresholds)
            )
        except Exception as error:  # noqa: BLE001  # the engines publish no common exception type
            unable[engine] = f"cannot run {onnx_path.name}: {(str(error).splitlines() or [''])[0][:200]}"
    return PrecisionParity(precision, tuple(measured), unable)


def check_parity(parity: PrecisionParity) -> None:
    """Raises ParityError for the first engine that is off or cannot run the graph."""
    faults = [*parity.unable.items(), *((engine.engine, engine.fault) for engine in parity.measured if engine.fault)]
    for engine, fault in faults:
        raise ParityError(f"{engine} in {parity.precision.name}: {fault}.")


def relative_error(measured: NDArray[np.floating], reference: NDArray[np.floating]) -> float:
    """max |measured - reference| / max |reference|; NaN when either is not finite, inf when only the reference is 0."""
    if not (np.isfinite(measured).all() and np.isfinite(reference).all()):
        return math.nan
    difference = float(np.abs(measured.astype(np.float64) - reference).max())
    scale = float(np.abs(reference).max())
    if scale == 0.0:
        return 0.0 if difference == 0.0 else math.inf
    return difference / scale


class MaskAgreement:
    """Dice of the masks of two sets of logits, by label, gathered window by window."""

    def __init__(self, thresholds: Mapping[str, float]) -> None:
        """`thresholds` of the probability, by label, in the order of the logits; a voxel above it is in the mask."""
        self._labels = tuple(thresholds)
        cuts = [math.log(threshold / (1.0 - threshold)) for threshold in thresholds.values()]
        self._cuts = np.array(cuts, dtype=np.float32).reshape(-1, 1, 1, 1)
        self._both = np.zeros(len(cuts), dtype=np.int64)
        self._sum = np.zeros(len(cuts), dtype=np.int64)

    def add(self, logits: Array, reference: Array) -> None:
        """One more pair of logits (B,C,D,H,W) of the same windows."""
        mine, theirs = logits > self._cuts, reference > self._cuts
        axes = (0, 2, 3, 4)
        self._both += np.count_nonzero(mine & theirs, axis=axes)
        self._sum += np.count_nonzero(mine, axis=axes) + np.count_nonzero(theirs, axis=axes)

    @property
    def dice(self) -> dict[str, float]:
        """By label; one that is empty in both has none."""
        return {
            label: 2 * int(both) / int(total)
            for label, both, total in zip(self._labels, self._both, self._sum, strict=True)
            if total
        }


def _measure(
    precision: Precision,
    engine: str,
    backbone: Backbone,
    head: FoldedHead,
    reference: Reference,
    thresholds: Mapping[str, float],
) -> EngineParity:
    agreement = MaskAgreement(thresholds)
    errors: dict[str, float] = {}
    unsteady: list[str] = []
    drift, seconds = 0.0, []
    real = {_numbered(reference.measuring, n) for n in range(len(reference.measuring.windows))}
    for name, window in reference.windows.items():
        outputs, elapsed = _timed(backbone, window)
        logits, expected = head.logits(*outputs), reference.logits[name]
        error = relative_error(logits, expected)
        if _is_unsteady(name, error, precision, reference):
            unsteady.append(name)
            continue
        errors[name] = error
        drift = max(drift, float(np.abs(_probability(logits) - _probability(expected)).max()))
        if name in real:
            agreement.add(logits, expected)
            seconds.append(elapsed)
    # NaN is no larger than anything; it has to win nevertheless.
    worst = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
    return EngineParity(
        precision=precision,
        engine=engine,
        max_relative_error=errors[worst],
        worst_window=worst,
        max_probability_error=drift,
        source=reference.measuring.source,
        windows=len(reference.measuring.windows),
        dice=agreement.dice,
        seconds=median(seconds),
        torch_seconds=reference.seconds,
        unsteady=tuple(unsteady),
    )


def _is_unsteady(name: str, error: float, precision: Precision, reference: Reference) -> bool:
    """Whether the window has one value everywhere and torch itself is off on it, by more than an engine may be.

    A norm divides what a convolution makes of one value, nothing but rounding, by next to nothing. Trained biases drown
    that; without them the logits are noise, and no two machines have the same. fp32, which is measured first, tells.
    """
    allowed, window = precision.max_relative_error, reference.windows[name]
    if allowed is not None and error > allowed and window.min() == window.max() and reference.rounding(name) > allowed:
        reference.unsteady.add(name)
    return name in reference.unsteady


def _numbered(measuring: MeasuringWindows, number: int) -> str:
    return f"{measuring.source} {number + 1}"


def _probability(logits: Array) -> Array:
    probability: Array = torch.from_numpy(logits).sigmoid().numpy()
    return probability


def _timed(run: Callable[[_Window], _Result], window: _Window) -> tuple[_Result, float]:
    start = time.perf_counter()
    result = run(window)
    return result, time.perf_counter() - start


def dice_text(dice: float) -> str:
    """For people: three digits, never flattered: 0.9899 is not 0.990."""
    return f"{math.floor(dice * 1000) / 1000:.3f}"
