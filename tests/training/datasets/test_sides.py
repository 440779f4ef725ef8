"""Left and right, of pictures small enough to see. RAS: x grows towards the patient's right."""

import numpy as np
import pytest

from tests.support.assembly import mask_of, small_phantom
from training.datasets.sides import middle_of_body, split_sides

SHAPE = (60, 20, 20)
MIDDLE = 29.5


def boxes(*spans: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    for low, high in spans:
        mask[low:high, 5:15, 5:15] = True
    return mask


def assert_split(mask: np.ndarray, right: np.ndarray, middle: float = MIDDLE) -> None:
    found_right, found_left = split_sides(mask, middle)
    np.testing.assert_array_equal(found_right, right)
    np.testing.assert_array_equal(found_left, mask & ~right)


def test_one_organ_on_each_side() -> None:
    assert_split(boxes((8, 20), (40, 52)), boxes((40, 52)))


@pytest.mark.parametrize(("span", "is_right"), [((8, 20), False), ((40, 52), True), ((22, 31), False)])
def test_an_organ_alone_belongs_to_the_side_it_lies_on(span: tuple[int, int], is_right: bool) -> None:
    """The reference calls every lone kidney a right one."""
    assert_split(boxes(span), boxes(span) if is_right else boxes())


def test_two_organs_tell_the_middle_where_the_body_is_cut() -> None:
    """A field of view that cuts off the patient's right leaves a middle beside the left kidney."""
    assert_split(boxes((8, 20), (40, 52)), boxes((40, 52)), middle=5.0)


def test_fragments_stay_on_their_side() -> None:
    mask = boxes((8, 20), (40, 52))
    mask[22, 1, 1] = mask[35, 1, 1] = True
    right = boxes((40, 52))
    right[35, 1, 1] = True
    assert_split(mask, right)


def test_organs_that_touch_are_parted_where_they_are_thinnest() -> None:
    """Lungs joined by a thin bridge that lies well right of the middle."""
    mask = boxes((5, 32), (36, 58))
    mask[32:36, 9:11, 9:11] = True
    right, left = split_sides(mask, MIDDLE)
    assert right[36:58, 5:15, 5:15].all()
    assert left[5:32, 5:15, 5:15].all()
    np.testing.assert_array_equal(right | left, mask)
    assert not (right & left).any()


def test_a_horseshoe_is_cut_in_the_middle() -> None:
    assert_split(boxes((15, 45)), boxes((30, 45)))


def test_an_organ_that_reaches_over_the_middle_is_not_cut() -> None:
    assert_split(boxes((10, 34)), boxes())


def test_nothing_has_no_sides() -> None:
    assert_split(boxes(), boxes())


def test_both_parts_are_the_sides_of_a_phantom() -> None:
    phantom = small_phantom(2)
    for organ in ("kidney", "lung", "adrenal_gland", "femur_head"):
        right, left = (mask_of(phantom.labels, f"{organ}_{side}") for side in ("right", "left"))
        both = right | left
        found = split_sides(both, middle_of_body(phantom.hu, both))
        np.testing.assert_array_equal(found[0], right)
        np.testing.assert_array_equal(found[1], left)


def test_the_middle_of_a_body() -> None:
    hu = np.full(SHAPE, -1000, np.int16)
    hu[10:31] = 40
    assert middle_of_body(hu, boxes((12, 15))) == pytest.approx(20, abs=1)
    assert middle_of_body(np.full(SHAPE, -1000, np.int16), boxes((12, 15))) == 29.5
