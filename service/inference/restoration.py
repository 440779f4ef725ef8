"""From logits on the feature grid to masks on the exact grid of the source.

Label by label: upsample the logits where they can matter, threshold, post-process on the model grid, and carry the mask
to the source grid inside its own bounding box. Floats exist for a slab of one label at a time; whole labels are bits.

LINEAR carries the probability, not the mask: what is interpolated is its distance to the threshold, positive inside the
post-processed mask and negative outside, so a voxel that post-processing removed stays removed. A boolean mask would
lose where between two voxels its surface lies, and on a source of half the model's spacing every second voxel is a tie:
that costs half a source voxel of thickness all around.

A lesion that its rule confines to its hosts lies inside the hosts after closing and dilation; the organ masks
themselves stay as predicted, so at a host's surface a lesion may reach beyond it by the rule's dilation. Organs and
lesions overlap by design, and nothing is cut from either.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray

from service.imaging.geometry import Geometry, Shape
from service.inference.grid import Box, ModelGrid, absolute, bounding_box, box_shape, grown, intersection, relative
from service.inference.logits import Logits, logit
from service.inference.manifest import Interpolation, Label, MinVolume, Rule
from service.inference.masks import LabelMask, Masks
from service.inference.postprocessing import BoxedMask, Companions, apply_rules, components_of_at_least
from service.inference.resampling import axis_weights, resample
from service.progress import Progress, Stage, no_progress
from service.request import PostProcessing

Float32 = NDArray[np.float32]

# Interpolation can cut a thin bridge and leave a fragment beside a lesion. Whole lesions have their minimum volume by
# the rules; on the source grid a component is a fragment below this share of it.
_FRAGMENT_SHARE = 0.5

# Planes that are held as floats at once, of a label that may fill the scan.
_SLAB = 32

# Upsampled logits up to so many voxels are kept from the first use of a label's region to the last: 64 MB of float32.
_HELD_VOXELS = 16_000_000


def restore_masks(
    logits: Logits,
    labels: Sequence[Label],
    *,
    onto: Geometry,
    mask_interpolation: Interpolation,
    postprocessing: str = PostProcessing.VISCERA,
    progress: Progress = no_progress,
) -> Masks:
    """The masks of `labels` on the grid `onto`, that of the volume the logits came from.

    `labels` are some or all of logits.labels; the others serve as companions only. `mask_interpolation` is LINEAR or
    NEAREST (the mask's closest voxel). `postprocessing` names the rules. `progress` is told after each label.

    The logits are used up: those of a label are forgotten as soon as no other label needs them.
    """
    back = _WayBack(logits.grid, onto)
    found: dict[str, LabelMask] = {}
    probabilities: dict[str, NDArray[np.uint8]] = {}
    finished: dict[str, BoxedMask | None] = {}
    companions = Companions(partial(_predicted, logits), finished)

    channels = _in_order_of_need(logits.labels, postprocessing)
    last_use = _last_use(logits.labels, channels, postprocessing)
    progress(Stage.POSTPROCESSING, 0.0)
    for done, channel in enumerate(channels, 1):
        label = logits.labels[channel]
        region = _above_threshold(logits, channel)
        rules = label.postprocessing.chosen(postprocessing)
        probability = partial(_probability_in, logits, channel, region)
        predicted = None if region is None else region.mask(label.threshold)
        mask = apply_rules(predicted, label, rules, logits.grid.geometry, companions, probability)
        finished[label.name] = mask
        if mask is not None and label in labels:
            region = _around(logits, channel, region, mask)
            if mask_interpolation is Interpolation.NEAREST:
                field = _closest_voxel(mask, back)
            else:
                field = _signed_margin(region, mask, label.threshold, back)
            on_source = back.mask(field, mask_interpolation)
            _drop_fragments(on_source, _least_ml(rules) * _FRAGMENT_SHARE / onto.voxel_volume_ml)
            found[label.name] = on_source
            box = on_source.bounds()
            if label.kind.is_lesion and box is not None:
                probabilities[label.name] = back.probability(region, box)[on_source.read(box)]
        for needless in last_use[channel]:
            logits.forget(needless)
            finished.pop(logits.labels[needless].name, None)
        progress(Stage.POSTPROCESSING, done / len(channels))
    nothing = LabelMask(None)
    return Masks(tuple(labels), tuple(found.get(label.name, nothing) for label in labels), onto, probabilities)


def _least_ml(rules: Sequence[Rule]) -> float:
    """The largest minimum volume among the rules; 0 without one."""
    return max((rule.ml for rule in rules if isinstance(rule, MinVolume)), default=0.0)


def _drop_fragments(mask: LabelMask, least_voxels: float) -> None:
    """Clears the components with fewer voxels."""
    box = mask.bounds() if least_voxels > 1.0 else None
    if box is not None:
        inside = mask.read(box)
        mask.remove(box, inside & ~components_of_at_least(inside, least_voxels))


def _last_use(labels: Sequence[Label], channels: Sequence[int], postprocessing: str) -> dict[int, list[int]]:
    """For each channel, in the order in which they are worked on, those that nobody needs any more after it."""
    number = {label.name: channel for channel, label in enumerate(labels)}
    last = {}
    for channel in channels:
        for needed in (channel, *(number[name] for name in labels[channel].companions(postprocessing))):
            last[needed] = channel
    return {channel: [needed for needed, user in last.items() if user == channel] for channel in channels}


def _in_order_of_need(labels: Sequence[Label], postprocessing: str) -> list[int]:
    """Channels so that a label comes after those whose finished masks its rules look at: organs before lesions, and
    among organs those that look at none before the others."""
    return sorted(
        range(len(labels)),
        key=lambda channel: (labels[channel].kind.is_lesion, bool(labels[channel].companions(postprocessing))),
    )


def _predicted(logits: Logits, name: str) -> BoxedMask | None:
    """The mask of a label before any rule."""
    channel = next(channel for channel, label in enumerate(logits.labels) if label.name == name)
    region = _above_threshold(logits, channel)
    return None if region is None else region.mask(logits.labels[channel].threshold)


@dataclass(frozen=True, eq=False)
class _Region:
    """A label's logits on the (cropped) model grid, in a box outside which they do not exceed the threshold.

    The box is a voxel larger than what exceeds it, as far as the crop reaches. Logits of a usual organ are upsampled
    once; those of a label that fills the scan, wherever they are asked for, so that it is never held as floats.
    """

    logits: Logits
    channel: int
    box: Box

    def mask(self, threshold: float) -> BoxedMask | None:
        """Where the probability exceeds the threshold."""
        inside = np.empty(box_shape(self.box), np.bool_)
        for slab in _slabs(self.box, axis=0, thickness=_SLAB):
            np.greater(self._read(slab), logit(threshold), out=inside[relative(slab, self.box)])
        return BoxedMask.trimmed(self.box, inside)

    def probability(self, box: Box) -> Float32:
        """Probability, 0 to 1, in a part of the box."""
        probability = np.array(self._read(box), order="C")
        torch.from_numpy(probability).sigmoid_()
        return probability

    def _read(self, box: Box) -> Float32:
        return self._upsampled(box) if self._held is None else self._held[relative(box, self.box)]

    @cached_property
    def _held(self) -> Float32 | None:
        """The logits of the whole box, where they are not too many."""
        return self._upsampled(self.box) if math.prod(box_shape(self.box)) <= _HELD_VOXELS else None

    def _upsampled(self, box: Box) -> Float32:
        kept, stride = self.logits.kept[self.channel], self.logits.stride
        if stride == 1:
            return kept.read(box)
        feature_shape = self.logits.shape
        x, y, z = (slice(side.start // stride, -(-side.stop // stride)) for side in box)
        sources = grown((x, y, z), (1, 1, 1), feature_shape)  # the outer half of a feature voxel leans on its neighbour
        w0, w1, w2 = (
            # The centre of model voxel i lies at (i + 0.5) / stride - 0.5 on the feature grid.
            axis_weights(n, (np.arange(out.start, out.stop) + 0.5) / stride - 0.5, Interpolation.LINEAR)[:, side]
            for n, out, side in zip(feature_shape, box, sources, strict=True)
        )
        return resample(kept.read(sources), (w0, w1, w2))


@dataclass(frozen=True, eq=False)
class _Field:
    """Values on the whole model grid, 0 outside `box`; the mask is where they exceed `level`.

    `values` gives those of a part of the box.
    """

    box: Box
    values: Callable[[Box], Float32 | NDArray[np.bool_]]
    level: float


def _above_threshold(logits: Logits, channel: int) -> _Region | None:
    """The region around the feature voxels that exceed the label's threshold; None without any.

    Linear interpolation never exceeds its neighbours, so nothing is lost.
    """
    above = logits.kept[channel].above
    return None if above is None else _region(logits, channel, above)


def _around(logits: Logits, channel: int, region: _Region | None, mask: BoxedMask) -> _Region:
    """A region that holds the mask: the label's own, unless a rule took voxels that were predicted as another label."""
    if region is not None and intersection(mask.box, region.box) == mask.box:
        return region
    i, j, k = (slice(side.start // logits.stride, -(-side.stop // logits.stride)) for side in mask.box)
    return _region(logits, channel, (i, j, k))


def _region(logits: Logits, channel: int, above: Box) -> _Region:
    """The part of the model grid that a box of the feature grid and one voxel more on each side cover."""
    x, y, z = (
        slice(side.start * logits.stride, min(side.stop * logits.stride, n))
        for side, n in zip(grown(above, (1, 1, 1), logits.shape), logits.grid.shape, strict=True)
    )
    return _Region(logits, channel, (x, y, z))


def _probability_in(logits: Logits, channel: int, region: _Region | None, mask: BoxedMask) -> Float32:
    """Probability, 0 to 1, of a channel in the box of a mask."""
    return _around(logits, channel, region, mask).probability(mask.box)


def _closest_voxel(mask: BoxedMask, back: "_WayBack") -> _Field:
    """The mask itself, to be read at the closest voxel."""
    box = back.on_whole_grid(mask.box)
    return _Field(box, lambda part: mask.inside[relative(part, box)], level=0.5)


def _signed_margin(region: _Region, mask: BoxedMask, threshold: float, back: "_WayBack") -> _Field:
    """|probability - threshold|, positive inside the mask and negative outside; the mask's box and one voxel more."""
    known_box, mask_box = back.on_whole_grid(region.box), back.on_whole_grid(mask.box)

    def margin_in(box: Box) -> Float32:
        margin = np.full(box_shape(box), -threshold, np.float32)  # beyond the crop the probability is 0
        known = intersection(box, known_box)
        if known is not None:
            outside = margin[relative(known, box)]
            probability = region.probability(absolute(relative(known, known_box), region.box))
            np.subtract(probability, np.float32(threshold), out=outside)
            np.negative(np.abs(outside, out=outside), out=outside)
        marked = intersection(box, mask_box)
        if marked is not None:
            inside, where = margin[relative(marked, box)], mask.inside[relative(marked, mask_box)]
            np.negative(inside, out=inside, where=where)
            # Never 0 inside, so that a voxel keeps its label where source and model grid coincide.
            np.maximum(inside, np.float32(1e-6), out=inside, where=where)
        return margin

    return _Field(back.margin_around(mask.box), margin_in, level=0.0)


def _slabs(box: Box, axis: int, thickness: int) -> Iterator[Box]:
    """Parts of a box, so thick along one axis."""
    for start in range(box[axis].start, box[axis].stop, thickness):
        slab = list(box)
        slab[axis] = slice(start, min(start + thickness, box[axis].stop))
        yield slab[0], slab[1], slab[2]


class _WayBack:
    """From the model grid to the source's voxels, both along the closest RAS axes."""

    def __init__(self, grid: ModelGrid, source: Geometry) -> None:
        self._to_ras = grid.to_ras
        self._source_shape = source.shape
        self._shape: Shape = grid.to_ras.geometry(source).shape
        self._crop = grid.crop
        self._whole = grid.whole
        # Source voxel i lies at i * step on the (whole, uncropped) model grid, behind the shift of its slice.
        self._steps = grid.steps
        self._shear = grid.shear
        # Where each slice has its own shift, they go one by one.
        self._axis, self._thickness = (0, _SLAB) if grid.shear is None else (grid.shear.axis, 1)

    def on_whole_grid(self, box: Box) -> Box:
        """A box of the cropped model grid in voxels of the whole one."""
        return absolute(box, self._crop)

    def margin_around(self, box: Box) -> Box:
        """A box of the cropped model grid and one voxel more on each side, in voxels of the whole one."""
        return grown(self.on_whole_grid(box), (1, 1, 1), self._whole)

    def mask(self, field: _Field, interpolation: Interpolation) -> LabelMask:
        """The field's mask on the source grid."""
        reach = self._reach(field.box)
        mask = LabelMask(self._on_source(reach))
        for slab in _slabs(reach, self._axis, self._thickness):
            hit = self._sampled(field.values, field.box, slab, interpolation) > field.level
            tight = bounding_box(hit)
            if tight is not None:
                mask.add(self._on_source(absolute(tight, slab)), self._to_ras.source_array(hit[tight]))
        return mask

    def probability(self, region: _Region, box: Box) -> NDArray[np.uint8]:
        """Probability (0 to 255) of a label in `box` of the source."""
        scaled = np.empty(box_shape(box), np.uint8)
        seen, around = self._to_ras.view(scaled), self._to_ras.box_of_source(box, self._source_shape)
        inside = self.on_whole_grid(region.box)
        for slab in _slabs(around, self._axis, self._thickness):
            sampled = self._sampled(
                lambda part: region.probability(absolute(relative(part, inside), region.box)),
                inside,
                slab,
                Interpolation.LINEAR,
            )
            seen[relative(slab, around)] = np.rint(np.clip(sampled * 255.0, 0.0, 255.0))
        return scaled

    def _on_source(self, box: Box) -> Box:
        return self._to_ras.source_box(box, self._source_shape)

    def _reach(self, inside: Box) -> Box:
        """The source voxels that have a voxel of the model box among their neighbours."""
        sides: list[slice] = []
        for a, (n, whole, step, side) in enumerate(zip(self._shape, self._whole, self._steps, inside, strict=True)):
            least, most = self._shifts(a)
            first = int(np.floor((side.start - 1 - most) / step)) if side.start > 0 else 0
            # Beyond the last centre of the model grid its value goes on.
            last = int(np.ceil((side.stop - least) / step)) if side.stop < whole else n - 1
            sides.append(slice(min(max(first, 0), n - 1), min(last, n - 1) + 1))
        return sides[0], sides[1], sides[2]

    def _shifts(self, a: int) -> tuple[float, float]:
        """The least and the largest shift of any slice along axis `a`, in model voxels."""
        if self._shear is None:
            return 0.0, 0.0
        both = (self._shear.shift(a, 0), self._shear.shift(a, self._shape[self._shear.axis] - 1))
        return min(both), max(both)

    def _sampled(
        self,
        values: Callable[[Box], Float32 | NDArray[np.bool_]],
        inside: Box,
        slab: Box,
        interpolation: Interpolation,
    ) -> Float32:
        """Values of the model voxels `inside` at the source voxels of `slab`; model voxels outside count as 0."""
        near = self._near_slab(inside, slab)
        x, y, z = (
            axis_weights(whole, self._positions(a, slab), interpolation)[:, side]
            for a, (whole, side) in enumerate(zip(self._whole, near, strict=True))
        )
        return resample(values(near), (x, y, z))

    def _positions(self, a: int, slab: Box) -> NDArray[np.float64]:
        """Where the source voxels of `slab` lie on axis `a` of the whole model grid."""
        shift = 0.0 if self._shear is None else self._shear.shift(a, slab[self._shear.axis].start)
        positions: NDArray[np.float64] = np.arange(slab[a].start, slab[a].stop, dtype=np.float64) * self._steps[a]
        positions += shift
        return positions

    def _near_slab(self, inside: Box, slab: Box) -> Box:
        """The part of a model box that a slab of the source can see; all else has no weight."""
        axis = self._axis
        side, last_centre = inside[axis], self._whole[axis] - 1.0
        lowest, highest = (
            min(place * self._steps[axis], last_centre) for place in (slab[axis].start, slab[axis].stop - 1)
        )
        first = min(max(int(np.floor(lowest)) - 1, side.start), side.stop - 1)
        near = list(inside)
        near[axis] = slice(first, min(max(int(np.ceil(highest)) + 2, first + 1), side.stop))
        return near[0], near[1], near[2]
