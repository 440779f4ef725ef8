"""Smooth, anti-aliased shapes on an RGB canvas: the picture arithmetic that Pillow's line drawing does not have.

Canvas: float32 (rows, columns, 3), 0 to 255. Positions on it are (row, column) in pixels, pixel centres at .5.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Canvas = NDArray[np.float32]
Color = tuple[int, int, int]

WHITE: Final[Color] = (255, 255, 255)

_SMOOTHING_VOXELS = (0.8, 0.5, 0.35)  # SD of the blur; the last one leaves even a single voxel standing above 0.5
_KEPT_AREA = 0.9
_PAD = 2  # voxels
_LEAST_LUMINANCE = 122.0


@dataclass(frozen=True)
class Pen:
    """How a mask is drawn; widths in pixels, opacities 0 to 1."""

    color: Color
    width: float
    fill: float
    halo: float = 0.0  #: width of a white line around the contour


def visible(color: Color) -> Color:
    """The colour, mixed with white until it can be told from a dark background."""
    luminance = 0.2126 * color[0] + 0.7152 * color[1] + 0.0722 * color[2]
    if luminance >= _LEAST_LUMINANCE:
        return color
    white = (_LEAST_LUMINANCE - luminance) / (255.0 - luminance)
    red, green, blue = (round(value + (255 - value) * white) for value in color)
    return red, green, blue


def draw_mask(canvas: Canvas, mask: NDArray[np.bool_], pen: Pen) -> None:
    """Draw a mask that covers the whole canvas, whatever its resolution; nothing for an empty mask."""
    pieces, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    for number, window in enumerate(ndimage.find_objects(pieces), start=1):
        if window is not None:
            _draw_piece(canvas, mask.shape, pieces[window] == number, (window[0].start, window[1].start), pen)


def _draw_piece(
    canvas: Canvas, shape: tuple[int, ...], piece: NDArray[np.bool_], corner: tuple[int, int], pen: Pen
) -> None:
    """Draw one connected piece, cut out of a mask of `shape` at `corner` (row, column)."""
    scale = (canvas.shape[0] / shape[0], canvas.shape[1] / shape[1])
    padded = np.pad(piece, _PAD).astype(np.float32)
    # The window of whole canvas pixels around the piece, and the same window in voxels of `padded`.
    y0, y1 = _clip((corner[0] - _PAD) * scale[0], (corner[0] + piece.shape[0] + _PAD) * scale[0], canvas.shape[0])
    x0, x1 = _clip((corner[1] - _PAD) * scale[1], (corner[1] + piece.shape[1] + _PAD) * scale[1], canvas.shape[1])
    box = (
        max(0.0, x0 / scale[1] - corner[1] + _PAD),
        max(0.0, y0 / scale[0] - corner[0] + _PAD),
        min(float(padded.shape[1]), x1 / scale[1] - corner[1] + _PAD),
        min(float(padded.shape[0]), y1 / scale[0] - corner[0] + _PAD),
    )
    enlarged = np.asarray(Image.fromarray(padded).resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR, box=box))
    level = _smooth(enlarged, scale)
    slope = np.hypot(*np.gradient(level)) if min(level.shape) > 1 else np.ones_like(level)
    # Distance in pixels from the outline, positive inside.
    depth = ((level - 0.5) / np.maximum(slope, 1e-4)).astype(np.float32)
    part = canvas[y0:y1, x0:x1]
    _blend(part, pen.color, pen.fill * _step(depth))
    if pen.halo > 0.0:
        _blend(part, WHITE, 0.9 * _band(depth, -pen.halo, 0.0))
    _blend(part, pen.color, _band(depth, 0.0, pen.width))


def _smooth(enlarged: NDArray[np.float32], scale: tuple[float, float]) -> NDArray[np.float32]:
    """The coverage, blurred so that the stairs of voxels become a curve; less where a thin piece would be lost."""
    inside = int((enlarged > 0.5).sum())
    level = enlarged
    for voxels in _SMOOTHING_VOXELS:
        level = ndimage.gaussian_filter(enlarged, [voxels * step for step in scale])
        if int((level > 0.5).sum()) >= _KEPT_AREA * inside:
            break
    return level


def draw_line(
    canvas: Canvas,
    start: tuple[float, float],
    end: tuple[float, float],
    color: Color,
    width: float,
    opacity: float = 1.0,
) -> None:
    """Draw a straight line between two (row, column) positions."""
    reach = width / 2 + 1.0
    y0, y1 = _clip(min(start[0], end[0]) - reach, max(start[0], end[0]) + reach, canvas.shape[0])
    x0, x1 = _clip(min(start[1], end[1]) - reach, max(start[1], end[1]) + reach, canvas.shape[1])
    y, x = np.mgrid[y0:y1, x0:x1].astype(np.float32) + 0.5
    along = (end[0] - start[0], end[1] - start[1])
    squared = along[0] ** 2 + along[1] ** 2
    share = 0.0 if squared == 0 else np.clip(((y - start[0]) * along[0] + (x - start[1]) * along[1]) / squared, 0, 1)
    distance = np.hypot(y - start[0] - share * along[0], x - start[1] - share * along[1])
    _blend(canvas[y0:y1, x0:x1], color, opacity * np.clip(width / 2 + 0.5 - distance, 0.0, 1.0))


def _clip(low: float, high: float, size: int) -> tuple[int, int]:
    start = min(max(int(np.floor(low)), 0), size - 1)
    return start, max(start + 1, min(int(np.ceil(high)), size))


def _step(depth: NDArray[np.float32]) -> NDArray[np.float32]:
    coverage: NDArray[np.float32] = np.clip(depth + 0.5, 0.0, 1.0)
    return coverage


def _band(depth: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    """Coverage of the band low < depth < high, one pixel soft at both edges."""
    from_middle = np.abs(depth - (low + high) / 2)
    coverage: NDArray[np.float32] = np.clip((high - low) / 2 + 0.5 - from_middle, 0.0, 1.0)
    return coverage


def _blend(part: Canvas, color: Color, opacity: NDArray[np.float32]) -> None:
    part += opacity[..., None] * (np.array(color, dtype=np.float32) - part)
