"""How far a job is: the stage it is in, and one percentage for the whole of it."""

from collections.abc import Callable
from enum import StrEnum


class Stage(StrEnum):
    """The stages of a job, in the order in which they are walked; waiting can come earlier, too."""

    FETCHING = "fetching"  #: a study by reference comes from its PACS
    READING = "reading"  #: the upload becomes a volume in HU
    PREPROCESSING = "preprocessing"  #: the volume goes onto the model grid
    WAITING = "waiting"  #: another job of the worker has the network, or the memory
    INFERENCE = "inference"  #: windows go through the network
    POSTPROCESSING = "postprocessing"  #: logits become masks on the source grid
    MEASURING = "measuring"  #: masks become findings
    WRITING = "writing"  #: findings and masks become files
    SENDING = "sending"  #: DICOM results go to the peers that the job names


Progress = Callable[[Stage, float], None]
"""Told the stage and the fraction (0 to 1) of that stage that is done; called often, and may raise JobCanceled."""

_WEIGHTS: dict[Stage, float] = {  # shares of the wall clock on two CPU cores, in percent
    Stage.FETCHING: 2.0,
    Stage.READING: 3.0,
    Stage.PREPROCESSING: 5.0,
    Stage.WAITING: 0.0,
    Stage.INFERENCE: 60.0,
    Stage.POSTPROCESSING: 15.0,
    Stage.MEASURING: 7.0,
    Stage.WRITING: 7.0,
    Stage.SENDING: 1.0,
}


def no_progress(stage: Stage, fraction: float) -> None:
    """Nobody is watching."""


def stage_fraction(stage: Stage, percent: float) -> float:
    """The fraction (0 to 1) of `stage` that is done when the whole job is at `percent`; undoes `overall_percent`."""
    if not _WEIGHTS[stage]:
        return 0.0
    done = (percent - overall_percent(stage, 0.0)) / _WEIGHTS[stage]
    return min(max(done, 0.0), 1.0)


def overall_percent(stage: Stage, fraction: float) -> float:
    """Percent (0 to 100) of the whole job when `fraction` of `stage` is done; a fraction outside 0..1 is clamped."""
    before = 0.0
    for earlier, weight in _WEIGHTS.items():
        if earlier is stage:
            return before + weight * min(max(fraction, 0.0), 1.0)
        before += weight
    raise AssertionError(stage)
