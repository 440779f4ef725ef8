"""One picture of a result: three planes with contours, the lesions' sizes, the organs' volumes.

It holds no patient data. Pillow draws text and boxes with its own font, `contours` draws shapes; no plotting library.
"""

from dataclasses import replace

from PIL import Image

from service.imaging.volume import Volume
from service.inference.masks import Masks
from service.reporting.contours import WHITE
from service.reporting.legend import draw_lesions, draw_organs, lesions_height, organs_height
from service.reporting.panel import ACCENT, GAP, MARGIN, MUTED, WIDTH, Box, Panel, text_width
from service.reporting.panes import VOI_CENTER_HU, VOI_WIDTH_HU, Pane, draw_pane
from service.reporting.planes import DisplayPlane, best_point, body_ranges, display_planes
from service.reporting.schema import Findings

_HEADER = 104
_CONTENT = WIDTH - 2 * MARGIN
_SHORT_SCAN = 0.45  # a scan lower than this share of its width gets the layout for flat coronal and sagittal planes
_TALLEST = 740
_LOWEST = 400
_STRETCH = 1.2  # the axial card may be this much taller than its picture, to end with the legend beside it

Planes = tuple[DisplayPlane, DisplayPlane, DisplayPlane]


def draw_overview(volume: Volume, masks: Masks, findings: Findings) -> Image.Image:
    """The overview, RGB, 1600 pixels wide and as high as it needs; the same for the same input."""
    point = best_point(masks, findings)
    planes = display_planes(volume.geometry, point, body_ranges(volume, masks, point))
    layout = _Layout(planes, findings)
    panel = Panel(layout.height)
    _draw_header(panel, findings)
    for pane in layout.panes:
        draw_pane(panel, pane, volume, masks, findings, point)
    draw_lesions(panel, layout.lesions, masks.labels, findings)
    draw_organs(panel, layout.organs, masks.labels, findings, layout.organ_columns)
    return panel.image


class _Layout:
    """Where everything goes.

    Three planes side by side with the legend below; or, for a short scan, the axial plane beside the two flat ones,
    with the legend under those if it fits there.
    """

    def __init__(self, planes: Planes, findings: Findings) -> None:
        tall_mm, wide_mm = planes[1].size_mm
        if tall_mm >= _SHORT_SCAN * wide_mm:
            self.panes = _side_by_side(planes)
            self._legend_below(findings)
        else:
            self.panes = _stacked(planes)
            self._legend_beside(findings)
        self.height = max(self.lesions.bottom, self.organs.bottom) + MARGIN

    def _legend_below(self, findings: Findings) -> None:
        top = max(pane.card.bottom for pane in self.panes) + GAP
        width = (_CONTENT - GAP) * 2 // 5
        rest = _CONTENT - GAP - width
        self.organ_columns = 3
        height = max(lesions_height(findings, width), organs_height(findings, rest, self.organ_columns))
        self.lesions = Box(MARGIN, top, width, height)
        self.organs = Box(MARGIN + width + GAP, top, rest, height)

    def _legend_beside(self, findings: Findings) -> None:
        axial, _, sagittal = (pane.card for pane in self.panes)
        self.organ_columns = 2
        top, width = sagittal.bottom + GAP, sagittal.width
        self.lesions = Box(sagittal.left, top, width, lesions_height(findings, width))
        top, height = self.lesions.bottom + GAP, organs_height(findings, width, self.organ_columns)
        bottom = max(top + height, axial.bottom)
        if bottom - _HEADER > _STRETCH * axial.height:
            self.panes[2] = replace(self.panes[2], card=replace(sagittal, height=axial.bottom - sagittal.top))
            self._legend_below(findings)
            return
        self.organs = Box(sagittal.left, top, width, bottom - top)
        self.panes[0] = replace(self.panes[0], card=replace(axial, height=bottom - _HEADER))


def _side_by_side(planes: Planes) -> list[Pane]:
    """Coronal and sagittal at one scale; the axial plane has what is left of the width."""
    tall_mm, wide_mm = planes[1].size_mm
    deep_mm = planes[2].size_mm[1]
    usable = _CONTENT - 2 * GAP
    scale = min(usable / (2 * wide_mm + deep_mm), _TALLEST / tall_mm)
    height = max(_LOWEST, round(tall_mm * scale))
    coronal, sagittal = max(300, round(wide_mm * scale)), max(260, round(deep_mm * scale))
    panes, left = [], MARGIN
    for plane, width in zip(planes, (usable - coronal - sagittal, coronal, sagittal), strict=True):
        panes.append(Pane(plane, Box(left, _HEADER, width, height)))
        left += width + GAP
    return panes


def _stacked(planes: Planes) -> list[Pane]:
    """The axial plane on the left, coronal over sagittal on the right."""
    axial, coronal, sagittal = planes
    left_width = _CONTENT * 11 // 20
    right_width = _CONTENT - GAP - left_width
    right = MARGIN + left_width + GAP
    strip = max(96, round(coronal.size_mm[0] * right_width / coronal.size_mm[1]))
    height = max(round(left_width * axial.size_mm[0] / axial.size_mm[1]), 2 * strip + GAP)
    return [
        Pane(axial, Box(MARGIN, _HEADER, left_width, min(height, _TALLEST))),
        Pane(coronal, Box(right, _HEADER, right_width, strip)),
        Pane(sagittal, Box(right, _HEADER + strip + GAP, right_width, strip)),
    ]


def _draw_header(panel: Panel, findings: Findings) -> None:
    bundle, source = findings.provenance.bundle, findings.source
    panel.text((MARGIN, 30), "Viscera", size=32, color=WHITE, bold=True)
    title_end = MARGIN + text_width("Viscera", 32) + 16
    panel.text((title_end, 41), f"{bundle.name} {bundle.version}", size=20, color=ACCENT)
    shape = " x ".join(str(size) for size in source.shape)
    spacing = " x ".join(f"{step:.2f}" for step in source.spacing_mm)
    facts = (
        f"{source.format.upper()}   {shape} voxels   {spacing} mm   "
        f"window {VOI_CENTER_HU:.0f} / {VOI_WIDTH_HU:.0f} HU (level / width)"
    )
    panel.text((MARGIN, 72), facts, size=15, color=MUTED)
    panel.pill(WIDTH - MARGIN, 34, "Research use only. Not a medical device.", size=17)
