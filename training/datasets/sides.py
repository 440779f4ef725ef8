"""Left and right of a pair of organs that were labelled as one.

Survives one organ alone, organs that touch, and fragments: sides come from the middle of the body, not from an order
of components.
"""

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from training.detection import bounding_box

Mask = NDArray[np.bool_]

_LARGE = 0.1  # of the largest component: what counts as an organ of its own
_ONE_SIDED = 0.85  # share of a component beyond which it belongs to a side as a whole
_LOBE = 0.15  # of what an erosion leaves: smaller lobes are no organ
_MOST_EROSIONS = 12
_HORSESHOE = 0.3  # least share on the other side for a cut along the middle


def middle_of_body(hu: NDArray[np.int16], mask: Mask) -> float:
    """Position along x of the body's middle, in voxels, over the slices that the mask lies in."""
    slices = bounding_box(mask)[2]
    body = (hu[:, :, slices] > -300).sum(axis=(1, 2), dtype=np.int64)
    if not body.any():
        return float(hu.shape[0] - 1) / 2.0
    return float(int(np.searchsorted(np.cumsum(body), body.sum() / 2.0)))


def split_sides(mask: Mask, middle: float) -> tuple[Mask, Mask]:
    """The right and the left part of a mask (X,Y,Z) in RAS: x grows towards the patient's right.

    `middle` is the position of the body's middle along x. Both parts together are the mask.
    """
    box = bounding_box(mask)
    cut, offset = mask[box], box[0].start
    right = np.zeros_like(mask)
    if not cut.any():
        return right, right.copy()
    components = cc3d.connected_components(cut, connectivity=26)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    large = np.flatnonzero(sizes >= _LARGE * sizes.max())
    middle = _between(components, large, offset, middle)
    in_box = right[box]
    for number, where in enumerate(ndimage.find_objects(components), 1):
        component = components[where] == number
        in_box[where] |= _right_part(component, middle - offset - where[0].start)
    return right, mask & ~right


def _between(components: NDArray[np.generic], large: NDArray[np.intp], offset: int, middle: float) -> float:
    """The middle between two organs that lie beside each other; the body's where there is no such pair.

    A body that the field of view cuts off on one side has its middle elsewhere.
    """
    if len(large) != 2:
        return middle
    found = ndimage.find_objects(components)
    low, high = sorted((found[number - 1][0] for number in large), key=lambda along_x: along_x.start)
    return offset + (low.stop - 1 + high.start) / 2.0 if low.stop <= high.start else middle


def _right_part(component: Mask, middle: float) -> Mask:
    """What of one component lies on the patient's right."""
    beyond = np.zeros_like(component)
    beyond[max(0, int(np.floor(middle)) + 1) :] = True
    share = np.count_nonzero(component & beyond) / np.count_nonzero(component)
    if share >= _ONE_SIDED:
        return component
    if share <= 1.0 - _ONE_SIDED:
        return np.zeros_like(component)
    lobes = _lobes(component, middle)
    if lobes is not None:
        return lobes
    if _HORSESHOE <= share <= 1.0 - _HORSESHOE:
        return component & beyond
    return component if share > 0.5 else np.zeros_like(component)


def _lobes(component: Mask, middle: float) -> Mask | None:
    """The right one of two lobes that touch, found by wearing the component off until it falls apart; None if it does
    not, or not into a lobe on each side."""
    left_over = np.pad(component, 1)
    for _ in range(_MOST_EROSIONS):
        left_over = ndimage.binary_erosion(left_over)
        parts = cc3d.connected_components(left_over[1:-1, 1:-1, 1:-1], connectivity=6)
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        if not sizes.any():
            return None
        lobes = np.flatnonzero(sizes >= max(1.0, _LOBE * sizes.sum()))
        sides = {number: np.argwhere(parts == number)[:, 0].mean() > middle for number in lobes}
        if len(set(sides.values())) == 2:
            seeds = np.isin(parts, lobes)
            nearest = ndimage.distance_transform_edt(~seeds, return_distances=False, return_indices=True)
            owner = parts[tuple(nearest)]
            return component & np.isin(owner, [number for number, is_right in sides.items() if is_right])
    return None
