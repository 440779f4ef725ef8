"""Post-processing of masks on the model grid, by the rules that the bundle states for each label.

A mask is held in its bounding box, so the cost follows the size of the structure and not of the scan.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter1d, minimum_filter1d

from service.imaging.geometry import Geometry
from service.inference.grid import Box, absolute, bounding_box, box_shape, grown, intersection, relative
from service.inference.manifest import (
    CutBelow,
    KeepLargest,
    Label,
    MaxComponents,
    MinPeak,
    MinVolume,
    Rule,
    SideOfPair,
    WithinHosts,
)

Mask = NDArray[np.bool_]
Float32 = NDArray[np.float32]
Radius = tuple[int, int, int]  # voxels along x, y, z


@dataclass(frozen=True, eq=False)
class BoxedMask:
    """A mask on the model grid: boolean `inside` its `box`, false elsewhere. None stands for an empty mask."""

    box: Box
    inside: Mask

    @classmethod
    def trimmed(cls, box: Box, inside: Mask) -> "BoxedMask | None":
        """The mask in its smallest box; None when it is empty."""
        tight = bounding_box(inside)
        if tight is None:
            return None
        return cls(absolute(tight, box), inside[tight])


@dataclass(frozen=True, eq=False)
class Companions:
    """The masks of other labels that a rule may look at: as predicted, and after their own rules."""

    predicted: Callable[[str], BoxedMask | None]
    finished: Mapping[str, BoxedMask | None]


def apply_rules(
    mask: BoxedMask | None,
    label: Label,
    rules: Iterable[Rule],
    grid: Geometry,
    companions: Companions,
    probability: Callable[[BoxedMask], Float32],
) -> BoxedMask | None:
    """The mask after the label's rules, in their order.

    `probability` gives the label's own, 0 to 1, in the box of a mask.
    """
    for rule in rules:
        match rule:
            case SideOfPair(partner=partner, side=side):
                mask = side_of_pair(mask, companions.predicted(partner), side)
            case MinPeak(probability=least) if mask is not None:
                mask = BoxedMask.trimmed(mask.box, components_with_peak(mask.inside, probability(mask), least))
            case _ if mask is not None:
                mask = BoxedMask.trimmed(mask.box, _apply(rule, mask, label, grid, companions))
    return mask


def _apply(rule: Rule, mask: BoxedMask, label: Label, grid: Geometry, companions: Companions) -> Mask:
    match rule:
        case KeepLargest(count=count, cut_pieces_ml=float(ml)):
            return largest_and_cut_pieces(mask, count, ml / grid.voxel_volume_ml, grid.shape[2])
        case KeepLargest(count=count) | MaxComponents(count=count):
            return largest_components(mask.inside, count)
        case MinVolume(ml=ml):
            return components_of_at_least(mask.inside, ml / grid.voxel_volume_ml)
        case CutBelow(organ=organ):
            return _cut_below(mask, companions.finished[organ])
        case WithinHosts(components=None):
            hosts = [companions.finished[host] for host in label.hosts]
        case WithinHosts(components=int(count)):
            joined = union([companions.predicted(host) for host in label.hosts])
            hosts = [joined and BoxedMask.trimmed(joined.box, largest_components(joined.inside, count))]
        case _:
            raise AssertionError(rule)
    region = host_region(
        hosts,
        mask.box,
        grid.shape,
        closing=_radius(rule.closing_mm, grid),
        dilation=_radius(rule.dilation_mm, grid),
    )
    return mask.inside & region


def side_of_pair(mask: BoxedMask | None, partner: BoxedMask | None, side: str) -> BoxedMask | None:
    """The `left` or `right` of the two largest components of both masks joined; None when there are not two.

    Left is the component whose mean position along x is smaller: x grows towards the patient's right (RAS).
    """
    joined = union([mask, partner])
    if joined is None:
        return None
    components, sizes = _components(joined.inside)
    if len(sizes) < 2:
        return None
    pair = np.argsort(-sizes, kind="stable")[:2]
    along_x = [_mean_plane(components == number + 1) for number in pair]
    left_first = pair if along_x[0] <= along_x[1] else pair[::-1]
    chosen = left_first[0] if side == "left" else left_first[1]
    return BoxedMask.trimmed(joined.box, _members(components, np.array([chosen]), len(sizes)))


def _mean_plane(mask: Mask) -> float:
    """The mean position of a mask's voxels along its first axis."""
    per_plane = np.count_nonzero(mask, axis=(1, 2))
    return float(per_plane @ np.arange(len(per_plane)) / per_plane.sum())


def union(masks: Iterable[BoxedMask | None]) -> BoxedMask | None:
    """The masks joined, in the smallest box around all of them; None when all are empty."""
    there = [mask for mask in masks if mask is not None]
    if not there:
        return None
    i, j, k = (
        slice(min(mask.box[axis].start for mask in there), max(mask.box[axis].stop for mask in there))
        for axis in range(3)
    )
    box = (i, j, k)
    inside = np.zeros(box_shape(box), np.uint8)
    for mask in there:
        _paste(mask, box, inside)
    return BoxedMask(box, inside.astype(np.bool_))


def _cut_below(mask: BoxedMask, organ: BoxedMask | None) -> Mask:
    """The mask without the slices below the organ's lowest; z grows towards the head (RAS)."""
    if organ is None:
        return mask.inside
    cut = mask.inside.copy()
    cut[:, :, : max(0, organ.box[2].start - mask.box[2].start)] = False
    return cut


def largest_components(mask: Mask, count: int) -> Mask:
    """The `count` largest 26-connected components; of equal ones, those that come first in the array."""
    components, sizes = _components(mask)
    if len(sizes) <= count:
        return mask
    return _members(components, np.argsort(-sizes, kind="stable")[:count], len(sizes))


def largest_and_cut_pieces(mask: BoxedMask, count: int, voxels: float, planes: int) -> Mask:
    """The `count` largest 26-connected components, and what an end of the scan may have cut off them.

    Those are components of at least `voxels` that reach the first or the last of the grid's `planes` along z where one
    of the largest does: beyond that plane they may be one. The grid ends with the scan, or with the body in it, beyond
    which a padded scan has nothing.
    """
    components, sizes = _components(mask.inside)
    largest = np.argsort(-sizes, kind="stable")[:count]
    chosen = largest
    along_z = mask.box[2]
    ends = [end for end, reached in ((0, along_z.start == 0), (-1, along_z.stop == planes)) if reached]
    for end in ends:
        cut = np.unique(components[:, :, end]).astype(np.intp) - 1
        cut = cut[cut >= 0]
        if np.isin(largest, cut).any():
            chosen = np.union1d(chosen, cut[_large_enough(sizes[cut], voxels)])
    return _members(components, chosen, len(sizes))


def components_of_at_least(mask: Mask, voxels: float) -> Mask:
    """The 26-connected components of at least that many voxels."""
    components, sizes = _components(mask)
    return _members(components, np.flatnonzero(_large_enough(sizes, voxels)), len(sizes))


def components_with_peak(mask: Mask, probability: Float32, least: float) -> Mask:
    """The 26-connected components with a voxel of probability above `least`; `probability` has the mask's shape."""
    components, sizes = _components(mask)
    peaked = np.unique(components[mask & (probability > np.float32(least))])
    return _members(components, peaked.astype(np.intp) - 1, len(sizes))


def host_region(
    hosts: Iterable[BoxedMask | None], box: Box, shape: tuple[int, int, int], *, closing: Radius, dilation: Radius
) -> Mask:
    """The union of the hosts, closed and then dilated with boxes of those radii, as seen inside `box`.

    `shape` is that of the whole grid; beyond it there is no host. A closing never removes a host's voxel.
    """
    # What lies further away than this cannot change the answer inside the box.
    margin = _add(dilation, _add(closing, closing))
    around = grown(box, margin, shape)
    union = np.zeros(box_shape(around), np.uint8)
    for host in hosts:
        if host is not None:
            _paste(host, around, union)
    # Room for the dilated mask beyond the edge of the grid, where the closing's erosion must find it again.
    padded = np.pad(union, [(c, c) for c in closing])
    closed = _filtered(_filtered(padded, closing, maximum_filter1d), closing, minimum_filter1d)
    i, j, k = (slice(c, c + n) for c, n in zip(closing, union.shape, strict=True))
    region = _filtered(closed[i, j, k], dilation, maximum_filter1d)
    return region[relative(box, around)].astype(np.bool_)


def _components(mask: Mask) -> tuple[NDArray[np.unsignedinteger], NDArray[np.int64]]:
    """Components numbered from 1, and their sizes in voxels (component n at position n - 1)."""
    # uint8: on bool arrays cc3d 4.1 fails where isolated voxels lie densely.
    components = cc3d.connected_components(np.ascontiguousarray(mask).view(np.uint8), connectivity=26)
    sizes = np.bincount(components.ravel(order="K")).astype(np.int64)[1:]
    return components, sizes


def _large_enough(sizes: NDArray[np.int64], voxels: float) -> Mask:
    """Which sizes are at least `voxels`; one of exactly that is, whatever the last bit of a division says."""
    enough: Mask = sizes >= voxels * (1.0 - 1e-6)
    return enough


def _members(components: NDArray[np.unsignedinteger], chosen: NDArray[np.intp], number: int) -> Mask:
    keep = np.zeros(number + 1, np.bool_)
    keep[chosen + 1] = True
    members: Mask = keep[components]
    return members


def _paste(host: BoxedMask, around: Box, union: NDArray[np.uint8]) -> None:
    shared = intersection(host.box, around)
    if shared is not None:
        union[relative(shared, around)] |= host.inside[relative(shared, host.box)]


def _filtered(mask: NDArray[np.uint8], radius: Radius, extremum: Callable[..., NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Dilation (maximum) or erosion (minimum) with a box, one axis at a time; zeros lie outside."""
    for axis, r in enumerate(radius):
        if r > 0:
            mask = extremum(mask, 2 * r + 1, axis=axis, mode="constant", cval=0)
    return mask


def _radius(mm: float, grid: Geometry) -> Radius:
    i, j, k = (round(mm / spacing) for spacing in grid.spacing_mm)
    return i, j, k


def _add(a: Sequence[int], b: Sequence[int]) -> Radius:
    i, j, k = (x + y for x, y in zip(a, b, strict=True))
    return i, j, k
