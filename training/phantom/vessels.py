"""Great vessels of chest and abdomen: aorta, venae cavae, portal and splenic vein, celiac trunk, iliacs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.phantom.canvas import Canvas
from training.phantom.shapes import Node, Points, Tube, jitter, tube
from training.phantom.tissues import Tissue


@dataclass(frozen=True)
class Vessels:
    """The axes and widths of one patient's great vessels."""

    aorta: Tube
    vena_cava: Tube
    portal: tuple[Tube, ...]  #: portal vein, splenic vein
    mesenteric: tuple[Tube, ...]  #: superior mesenteric vein and artery: not labelled
    celiac: Tube
    branches: tuple[Tube, ...]  #: unlabelled arteries
    iliac_arteries: tuple[Tube, ...]
    iliac_veins: tuple[Tube, ...]
    chest_veins: tuple[Tube, ...]
    calcified: float  #: share of the aortic wall that is calcified


def _mirror(nodes: Sequence[Node]) -> list[Node]:
    return [(-x, y, z, r) for x, y, z, r in nodes]


def sample_vessels(rng: np.random.Generator) -> Vessels:
    """Great vessels; an old aorta is wide, winding and calcified."""
    age = float(rng.beta(2, 2))
    aorta = jitter(rng, [
        (4, 42, 138, 15), (12, 46, 165, 16), (10, 32, 192, 15), (-4, 8, 207, 14), (-20, -16, 203, 13),
        (-27, -28, 180, 12.5), (-27, -22, 136, 12), (-22, -6, 87, 11.5), (-16, 14, 45, 11), (-14, 27, 5, 10),
        (-13, 36, -40, 9), (-9, 44, -78, 8.5), (-4, 46, -106, 8.5),
    ], 1.5 + 2 * age, 0.06)  # fmt: skip
    aorta[:, 3] *= 0.85 + 0.26 * age
    cava = jitter(rng, [
        (12, 38, -113, 10), (15, 41, -75, 10), (16, 37, -34, 10.5), (19, 33, 5, 11.5), (22, 32, 40, 12),
        (24, 36, 78, 13),
    ], 1.5, 0.12)  # fmt: skip
    confluence = np.array([4, 60, -12]) + rng.normal(0, 3, 3)
    porta = np.array([38, 58, 24]) + rng.normal(0, 3, 3)
    middle = (confluence + porta) / 2 + rng.normal(0, 2, 3)
    r = float(rng.uniform(6.2, 8.8))
    portal = tube(np.array([[*confluence, r], [*middle, r], [*porta, r]]))
    splenic = jitter(rng, [(-24, 62, -2, 5.8), (-52, 42, 6, 5.4), (-76, 20, 9, 5.1), (-92, 8, 12, 4.6)], 2.5, 0.15)
    splenic = np.vstack([[*confluence, r * 0.9], splenic])
    root = aorta[9, :3] + (aorta[8, :3] - aorta[9, :3]) * 0.15
    length, width = rng.uniform(21, 30), rng.uniform(3.4, 4.6)
    ahead = np.array([rng.normal(2, 2), length, rng.normal(-3, 4)])
    celiac = tube(np.array([[*root, width], [*(root + ahead * 0.5), width], [*(root + ahead), width * 0.9]]), 5)
    tip = root + ahead
    hepatic = tube(np.vstack([[*tip, 3], [*(tip + np.array([18, 2, 3])), 2.6], [*(porta - np.array([6, -4, 6])), 2.2]]))
    lienal = tube(np.vstack([[*tip, 3], [-40, 48, 12, 2.8], [-70, 22, 16, 2.6], [-92, 6, 18, 2.2]]))
    smv = tube(np.vstack([[*confluence, r * 0.85], [4, 62, -45, 5.5], [8, 70, -85, 4.5], [20, 75, -120, 3]]))
    sma = tube(
        np.vstack(
            [[*(aorta[9, :3] + np.array([0, 6, -10])), 4], [-10, 52, -30, 4], [-8, 62, -70, 3.5], [0, 72, -115, 2.5]]
        )
    )
    renal: list[list[Node]] = [
        [(-12, 28, -20, 3), (20, 16, -26, 2.8), (52, 8, -34, 2.4)], [(-16, 28, -18, 3), (-45, 10, -24, 2.6)],
    ]  # fmt: skip
    iliac: list[Node] = [
        (-4, 46, -106, 6),
        (24, 48, -130, 5.5),
        (44, 34, -160, 5.2),
        (62, 50, -200, 4.8),
        (76, 62, -240, 4.5),
        (80, 58, -300, 4.5),
    ]
    left: list[Node] = [(-4, 46, -106, 6), (-30, 48, -132, 5.5), *_mirror(iliac[2:])]
    vein: list[Node] = [
        (12, 36, -112, 8),
        (30, 30, -140, 6.5),
        (44, 20, -165, 6.5),
        (62, 38, -200, 6),
        (70, 54, -240, 6),
        (72, 50, -300, 5.5),
    ]
    vein_left: list[Node] = [(10, 36, -113, 8), (-18, 30, -140, 6.5), *_mirror(vein[2:])]
    chest: list[list[Node]] = [
        [(26, 26, 150, 9), (28, 24, 185, 9), (24, 22, 222, 8)], [(24, 24, 220, 7), (-6, 40, 222, 6), (-38, 36, 240, 6)],
        [(24, 22, 222, 6), (42, 28, 245, 6), (75, 30, 255, 6)], [(10, 16, 208, 6), (14, 8, 240, 5.5), (22, 4, 290, 4)],
        [(-6, 6, 210, 4.5), (-14, 4, 245, 4), (-20, 4, 290, 4)], [(-16, -12, 208, 5), (-26, -6, 245, 5),
        (-50, 4, 262, 5)],
    ]  # fmt: skip
    return Vessels(
        aorta=tube(aorta, 8),
        vena_cava=tube(cava),
        portal=(portal, tube(splenic, 7)),
        mesenteric=(smv, sma),
        celiac=celiac,
        branches=(hepatic, lienal, *(tube(nodes) for nodes in renal)),
        iliac_arteries=(tube(jitter(rng, iliac, 2)), tube(jitter(rng, left, 2))),
        iliac_veins=(tube(jitter(rng, vein, 2)), tube(jitter(rng, vein_left, 2))),
        chest_veins=tuple(tube(jitter(rng, nodes, 1.5)) for nodes in chest),
        calcified=float(np.clip((age - 0.45) * 0.6, 0, 0.3)),
    )


_YIELDING = (Tissue.VISCERAL_FAT, Tissue.MUSCLE, Tissue.INTERMUSCULAR_FAT, Tissue.PERIRENAL_FAT, Tissue.DIAPHRAGM)


def paint_vessel(canvas: Canvas, shape: Tube, tissue: Tissue, label: str | None = None) -> None:
    """A vessel through fat and along muscle; it enters no bone and no vessel painted before it."""
    found = shape.distance(canvas, 2)
    if found:
        box, distance = found
        canvas.paint(box, (distance < 0) & canvas.is_tissue(box, *_YIELDING), tissue, label)


def paint_vessels(canvas: Canvas, vessels: Vessels) -> None:
    """The great vessels, the labelled ones first."""
    found = vessels.aorta.distance(canvas, 3)
    if found:
        box, distance = found
        mask = (distance < 0) & canvas.is_tissue(box, *_YIELDING)
        canvas.paint(box, mask, Tissue.AORTA, "aorta")
        if vessels.calcified > 0:
            plaque = mask & (distance > -2) & (canvas.noise(box, 2.1) > 2.2 - 4 * vessels.calcified)
            canvas.paint(box, plaque, Tissue.CALCIFICATION, "aorta")
    paint_vessel(canvas, vessels.vena_cava, Tissue.VENA_CAVA, "inferior_vena_cava")
    paint_vessel(canvas, vessels.celiac, Tissue.ARTERY, "celiac_trunk")
    for shape in vessels.portal:
        paint_vessel(canvas, shape, Tissue.PORTAL_VEIN, "portal_and_splenic_vein")
    paint_vessel(canvas, vessels.mesenteric[0], Tissue.PORTAL_VEIN)
    paint_vessel(canvas, vessels.mesenteric[1], Tissue.ARTERY)
    for shape in (*vessels.iliac_arteries, *vessels.branches):
        paint_vessel(canvas, shape, Tissue.ARTERY)
    for shape in vessels.iliac_veins:
        paint_vessel(canvas, shape, Tissue.ILIAC_VEIN)
    for shape in vessels.chest_veins[:3]:
        paint_vessel(canvas, shape, Tissue.SUPERIOR_VENA_CAVA)
    for shape in vessels.chest_veins[3:]:
        paint_vessel(canvas, shape, Tissue.AORTA)


def grow_tree(
    rng: np.random.Generator, start: Points, direction: Points, radius: float, length: float, depth: int
) -> list[Tube]:
    """A branching tree of straight segments that narrow towards the tips."""
    end = start + direction * length
    trunk = tube(np.array([[*start, radius], [*end, radius * 0.85]]), 12)
    if depth == 0:
        return [trunk]
    out = [trunk]
    for _ in range(2):
        turn = direction + rng.normal(0, 0.5, 3)
        out += grow_tree(
            rng,
            end,
            turn / np.linalg.norm(turn),
            radius * rng.uniform(0.6, 0.8),
            length * rng.uniform(0.65, 0.95),
            depth - 1,
        )
    return out
