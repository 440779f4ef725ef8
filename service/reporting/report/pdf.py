"""The report as a PDF on A4: the summary on one page, then a page or more for each section.

ReportLab lays it out; its own font (Bitstream Vera) is embedded, so that the pages look the same everywhere. Equal
reports make equal bytes: the file has no time and no random id.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from io import BytesIO
from typing import Any, Final
from xml.sax.saxutils import escape

from reportlab import rl_config
from reportlab.lib.colors import Color, HexColor
from reportlab.lib.enums import TA_RIGHT
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.platypus import (
    CondPageBreak,
    Image,
    KeepInFrame,
    LongTable,
    PageBreak,
    Paragraph,
    SimpleDocTemplate,
    Spacer,
)
from reportlab.platypus import Table as Grid

from service.reporting.report.content import Picture, Report, Section, Table

# Without it the pictures would be written as text, in pure Python, which takes longer than all the rest.
rl_config.useA85 = 0

# ReportLab annotates nothing; Any says so once.
Flowable = Any
Canvas = Any

_REGULAR: Final = "Vera"
_BOLD: Final = "VeraBd"
_MARGIN: Final = 16 * mm
_FOOT: Final = 20 * mm
_WIDTH: Final = A4[0] - 2 * _MARGIN
_HEIGHT: Final = A4[1] - _MARGIN - _FOOT
_LARGEST_OVERVIEW: Final = 150 * mm
_GAP: Final = 5 * mm
_FRAME_PADDING: Final = 6  # points, on each side of ReportLab's frames

_INK, _MUTED, _ACCENT, _RULE, _AMBER = (HexColor(value) for value in (0x1B222C, 0x5A6675, 0x1F7A8C, 0xDDE3EA, 0x7A4D05))
_CELL_PADDING: Final = 4
_SWATCH_WIDTH: Final = 3
_LEAST_ROOM: Final = 45 * mm


def render_pdf(report: Report) -> bytes:
    """The file; the statement of use stands on every page."""
    _register_fonts()
    buffer = BytesIO()
    document = SimpleDocTemplate(
        buffer,
        pagesize=A4,
        leftMargin=_MARGIN - _FRAME_PADDING,
        rightMargin=_MARGIN - _FRAME_PADDING,
        topMargin=_MARGIN - _FRAME_PADDING,
        bottomMargin=_FOOT - _FRAME_PADDING,
        title=_printable(report.title),
        subject=_printable(report.statement),
        author="Viscera",
        creator="Viscera",
        invariant=1,
        lang="en",
    )

    def draw_foot(canvas: Canvas, _document: SimpleDocTemplate) -> None:
        _draw_foot(canvas, report)

    document.build(list(_story(report)), onFirstPage=draw_foot, onLaterPages=draw_foot)
    return buffer.getvalue()


@lru_cache(maxsize=1)
def _register_fonts() -> None:
    for name in (_REGULAR, _BOLD):
        pdfmetrics.registerFont(TTFont(name, f"{name}.ttf"))
    # Neither has an oblique partner here: nothing is set in italics.
    pdfmetrics.registerFontFamily(_REGULAR, normal=_REGULAR, bold=_BOLD, italic=_REGULAR, boldItalic=_BOLD)


def _style(size: float, color: Color = _INK, font: str = _REGULAR, **more: object) -> ParagraphStyle:
    return ParagraphStyle("", fontName=font, fontSize=size, leading=1.3 * size, textColor=color, **more)


_TITLE: Final = _style(17, font=_BOLD)
_SUBTITLE: Final = _style(9, _MUTED, spaceBefore=3)
_HEADING: Final = _style(13, _ACCENT, _BOLD, spaceBefore=12, spaceAfter=5)
_TEXT: Final = _style(8.5, spaceAfter=2.5)
_STATEMENT: Final = _style(
    8.5,
    _AMBER,
    borderColor=HexColor(0xB7791F),
    borderWidth=0.7,
    borderPadding=4,
    spaceBefore=9,
    spaceAfter=9,
    leftIndent=5,
    rightIndent=5,
)
_CELL: Final = _style(7.5)
_NUMBER: Final = _style(7.5, alignment=TA_RIGHT)
_HEAD: Final = _style(7.5, _MUTED, _BOLD)
_NUMBER_HEAD: Final = _style(7.5, _MUTED, _BOLD, alignment=TA_RIGHT)


def _draw_foot(canvas: Canvas, report: Report) -> None:
    canvas.saveState()
    canvas.setFont(_REGULAR, 6.5)
    canvas.setFillColor(_AMBER)
    canvas.drawString(_MARGIN, 11 * mm, _printable(report.statement))
    canvas.setFillColor(_MUTED)
    canvas.drawString(_MARGIN, 7.5 * mm, _printable(report.subtitle))
    canvas.drawRightString(A4[0] - _MARGIN, 7.5 * mm, f"Page {canvas.getPageNumber()}")
    canvas.restoreState()


def _story(report: Report) -> Iterator[Flowable]:
    head = [
        _paragraph(report.title, _TITLE),
        _paragraph(report.subtitle, _SUBTITLE),
        _paragraph(report.statement, _STATEMENT),
        *_text(report.summary),
        *(_fitted(picture, _WIDTH, _LARGEST_OVERVIEW) for picture in report.summary.pictures),
    ]
    # However much there is to say, the summary is one page.
    yield KeepInFrame(_WIDTH, _HEIGHT, head, mode="shrink")
    for section in report.sections:
        # Not a heading alone at the foot of a page.
        yield PageBreak() if section.new_page else CondPageBreak(_LEAST_ROOM)
        yield _paragraph(section.title, _HEADING)
        yield from _text(section)
        yield from _pairs(section.pictures)


def _text(section: Section) -> Iterator[Flowable]:
    yield from (_paragraph(paragraph, _TEXT) for paragraph in section.paragraphs)
    for table in section.tables:
        yield Spacer(1, 2 * mm)
        yield _grid(table)
        yield Spacer(1, 2 * mm)


def _grid(table: Table) -> Flowable:
    heads = [[_paragraph(one.head, _NUMBER_HEAD if one.numbers else _HEAD) for one in table.columns]]
    rows = [
        [
            _paragraph(cell, _NUMBER if column.numbers else _CELL)
            for column, cell in zip(table.columns, row.cells, strict=True)
        ]
        for row in table.rows
    ]
    shares = sum(column.share for column in table.columns)
    return LongTable(
        [*(heads if table.has_head else []), *rows],
        colWidths=[_WIDTH * column.share / shares for column in table.columns],
        repeatRows=int(table.has_head),
        hAlign="LEFT",
        style=[
            ("VALIGN", (0, 0), (-1, -1), "TOP"),
            ("LINEBELOW", (0, 0), (-1, -1), 0.4, _RULE),
            ("LEFTPADDING", (0, 0), (-1, -1), _CELL_PADDING),
            ("RIGHTPADDING", (0, 0), (-1, -1), _CELL_PADDING),
            ("TOPPADDING", (0, 0), (-1, -1), 2),
            ("BOTTOMPADDING", (0, 0), (-1, -1), 2.5),
            *_swatches(table),
        ],
    )


def _swatches(table: Table) -> Iterator[tuple[object, ...]]:
    """The colour of each row's label as a bar at its left."""
    for number, row in enumerate(table.rows, start=int(table.has_head)):
        if row.color is not None:
            color = Color(*(value / 255 for value in row.color))
            yield "LINEBEFORE", (0, number), (0, number), _SWATCH_WIDTH, color


def _pairs(pictures: Sequence[Picture]) -> Iterator[Flowable]:
    """Two pictures beside each other, and as many rows as fit on a page."""
    width = (_WIDTH - _GAP) / 2
    for first in range(0, len(pictures), 2):
        pair = [_fitted(picture, width, _HEIGHT / 2 - _GAP) for picture in pictures[first : first + 2]]
        pair += [""] * (2 - len(pair))
        yield Grid(
            [[pair[0], "", pair[1]]],
            colWidths=[width, _GAP, width],
            style=[("LEFTPADDING", (0, 0), (-1, -1), 0), ("RIGHTPADDING", (0, 0), (-1, -1), 0)],
            hAlign="LEFT",
        )


def _fitted(picture: Picture, width: float, height: float) -> Flowable:
    """The picture, as large as fits; its JPEG goes into the file as it is."""
    scale = min(width / picture.size[0], height / picture.size[1])
    return Image(BytesIO(picture.jpeg), picture.size[0] * scale, picture.size[1] * scale)


def _paragraph(text: str, style: ParagraphStyle) -> Flowable:
    """Text as it is: what looks like a tag is no tag."""
    return Paragraph(escape(_printable(text)), style)


def _printable(text: str) -> str:
    """The text with a question mark for each character that the font does not have."""
    known = pdfmetrics.getFont(_REGULAR).face.charToGlyph
    return "".join(character if ord(character) in known else "?" for character in text)
