"""Implicit shapes in body coordinates: each answers with a distance-like value, negative inside, in mm."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from training.phantom.canvas import Box, Canvas, FloatArray

Points = NDArray[np.float64]
Node = tuple[float, float, float, float]  # x, y, z, radius (mm, body)


@dataclass(frozen=True)
class Ellipsoid:
    """Semi-axes along the columns of `axes` (3, 3), about `center` (mm, body)."""

    center: Points
    radii: Points
    axes: Points

    def box(self, canvas: Canvas, margin: float = 4.0) -> Box | None:
        """The voxels that it may touch."""
        reach = np.sqrt(((self.axes * self.radii) ** 2).sum(1)) + margin
        return canvas.box(self.center - reach, self.center + reach)

    def radius(self, canvas: Canvas, box: Box) -> FloatArray:
        """Normalised radius: 0 in the centre, 1 on the surface."""
        u, v, w = self.local(canvas, box)
        return np.asarray(np.sqrt(u * u + v * v + w * w), np.float32)

    def local(self, canvas: Canvas, box: Box) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Coordinates along the three axes, in units of the semi-axes."""
        dx, dy, dz = (c[box] - np.float32(o) for c, o in zip((canvas.x, canvas.y, canvas.z), self.center, strict=True))
        m = (self.axes / self.radii).astype(np.float32)
        u, v, w = (m[0, i] * dx + m[1, i] * dy + m[2, i] * dz for i in range(3))
        return u, v, w

    def distance(self, canvas: Canvas, box: Box) -> FloatArray:
        """Approximate distance to the surface (mm)."""
        return (self.radius(canvas, box) - 1) * np.float32(self.radii.min())


def ellipsoid(
    center: tuple[float, float, float] | Points, radii: tuple[float, float, float], axes: Points | None = None
) -> Ellipsoid:
    """An ellipsoid from plain numbers (mm)."""
    return Ellipsoid(np.asarray(center, float), np.asarray(radii, float), np.eye(3) if axes is None else axes)


@dataclass(frozen=True)
class Tube:
    """A smooth tube: `points` (N, 3) mm along its axis and `radii` (N,) mm, finely sampled."""

    points: Points
    radii: Points

    def distance(self, canvas: Canvas, margin: float = 3.0) -> tuple[Box, FloatArray] | None:
        """Its box and the distance to its surface there; far from the tube the distance is just large."""
        pad = self.radii.max() + margin
        box = canvas.box(self.points.min(0) - pad, self.points.max(0) + pad)
        if box is None:
            return None
        out = np.full([s.stop - s.start for s in box], 1e3, np.float32)
        for i in range(len(self.points) - 1):
            self._segment(canvas, box, out, i, margin)
        return box, out

    def _segment(self, canvas: Canvas, box: Box, out: FloatArray, i: int, margin: float) -> None:
        a, b, ra, rb = self.points[i], self.points[i + 1], self.radii[i], self.radii[i + 1]
        pad = max(ra, rb) + margin
        part = canvas.box(np.minimum(a, b) - pad, np.maximum(a, b) + pad)
        if part is None:
            return
        dx, dy, dz = (c[part] - np.float32(o) for c, o in zip((canvas.x, canvas.y, canvas.z), a, strict=True))
        d = (b - a).astype(np.float32)
        along = np.clip((dx * d[0] + dy * d[1] + dz * d[2]) / np.float32(max(d @ d, 1e-6)), 0, 1)
        dx -= along * d[0]
        dy -= along * d[1]
        dz -= along * d[2]
        distance = np.sqrt(dx * dx + dy * dy + dz * dz) - (np.float32(ra) + along * np.float32(rb - ra))
        here = tuple(slice(p.start - q.start, p.stop - q.start) for p, q in zip(part, box, strict=True))
        np.minimum(out[here], distance, out=out[here])


def tube(nodes: Sequence[Node] | Points, step_mm: float = 9.0) -> Tube:
    """A tube through nodes (x, y, z, radius), as a spline in chord length."""
    knots = np.asarray(nodes, float)
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(knots[:, :3], axis=0), axis=1) + 1e-3)])
    count = max(2, int(np.ceil(length[-1] / step_mm)) + 1)
    where = np.linspace(0, length[-1], count)
    if len(knots) == 2:
        path = np.stack([np.interp(where, length, knots[:, k]) for k in range(3)], 1)
    else:
        path = CubicSpline(length, knots[:, :3], bc_type="natural")(where)
    return Tube(path, np.interp(where, length, knots[:, 3]))


def jitter(rng: np.random.Generator, nodes: Sequence[Node], mm: float, radius: float = 0.1) -> Points:
    """Nodes moved by `mm` (sd) each, and all radii scaled together by 1 +- `radius`."""
    out = np.asarray(nodes, float)
    out[:, :3] += rng.normal(0, mm, (len(out), 3))
    out[:, 3] *= np.clip(rng.normal(1, radius), 0.75, 1.3)
    return out
