"""One plane on its card: the slice, the masks on it, the lesions' diameters, names and sizes."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.imaging.volume import Volume
from service.inference.masks import Masks
from service.reporting.contours import WHITE, Canvas, Color, Pen, draw_line, draw_mask, visible
from service.reporting.panel import ACCENT, TEXT, Box, Panel, shortened, text_width
from service.reporting.planes import DisplayPlane, Voxel
from service.reporting.schema import Findings, LesionFinding

VOI_CENTER_HU: Final = 40.0
VOI_WIDTH_HU: Final = 400.0
"""Display window for soft tissue, the usual one for the abdomen."""

Position = tuple[float, float]  # (y, x) in pixels of a card
Line = tuple[Position, Position]

_ORGAN_PEN = Pen(color=WHITE, width=1.7, fill=0.20)
_LESION_PEN = Pen(color=WHITE, width=2.2, fill=0.42, halo=1.4)
_SCALE_BAR_MM = 50.0

_CALLOUTS = 4
_CALLOUT_HEIGHT = 46
_CALLOUT_INSET = 34  # leaves the letters at the sides free
_CALLOUT_TOP = 36
_CALLOUT_BOTTOM = 44  # leaves the scale bar free


@dataclass(frozen=True)
class Callout:
    """Name and size of a lesion in a frame at the side of the card, with a line from the lesion to the frame."""

    lesion: LesionFinding
    lines: tuple[str, str]
    frame: Box
    start: Position  #: at the lesion
    end: Position  #: at the frame


@dataclass(frozen=True)
class Pane:
    """A plane and the card of the sheet that it is drawn on; the picture is as large as fits, in the middle."""

    plane: DisplayPlane
    card: Box

    @property
    def scale(self) -> float:
        """Pixels per millimetre, the same in both directions."""
        height_mm, width_mm = self.plane.size_mm
        return min(self.card.height / height_mm, self.card.width / width_mm)

    @cached_property
    def picture(self) -> Box:
        """Where the slice lies, in pixels of the card."""
        height_mm, width_mm = self.plane.size_mm
        width = max(1, min(self.card.width, round(width_mm * self.scale)))
        height = max(1, min(self.card.height, round(height_mm * self.scale)))
        return Box((self.card.width - width) // 2, (self.card.height - height) // 2, width, height)

    def position(self, voxel: tuple[float, float, float]) -> Position:
        """(y, x) of a continuous voxel index, in pixels of the card."""
        row, column = self.plane.place(voxel)
        rows, columns = self.plane.shape
        picture = self.picture
        return picture.top + row * picture.height / rows, picture.left + column * picture.width / columns


def draw_pane(panel: Panel, pane: Pane, volume: Volume, masks: Masks, findings: Findings, point: Voxel) -> None:
    """Draw one plane with everything on it."""
    canvas = blank_canvas(pane.card)
    draw_slice(canvas, pane, volume)
    _draw_masks(canvas, pane, masks)
    _draw_calipers(canvas, pane, findings)
    colors = {label.name: visible(label.color) for label in masks.labels}
    callouts = place_callouts(pane, findings)
    for callout in callouts:
        draw_line(canvas, callout.start, callout.end, (0, 0, 0), width=4.0, opacity=0.5)
        draw_line(canvas, callout.start, callout.end, colors[callout.lesion.label], width=1.8)
    panel.picture(as_picture(canvas), pane.card)
    annotate(panel, pane)
    _mark_other_planes(panel, pane, point)
    for callout in callouts:
        frame = callout.frame
        on_sheet = Box(frame.left + pane.card.left, frame.top + pane.card.top, frame.width, frame.height)
        panel.call_out(on_sheet, callout.lines, colors[callout.lesion.label])


def blank_canvas(card: Box) -> Canvas:
    """A black canvas of the card's size."""
    return np.zeros((card.height, card.width, 3), dtype=np.float32)


def as_picture(canvas: Canvas) -> Image.Image:
    """The canvas as an image."""
    return Image.fromarray(np.clip(canvas + 0.5, 0, 255).astype(np.uint8))


def draw_slice(canvas: Canvas, pane: Pane, volume: Volume) -> None:
    """The slice in the VOI window, where the pane has its picture."""
    plane, picture = pane.plane, pane.picture
    low = VOI_CENTER_HU - VOI_WIDTH_HU / 2
    gray = np.clip((plane.take(volume.hu).astype(np.float32) - low) / VOI_WIDTH_HU, 0.0, 1.0) * 255.0
    enlarged = np.asarray(Image.fromarray(gray).resize((picture.width, picture.height), Image.Resampling.BICUBIC))
    picture_part(canvas, pane)[:] = np.clip(enlarged, 0.0, 255.0)[..., None]


def picture_part(canvas: Canvas, pane: Pane) -> Canvas:
    """The part of a card's canvas that the slice covers."""
    picture = pane.picture
    return canvas[picture.top : picture.bottom, picture.left : picture.right]


def _draw_masks(canvas: Canvas, pane: Pane, masks: Masks) -> None:
    """Every mask that the slice cuts: organs below lesions, the larger below."""
    plane, part = pane.plane, picture_part(canvas, pane)
    areas = [(label, plane.take_mask(mask)) for label, mask in zip(masks.labels, masks.of_labels, strict=True)]
    areas.sort(key=lambda pair: (pair[0].kind.is_lesion, -int(pair[1].sum()), pair[0].index))
    for label, mask in areas:
        pen = _LESION_PEN if label.kind.is_lesion else _ORGAN_PEN
        draw_mask(part, mask, replace(pen, color=visible(label.color)))


def _draw_calipers(canvas: Canvas, pane: Pane, findings: Findings) -> None:
    """The two diameters of each lesion, from end to end, in the slice where they were measured."""
    plane = pane.plane
    if findings.source.slice_axis.value != "ijk"[plane.normal_axis]:
        return
    for lesion in findings.lesions:
        if lesion.slice_index == plane.index:
            for start, end in measured_axes(pane, lesion):
                draw_caliper(canvas, start, end, WHITE)


def measured_axes(pane: Pane, lesion: LesionFinding) -> tuple[Line, Line]:
    """The ends of the longest and of the perpendicular diameter, in pixels of the card."""
    to_voxel: NDArray[np.float64] = np.asarray(np.linalg.inv(pane.plane.geometry.affine), dtype=np.float64)
    longest, across = (
        (pane.position(_voxel(start, to_voxel)), pane.position(_voxel(end, to_voxel)))
        for start, end in (lesion.longest_axis_lps_mm, lesion.perpendicular_axis_lps_mm)
    )
    return longest, across


def draw_caliper(canvas: Canvas, start: Position, end: Position, color: Color, width: float = 1.3) -> None:
    """A measured line that stands off from any image."""
    draw_line(canvas, start, end, (0, 0, 0), width=width + 1.9, opacity=0.35)
    draw_line(canvas, start, end, color, width=width)


def _voxel(lps_mm: tuple[float, float, float], to_voxel: NDArray[np.float64]) -> tuple[float, float, float]:
    i, j, k, _ = (float(value) for value in to_voxel @ np.array([-lps_mm[0], -lps_mm[1], lps_mm[2], 1.0]))
    return i, j, k


def place_callouts(pane: Pane, findings: Findings) -> tuple[Callout, ...]:
    """Frames for the largest lesions the slice cuts, each on its nearer side, clear of each other and the lesions.

    Empty on a card too flat to hold one.
    """
    axis, index = pane.plane.normal_axis, pane.plane.index
    boxes = [(lesion, lesion.bounding_box_voxel) for lesion in findings.lesions]
    cut = [lesion for lesion, box in boxes if box.start[axis] <= index < box.stop[axis]]
    cut.sort(key=lambda lesion: -lesion.volume_ml)
    room = pane.card.height - _CALLOUT_TOP - _CALLOUT_BOTTOM
    named = [(lesion, _area(pane, lesion)) for lesion in cut[: min(_CALLOUTS, room // (_CALLOUT_HEIGHT + 6))]]
    named.sort(key=lambda item: item[1].top)
    areas = [area for _, area in named]
    callouts: list[Callout] = []
    for lesion, area in named:
        size = f"{lesion.longest_axial_diameter_mm:.0f} x {lesion.perpendicular_diameter_mm:.0f} mm"
        name = shortened(lesion.id, 14, pane.card.width - 2 * _CALLOUT_INSET - 20)
        width = max(text_width(name, 14), text_width(size, 14)) + 20
        frame = _free_frame(pane, area, width, [callout.frame for callout in callouts], areas)
        if frame is not None:
            callouts.append(Callout(lesion, (name, size), frame, *_leader(area, frame)))
    return tuple(callouts)


def _area(pane: Pane, lesion: LesionFinding) -> Box:
    """The lesion's bounding box on the card."""
    box = lesion.bounding_box_voxel
    (y0, x0), (y1, x1) = (
        pane.position((corner[0] - 0.5, corner[1] - 0.5, corner[2] - 0.5)) for corner in (box.start, box.stop)
    )
    left, top = round(min(x0, x1)), round(min(y0, y1))
    return Box(left, top, max(1, round(abs(x0 - x1))), max(1, round(abs(y0 - y1))))


def _free_frame(pane: Pane, area: Box, width: int, frames: list[Box], areas: list[Box]) -> Box | None:
    """A frame at the side of the card, as near to the lesion's height as frames and, if possible, lesions allow."""
    leftwards = area.left + area.width / 2 < pane.card.width / 2
    left = _CALLOUT_INSET if leftwards else pane.card.width - _CALLOUT_INSET - width
    wanted = area.top + (area.height - _CALLOUT_HEIGHT) // 2
    tops = range(_CALLOUT_TOP, pane.card.height - _CALLOUT_BOTTOM - _CALLOUT_HEIGHT + 1, 2)
    places = [Box(left, top, width, _CALLOUT_HEIGHT) for top in sorted(tops, key=lambda top: abs(top - wanted))]
    for obstacles in ([*frames, *areas], frames):
        for place in places:
            if not any(place.near(obstacle, 8) for obstacle in obstacles):
                return place
    return None


def _leader(area: Box, frame: Box) -> Line:
    """From the edge of the ellipse in the lesion's box to the nearest point of the frame, both (y, x)."""
    y, x = area.top + area.height / 2, area.left + area.width / 2
    end = (min(max(y, frame.top + 8.0), frame.bottom - 8.0), min(max(x, float(frame.left)), float(frame.right)))
    dy, dx = end[0] - y, end[1] - x
    reach = max(1.0, float(np.hypot(2 * dy / area.height, 2 * dx / area.width)))
    return (y + dy / reach, x + dx / reach), end


def annotate(panel: Panel, pane: Pane, scale_bar_mm: float = _SCALE_BAR_MM) -> None:
    """Plane name, slice, patient directions and a scale bar."""
    card, plane = pane.card, pane.plane
    panel.shadowed((card.left + 12, card.top + 10), plane.name.upper(), size=14, color=TEXT)
    place = f"{'ijk'[plane.normal_axis]} = {plane.index}"
    panel.shadowed((card.right - 12, card.top + 10), place, size=13, color=TEXT, anchor="ra")
    left, right, top, bottom = plane.letters
    middle, center = card.top + card.height // 2, card.left + card.width // 2
    panel.shadowed((card.left + 12, middle), left, size=17, color=ACCENT, anchor="lm")
    panel.shadowed((card.right - 12, middle), right, size=17, color=ACCENT, anchor="rm")
    panel.shadowed((center, card.top + 8), top, size=17, color=ACCENT, anchor="ma")
    panel.shadowed((center, card.bottom - 8), bottom, size=17, color=ACCENT, anchor="md")
    length = f"{scale_bar_mm / 10:.0f} cm" if scale_bar_mm >= 10.0 else f"{scale_bar_mm:.0f} mm"
    panel.scale_bar(card, round(scale_bar_mm * pane.scale), length)


def _mark_other_planes(panel: Panel, pane: Pane, point: Voxel) -> None:
    """Ticks where the other two planes pass."""
    card, picture = pane.card, pane.picture
    y, x = pane.position(point)
    on_sheet = Box(card.left + picture.left, card.top + picture.top, picture.width, picture.height)
    panel.ticks(on_sheet, card.left + round(x), card.top + round(y))
