"""Diameters that can be worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.imaging.geometry import Geometry
from service.reporting.diameters import measure_component, measure_slice

SQUARE_MM = np.eye(2)


def test_one_pixel_has_its_diagonals():
    longest, perpendicular, *_ = measure_slice(np.ones((1, 1), bool), SQUARE_MM)
    assert longest == pytest.approx(np.sqrt(2))
    assert perpendicular == pytest.approx(np.sqrt(2))


def test_one_oblong_pixel():
    # 2 x 1 mm: diagonal sqrt(5); the chord across it spans the short side: 1 * sqrt(5) / 2.
    longest, perpendicular, *_ = measure_slice(np.ones((1, 1), bool), np.diag([2.0, 1.0]))
    assert longest == pytest.approx(np.sqrt(5))
    assert perpendicular == pytest.approx(np.sqrt(5) / 2)


def test_rectangle_of_three_by_four():
    # Diagonal 5; the chord at a right angle to it from a corner to the long side: 3 * 5 / 4.
    longest, perpendicular, *_ = measure_slice(np.ones((3, 4), bool), SQUARE_MM)
    assert longest == pytest.approx(5.0)
    assert perpendicular == pytest.approx(3.75)


def test_same_rectangle_out_of_oblong_pixels():
    longest, perpendicular, *_ = measure_slice(np.ones((2, 8), bool), np.diag([1.5, 0.5]))
    assert (longest, perpendicular) == (pytest.approx(5.0), pytest.approx(3.75))


def test_two_pixels_touching_at_a_corner():
    # The hull runs from corner to corner over two diagonals; across it lies one diagonal.
    longest, perpendicular, *_ = measure_slice(np.eye(2, dtype=bool), SQUARE_MM)
    assert longest == pytest.approx(2 * np.sqrt(2))
    assert perpendicular == pytest.approx(np.sqrt(2))


def test_a_hole_or_a_bay_changes_nothing():
    ring = np.ones((5, 5), bool)
    ring[1:4, 1:] = False
    assert measure_slice(ring, SQUARE_MM)[0] == pytest.approx(np.hypot(5, 5))


def test_end_points_lie_on_pixel_corners_and_have_the_length():
    mask = np.zeros((6, 7), bool)
    mask[1:4, 2:6] = True
    longest, perpendicular, long_axis, short_axis = measure_slice(mask, SQUARE_MM)
    assert {tuple(point) for point in long_axis} in ({(0.5, 1.5), (3.5, 5.5)}, {(0.5, 5.5), (3.5, 1.5)})
    assert np.linalg.norm(np.diff(short_axis, axis=0)) == pytest.approx(perpendicular)
    assert np.diff(long_axis, axis=0)[0] @ np.diff(short_axis, axis=0)[0] == pytest.approx(0.0, abs=1e-9)
    assert longest == pytest.approx(5.0)


def test_disc():
    rows, columns = np.mgrid[-60:61, -60:61]
    longest, perpendicular, *_ = measure_slice(np.hypot(rows, columns) <= 50.0, SQUARE_MM * 0.7)
    assert longest == pytest.approx(70.0, abs=1.5)  # pixel corners reach up to a pixel beyond
    assert perpendicular == pytest.approx(70.0, abs=1.5)


@pytest.mark.parametrize("degrees", [0, 17, 45, 80, 133])
@pytest.mark.parametrize("steps_mm", [(0.8, 0.8), (0.5, 1.3)])
def test_ellipse_at_any_angle(degrees, steps_mm):
    rows, columns = np.mgrid[-60:61, -60:61]
    y, x = rows * steps_mm[0], columns * steps_mm[1]
    angle = np.radians(degrees)
    along, across = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    ellipse = (along / 25.0) ** 2 + (across / 14.0) ** 2 <= 1.0
    longest, perpendicular, *_ = measure_slice(ellipse, np.diag(steps_mm))
    assert longest == pytest.approx(50.0, abs=1.6)
    assert perpendicular == pytest.approx(28.0, abs=1.6)


def test_steps_are_vectors_in_space():
    turn = np.array([[0.0, 0.6, 0.8], [1.0, 0.0, 0.0]])
    assert measure_slice(np.ones((3, 4), bool), turn)[:2] == (pytest.approx(5.0), pytest.approx(3.75))


def test_empty_slice_is_refused():
    with pytest.raises(ValueError, match="empty"):
        measure_slice(np.zeros((3, 3), bool), SQUARE_MM)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=12), st.floats(0.3, 3.0))
def test_against_brute_force_and_under_reflection(pixels, step):
    mask = np.zeros((9, 9), bool)
    mask[tuple(np.transpose(pixels))] = True
    steps = np.diag([step, 1.0])
    longest, perpendicular, *_ = measure_slice(mask, steps)
    corners = (np.argwhere(mask)[:, None] + np.array([(a, b) for a in (-0.5, 0.5) for b in (-0.5, 0.5)])).reshape(-1, 2)
    corners = corners @ steps
    brute = np.linalg.norm(corners[:, None] - corners[None], axis=-1).max()
    assert longest == pytest.approx(brute)
    assert 0.0 < perpendicular <= longest * (1 + 1e-9)
    assert measure_slice(mask[::-1], steps)[0] == pytest.approx(longest)


def test_component_is_measured_in_its_widest_slice():
    component = np.zeros((6, 6, 4), bool)
    component[1:3, 1:3, 0] = True
    component[0:3, 1:5, 2] = True
    found = measure_component(component, (10, 20, 30), Geometry((100, 100, 100), np.eye(4)), slice_axis=2)
    assert found.slice_index == 32
    assert found.longest_mm == pytest.approx(5.0)
    assert set(found.longest_segment[:, 2]) == {32.0}
    assert found.longest_segment[:, 0].min() == pytest.approx(9.5)
    assert found.longest_segment[:, 1].max() == pytest.approx(24.5)


@pytest.mark.parametrize(("upwards", "slice_index"), [(1.0, 7), (-1.0, 11)])
def test_equal_slices_name_the_lowest(upwards, slice_index):
    geometry = Geometry((20, 20, 20), np.diag([1.0, 1.0, upwards, 1.0]))
    assert measure_component(np.ones((3, 3, 5), bool), (0, 0, 7), geometry, slice_axis=2).slice_index == slice_index


def test_slice_axis_is_the_callers():
    component = np.ones((1, 3, 4), bool)
    geometry = Geometry((10, 10, 10), np.diag([5.0, 1.0, 1.0, 1.0]))
    assert measure_component(component, (0, 0, 0), geometry, slice_axis=0).longest_mm == pytest.approx(5.0)
    assert measure_component(component, (0, 0, 0), geometry, slice_axis=2).longest_mm == pytest.approx(np.hypot(5, 3))
