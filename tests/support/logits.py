"""Logits that forget nothing: what the service's memory is held against."""

import numpy as np
from numpy.typing import NDArray

from service.inference.grid import ModelGrid, bounding_box, full_box
from service.inference.logits import Logits, logit
from service.inference.manifest import Label


def whole_logits(values: NDArray[np.float32], labels: tuple[Label, ...], stride: int, grid: ModelGrid) -> Logits:
    """Logits (C, X, Y, Z) of a whole scan, all of them kept."""
    everything = full_box((values.shape[1], values.shape[2], values.shape[3]))
    above = tuple(bounding_box(of > logit(label.threshold)) for of, label in zip(values, labels, strict=True))
    return Logits(labels, stride, grid, tuple(((everything, of),) for of in values), above)


def all_values(logits: Logits) -> NDArray[np.float32]:
    """(C, X, Y, Z)."""
    return np.stack([logits.read(channel, full_box(logits.shape)) for channel in range(len(logits.labels))])
