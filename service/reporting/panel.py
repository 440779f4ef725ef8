"""The dark sheet that pictures are drawn on: colours, text, cards, marks. Pillow's built-in font, no files."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from service.reporting.contours import WHITE, Color

WIDTH: Final = 1600
MARGIN: Final = 40
GAP: Final = 16

BACKGROUND: Final[Color] = (13, 17, 23)
CARD: Final[Color] = (22, 27, 36)
EDGE: Final[Color] = (45, 53, 66)
TEXT: Final[Color] = (222, 228, 236)
MUTED: Final[Color] = (139, 149, 163)
ACCENT: Final[Color] = (94, 200, 216)
AMBER: Final[Color] = (245, 184, 75)

_RADIUS = 10
_SMOOTH = 4  # shapes are drawn this many times larger and reduced: Pillow's own edges are not smooth
_BOLD = 0.4

Font = ImageFont.FreeTypeFont


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels of the sheet."""

    left: int
    top: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """One past the last column."""
        return self.left + self.width

    @property
    def bottom(self) -> int:
        """One past the last row."""
        return self.top + self.height

    def near(self, other: "Box", gap: int) -> bool:
        """Whether the two overlap or lie less than `gap` pixels apart."""
        across = self.left < other.right + gap and other.left < self.right + gap
        return across and self.top < other.bottom + gap and other.top < self.bottom + gap


@lru_cache(maxsize=32)
def font(size: int) -> Font:
    """The built-in font at a pixel size; needs Pillow with FreeType, as all its wheels have."""
    found = ImageFont.load_default(size=size)
    if not isinstance(found, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType, pictures cannot be lettered.")
    return found


def text_width(text: str, size: int) -> int:
    """Width of a line of text in pixels."""
    return round(font(size).getlength(text))


def shortened(text: str, size: int, width: int) -> str:
    """The text, cut with an ellipsis to fit a width."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "…", size) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def wrapped(text: str, size: int, width: int) -> list[str]:
    """The text in lines no wider than `width`, broken at spaces; a word that is wider by itself is cut."""
    lines: list[str] = []
    for word in (shortened(word, size, width) for word in text.split()):
        if lines and text_width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] = f"{lines[-1]} {word}"
        else:
            lines.append(word)
    return lines


class Panel:
    """An RGB image with the marks that pictures are made of. Positions are (x, y), as in Pillow."""

    def __init__(self, height: int, width: int = WIDTH) -> None:
        self.image = Image.new("RGB", (width, height), BACKGROUND)
        self._draw = ImageDraw.Draw(self.image)

    def text(
        self, at: tuple[float, float], text: str, *, size: int, color: Color, anchor: str = "la", bold: bool = False
    ) -> None:
        """A line of text; the anchor is Pillow's (left/middle/right, ascender/middle/descender)."""
        self._draw.text(at, text, fill=color, font=font(size), anchor=anchor, stroke_width=_BOLD if bold else 0)

    def shadowed(self, at: tuple[float, float], text: str, *, size: int, color: Color, anchor: str = "la") -> None:
        """Text that stays legible on any image."""
        self._draw.text(at, text, fill=color, font=font(size), anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0))

    def picture(self, picture: Image.Image, box: Box) -> None:
        """A picture of the box's size, with the rounded corners and the edge of a card."""
        self.card(box)
        self.image.paste(picture, (box.left, box.top), _rounded_mask(box.width, box.height, _RADIUS))

    def card(self, box: Box) -> None:
        """A rounded card with a thin edge."""
        self._rounded(Box(box.left - 1, box.top - 1, box.width + 2, box.height + 2), EDGE, _RADIUS + 1)
        self._rounded(box, CARD, _RADIUS)

    def swatch(self, left: int, middle: int, color: Color) -> None:
        """The colour of a label in the legend."""
        self._rounded(Box(left, middle - 7, 14, 14), color, 4)

    def pill(self, right: int, top: int, text: str, *, size: int) -> None:
        """A notice that cannot be overlooked, at the right edge."""
        width, height = text_width(text, size) + 36, size + 20
        box = Box(right - width, top, width, height)
        self._rounded(box, AMBER, height // 2)
        inner = Box(box.left + 2, box.top + 2, width - 4, height - 4)
        self._rounded(inner, (43, 36, 22), height // 2 - 2)
        self.text((box.left + width / 2, box.top + height / 2), text, size=size, color=AMBER, anchor="mm")

    def ticks(self, image: Box, x: int, y: int) -> None:
        """Short marks at the picture's edges, where the two other planes pass."""
        length = min(12, image.width // 8, image.height // 4)
        for top in (image.top, image.bottom - length):
            self._draw.line([(x, top), (x, top + length - 1)], fill=ACCENT, width=1)
        for left in (image.left, image.right - length):
            self._draw.line([(left, y), (left + length - 1, y)], fill=ACCENT, width=1)

    def scale_bar(self, card: Box, length: int, text: str) -> None:
        """A bar of known length in the lower right corner; left out where it would not fit."""
        right, bottom = card.right - 14, card.bottom - 14
        if length > card.width // 2 or card.height < 60:
            return
        self._draw.rectangle([right - length, bottom - 3, right, bottom], fill=WHITE, outline=(0, 0, 0))
        self.shadowed((right - length / 2, bottom - 8), text, size=13, color=WHITE, anchor="md")

    def call_out(self, frame: Box, lines: tuple[str, str], color: Color) -> None:
        """A framed name and size."""
        self._rounded(frame, color, 7)
        self._rounded(Box(frame.left + 1, frame.top + 1, frame.width - 2, frame.height - 2), (10, 13, 18), 6)
        self.text((frame.left + 10, frame.top + 5), lines[0], size=14, color=color, bold=True)
        self.text((frame.left + 10, frame.top + 24), lines[1], size=14, color=WHITE)

    def _rounded(self, box: Box, color: Color, radius: int) -> None:
        self.image.paste(color, (box.left, box.top), _rounded_mask(box.width, box.height, radius))


@lru_cache(maxsize=16)  # the cards of key images are all alike
def _rounded_mask(width: int, height: int, radius: int) -> Image.Image:
    large = Image.new("L", (width * _SMOOTH, height * _SMOOTH), 0)
    corner = (width * _SMOOTH - 1, height * _SMOOTH - 1)
    ImageDraw.Draw(large).rounded_rectangle([(0, 0), corner], radius * _SMOOTH, fill=255)
    return large.reduce(_SMOOTH)
