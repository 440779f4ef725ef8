"""The two lists of an overview: the lesions with their sizes, the organs with their volumes."""

from collections.abc import Sequence
from typing import Final

from service.inference.manifest import Label
from service.reporting.cautions import CUT_BY_FIELD_OF_VIEW
from service.reporting.contours import WHITE, Color, visible
from service.reporting.panel import AMBER, MUTED, TEXT, Box, Panel, shortened, text_width, wrapped
from service.reporting.schema import Findings, LesionFinding

_PAD = 18
_TITLE = 46
_LESION_ROW = 42
_ORGAN_ROW = 27
_LINE = 20
_SMALL = 13
_VOLUME_COLUMN = 74
_SPACE = 8  # between the list and the notes below it
_MOST_LESIONS: Final = 8
_MOST_WARNINGS: Final = 4


def lesions_height(findings: Findings, width: int) -> int:
    """Height of the lesion list in pixels."""
    rows = min(len(findings.lesions), _MOST_LESIONS) * _LESION_ROW
    return _TITLE + rows + len(_lesion_notes(findings, width)) * _LINE + _SPACE + _PAD


def organs_height(findings: Findings, width: int, columns: int) -> int:
    """Height of the organ list in pixels."""
    present = sum(organ.present for organ in findings.organs)
    return _TITLE + -(-present // columns) * _ORGAN_ROW + len(_organ_notes(findings, width)) * _LINE + _SPACE + _PAD


def draw_lesions(panel: Panel, box: Box, labels: Sequence[Label], findings: Findings) -> None:
    """The largest lesions with id, host, size and volume; then what else was looked for."""
    panel.card(box)
    _title(panel, box, "Lesions", len(findings.lesions))
    colors = {label.name: visible(label.color) for label in labels}
    names = {label.name: label.display_name for label in labels}
    top = box.top + _TITLE
    for lesion in _shown(findings):
        middle = top + _LESION_ROW // 2
        panel.swatch(box.left + _PAD, middle - 8, colors[lesion.label])
        size = f"{lesion.longest_axial_diameter_mm:.0f} x {lesion.perpendicular_diameter_mm:.0f} mm"
        measured = f"{size}    {volume_text(lesion.volume_ml)}"
        room = box.width - 2 * _PAD - 26 - text_width(measured, 16) - 16
        panel.text(
            (box.left + _PAD + 26, middle - 8),
            shortened(lesion.id, 16, room),
            size=16,
            color=WHITE,
            anchor="lm",
            bold=True,
        )
        panel.text((box.right - _PAD, middle - 8), measured, size=16, color=WHITE, anchor="rm")
        panel.text(
            (box.left + _PAD + 26, middle + 11), _lesion_detail(lesion, names), size=_SMALL, color=MUTED, anchor="lm"
        )
        top += _LESION_ROW
    top += _SPACE if findings.lesions else 0
    for line, color in _lesion_notes(findings, box.width):
        panel.text((box.left + _PAD, top + _LINE / 2), line, size=_SMALL, color=color, anchor="lm")
        top += _LINE


def draw_organs(panel: Panel, box: Box, labels: Sequence[Label], findings: Findings, columns: int) -> None:
    """The organs found with their volumes, in columns read from top to bottom; then those not found."""
    panel.card(box)
    present = [organ for organ in findings.organs if organ.present]
    _title(panel, box, "Organs", len(present))
    colors = {label.name: visible(label.color) for label in labels}
    rows = -(-len(present) // columns)
    gutter = 36
    width = (box.width - 2 * _PAD - (columns - 1) * gutter) // columns
    for number, organ in enumerate(present):
        column, row = divmod(number, rows)
        left = box.left + _PAD + column * (width + gutter)
        middle = box.top + _TITLE + row * _ORGAN_ROW + _ORGAN_ROW // 2
        volume = volume_text(organ.volume_ml)
        panel.swatch(left, middle, colors[organ.label])
        panel.text((left + width, middle), volume, size=15, color=TEXT, anchor="rm")
        end = left + width - _VOLUME_COLUMN
        if organ.cut_by_field_of_view:
            panel.text((end, middle), "cut", size=_SMALL, color=AMBER, anchor="rm")
            end -= text_width("cut", _SMALL) + 10
        name = shortened(organ.display_name, 15, end - left - 24)
        panel.text((left + 24, middle), name, size=15, color=TEXT, anchor="lm")
    top = box.top + _TITLE + rows * _ORGAN_ROW + (_SPACE if present else 0)
    for line in _organ_notes(findings, box.width):
        panel.text((box.left + _PAD, top + _LINE / 2), line, size=_SMALL, color=MUTED, anchor="lm")
        top += _LINE


def _title(panel: Panel, box: Box, text: str, count: int) -> None:
    panel.text((box.left + _PAD, box.top + 24), text, size=18, color=WHITE, anchor="lm", bold=True)
    panel.text(
        (box.left + _PAD + text_width(text, 18) + 12, box.top + 25), str(count), size=16, color=MUTED, anchor="lm"
    )


def _shown(findings: Findings) -> list[LesionFinding]:
    return sorted(findings.lesions, key=lambda lesion: -lesion.volume_ml)[:_MOST_LESIONS]


def _lesion_detail(lesion: LesionFinding, names: dict[str, str]) -> str:
    parts = [lesion.display_name]
    if lesion.host_organ is not None:
        parts.append(f"in {names[lesion.host_organ].lower()}")
    parts.append(f"{lesion.mean_hu:.0f} HU")
    if lesion.mean_probability is not None:
        parts.append(f"probability {lesion.mean_probability:.2f}")
    if lesion.cut_by_field_of_view:
        parts.append("cut by the field of view")
    return ", ".join(parts)


def _lesion_notes(findings: Findings, width: int) -> list[tuple[str, Color]]:
    """Lines below the lesions, with their colours: what is left out, what was not found, what to check."""
    notes: list[tuple[str, Color]] = []
    hidden = len(findings.lesions) - _MOST_LESIONS
    if hidden > 0:
        notes.append((f"{hidden} smaller {'lesion is' if hidden == 1 else 'lesions are'} in findings.json.", MUTED))
    missed = [summary.display_name for summary in findings.lesion_labels if summary.count == 0]
    if not findings.lesion_labels:
        notes.append(("No kind of lesion was looked for.", MUTED))
    elif missed:
        notes.append((f"Looked for, none found: {', '.join(missed)}.", MUTED))
    told = [warning.message for warning in findings.warnings if not warning.code.endswith(CUT_BY_FIELD_OF_VIEW)]
    notes += [(message, AMBER) for message in told[:_MOST_WARNINGS]]
    if len(told) > _MOST_WARNINGS:
        notes.append((f"{len(told) - _MOST_WARNINGS} more warnings are in findings.json.", AMBER))
    return [(line, color) for note, color in notes for line in wrapped(note, _SMALL, width - 2 * _PAD)]


def _organ_notes(findings: Findings, width: int) -> list[str]:
    notes = []
    absent = [organ.display_name for organ in findings.organs if not organ.present]
    if absent:
        notes.append(f"Not found: {', '.join(absent)}.")
    if any(organ.cut_by_field_of_view for organ in findings.organs):
        notes.append("cut = goes on outside the scan: the volume is a lower bound.")
    return [line for note in notes for line in wrapped(note, _SMALL, width - 2 * _PAD)]


def volume_text(volume_ml: float) -> str:
    """Three digits are enough for a picture; the JSON keeps the rest."""
    if volume_ml >= 100.0:
        return f"{volume_ml:,.0f} ml".replace(",", " ")
    return f"{volume_ml:.1f} ml" if volume_ml >= 1.0 else f"{volume_ml:.2f} ml"
