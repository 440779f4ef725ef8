"""Slices with labels over them, as the service's overview shows them: for TensorBoard and for reports."""

import numpy as np
from numpy.typing import NDArray

from training.label_table import STANDARD, LabelMap, LabelTable, from_least_specific, has_label

Rgb = NDArray[np.uint8]
_OPACITY = 0.45


def overlay(image: NDArray[np.number], bits: LabelMap, low: float, high: float, *, table: LabelTable = STANDARD) -> Rgb:
    """One slice (X,Y), RAS, as a picture (rows,columns,3) with the patient's right on the left and the front on top.

    `image` is grey from `low` to `high`; bit c of `bits` is channel c of the `table`.
    """
    gray = np.clip((image - low) / (high - low), 0.0, 1.0) * 255.0
    picture = np.repeat(gray[..., None], 3, axis=2)
    for label in from_least_specific(table):
        mask = has_label(bits, label)
        picture[mask] = (1.0 - _OPACITY) * picture[mask] + _OPACITY * np.array(label.color)
    return np.ascontiguousarray(picture.astype(np.uint8).transpose(1, 0, 2)[::-1, ::-1])


def pack(masks: NDArray[np.bool_]) -> LabelMap:
    """Masks (C,...) as bits."""
    bits: LabelMap = np.zeros(masks.shape[1:], np.uint64)
    for channel, mask in enumerate(masks):
        bits[mask] |= np.uint64(1 << channel)
    return bits


def fullest_slice(bits: LabelMap | NDArray[np.bool_]) -> int:
    """The slice along z with the most labelled voxels; the middle one where there is none."""
    filled = np.count_nonzero(bits, axis=(0, 1))
    return int(filled.argmax()) if filled.any() else bits.shape[2] // 2
