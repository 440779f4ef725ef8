"""The overview: the right way round, in the right proportions, with every colour it promises."""

import itertools

import numpy as np
import pytest

from service.reporting.contours import Pen, draw_mask, visible
from service.reporting.findings import measure
from service.reporting.overview import draw_overview
from service.reporting.panel import Box
from service.reporting.panes import Pane, place_callouts
from service.reporting.planes import best_point, body_ranges, display_planes
from tests.support.reporting import PROVENANCE, abdomen, box_mask, reoriented, scan

FULL = (slice(0, 4), slice(0, 5), slice(0, 6))


def _overview(volume, masks):
    return np.asarray(draw_overview(volume, masks, measure(volume, masks, PROVENANCE)))


def test_size_and_colours():
    volume, masks = abdomen()
    image = draw_overview(volume, masks, measure(volume, masks, PROVENANCE))
    assert image.mode == "RGB"
    assert image.width == 1600
    assert 500 < image.height < 1600
    pixels = {tuple(color) for _, color in image.getcolors(image.width * image.height)}
    for label in masks.labels:
        assert (visible(label.color) in pixels) == (label.name != "kidney_tumor"), label.name


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(True, True, False), (False, True, True), (True, False, True)])
def test_same_picture_whatever_the_orientation_of_the_array(axes, flips):
    volume, masks = abdomen((5.0, 5.0, 5.0))
    plain, turned = _overview(volume, masks), _overview(*reoriented(volume, masks, axes, flips))
    assert plain.shape == turned.shape
    panes = (slice(150, 560), slice(60, 1540))  # the header and each card's corner name voxel axes, the rest may not
    different = np.abs(plain[panes].astype(int) - turned[panes]).max(axis=2) > 40
    assert different.mean() < 0.002


def test_radiological_convention():
    volume, _ = scan(np.zeros((4, 5, 6), np.int16), {})
    marked = np.zeros((4, 5, 6), np.int16)
    marked[3, 4, 5] = 1  # the right, anterior, superior corner of a RAS grid
    axial, coronal, sagittal = display_planes(volume.geometry, (3, 4, 5), FULL)
    for plane in (axial, coronal, sagittal):
        assert plane.take(marked)[0, 0] == 1
        assert plane.take(marked).sum() == 1
    assert axial.letters == ("R", "L", "A", "P")
    assert coronal.letters == ("R", "L", "S", "I")
    assert sagittal.letters == ("A", "P", "S", "I")
    assert axial.shape == (5, 4)
    assert sagittal.shape == (6, 5)


@pytest.mark.parametrize("flips", list(itertools.product([False, True], repeat=3)))
def test_places_agree_with_pictures(flips):
    volume, _ = reoriented(*scan(np.zeros((4, 5, 6), np.int16), {}), (1, 2, 0), flips)
    shape = volume.geometry.shape
    marked = np.zeros(shape, np.int16)
    marked[1, 2, 3] = 1
    for plane in display_planes(volume.geometry, (1, 2, 3), tuple(slice(0, size) for size in shape)):
        ((row, column),) = np.argwhere(plane.take(marked))
        assert plane.place((1.0, 2.0, 3.0)) == (row + 0.5, column + 0.5)


def test_proportions_are_those_of_the_patient():
    volume, _ = abdomen((2.0, 4.0, 8.0))
    shown = tuple(slice(0, size) for size in volume.geometry.shape)
    for plane in display_planes(volume.geometry, (1, 1, 1), shown):
        picture = Pane(plane, Box(0, 0, 500, 400)).picture
        height_mm, width_mm = plane.size_mm
        assert picture.height / picture.width == pytest.approx(height_mm / width_mm, rel=0.01)


def test_point_is_in_the_largest_lesion():
    volume, masks = abdomen()
    point = best_point(masks, measure(volume, masks, PROVENANCE))
    assert masks.mask("liver_tumor")[point]
    np.testing.assert_allclose(volume.geometry.to_ras_mm(point), (95, 30, 40), atol=5)


def test_without_a_lesion_the_organs_are_shown():
    shape = (20, 20, 20)
    painted = {
        "liver": box_mask(shape, (2, 6), (12, 18), (14, 18)),
        "vessel": box_mask(shape, (2, 10), (12, 16), (15, 17)),
    }
    volume, masks = scan(np.zeros(shape, np.int16), painted)
    i, j, k = best_point(masks, measure(volume, masks, PROVENANCE))
    assert 2 <= i < 6
    assert 12 <= j < 16
    assert 15 <= k < 17


def test_table_and_air_are_cropped():
    hu = np.full((200, 150, 10), -1000, np.int16)
    hu[60:140, 40:100] = 30
    hu[20:180, 20:22] = -200  # a table
    volume, masks = scan(hu, {})
    i, j, k = body_ranges(volume, masks, (100, 70, 5))
    assert (i.start, i.stop) == (60 - 12, 140 + 12)
    assert (j.start, j.stop) == (40 - 12, 100 + 12)
    assert (k.start, k.stop) == (0, 10)


def test_nothing_but_air_still_gives_a_picture():
    assert _overview(*scan(np.full((12, 12, 12), -1000, np.int16), {})).shape[1] == 1600


@pytest.mark.parametrize("shape", [(64, 64, 3), (3, 64, 64), (64, 3, 64), (1, 1, 1), (20, 20, 200)])
def test_odd_shapes(shape):
    mask = np.zeros(shape, bool)
    mask[tuple(size // 2 for size in shape)] = True
    volume, masks = scan(np.zeros(shape, np.int16), {"liver": mask, "liver_tumor": mask})
    assert _overview(volume, masks).shape[1] == 1600


def test_many_lesions():
    shape = (60, 60, 40)
    mask = np.zeros(shape, bool)
    mask[2::6, 2::6, 2::6] = True
    volume, masks = scan(np.zeros(shape, np.int16), {"liver_tumor": mask})
    assert _overview(volume, masks).shape[0] < 1600


def test_callouts_stay_on_the_card_and_off_each_other():
    volume, masks = abdomen()
    findings = measure(volume, masks, PROVENANCE)
    point = best_point(masks, findings)
    shown = tuple(slice(0, size) for size in volume.geometry.shape)
    axial, _, _ = display_planes(volume.geometry, point, shown)
    callouts = place_callouts(Pane(axial, Box(0, 0, 560, 460)), findings)
    assert [callout.lines[0] for callout in callouts] == ["liver_tumor-1", "liver_tumor-2"]
    one, other = (callout.frame for callout in callouts)
    assert not one.near(other, 1)
    for frame in (one, other):
        assert frame.left >= 0
        assert frame.top >= 0
        assert frame.right <= 560
        assert frame.bottom <= 460


def test_a_single_voxel_is_drawn():
    canvas = np.zeros((90, 90, 3), np.float32)
    mask = np.zeros((30, 30), bool)
    mask[10, 20] = True
    draw_mask(canvas, mask, Pen(color=(250, 0, 0), width=1.5, fill=0.3))
    rows, columns = np.nonzero(canvas[..., 0] > 60)
    assert rows.size > 0
    assert rows.mean() == pytest.approx(31, abs=0.6)
    assert columns.mean() == pytest.approx(61, abs=0.6)
    assert canvas[..., 1].max() == 0.0


def test_a_disc_is_drawn_where_it_is():
    rows, columns = np.mgrid[:40, :40]
    canvas = np.zeros((200, 200, 3), np.float32)
    draw_mask(canvas, np.hypot(rows - 20, columns - 12) <= 8, Pen(color=(0, 200, 0), width=2.0, fill=1.0))
    inside = canvas[..., 1] > 100
    assert inside.sum() == pytest.approx(np.pi * (8.0 * 5) ** 2, rel=0.05)
    assert np.argwhere(inside).mean(axis=0) == pytest.approx((102, 62), abs=0.6)


def test_an_empty_mask_draws_nothing():
    canvas = np.zeros((20, 20, 3), np.float32)
    draw_mask(canvas, np.zeros((5, 5), bool), Pen(color=(0, 200, 0), width=2.0, fill=1.0))
    assert canvas.max() == 0.0


def test_dark_colours_are_lightened_and_light_ones_kept():
    assert visible((221, 130, 101)) == (221, 130, 101)
    red, green, blue = visible((120, 20, 20))
    assert red > green == blue
    assert 0.2126 * red + 0.7152 * green + 0.0722 * blue == pytest.approx(122, abs=1)
