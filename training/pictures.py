"""Slices with labels over them, as the service's overview shows them: for TensorBoard and for reports."""

import numpy as np
from numpy.typing import NDArray

from training.labels import LABELS, LESIONS, ORGANS

Rgb = NDArray[np.uint8]
_OPACITY = 0.45
#: Painted in this order: a vessel inside its organ and a lesion come last.
_ORDER = (*sorted(ORGANS, key=lambda label: label.name == "hepatic_vessel"), *LESIONS)


def overlay(image: NDArray[np.number], bits: NDArray[np.uint32], low: float, high: float) -> Rgb:
    """One slice (X,Y), RAS, as a picture (rows,columns,3) with the patient's right on the left and the front on top.

    `image` is grey from `low` to `high`; bit c of `bits` is channel c.
    """
    gray = np.clip((image - low) / (high - low), 0.0, 1.0) * 255.0
    picture = np.repeat(gray[..., None], 3, axis=2)
    for label in _ORDER:
        mask = (bits >> np.uint32(label.channel) & np.uint32(1)).astype(bool)
        picture[mask] = (1.0 - _OPACITY) * picture[mask] + _OPACITY * np.array(label.color)
    return np.ascontiguousarray(picture.astype(np.uint8).transpose(1, 0, 2)[::-1, ::-1])


def pack(masks: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """Masks (C,...) of the 32 labels as bits."""
    bits = np.zeros(masks.shape[1:], np.uint32)
    for label in LABELS:
        bits |= masks[label.channel].astype(np.uint32) << np.uint32(label.channel)
    return bits


def fullest_slice(bits: NDArray[np.uint32]) -> int:
    """The slice along z with the most labelled voxels; the middle one where there is none."""
    filled = np.count_nonzero(bits, axis=(0, 1))
    return int(filled.argmax()) if filled.any() else bits.shape[2] // 2
