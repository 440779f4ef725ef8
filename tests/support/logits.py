"""Logits that forget nothing: what the service's memory is held against."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.inference.grid import Box, ModelGrid, bounding_box, full_box
from service.inference.logits import LabelLogits, Logits, logit
from service.inference.manifest import Label

Float32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Everything(LabelLogits):
    """All logits of a label."""

    values: Float32

    def read(self, box: Box) -> Float32:
        """As they are."""
        return self.values[box]


def whole_logits(values: Float32, labels: tuple[Label, ...], stride: int, grid: ModelGrid) -> Logits:
    """Logits (C, X, Y, Z) of a whole scan, all of them kept."""
    kept = (
        Everything(np.empty((0, 0, 0), np.int32), (), bounding_box(of > logit(label.threshold)), of)
        for of, label in zip(values, labels, strict=True)
    )
    return Logits(labels, stride, grid, dict(enumerate(kept)))


def all_values(logits: Logits) -> Float32:
    """(C, X, Y, Z)."""
    return np.stack([kept.read(full_box(logits.shape)) for kept in logits.kept.values()])
