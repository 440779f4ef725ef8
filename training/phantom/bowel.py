"""Hollow organs: stomach, duodenum, small intestine, colon, rectum."""

from dataclasses import dataclass

import numpy as np

from training.phantom.canvas import Box, Canvas, FloatArray
from training.phantom.shapes import Points, Tube, jitter, tube
from training.phantom.tissues import Tissue


@dataclass(frozen=True)
class Bowel:
    """One patient's gut and what fills it."""

    stomach: Tube
    stomach_content: Tissue
    stomach_level: float  #: y (mm) above which the stomach holds gas: gas rises to the front of a supine patient
    duodenum: Tube
    colon: Tube
    colon_filling: tuple[Tissue, ...]  #: by stretch of the noise field
    colon_gas: float  #: threshold of the noise above which the colon holds gas
    rectum: Tube
    rectum_gas: bool
    loops: tuple[Tube, ...]
    noise_phase: float


def _haustra(nodes: Points, rng: np.random.Generator) -> Tube:
    """A tube whose width swells and narrows every 25 to 40 mm."""
    plain = tube(nodes, 7)
    length = np.arange(len(plain.points)) * 7.0
    swell = 1 + 0.17 * np.cos(2 * np.pi * length / rng.uniform(26, 38) + rng.uniform(0, 6))
    return Tube(plain.points, plain.radii * swell)


def sample_bowel(rng: np.random.Generator, left_dome: float) -> Bowel:
    """The gut; a stomach from empty to full, a colon of gas and stool, loops of small intestine."""
    full = float(rng.uniform(0.7, 1.22))
    fundus = max(full, float(rng.uniform(0.9, 1.15)))
    top = left_dome - 30 * fundus - 6
    stomach = jitter(rng, [
        (-60, 22, top, 30 * fundus), (-70, 36, top - 20, 33 * fundus), (-70, 60, 22, 29 * full),
        (-58, 86, -4, 26 * full),
        (-30, 98, -24, 22 * full), (-2, 94, -26, 17 * full), (18, 86, -18, 12),
    ], 3.5, 0.05)  # fmt: skip
    duodenum = jitter(rng, [
        (20, 85, -18, 11), (36, 72, -12, 12), (46, 55, -28, 12), (46, 48, -56, 12.5), (36, 52, -80, 12),
        (12, 62, -88, 11),
        (-18, 62, -82, 11), (-34, 58, -62, 11), (-38, 66, -46, 11),
    ], 2.2, 0.13)  # fmt: skip
    r = float(rng.uniform(0.8, 1.35))
    flexure = float(rng.uniform(-8, 36))
    sag = float(rng.uniform(-45, 20))
    colon = jitter(rng, [
        (78, 62, -170, 20 * r), (92, 55, -150, 27 * r), (103, 34, -110, 25 * r), (106, 30, -72, 24 * r),
        (96, 62, -58, 22 * r),
        (62, 102, -66 + 0.4 * sag, 21 * r), (5, 112, -76 + sag, 20 * r), (-55, 106, -50 + 0.6 * sag, 19 * r),
        (-98, 72, flexure - 14, 18 * r), (-108, 44, flexure, 18 * r), (-114, 14, -40, 17 * r),
        (-116, 14, -90, 16 * r), (-108, 34, -140, 16 * r),
        (-82, 58, -175, 17 * r), (-40, 60, -190 + rng.uniform(-10, 25), 17 * r),
        (0, 42, -186 + rng.uniform(-10, 25), 17 * r),
        (16, 10, -188, 16 * r), (4, -12, -200, 16),
    ], 4, 0.06)  # fmt: skip
    rectum = jitter(
        rng,
        [(4, -12, -200, 16), (0, -28, -222, 19), (0, -34, -250, 20), (0, -22, -276, 15), (0, -30, -300, 10)],
        1.5,
        0.15,
    )
    rectum[0, :3] = colon[-1, :3]
    filling = rng.choice([Tissue.STOOL, Tissue.STOOL, Tissue.STOOL_GAS_MIX, Tissue.COLON_FLUID], 4)
    return Bowel(
        stomach=tube(stomach, 8), stomach_content=Tissue.STOMACH_FOOD if rng.random() < 0.45 else Tissue.STOMACH_FLUID,
        stomach_level=float(rng.uniform(50, 130)), duodenum=tube(duodenum, 8), colon=_haustra(colon, rng),
        colon_filling=tuple(Tissue(int(t)) for t in filling), colon_gas=float(rng.normal(0.1, 0.9)),
        rectum=tube(rectum, 7),
        rectum_gas=bool(rng.random() < 0.35), loops=_sample_loops(rng), noise_phase=float(rng.uniform(0, 6.28)),
    )  # fmt: skip


def _sample_loops(rng: np.random.Generator) -> tuple[Tube, ...]:
    """Small intestine: three layers of a tube that folds to and fro below the transverse colon, then free loops."""
    out: list[Tube] = []
    for layer, y in enumerate((96.0, 70.0, 42.0)):
        nodes: list[tuple[float, float, float, float]] = []
        radius = rng.uniform(11, 15)
        for row, z in enumerate(np.arange(-58, -215, -24.0)):
            half = np.interp(z, [-215, -180, -58], [45, 78, 96])
            for x in np.linspace(-half, half, 5)[:: 1 if (row + layer) % 2 else -1]:
                nodes.append((x, y + rng.normal(0, 7), z + rng.normal(0, 8), radius * rng.uniform(0.75, 1.2)))
        out.append(tube(jitter(rng, nodes, 3, 0.05), 9))
    out.append(
        tube(jitter(rng, [(-38, 66, -46, 12), (-62, 72, -40, 13), (-84, 62, -52, 13), (-80, 48, -70, 12)], 3), 9)
    )
    return tuple(out)


def _paint_hollow(
    canvas: Canvas, box: Box, distance: FloatArray, wall_mm: float, wall: Tissue, label: str
) -> FloatArray:
    """Paint the wall in free room; returns depth below the wall (mm, positive in the lumen; negative elsewhere)."""
    mask = (distance < 0) & canvas.is_free(box)
    canvas.paint(box, mask, wall, label)
    return np.where(mask, -distance - np.float32(wall_mm), np.float32(-1))


def paint_stomach_and_duodenum(canvas: Canvas, bowel: Bowel) -> None:
    """Stomach with folds, content and a gas bubble in front; duodenum round the head of the pancreas."""
    found = bowel.duodenum.distance(canvas)
    if found:
        box, distance = found
        noise = canvas.noise(box, bowel.noise_phase + 1)
        lumen = _paint_hollow(canvas, box, distance + 0.7 * noise, 3.4, Tissue.DUODENUM_WALL, "duodenum")
        canvas.paint(box, lumen > 0, Tissue.DUODENUM_FLUID, "duodenum")
        canvas.paint(box, (lumen > 0) & (noise > 1.5), Tissue.BOWEL_GAS, "duodenum")
    found = bowel.stomach.distance(canvas, 5)
    if found:
        box, distance = found
        distance = np.maximum(distance, np.maximum(canvas.diaphragm[box] + 4, canvas.cavity[box] + 4))
        folds = 1.6 * canvas.noise(box, bowel.noise_phase + 2)
        lumen = _paint_hollow(canvas, box, distance, 4.5, Tissue.STOMACH_WALL, "stomach") + folds
        lumen[canvas.tissue[box] != Tissue.STOMACH_WALL] = -1
        lumen[distance > -2] = -1
        canvas.paint(box, lumen > 0, bowel.stomach_content, "stomach")
        canvas.paint(box, (lumen > 0) & (canvas.y[box] > bowel.stomach_level), Tissue.STOMACH_GAS, "stomach")


def paint_colon(canvas: Canvas, bowel: Bowel) -> None:
    """Rectum, then the frame of the colon, each with what it holds."""
    found = bowel.rectum.distance(canvas)
    if found:
        box, distance = found
        lumen = _paint_hollow(canvas, box, distance, 4.0, Tissue.RECTUM_WALL, "rectum")
        canvas.paint(box, lumen > 0, Tissue.STOOL, "rectum")
        if bowel.rectum_gas:
            canvas.paint(box, (lumen > 0) & (canvas.noise(box, 0.2) > 0.1), Tissue.BOWEL_GAS, "rectum")
    found = bowel.colon.distance(canvas)
    if found:
        box, distance = found
        distance = np.maximum(distance + 0.8 * canvas.noise(box, bowel.noise_phase), canvas.cavity[box] + 2)
        lumen = _paint_hollow(canvas, box, distance, 2.2, Tissue.COLON_WALL, "colon")
        slow = np.sin(canvas.x[box] / 31) + np.sin(canvas.z[box] / 27 + bowel.noise_phase)
        for tissue, low, high in zip(bowel.colon_filling, (-9, -0.8, 0, 0.8), (-0.8, 0, 0.8, 9), strict=True):
            canvas.paint(box, (lumen > 0) & (slow >= low) & (slow < high), tissue, "colon")
        front = (canvas.y[box] - 55) / 30 + 0.5 * slow + 0.25 * canvas.noise(box, 0.9)
        canvas.paint(box, (lumen > 0) & (front > bowel.colon_gas), Tissue.BOWEL_GAS, "colon")


def paint_small_intestine(canvas: Canvas, bowel: Bowel) -> None:
    """Loops with a thin wall, fluid, and now and then a bubble."""
    for loop in bowel.loops:
        found = loop.distance(canvas, 2)
        if not found:
            continue
        box, distance = found
        distance = np.maximum(distance + 0.8 * canvas.noise(box, bowel.noise_phase + 2), canvas.cavity[box] + 3)
        lumen = _paint_hollow(canvas, box, distance, 2.3, Tissue.SMALL_BOWEL_WALL, "small_intestine")
        noise = canvas.noise(box, bowel.noise_phase + 0.5)
        canvas.paint(box, (lumen > 0) & (noise > -0.6), Tissue.SMALL_BOWEL_FLUID, "small_intestine")
        canvas.paint(box, (lumen > 0) & (noise > 1.75), Tissue.BOWEL_GAS, "small_intestine")


def paint_mesentery(canvas: Canvas) -> None:
    """Small vessels through the fat that is left: the curves on which two noise fields vanish together."""
    box = canvas.box((-135, -60, -230), (135, 150, 70))
    if box is not None:
        strand = np.hypot(canvas.noise(box, 0.0), canvas.noise(box, np.pi / 2)) < 0.2
        inner = (canvas.cavity[box] < -6) & (canvas.diaphragm[box] < -6)
        canvas.paint(box, strand & inner & canvas.is_free(box), Tissue.MESENTERIC_VESSEL)
