"""From logits on the feature grid to masks on the exact grid of the source.

Label by label: upsample the logits where they can matter, threshold, post-process on the model grid, and carry the mask
to the source grid inside its own bounding box. Memory is bounded by one label, plus the packed result and the hosts.

LINEAR carries the probability, not the mask: what is interpolated is its distance to the threshold, positive inside the
post-processed mask and negative outside, so a voxel that post-processing removed stays removed. A boolean mask would
lose where between two voxels its surface lies, and on a source of half the model's spacing every second voxel is a tie:
that costs half a source voxel of thickness all around.

A lesion that its rule confines to its hosts lies inside the hosts after closing and dilation; the organ masks
themselves stay as predicted, so at a host's surface a lesion may reach beyond it by the rule's dilation. Organs and
lesions overlap by design, and nothing is cut from either.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray

from service.imaging.geometry import Geometry, Shape
from service.inference.grid import Box, ModelGrid, absolute, bounding_box, box_shape, grown, intersection, relative
from service.inference.logits import Logits, logit
from service.inference.manifest import Interpolation, Label, MinVolume, Rule
from service.inference.masks import LesionProbability, Masks, Packed, bit_mask, empty_packed, has_bit
from service.inference.postprocessing import BoxedMask, Companions, apply_rules, components_of_at_least
from service.inference.resampling import axis_weights, resample
from service.progress import Progress, Stage, no_progress
from service.request import PostProcessing

Float32 = NDArray[np.float32]

# Interpolation can cut a thin bridge and leave a fragment beside a lesion. Whole lesions have their minimum volume by
# the rules; on the source grid a component is a fragment below this share of it.
_FRAGMENT_SHARE = 0.5

# Slices of the source that are interpolated at once; bounds the float32 copy of a large mask.
_SLAB = 64


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
    """
    to_ras = logits.grid.to_ras
    back = _WayBack(logits.grid, onto)
    packed = empty_packed(onto.shape, len(labels))
    seen = to_ras.view(packed)
    probabilities: dict[str, LesionProbability] = {}
    finished: dict[str, BoxedMask | None] = {}
    needed = {name for label in logits.labels for name in label.companions(postprocessing)}
    companions = Companions(partial(_predicted, logits), finished)

    channels = _in_order_of_need(logits.labels, postprocessing)
    progress(Stage.POSTPROCESSING, 0.0)
    for done, channel in enumerate(channels, 1):
        label = logits.labels[channel]
        region = _above_threshold(logits, channel)
        predicted = None if region is None else region.mask(label.threshold)
        rules = label.postprocessing.chosen(postprocessing)
        probability = partial(_probability_in, logits, channel, region)
        mask = apply_rules(predicted, label, rules, logits.grid.geometry, companions, probability)
        if label.name in needed:
            finished[label.name] = mask
        if mask is not None and label in labels:
            region = _around(logits, channel, region, mask)
            if mask_interpolation is Interpolation.NEAREST:
                field = _Field(back.on_whole_grid(mask.box), mask.inside, level=0.5)
            else:
                field = _signed_margin(region, mask, label.threshold, back)
            bit = labels.index(label)
            box = back.write(field, bit, seen, mask_interpolation)
            if box is not None:
                box = _without_fragments(seen, bit, box, _least_ml(rules) * _FRAGMENT_SHARE / onto.voxel_volume_ml)
            if label.kind.is_lesion and box is not None:
                on_source = to_ras.source_array(back.probability(region, box))
                probabilities[label.name] = LesionProbability(to_ras.source_box(box, onto.shape), on_source)
        progress(Stage.POSTPROCESSING, done / len(channels))
    return Masks(tuple(labels), packed, onto, probabilities)


def _least_ml(rules: Sequence[Rule]) -> float:
    """The largest minimum volume among the rules; 0 without one."""
    return max((rule.ml for rule in rules if isinstance(rule, MinVolume)), default=0.0)


def _without_fragments(packed: Packed, bit: int, box: Box, least_voxels: float) -> Box | None:
    """Clears `bit` in the components inside `box` with fewer voxels; the box of what is left."""
    if least_voxels <= 1.0:
        return box
    mask = has_bit(packed[box], bit)
    kept = components_of_at_least(mask, least_voxels)
    view = packed[box]
    np.bitwise_and(view, ~bit_mask(packed, bit), out=view, where=mask & ~kept)
    tight = bounding_box(kept)
    return None if tight is None else absolute(tight, box)


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

    The box is a voxel larger than what exceeds it, as far as the crop reaches.
    """

    box: Box
    logits: Float32

    def mask(self, threshold: float) -> BoxedMask | None:
        """Where the probability exceeds the threshold."""
        return BoxedMask.trimmed(self.box, self.logits > logit(threshold))

    @cached_property
    def probability(self) -> Float32:
        """Probability, 0 to 1, in the whole box."""
        probability = np.array(self.logits, order="C")
        torch.from_numpy(probability).sigmoid_()
        return probability


@dataclass(frozen=True, eq=False)
class _Field:
    """Values on the whole model grid, 0 outside `box`; the mask is where they exceed `level`."""

    box: Box
    values: Float32 | NDArray[np.bool_]
    level: float


def _above_threshold(logits: Logits, channel: int) -> _Region | None:
    """The label's logits, upsampled only around the feature voxels that exceed its threshold; None without any.

    Linear interpolation never exceeds its neighbours, so nothing is lost.
    """
    above = logits.kept[channel].above
    return None if above is None else _upsampled(logits, channel, above)


def _around(logits: Logits, channel: int, region: _Region | None, mask: BoxedMask) -> _Region:
    """A region that holds the mask: the label's own, unless a rule took voxels that were predicted as another label."""
    if region is not None and intersection(mask.box, region.box) == mask.box:
        return region
    i, j, k = (slice(side.start // logits.stride, -(-side.stop // logits.stride)) for side in mask.box)
    return _upsampled(logits, channel, (i, j, k))


def _probability_in(logits: Logits, channel: int, region: _Region | None, mask: BoxedMask) -> Float32:
    """Probability, 0 to 1, of a channel in the box of a mask."""
    around = _around(logits, channel, region, mask)
    return around.probability[relative(mask.box, around.box)]


def _upsampled(logits: Logits, channel: int, above: Box) -> _Region:
    """The label's logits on the model grid in a box of the feature grid and one voxel more on each side."""
    stride, shape, feature_shape = logits.stride, logits.grid.shape, logits.shape
    covered = grown(above, (1, 1, 1), feature_shape)
    x, y, z = (slice(side.start * stride, min(side.stop * stride, n)) for side, n in zip(covered, shape, strict=True))
    box = (x, y, z)
    if stride == 1:
        return _Region(box, logits.kept[channel].read(covered))
    sources = grown(covered, (1, 1, 1), feature_shape)  # the outer half of a feature voxel leans on its neighbour
    w0, w1, w2 = (
        # The centre of model voxel i lies at (i + 0.5) / stride - 0.5 on the feature grid.
        axis_weights(n, (np.arange(out.start, out.stop) + 0.5) / stride - 0.5, Interpolation.LINEAR)[:, side]
        for n, out, side in zip(feature_shape, box, sources, strict=True)
    )
    return _Region(box, resample(logits.kept[channel].read(sources), (w0, w1, w2)))


def _signed_margin(region: _Region, mask: BoxedMask, threshold: float, back: "_WayBack") -> _Field:
    """|probability - threshold|, positive inside the mask and negative outside; the mask's box and one voxel more."""
    box = back.margin_around(mask.box)
    margin = np.full(box_shape(box), -threshold, np.float32)  # beyond the crop the probability is 0
    known = intersection(box, back.on_whole_grid(region.box))
    assert known is not None
    # Every step in place: the box of a large organ is a good part of the scan.
    outside = margin[relative(known, box)]
    np.subtract(region.probability[relative(known, back.on_whole_grid(region.box))], np.float32(threshold), out=outside)
    np.negative(np.abs(outside, out=outside), out=outside)
    inside = margin[relative(back.on_whole_grid(mask.box), box)]
    np.negative(inside, out=inside, where=mask.inside)
    # Never 0 inside, so that a voxel keeps its label where source and model grid coincide.
    np.maximum(inside, np.float32(1e-6), out=inside, where=mask.inside)
    return _Field(box, margin, level=0.0)


class _WayBack:
    """From the model grid to the source's voxels, both along the closest RAS axes."""

    def __init__(self, grid: ModelGrid, source: Geometry) -> None:
        self._shape: Shape = grid.to_ras.geometry(source).shape
        self._crop = grid.crop
        self._whole = grid.whole
        # Source voxel i lies at i * step on the (whole, uncropped) model grid, behind the shift of its slice.
        self._steps = grid.steps
        self._shear = grid.shear

    def on_whole_grid(self, box: Box) -> Box:
        """A box of the cropped model grid in voxels of the whole one."""
        return absolute(box, self._crop)

    def margin_around(self, box: Box) -> Box:
        """A box of the cropped model grid and one voxel more on each side, in voxels of the whole one."""
        return grown(self.on_whole_grid(box), (1, 1, 1), self._whole)

    def write(self, field: _Field, bit: int, packed: Packed, interpolation: Interpolation) -> Box | None:
        """Set `bit` in `packed` (along the closest RAS axes) where the field's mask is; the box of what was set."""
        written: list[Box] = []
        for slab in self._slabs(self._reach(field.box)):
            hit = self._sampled(field.values, field.box, slab, interpolation) > field.level
            tight = bounding_box(hit)
            if tight is not None:
                view = packed[absolute(tight, slab)]
                np.bitwise_or(view, bit_mask(packed, bit), out=view, where=hit[tight])
                written.append(absolute(tight, slab))
        if not written:
            return None
        i, j, k = (slice(min(box[a].start for box in written), max(box[a].stop for box in written)) for a in range(3))
        return i, j, k

    def probability(self, region: _Region, box: Box) -> NDArray[np.uint8]:
        """Probability (0 to 255) of a label in `box` of the source, along the closest RAS axes."""
        scaled = np.empty(box_shape(box), np.uint8)
        inside = self.on_whole_grid(region.box)
        for slab in [box] if self._shear is None else self._slabs(box):
            sampled = self._sampled(region.probability, inside, slab, Interpolation.LINEAR)
            scaled[relative(slab, box)] = np.rint(np.clip(sampled * 255.0, 0.0, 255.0))
        return scaled

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

    def _slabs(self, box: Box) -> Iterator[Box]:
        """Parts of a box of the source: thick slabs, or slice by slice where each slice has its own shift."""
        axis, thickness = (0, _SLAB) if self._shear is None else (self._shear.axis, 1)
        for start in range(box[axis].start, box[axis].stop, thickness):
            slab = list(box)
            slab[axis] = slice(start, min(start + thickness, box[axis].stop))
            yield slab[0], slab[1], slab[2]

    def _sampled(
        self, values: Float32 | NDArray[np.bool_], inside: Box, slab: Box, interpolation: Interpolation
    ) -> Float32:
        """Values of the model voxels `inside` at the source voxels of `slab`; model voxels outside count as 0."""
        if self._shear is not None:
            near = self._near_slice(inside, slab, self._shear.axis)
            values, inside = values[relative(near, inside)], near
        x, y, z = (
            axis_weights(whole, self._positions(a, slab), interpolation)[:, side]
            for a, (whole, side) in enumerate(zip(self._whole, inside, strict=True))
        )
        return resample(values, (x, y, z))

    def _positions(self, a: int, slab: Box) -> NDArray[np.float64]:
        """Where the source voxels of `slab` lie on axis `a` of the whole model grid."""
        shift = 0.0 if self._shear is None else self._shear.shift(a, slab[self._shear.axis].start)
        positions: NDArray[np.float64] = np.arange(slab[a].start, slab[a].stop, dtype=np.float64) * self._steps[a]
        positions += shift
        return positions

    def _near_slice(self, inside: Box, slab: Box, axis: int) -> Box:
        """The part of a model box that a single slice of a tilted source can see; the others have no weight."""
        side = inside[axis]
        place = min(slab[axis].start * self._steps[axis], self._whole[axis] - 1.0)
        first = min(max(int(np.floor(place)) - 1, side.start), side.stop - 1)
        near = list(inside)
        near[axis] = slice(first, min(max(int(np.ceil(place)) + 2, first + 1), side.stop))
        return near[0], near[1], near[2]
