"""Key images: one picture of each lesion, in the slice where it was measured.

The CT around the lesion with the contour of its mask, the two diameters of findings.json in their own colours, a scale
bar, and below it the numbers and where in the slice it lies. No patient data. One scale in both directions: what is
measured on the picture with its scale bar is what findings.json says.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from PIL import Image

from service.imaging.volume import Volume
from service.inference.manifest import Label
from service.inference.masks import Masks
from service.reporting.contours import WHITE, Color, Pen, draw_line, draw_mask, visible
from service.reporting.legend import volume_text
from service.reporting.outputs import pictured_lesions
from service.reporting.panel import ACCENT, AMBER, MUTED, TEXT, Box, Panel, shortened, text_width
from service.reporting.panes import (
    VOI_CENTER_HU,
    VOI_WIDTH_HU,
    Pane,
    annotate,
    as_picture,
    blank_canvas,
    draw_caliper,
    draw_slice,
    measured_axes,
    picture_part,
)
from service.reporting.planes import DisplayPlane, Ranges, Voxel, display_planes
from service.reporting.schema import Findings, LesionFinding
from service.reporting.structures import Structure, lesions

WIDTH: Final = 880
LONGEST: Final[Color] = (255, 221, 0)
PERPENDICULAR: Final[Color] = (0, 229, 255)

_MARGIN = 24
CARD: Final = Box(_MARGIN, 84, WIDTH - 2 * _MARGIN, WIDTH - 2 * _MARGIN)
"""Where the slice is drawn."""

_LOCATOR = Box(WIDTH - _MARGIN - 168, CARD.bottom + 16, 168, 132)
_HEIGHT = _LOCATOR.bottom + _MARGIN
_CONTOUR = Pen(color=WHITE, width=1.8, fill=0.0)
_CALIPER_WIDTH = 2.0
_LEAST_SIDE_MM = 90.0  # of the part of the slice that is shown: a small lesion keeps its surroundings
_SIDE_OF_DIAMETERS = 3.0
_SCALE_BARS_MM = (100.0, 50.0, 20.0, 10.0, 5.0, 2.0, 1.0)
_LONGEST_BAR = 0.3  # of the picture's width
_NOTICE = "Research use only. Not a medical device."


def draw_key_images(volume: Volume, masks: Masks, findings: Findings) -> Iterator[tuple[LesionFinding, Image.Image]]:
    """The key images of the largest lesions, RGB, one after another, in the order of the findings."""
    wanted = {lesion.id: lesion for lesion in pictured_lesions(findings)}
    if not wanted:
        return
    for structure in lesions(masks):
        if structure.id in wanted:
            yield wanted[structure.id], _draw(volume, masks, findings, wanted[structure.id], structure)


def _draw(volume: Volume, masks: Masks, findings: Findings, lesion: LesionFinding, structure: Structure) -> Image.Image:
    whole = _measured_plane(volume, findings, lesion)
    pane = Pane(replace(whole, shown=_surroundings(whole, lesion)), CARD)
    canvas = blank_canvas(CARD)
    draw_slice(canvas, pane, volume)
    color = visible(structure.label.color)
    draw_mask(picture_part(canvas, pane), pane.plane.take_mask(structure.bits), replace(_CONTOUR, color=color))
    longest, across = measured_axes(pane, lesion)
    draw_caliper(canvas, *across, PERPENDICULAR, _CALIPER_WIDTH)
    draw_caliper(canvas, *longest, LONGEST, _CALIPER_WIDTH)
    panel = Panel(_HEIGHT, WIDTH)
    panel.picture(as_picture(canvas), CARD)
    annotate(panel, pane, _scale_bar_mm(pane))
    _draw_header(panel, lesion, color, {label.name: label for label in masks.labels})
    _draw_numbers(panel, findings, lesion)
    _draw_locator(panel, whole, pane.plane.shown, volume)
    return panel.image


def _measured_plane(volume: Volume, findings: Findings, lesion: LesionFinding) -> DisplayPlane:
    """The whole slice that the lesion was measured in."""
    axis = "ijk".index(findings.source.slice_axis)
    shape = volume.geometry.shape
    point: Voxel = tuple(lesion.slice_index if n == axis else shape[n] // 2 for n in range(3))  # type: ignore[assignment]  # three of them
    everything: Ranges = (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2]))
    planes = display_planes(volume.geometry, point, everything)
    return next(plane for plane in planes if plane.normal_axis == axis)


def _surroundings(plane: DisplayPlane, lesion: LesionFinding) -> Ranges:
    """A square of the slice around the lesion's box, moved into the scan where it would leave it."""
    side_mm = max(_LEAST_SIDE_MM, _SIDE_OF_DIAMETERS * lesion.longest_axial_diameter_mm)
    box, ranges = lesion.bounding_box_voxel, list(plane.shown)
    for axis in (plane.row_axis, plane.column_axis):
        size, extent = plane.geometry.shape[axis], box.stop[axis] - box.start[axis]
        around = round((side_mm / plane.geometry.spacing_mm[axis] - extent) / 2)  # on either side, so in the middle
        shown = min(size, extent + 2 * max(0, around))
        first = min(max(0, box.start[axis] - max(0, around)), size - shown)
        ranges[axis] = slice(first, first + shown)
    return ranges[0], ranges[1], ranges[2]


def _scale_bar_mm(pane: Pane) -> float:
    """The longest bar that leaves most of the picture free."""
    room_mm = _LONGEST_BAR * CARD.width / pane.scale
    return next((length for length in _SCALE_BARS_MM if length <= room_mm), _SCALE_BARS_MM[-1])


def _draw_header(panel: Panel, lesion: LesionFinding, color: Color, labels: dict[str, Label]) -> None:
    notice_width = text_width(_NOTICE, 14) + 36
    room = WIDTH - 2 * _MARGIN - notice_width - 24
    panel.swatch(_MARGIN, 34, color)
    panel.text((_MARGIN + 24, 34), shortened(lesion.id, 24, room - 24), size=24, color=WHITE, anchor="lm", bold=True)
    host = "" if lesion.host_organ is None else f" in {labels[lesion.host_organ].display_name.lower()}"
    panel.text((_MARGIN, 62), shortened(lesion.display_name + host, 16, room), size=16, color=MUTED, anchor="lm")
    panel.pill(WIDTH - _MARGIN, 26, _NOTICE, size=14)


def _draw_numbers(panel: Panel, findings: Findings, lesion: LesionFinding) -> None:
    """Each diameter in the colour of its line; then what else was measured, and how the slice is shown."""
    slice_axis, bundle = findings.source.slice_axis.value, findings.provenance.bundle
    measured = [f"{volume_text(lesion.volume_ml)}", f"{lesion.mean_hu:.0f} HU (SD {lesion.sd_hu:.0f})"]
    if lesion.mean_probability is not None:
        measured.append(f"probability {lesion.mean_probability:.2f}")
    lines: list[tuple[str, Color]] = [
        (f"Longest diameter {lesion.longest_axial_diameter_mm:.1f} mm", LONGEST),
        (f"Perpendicular diameter {lesion.perpendicular_diameter_mm:.1f} mm", PERPENDICULAR),
        ("   ".join(measured), TEXT),
        (
            f"Slice {slice_axis} = {lesion.slice_index}   window {VOI_CENTER_HU:.0f} / {VOI_WIDTH_HU:.0f} HU "
            f"(level / width)   {bundle.name} {bundle.version}",
            MUTED,
        ),
    ]
    if lesion.cut_by_field_of_view:
        lines.append(("Cut by the field of view: sizes are lower bounds.", AMBER))
    room = _LOCATOR.left - 2 * _MARGIN
    for row, (line, color) in enumerate(lines):
        panel.text(
            (_MARGIN, _LOCATOR.top + 12 + row * 27), shortened(line, 17, room), size=17, color=color, anchor="lm"
        )


def _draw_locator(panel: Panel, whole: DisplayPlane, shown: Ranges, volume: Volume) -> None:
    """The whole slice, small, with a frame around the part that is shown."""
    pane = Pane(whole, _LOCATOR)
    canvas = blank_canvas(_LOCATOR)
    draw_slice(canvas, pane, volume)
    low, high = (
        pane.position((ends[0], ends[1], ends[2]))
        for ends in ([span.start - 0.5 for span in shown], [span.stop - 0.5 for span in shown])
    )
    corners = [low, (low[0], high[1]), high, (high[0], low[1])]
    for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
        draw_line(canvas, start, end, ACCENT, width=1.6)
    panel.picture(as_picture(canvas), _LOCATOR)
