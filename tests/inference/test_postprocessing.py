"""Post-processing rules on masks small enough to draw."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from service.imaging.geometry import Geometry
from service.inference.grid import bounding_box, full_box
from service.inference.manifest import (
    Code,
    CutBelow,
    KeepLargest,
    Label,
    LabelKind,
    MaxComponents,
    MinPeak,
    MinVolume,
    RuleSets,
    SideOfPair,
    WithinHosts,
)
from service.inference.postprocessing import (
    BoxedMask,
    Companions,
    apply_rules,
    components_of_at_least,
    host_region,
    largest_components,
)

Mask = NDArray[np.bool_]
CODE = Code(scheme="SCT", value="1", meaning="Something")
GRID_2MM = Geometry((20, 20, 20), np.diag([2.0, 2.0, 2.0, 1.0]))  # 0.008 ml per voxel


def lesion(*rules: object) -> Label:
    return Label(
        index=1,
        name="tumor",
        display_name="Tumour",
        kind=LabelKind.TUMOR,
        hosts=("liver",),
        color=(1, 2, 3),
        category=CODE,
        type=CODE,
        postprocessing=RuleSets(viscera=rules),
    )


def ruled(mask: BoxedMask | None, label: Label, **companions: BoxedMask | None) -> BoxedMask | None:
    """The mask after all rules of the label; a companion's mask counts as predicted and as finished."""
    others = Companions(companions.__getitem__, companions)
    return apply_rules(mask, label, label.postprocessing.viscera, GRID_2MM, others, certain)


def certain(mask: BoxedMask) -> NDArray[np.float32]:
    return np.ones(mask.inside.shape, np.float32)


def boxed(mask: Mask) -> BoxedMask:
    trimmed = BoxedMask.trimmed(full_box(mask.shape), mask)
    assert trimmed is not None
    return trimmed


def unboxed(mask: BoxedMask | None) -> Mask:
    full = np.zeros(GRID_2MM.shape, np.bool_)
    if mask is not None:
        full[mask.box] = mask.inside
    return full


def row(text: str) -> Mask:
    """One row of voxels: '#' is inside."""
    return np.array([character == "#" for character in text]).reshape(-1, 1, 1)


def drawn(mask: Mask) -> str:
    return "".join(".#"[int(voxel)] for voxel in mask.ravel())


@pytest.mark.parametrize(
    ("before", "count", "after"),
    [
        (".###..##.#.", 1, ".###......."),
        (".###..##.#.", 2, ".###..##..."),
        (".###..##.#.", 9, ".###..##.#."),
        ("##.##", 1, "##..."),  # of equals, the first
        ("....", 1, "...."),
    ],
)
def test_largest_components(before: str, count: int, after: str) -> None:
    assert drawn(largest_components(row(before), count)) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # Two limbs of an arch beyond the first plane; what is smaller than two voxels is not a piece.
        (["######....", "", "##........", "", "#........."], ["######....", "", "##........", "", ""]),
        (["....######", "", ".......###", "", ".........#"], ["....######", "", ".......###", "", ""]),
        (["##########", "", "##......##", "", "...####..."], ["##########", "", "##......##", "", ""]),
        (["######....", "", ".......###"], ["######....", "", ""]),  # another end of the scan
        ([".######...", "", "###......."], [".######...", "", ""]),  # the largest is not cut
        (["##........", "##........"], ["##........", "##........"]),  # no voxel of its first plane is outside
    ],
)
def test_pieces_that_an_end_of_the_scan_cuts_off_the_largest_are_kept(before: list[str], after: list[str]) -> None:
    """Lines lie along x, ten planes along z."""

    def slab(lines: list[str]) -> Mask:
        return np.array([[[voxel == "#" for voxel in line.ljust(10)]] for line in lines])

    grid = Geometry((len(before), 1, 10), GRID_2MM.affine)
    label = lesion(KeepLargest(cut_pieces_ml=0.016))
    kept = apply_rules(boxed(slab(before)), label, label.postprocessing.viscera, grid, Companions({}.get, {}), certain)
    assert kept is not None
    full = np.zeros(grid.shape, np.bool_)
    full[kept.box] = kept.inside
    np.testing.assert_array_equal(full, slab(after))


def test_voxels_that_touch_at_a_corner_are_one_component() -> None:
    mask = np.zeros((3, 3, 3), np.bool_)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = True
    np.testing.assert_array_equal(largest_components(mask, 1), mask)


@pytest.mark.parametrize(
    ("voxels", "after"), [(1.0, ".###..##.#."), (2.0, ".###..##..."), (2.1, ".###......."), (4.0, "...........")]
)
def test_components_of_at_least(voxels: float, after: str) -> None:
    assert drawn(components_of_at_least(row(".###..##.#."), voxels)) == after


def test_a_component_of_exactly_the_minimum_volume_stays() -> None:
    mask = np.zeros(GRID_2MM.shape, np.bool_)
    mask[2, 2, 2:7] = True  # 5 voxels: 0.04 ml
    assert unboxed(ruled(boxed(mask), lesion(MinVolume(ml=0.04)))).sum() == 5
    assert ruled(boxed(mask), lesion(MinVolume(ml=0.041))) is None


@pytest.mark.parametrize(
    ("host", "closing", "dilation", "region"),
    [
        ("...##.##......", 0, 0, "...##.##......"),
        ("...##.##......", 1, 0, "...#####......"),
        ("...##.##......", 0, 2, ".#########...."),
        ("...##.....#...", 1, 1, "..####...###.."),  # too far apart to be closed
        ("##.##.........", 1, 0, "#####........."),  # the closing does not eat into the edge of the grid
        ("..............", 2, 2, ".............."),
    ],
)
def test_host_region_by_hand(host: str, closing: int, dilation: int, region: str) -> None:
    mask = row(host)
    hosts = [BoxedMask.trimmed(full_box(mask.shape), mask)]
    found = host_region(hosts, full_box(mask.shape), mask.shape, closing=(closing, 0, 0), dilation=(dilation, 0, 0))
    assert drawn(found) == region


def test_the_host_region_in_a_box_is_that_of_the_whole_grid() -> None:
    """Only the surroundings of the lesion are looked at; the answer is as if everything were."""
    organs = [np.random.default_rng(seed).uniform(size=GRID_2MM.shape) > 0.97 for seed in (0, 1)]
    padded = np.pad(organs[0] | organs[1], 10)
    cube = np.ones((5, 5, 5))
    closed = ndimage.binary_erosion(ndimage.binary_dilation(padded, cube), cube)
    expected = ndimage.binary_dilation(closed, np.ones((3, 3, 3)))[10:-10, 10:-10, 10:-10]
    for box in [full_box(GRID_2MM.shape), (slice(4, 9), slice(0, 3), slice(17, 20))]:
        region = host_region(
            [boxed(organ) for organ in organs], box, GRID_2MM.shape, closing=(2, 2, 2), dilation=(1, 1, 1)
        )
        np.testing.assert_array_equal(region, expected[box])


def test_rules_run_in_their_order_and_in_millimetres() -> None:
    liver = np.zeros(GRID_2MM.shape, np.bool_)
    liver[4:10, 4:10, 4:10] = True
    tumor = np.zeros(GRID_2MM.shape, np.bool_)
    tumor[6:9, 6:9, 6:9] = True  # 27 voxels in the host
    tumor[6, 6, 9:12] = True  # reaches 2 voxels beyond it
    tumor[15:19, 15:19, 15:19] = True  # 64 voxels, elsewhere
    tumor[4, 4, 4] = True  # alone, in the host
    rules = (WithinHosts(dilation_mm=2.0), MinVolume(ml=0.01), MaxComponents(count=1))

    result = unboxed(ruled(boxed(tumor), lesion(*rules), liver=boxed(liver)))

    expected = np.zeros(GRID_2MM.shape, np.bool_)
    expected[6:9, 6:9, 6:9] = True
    expected[6, 6, 9:11] = True
    np.testing.assert_array_equal(result, expected)

    # The other way round the largest component is the one outside the host, and nothing is left of it.
    assert ruled(boxed(tumor), lesion(KeepLargest(), *rules), liver=boxed(liver)) is None


def test_a_component_without_a_certain_voxel_is_dropped_and_one_with_it_stays_whole() -> None:
    """Along x: three voxels at 0.6, 0.9, 0.6; three at 0.6; a certain one beside a mask that does not hold it."""
    mask = np.zeros(GRID_2MM.shape, np.bool_)
    mask[2:5, 3, 3] = mask[8:11, 3, 3] = mask[14:16, 3, 3] = True
    probability = np.where(mask, np.float32(0.6), np.float32(0.0))
    probability[3, 3, 3] = probability[16, 3, 3] = 0.9
    label = lesion(MinPeak(probability=0.8))
    result = apply_rules(
        boxed(mask), label, label.postprocessing.viscera, GRID_2MM, Companions({}.__getitem__, {}),
        lambda of: probability[of.box],
    )  # fmt: skip
    expected = np.zeros(GRID_2MM.shape, np.bool_)
    expected[2:5, 3, 3] = True
    np.testing.assert_array_equal(unboxed(result), expected)
    exactly = lesion(MinPeak(probability=0.9))
    assert (
        apply_rules(
            boxed(mask), exactly, exactly.postprocessing.viscera, GRID_2MM, Companions({}.__getitem__, {}),
            lambda of: probability[of.box],
        )
        is None
    )  # fmt: skip


def test_without_a_host_nothing_is_left() -> None:
    tumor = np.ones(GRID_2MM.shape, np.bool_)
    assert ruled(boxed(tumor), lesion(WithinHosts(dilation_mm=6.0)), liver=None) is None
    assert ruled(None, lesion(WithinHosts(dilation_mm=6.0)), liver=None) is None


def test_a_mask_is_held_in_its_smallest_box() -> None:
    mask = np.zeros(GRID_2MM.shape, np.bool_)
    assert BoxedMask.trimmed(full_box(mask.shape), mask) is None
    mask[3:5, 7, 9] = True
    held = BoxedMask.trimmed((slice(0, 10), slice(5, 20), slice(0, 20)), mask[:10, 5:])
    assert held is not None
    assert held.box == bounding_box(mask)


def spread(*boxes: tuple[slice, ...]) -> BoxedMask:
    mask = np.zeros(GRID_2MM.shape, np.bool_)
    for box in boxes:
        mask[box] = True
    return boxed(mask)


RIGHT, LEFT = np.s_[12:18, 4:14, 3:17], np.s_[2:8, 4:14, 3:17]  # x grows towards the patient's right


def test_the_sides_of_a_pair_are_told_by_position_whatever_was_predicted() -> None:
    """Each lung's prediction holds parts of both lungs, and specks; joined, the two largest are taken by side."""
    speck = np.s_[0:1, 0:1, 0:1]
    one, other = spread(np.s_[12:18, 4:14, 3:9], LEFT, speck), spread(np.s_[12:18, 4:14, 8:17])
    for side, expected in (("right", RIGHT), ("left", LEFT)):
        for mask, partner in ((one, other), (other, one)):
            found = ruled(mask, lesion(SideOfPair(partner="lung", side=side)), lung=partner)
            np.testing.assert_array_equal(unboxed(found), unboxed(spread(expected)))


def test_a_side_may_come_from_the_partner_alone() -> None:
    found = ruled(None, lesion(SideOfPair(partner="lung", side="left")), lung=spread(LEFT, RIGHT))
    np.testing.assert_array_equal(unboxed(found), unboxed(spread(LEFT)))


def test_one_component_has_no_sides() -> None:
    """As in the published implementation: touching lungs, or a single one, leave nothing."""
    assert ruled(spread(LEFT), lesion(SideOfPair(partner="lung", side="left")), lung=None) is None
    assert ruled(None, lesion(SideOfPair(partner="lung", side="left")), lung=None) is None


def test_cut_below_the_lowest_slice_of_an_organ() -> None:
    vein = spread(np.s_[5:7, 5:7, 0:12])
    cut = ruled(vein, lesion(CutBelow(organ="pancreas")), pancreas=spread(np.s_[0:3, 0:3, 4:8]))
    np.testing.assert_array_equal(unboxed(cut), unboxed(spread(np.s_[5:7, 5:7, 4:12])))
    assert ruled(vein, lesion(CutBelow(organ="pancreas")), pancreas=spread(np.s_[0:3, 0:3, 15:18])) is None
    whole = ruled(vein, lesion(CutBelow(organ="pancreas")), pancreas=spread(np.s_[0:3, 0:3, 0:3]))
    np.testing.assert_array_equal(unboxed(whole), unboxed(vein))


def test_an_organ_that_was_not_found_cuts_nothing() -> None:
    vein = spread(np.s_[5:7, 5:7, 0:12])
    cut = ruled(vein, lesion(CutBelow(organ="pancreas")), pancreas=None)
    np.testing.assert_array_equal(unboxed(cut), unboxed(vein))


def test_hosts_as_predicted_count_by_their_largest_components() -> None:
    """A false speck of liver holds a false tumour: with one component of the host only the true one stays."""
    liver = spread(np.s_[2:10, 2:10, 2:10], np.s_[16:18, 16:18, 16:18])
    tumor = spread(np.s_[4:6, 4:6, 4:6], np.s_[16:18, 16:18, 16:18])
    kept = ruled(tumor, lesion(WithinHosts(components=1)), liver=liver)
    np.testing.assert_array_equal(unboxed(kept), unboxed(spread(np.s_[4:6, 4:6, 4:6])))
    both = ruled(tumor, lesion(WithinHosts(components=2)), liver=liver)
    np.testing.assert_array_equal(unboxed(both), unboxed(tumor))
    assert ruled(tumor, lesion(WithinHosts(components=1)), liver=None) is None
