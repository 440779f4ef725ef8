"""Urinary bladder, prostate with seminal vesicles, or in a woman the uterus (same label, as in AMOS)."""

from dataclasses import dataclass

import numpy as np

from training.phantom.canvas import Canvas
from training.phantom.rotation import rotation
from training.phantom.shapes import Ellipsoid, ellipsoid
from training.phantom.tissues import Tissue


@dataclass(frozen=True)
class Pelvis:
    """One patient's pelvic organs."""

    bladder: Ellipsoid
    bladder_wall_mm: float
    prostate: Ellipsoid | None
    vesicles: tuple[Ellipsoid, ...]


def sample_pelvis(rng: np.random.Generator, female: bool) -> Pelvis:
    """Pelvic organs; the bladder from nearly empty to full; one man in fifteen has lost his prostate."""
    full = float(rng.uniform(0.55, 1.1))
    height = 44 * full
    bladder = ellipsoid(
        (float(rng.normal(0, 4)), 42, -270 + height), (47 * full ** 0.7, 34 * full, height),
        rotation(float(rng.normal(-12, 6)))
    )  # fmt: skip
    if female:
        tilt = float(rng.normal(-35, 15))
        uterus = ellipsoid((float(rng.normal(0, 8)), 6 + float(rng.normal(0, 4)), -218), (26, 20, 36), rotation(tilt))
        shrunk = float(rng.uniform(0.7, 1.15))
        organ = None if rng.random() < 0.1 else Ellipsoid(uterus.center, uterus.radii * shrunk, uterus.axes)
        return Pelvis(bladder, float(rng.uniform(2, 4)), organ, ())
    size = float(rng.uniform(0.8, 1.35))
    prostate = None if rng.random() < 0.07 else ellipsoid((0, 20, -279 + 4 * size), (24 * size, 17 * size, 18 * size))
    vesicles = tuple(ellipsoid((s * 18, 2, -252), (18, 7, 9), rotation(0, -s * 20, -s * 15)) for s in (1, -1))
    return Pelvis(bladder, float(rng.uniform(2, 5)), prostate, vesicles)


def paint_pelvis_organs(canvas: Canvas, pelvis: Pelvis) -> None:
    """Prostate or uterus first, then the bladder that rests on it."""
    soft = (Tissue.VISCERAL_FAT, Tissue.MUSCLE, Tissue.INTERMUSCULAR_FAT)
    if pelvis.prostate is not None:
        box = pelvis.prostate.box(canvas)
        if box is not None:
            mask = pelvis.prostate.radius(canvas, box) + 0.04 * canvas.noise(box, 0.6) < 1
            canvas.paint(box, mask & canvas.is_tissue(box, *soft), Tissue.PROSTATE, "prostate")
    box = pelvis.bladder.box(canvas)
    if box is not None:
        distance = pelvis.bladder.distance(canvas, box) + 0.8 * canvas.noise(box, 0.1)
        room = canvas.is_tissue(box, *soft) & (canvas.cavity[box] < 8)
        canvas.paint(box, (distance < 0) & room, Tissue.BLADDER_WALL, "urinary_bladder")
        canvas.paint(box, (distance < -pelvis.bladder_wall_mm) & room, Tissue.URINE, "urinary_bladder")
    for vesicle in pelvis.vesicles:
        box = vesicle.box(canvas)
        if box is not None:
            canvas.paint(box, (vesicle.radius(canvas, box) < 1) & canvas.is_free(box), Tissue.SEMINAL_VESICLE)
