"""Lungs with their vessels, airways, heart, mediastinum, esophagus."""

from dataclasses import dataclass

import numpy as np

from training.phantom.body import spine_y
from training.phantom.canvas import Canvas
from training.phantom.rotation import rotation
from training.phantom.shapes import Ellipsoid, Node, Tube, ellipsoid, jitter, tube
from training.phantom.tissues import Tissue
from training.phantom.vessels import grow_tree


@dataclass(frozen=True)
class Thorax:
    """One patient's chest."""

    heart: Ellipsoid
    esophagus: Tube
    esophagus_gas: bool
    airways: tuple[Tube, ...]
    lung_vessels: tuple[Tube, ...]
    anterior_gap_mm: float  #: half width of the mediastinum behind the sternum; 0: the lungs touch


def sample_thorax(rng: np.random.Generator) -> Thorax:
    """A chest; the heart grows and turns, the lungs may touch in front."""
    size = float(rng.normal(1, 0.08))
    heart = ellipsoid(
        np.array([-20, 44, 116]) + rng.normal(0, 4, 3), (60 * size, 45 * size, 47 * size),
        rotation(0, float(rng.normal(-28, 5)), float(rng.normal(-30, 6))),
    )  # fmt: skip
    esophagus = jitter(rng, [
        (-2, -2, 300, 6), (-4, -18, 250, 6.5), (-6, -30, 215, 7), (-4, -24, 170, 7), (-8, -10, 125, 7), (-16, 8, 85, 8),
        (-24, 26, 62, 9), (-38, 38, 50, 10),
    ], 1.5, 0.14)  # fmt: skip
    airways: list[list[Node]] = [
        [(0, 4, 300, 9), (0, -8, 240, 9), (2, -14, 196, 9)], [(2, -14, 196, 7.5), (22, -12, 172, 7), (40, -14, 155, 5)],
        [(2, -14, 196, 7), (-24, -14, 172, 6), (-46, -18, 156, 4.5)],
    ]  # fmt: skip
    vessels: list[Tube] = []
    for side in (1.0, -1.0):
        hilum = np.array([side * 38, -4, 158])
        for aim in (
            (0.7, 0.3, 0.8),
            (0.9, -0.3, 0.5),
            (0.9, 0.5, -0.1),
            (0.8, -0.5, -0.5),
            (0.6, -0.5, -0.9),
            (0.5, 0.4, -0.9),
        ):
            way = np.array([side * aim[0], aim[1], aim[2]]) + rng.normal(0, 0.12, 3)
            vessels += grow_tree(
                rng, hilum + rng.normal(0, 5, 3), way / np.linalg.norm(way), rng.uniform(3.8, 5.5), 26, 4
            )
    return Thorax(
        heart, tube(esophagus, 10), bool(rng.random() < 0.4), tuple(tube(jitter(rng, a, 1)) for a in airways),
        tuple(vessels),
        float(rng.choice([0.0, rng.uniform(2, 14)])),
    )  # fmt: skip


def paint_heart(canvas: Canvas, thorax: Thorax) -> None:
    """Myocardium, the two sides of the heart, and the pulmonary trunk."""
    heart = thorax.heart
    box = heart.box(canvas)
    if box is not None:
        u, v, w = heart.local(canvas, box)
        radius = np.sqrt(u * u + v * v + w * w)
        free = canvas.is_free(box) & (canvas.diaphragm[box] > 2)
        canvas.paint(box, free & (radius < 1), Tissue.MYOCARDIUM)
        inner = free & (radius < 0.93)
        septum = v - 0.15 - 0.25 * u + 0.06 * canvas.noise(box, 1.0)
        canvas.paint(box, inner & (septum > 0.1), Tissue.RIGHT_HEART)
        canvas.paint(box, inner & (u > 0.35) & (w < 0.45) & (v > -0.35), Tissue.RIGHT_HEART)
        left = ((u + 0.25) / 0.5) ** 2 + ((v + 0.3) / 0.36) ** 2 + (w / 0.5) ** 2 < 1
        canvas.paint(box, inner & left, Tissue.LEFT_HEART)
        atrium = ((u - 0.42) / 0.42) ** 2 + ((v + 0.5) / 0.4) ** 2 + ((w - 0.25) / 0.55) ** 2 < 1
        canvas.paint(box, inner & atrium, Tissue.LEFT_HEART)
    trunks: list[list[Node]] = [
        [(-22, 52, 150, 13), (-20, 30, 172, 13), (4, 8, 172, 10), (36, -2, 165, 8)],
        [(-20, 28, 174, 11), (-42, -2, 172, 9)],
    ]
    for nodes in trunks:
        found = tube(nodes).distance(canvas)
        if found:
            canvas.paint(found[0], (found[1] < 0) & canvas.is_free(found[0]), Tissue.PULMONARY_ARTERY)


def paint_esophagus_and_airways(canvas: Canvas, thorax: Thorax) -> None:
    """Esophagus (labelled), trachea and main bronchi."""
    for airway in thorax.airways:
        found = airway.distance(canvas)
        if found:
            box, distance = found
            soft = canvas.is_tissue(box, Tissue.VISCERAL_FAT, Tissue.MUSCLE, Tissue.AIRWAY_WALL)
            canvas.paint(box, (distance < 1.5) & soft, Tissue.AIRWAY_WALL)
            canvas.paint(box, (distance < 0) & canvas.is_tissue(box, Tissue.AIRWAY_WALL), Tissue.AIRWAY_GAS)
    found = thorax.esophagus.distance(canvas)
    if found:
        box, distance = found
        mask = (distance < 0) & canvas.is_tissue(box, Tissue.VISCERAL_FAT, Tissue.MUSCLE)
        canvas.paint(box, mask, Tissue.ESOPHAGUS, "esophagus")
        if thorax.esophagus_gas:
            lumen = mask & (distance < -4.2) & (canvas.noise(box, 0.7) > 0.2)
            canvas.paint(box, lumen, Tissue.ESOPHAGUS_LUMEN, "esophagus")


def paint_lungs(canvas: Canvas, thorax: Thorax) -> None:
    """All free room above the diaphragm and beside the mediastinum becomes lung; the diaphragm closes it below."""
    box = canvas.box((-150, -110, -40), (150, 150, 300))
    if box is None:
        return
    x, y, z, height = canvas.x[box], canvas.y[box], canvas.z[box], canvas.diaphragm[box]
    free = canvas.is_free(box)
    ahead = y - spine_y(z)
    half = np.interp(ahead, [0, 25, 60, 95, 125, 150], [20, 24, 31, 26, 10, 0]).astype(np.float32)
    half *= np.interp(z, [60, 120, 200, 225, 300], [0.95, 1.0, 0.9, 1.0, 1.0]).astype(np.float32)
    half += np.float32(thorax.anterior_gap_mm) + 1.5 * canvas.noise(box, 1.9)
    off = x + 3
    room = free & (canvas.cavity[box] < -1.8) & (height > 1.5) & (z < 297)
    heart = (
        thorax.heart.radius(canvas, box) if thorax.heart.box(canvas) is not None else np.full(x.shape, 9, np.float32)
    )
    room &= heart > 1.06
    pulmonary = room & (np.abs(off) > np.maximum(half, 0.8))
    canvas.paint(box, pulmonary & (off > 0), Tissue.LUNG, "lung_right")
    canvas.paint(box, pulmonary & (off < 0), Tissue.LUNG, "lung_left")
    canvas.paint(box, free & (np.abs(height) < 1.5) & (canvas.cavity[box] < 0), Tissue.DIAPHRAGM)
    strand = np.hypot(canvas.noise(box, 0.0), canvas.noise(box, np.pi / 2)) < 0.14
    canvas.tissue[box][strand & pulmonary] = Tissue.LUNG_VESSEL
    for vessel in thorax.lung_vessels:
        found = vessel.distance(canvas, 1)
        if found:
            part, distance = found
            canvas.tissue[part][(distance < 0) & canvas.is_tissue(part, Tissue.LUNG)] = Tissue.LUNG_VESSEL
