"""Solid organs of the upper abdomen: kidneys, adrenals, pancreas, gallbladder, spleen, liver."""

from dataclasses import dataclass

import numpy as np

from training.phantom.canvas import Canvas
from training.phantom.rotation import rotation
from training.phantom.shapes import Ellipsoid, Node, Points, Tube, ellipsoid, jitter, tube
from training.phantom.tissues import Tissue
from training.phantom.vessels import Vessels, grow_tree, paint_vessel

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Kidney:
    """One kidney and its adrenal gland."""

    side: str  #: "right" or "left"
    shape: Ellipsoid
    present: bool
    adrenal: tuple[Tube, ...]
    fat_mm: float


@dataclass(frozen=True)
class Abdomen:
    """One patient's solid organs."""

    kidneys: tuple[Kidney, Kidney]
    pancreas: Tube
    gallbladder: Tube | None
    stone: Ellipsoid | None
    spleen: Ellipsoid | None
    spleen_hollow: Ellipsoid
    portal_tree: tuple[Tube, ...]
    hepatic_tree: tuple[Tube, ...]
    liver_tip: float  #: lowest z of the right lobe
    liver_reach: float  #: x of the tip of the left lobe
    liver_thickness: float
    noise_phase: float


def _sample_kidney(rng: np.random.Generator, side: str, present: bool, grown: float) -> Kidney:
    sign = 1.0 if side == "right" else -1.0
    center = np.array([sign * 70, 6, -38 if side == "right" else -26]) + rng.normal(0, (4, 4, 10))
    radii = np.array([28, 27, 53]) * rng.normal(1, 0.07, 3) * grown
    axes = rotation(float(rng.normal(-10, 4)), sign * float(rng.normal(-12, 4)), sign * float(rng.normal(28, 8)))
    top = np.array([36, 18, 16] if side == "right" else [-46, 26, 10]) + rng.normal(0, 2, 3)
    r = float(rng.uniform(3.2, 4.6))
    apex, body = top + np.array([0, 9, 14]), top + np.array([0, 4, 0])
    limbs = [
        tube(np.array([[*apex, r], [*body, r * 1.25], [*(top + np.array([-sign * 5, -17, -22])), r * 0.9]]), 5),
        tube(np.array([[*body, r * 1.1], [*(top + np.array([sign * 14, -17, -24])), r * 0.9]]), 5),
        tube(np.array([[*(apex + np.array([0, -1, -1])), r], [*(body + np.array([sign * 2, -5, -10])), r]]), 5),
    ]
    return Kidney(side, Ellipsoid(center, radii, axes), present, tuple(limbs), float(rng.uniform(2, 10)))


def _point(xyz: Points) -> Point:
    return float(xyz[0]), float(xyz[1]), float(xyz[2])


def _vessel_tree(
    rng: np.random.Generator,
    paths: list[list[Point]],
    radii_mm: tuple[float, float],
    spread: tuple[float, float],
    wander_mm: float,
    twig_mm: tuple[float, float],
) -> tuple[Tube, ...]:
    """Main vessels along given paths, narrowing from first to second radius; twigs (radius, length) at their ends."""
    out: list[Tube] = []
    for nodes in paths:
        radii = np.linspace(*radii_mm, len(nodes)) * rng.uniform(*spread)
        path = np.array([[*p, q] for p, q in zip(nodes, radii, strict=True)])
        path[1:, :3] += rng.normal(0, wander_mm, (len(path) - 1, 3))
        out.append(tube(path, 8))
        way = path[-1, :3] - path[-2, :3]
        out += grow_tree(rng, path[-1, :3], way / np.linalg.norm(way), twig_mm[0], twig_mm[1], 2)
    return tuple(out)


def sample_abdomen(rng: np.random.Generator, vessels: Vessels, left_dome: float) -> Abdomen:
    """Solid organs; some patients have lost a kidney, the gallbladder or the spleen."""
    lost = str(rng.choice(["", "right", "left"], p=[0.94, 0.03, 0.03]))
    kidneys = tuple(_sample_kidney(rng, s, s != lost, 1.15 if lost and s != lost else 1.0) for s in ("right", "left"))
    pancreas = jitter(rng, [
        (20, 50, -58, 11), (23, 56, -44, 15), (20, 60, -26, 15), (4, 72, -14, 9), (-22, 72, -1, 9.5), (-50, 54, 6, 10),
        (-74, 32, 10, 10), (-92, 14, 14, 9),
    ], 2.5, 0.16)  # fmt: skip
    bladder = None
    stone = None
    if rng.random() > 0.12:
        r = float(rng.uniform(8, 17))
        nodes: list[Node] = [(46, 62, 12, 3), (54, 76, -4, r * 0.7), (64, 90, -24, r), (72, 100, -42, r * 0.9)]
        bladder = tube(jitter(rng, nodes, 2.5, 0.05), 6)
        if rng.random() < 0.12:
            stone = ellipsoid(np.array([66, 84, -30]) + rng.normal(0, 3, 3), (5, 4, 5))
    size = float(np.clip(rng.normal(1, 0.14), 0.7, 1.5))
    spleen = None
    at = np.array([-112, -10, left_dome - 62]) + rng.normal(0, (3, 5, 6))
    if rng.random() > 0.04:
        spleen = ellipsoid(
            at, (44 * size, 62 * size, 58 * size), rotation(float(rng.normal(-25, 10)), 0, float(rng.normal(-12, 8)))
        )
    hollow = ellipsoid(at + np.array([56, 34, 4]), (44, 44, 70), rotation(0, 10, -30))
    porta = vessels.portal[0].points[-1]
    cava = vessels.vena_cava.points[-3]
    at_porta, at_cava = _point(porta), _point(cava)
    portal_paths: list[list[Point]] = [
        [at_porta, (58, 48, 30), (80, 40, 26)], [(80, 40, 26), (98, 10, 12)], [(80, 40, 26), (98, 66, 30)],
        [at_porta, (18, 70, 38), (-8, 82, 44), (-30, 94, 44)], [(58, 48, 30), (78, 52, 56)], [(70, 44, 28),
        (96, 24, -22)],
    ]  # fmt: skip
    portal_tree = _vessel_tree(rng, portal_paths, (5.8, 3.3), (0.8, 1.15), 2, (2.8, 20))
    hepatic_paths: list[list[Point]] = [
        [at_cava, (60, 32, 46), (96, 22, 20)], [at_cava, (44, 62, 46), (62, 86, 14)],
        [at_cava, (0, 64, 56), (-32, 86, 50)], [(60, 32, 46), (86, 6, 40)],
    ]  # fmt: skip
    hepatic_tree = _vessel_tree(rng, hepatic_paths, (5.6, 3.1), (0.75, 1.15), 3, (2.6, 18))
    return Abdomen(
        kidneys=(kidneys[0], kidneys[1]), pancreas=tube(pancreas, 7), gallbladder=bladder, stone=stone, spleen=spleen,
        spleen_hollow=hollow, portal_tree=portal_tree, hepatic_tree=hepatic_tree,
        liver_tip=float(rng.normal(-72, 16)), liver_reach=float(rng.normal(-66, 18)),
        liver_thickness=float(rng.normal(0, 6)),
        noise_phase=float(rng.uniform(0, 6.28)),
    )  # fmt: skip


def paint_kidneys(canvas: Canvas, abdomen: Abdomen) -> None:
    """Adrenals, perirenal fat, and kidneys with cortex, pyramids, sinus and pelvis."""
    for kidney in abdomen.kidneys:
        for limb in kidney.adrenal:
            found = limb.distance(canvas, 3)
            if found:
                box, distance = found
                free = canvas.is_tissue(box, Tissue.VISCERAL_FAT, Tissue.PERIRENAL_FAT, Tissue.DIAPHRAGM)
                canvas.paint(box, (distance < 0) & free, Tissue.ADRENAL, f"adrenal_gland_{kidney.side}")
                canvas.paint(box, (distance < 2.5) & canvas.is_free(box), Tissue.PERIRENAL_FAT)
        if kidney.present:
            _paint_kidney(canvas, kidney)


def _paint_kidney(canvas: Canvas, kidney: Kidney) -> None:
    box = kidney.shape.box(canvas, kidney.fat_mm + 6)
    if box is None:
        return
    label = f"kidney_{kidney.side}"
    sign = np.float32(1.0 if kidney.side == "right" else -1.0)
    u, v, w = kidney.shape.local(canvas, box)
    medial = -sign * u
    noise = canvas.noise(box, 0.3 if kidney.side == "right" else 1.2)
    radius = np.sqrt(u * u + v * v + w * w) + 0.03 * noise
    hilum = np.sqrt(((medial - 0.85) / 0.75) ** 2 + (v / 0.42) ** 2 + (w / 0.52) ** 2) + 0.06 * noise
    room = canvas.is_tissue(box, Tissue.VISCERAL_FAT, Tissue.MUSCLE, Tissue.DIAPHRAGM, Tissue.PERIRENAL_FAT)
    room &= canvas.diaphragm[box] < 3
    parenchyma = room & (radius < 1) & (hilum > 1)
    canvas.paint(box, parenchyma, Tissue.RENAL_CORTEX, label)
    angle = np.arctan2(w, -medial + 0.35)
    column = np.cos(9 * angle) * 0.5 + 0.5 * np.cos(5 * v)
    pyramid = parenchyma & (radius < 0.8) & (column > -0.25)
    canvas.paint(box, pyramid, Tissue.RENAL_MEDULLA, label)
    canvas.paint(box, room & (radius < 1) & (hilum <= 1), Tissue.RENAL_SINUS_FAT)
    pelvis = (((medial - 0.75) / 0.6) ** 2 + (v / 0.17) ** 2 + (w / 0.22) ** 2 < 1) & room & (radius < 1.1)
    canvas.paint(box, pelvis & (hilum < 1.05), Tissue.RENAL_PELVIS)
    shell = (radius >= 1) & (radius < 1 + kidney.fat_mm / 28) & canvas.is_free(box)
    canvas.paint(box, shell, Tissue.PERIRENAL_FAT)


def paint_pancreas(canvas: Canvas, abdomen: Abdomen) -> None:
    """A lobulated gland; fat enters between its lobules."""
    found = abdomen.pancreas.distance(canvas, 5)
    if found:
        box, distance = found
        lobules = distance + 1.4 * canvas.noise(box, abdomen.noise_phase)
        canvas.paint(box, (lobules < 0) & canvas.is_free(box), Tissue.PANCREAS, "pancreas")


def paint_gallbladder(canvas: Canvas, abdomen: Abdomen) -> None:
    """Bile in a thin wall, sometimes with a stone; the label holds all three."""
    if abdomen.gallbladder is None:
        return
    found = abdomen.gallbladder.distance(canvas)
    if not found:
        return
    box, distance = found
    free = canvas.is_free(box)
    canvas.paint(box, free & (distance < 0), Tissue.GALLBLADDER_WALL, "gallbladder")
    canvas.paint(box, free & (distance < -1.5), Tissue.BILE, "gallbladder")
    if abdomen.stone is not None:
        stone = (abdomen.stone.radius(canvas, box) < 1) & free & (distance < -1.5)
        canvas.paint(box, stone, Tissue.GALLSTONE, "gallbladder")


def paint_spleen(canvas: Canvas, abdomen: Abdomen) -> None:
    """A crescent between the left dome, the flank and the stomach."""
    if abdomen.spleen is None:
        return
    box = abdomen.spleen.box(canvas, 6)
    if box is None:
        return
    noise = canvas.noise(box, abdomen.noise_phase + 1)
    inside = abdomen.spleen.radius(canvas, box) + 0.035 * noise < 1
    inside &= abdomen.spleen_hollow.radius(canvas, box) + 0.03 * noise > 1
    inside &= (canvas.cavity[box] < -1.8) & (canvas.diaphragm[box] < -2)
    canvas.paint(box, inside & canvas.is_free(box), Tissue.SPLEEN, "spleen")


def paint_liver(canvas: Canvas, abdomen: Abdomen) -> None:
    """All free room under the right dome down to the visceral surface, tapering to the left; then its vessels."""
    box = canvas.box((-125, -90, -125), (145, 165, 100))
    if box is None:
        return
    x, y = canvas.x[box], canvas.y[box]
    tip, reach = abdomen.liver_tip, abdomen.liver_reach
    slant = x + 0.35 * (y - 75)  # in front the liver reaches further to the left
    under = np.interp(
        slant, [reach - 12, reach + 12, -20, 20, 50, 85, 112, 135], [96, 40, 8, -10, -27, tip * 0.8, tip, tip + 6]
    ).astype(np.float32) - np.float32(abdomen.liver_thickness)
    under += 0.004 * np.maximum(20 - y, 0) ** 2 - 0.10 * (y - 60) * (x < 60)
    back = np.interp(x, [reach, -30, 0, 24, 44], [84, 62, 44, 14, -90]).astype(np.float32)
    noise = canvas.noise(box, abdomen.noise_phase + 2)
    inside = np.maximum(under - canvas.z[box], back - y) + 2.2 * noise < 0
    inside &= (slant > reach - 12) & (canvas.cavity[box] < -1.8) & (canvas.diaphragm[box] < -1.8)
    canvas.paint(box, inside & canvas.is_free(box), Tissue.LIVER, "liver")
    for shapes, tissue in ((abdomen.hepatic_tree, Tissue.HEPATIC_VEIN), (abdomen.portal_tree, Tissue.HEPATIC_PORTAL)):
        for shape in shapes:
            found = shape.distance(canvas, 2)
            if found:
                part, distance = found
                vessel = (distance < 0) & canvas.is_tissue(part, Tissue.LIVER)
                canvas.tissue[part][vessel] = tissue
                canvas.labels[part][vessel] |= np.uint32(1 << 14)
            if tissue is Tissue.HEPATIC_PORTAL:
                paint_vessel(canvas, shape, Tissue.PORTAL_VEIN)
