"""A label's mask as bits in a box: whatever is written is read again, in any part of the scan."""

import numpy as np
import pytest

from service.inference.grid import Box
from service.inference.masks import LabelMask

SHAPE = (5, 7, 40)
WITHIN = (slice(1, 5), slice(2, 6), slice(11, 37))


def box(i: tuple[int, int], j: tuple[int, int], k: tuple[int, int]) -> Box:
    return slice(*i), slice(*j), slice(*k)


@pytest.mark.parametrize("part", [
    box((0, 5), (0, 7), (0, 40)), box((1, 5), (2, 6), (11, 37)), box((2, 3), (3, 4), (12, 13)),
    box((0, 2), (5, 7), (8, 16)), box((0, 1), (0, 1), (0, 3)), box((4, 5), (2, 6), (36, 40)),
    box((3, 3), (2, 6), (11, 37)),
])  # fmt: skip
def test_any_part_is_read(part: Box) -> None:
    drawn = np.zeros(SHAPE, np.bool_)
    drawn[WITHIN] = np.random.default_rng(1).random((4, 4, 26)) < 0.4
    mask = LabelMask.of(WITHIN, drawn[WITHIN])
    np.testing.assert_array_equal(mask.read(part), drawn[part])


@pytest.mark.parametrize("thickness", [1, 3, 8, 20])
def test_slabs_along_k_add_up_whatever_byte_they_begin_in(thickness: int) -> None:
    drawn = np.random.default_rng(2).random(SHAPE) < 0.4
    mask = LabelMask(WITHIN)
    for first in range(11, 37, thickness):
        slab = (*WITHIN[:2], slice(first, min(first + thickness, 37)))
        mask.add(slab, drawn[slab])
    np.testing.assert_array_equal(mask.read(WITHIN), drawn[WITHIN])


def test_what_is_removed_is_gone_and_nothing_else() -> None:
    mask = LabelMask.of(WITHIN, np.ones((4, 4, 26), np.bool_))
    part = box((2, 4), (2, 5), (13, 30))
    outside = np.random.default_rng(3).random((2, 3, 17)) < 0.5
    mask.remove(part, outside)
    np.testing.assert_array_equal(mask.read(part), ~outside)
    assert mask.read(WITHIN).sum() == 4 * 4 * 26 - outside.sum()


def test_the_bounds_are_tight_and_an_empty_mask_has_none() -> None:
    drawn = np.zeros((4, 4, 26), np.bool_)
    drawn[1:3, 2, [4, 17]] = True
    assert LabelMask.of(WITHIN, drawn).bounds() == box((2, 4), (4, 5), (15, 29))
    for empty in (LabelMask(WITHIN), LabelMask(None)):
        assert empty.bounds() is None
        assert not empty.read(box((0, 5), (0, 7), (0, 40))).any()
