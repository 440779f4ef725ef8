"""Bones: spine, ribs, sternum, shoulder girdle, pelvis, femora."""

from dataclasses import dataclass

import numpy as np

from training.phantom.body import SPINE, spine_y
from training.phantom.canvas import Box, Canvas, FloatArray, Mask
from training.phantom.rotation import rotation
from training.phantom.shapes import ellipsoid, tube
from training.phantom.tissues import Tissue

_LEVELS = SPINE[4:22, 0]  # L5 .. C7
_SIDES = (("right", 1.0), ("left", -1.0))


@dataclass(frozen=True)
class Skeleton:
    """What differs between patients beyond size and warp."""

    cortex_mm: float
    hip_prosthesis: str | None  #: "left", "right" or None
    femur_head_mm: float  #: radius


def sample_skeleton(rng: np.random.Generator) -> Skeleton:
    """A patient's bones."""
    prosthesis = str(rng.choice(["left", "right"])) if rng.random() < 0.04 else None
    return Skeleton(float(rng.uniform(1.6, 3.2)), prosthesis, float(rng.normal(23.5, 1.3)))


def paint_skeleton(canvas: Canvas, skeleton: Skeleton, arms: str) -> None:
    """All bones, and the psoas muscles that lie on the spine."""
    _paint_psoas(canvas)
    _paint_spine(canvas, skeleton)
    _paint_ribs(canvas)
    _paint_sternum(canvas)
    _paint_shoulders(canvas, skeleton, arms)
    _paint_pelvis(canvas, skeleton)
    _paint_femora(canvas, skeleton)


def _bone(canvas: Canvas, box: Box, distance: FloatArray, cortex_mm: float) -> None:
    canvas.paint(box, distance < 0, Tissue.CORTICAL_BONE)
    canvas.paint(box, distance < -cortex_mm, Tissue.MARROW)


def _paint_psoas(canvas: Canvas) -> None:
    for _, side in _SIDES:
        nodes = [(26, 2, 10, 7), (34, 6, -35, 14), (40, 12, -75, 19), (49, 18, -110, 22), (68, 26, -150, 25),
                 (84, 38, -200, 23), (92, 44, -245, 20), (96, 18, -290, 14)]  # fmt: skip
        shape = tube([(side * x, y, z, r) for x, y, z, r in nodes], 12)
        found = shape.distance(canvas)
        if found:
            box, distance = found
            canvas.paint(box, (distance < 0) & (canvas.cavity[box] < 20), Tissue.MUSCLE)
            canvas.paint(box, (distance >= 0) & (distance < 1.5) & (canvas.is_free(box)), Tissue.VISCERAL_FAT)


def _paint_spine(canvas: Canvas, skeleton: Skeleton) -> None:
    box = canvas.box((-62, -140, -155), (62, 45, 310))
    if box is not None:
        _paint_vertebrae(canvas, box, skeleton)
    box = canvas.box((-70, -105, -275), (70, 35, -130))
    if box is not None:
        x, y, z = canvas.x[box], canvas.y[box], canvas.z[box]
        across = np.interp(z, [-270, -240, -200, -150], [8, 20, 42, 58]).astype(np.float32)
        depth = np.interp(z, [-270, -240, -200, -150], [6, 9, 17, 24]).astype(np.float32)
        axis = spine_y(z) - 6 + 0.006 * x * x * 0.5
        radius = np.sqrt((x / across) ** 2 + ((y - axis) / depth) ** 2)
        distance = np.maximum((radius - 1) * depth, np.maximum(z + 151 + 0.25 * (y - axis), -272 - z))
        _bone(canvas, box, distance, skeleton.cortex_mm)
        canal = (np.hypot(x, (y - axis + 8) * 1.4) < 8) & (z > -230) & (distance < 3)
        canvas.paint(box, canal, Tissue.SPINAL_CORD)


def _paint_vertebrae(canvas: Canvas, box: Box, skeleton: Skeleton) -> None:
    x, y, z = canvas.x[box], canvas.y[box], canvas.z[box]
    order = np.sort(_LEVELS)
    pitch = np.gradient(order)
    nearest = np.clip(np.searchsorted((order[1:] + order[:-1]) / 2, z), 0, len(order) - 1)
    dz = (z - order[nearest].astype(np.float32)) + 0.12 * (y - spine_y(z))
    half = (pitch[nearest] / 2).astype(np.float32)
    width = np.interp(z, [-150, 0, 100, 250, 300], [26, 21.5, 16.5, 15, 13]).astype(np.float32)
    depth = np.interp(z, [-150, 0, 100, 250, 300], [18, 16.5, 15.5, 11, 9]).astype(np.float32)
    dy = y - spine_y(z)
    waist = 1 - 0.1 * (1 - (dz / half) ** 2)
    radial = (np.sqrt((x / (width * waist)) ** 2 + (dy / depth) ** 2) - 1) * depth
    disc_half = np.interp(z, [-150, 0, 100, 250], [5.0, 3.6, 2.2, 1.8]).astype(np.float32)
    end = np.abs(dz) - (half - disc_half)
    column = (radial < 0) & (z < 306)
    canvas.paint(box, column, Tissue.DISC)
    canvas.paint(box, column & (end < 0), Tissue.CORTICAL_BONE)
    canvas.paint(box, column & (end < -1.4) & (radial < -1.4), Tissue.MARROW)
    behind = dy + depth + 8.5  # 0 in the middle of the canal
    ring = np.hypot(x * 0.85, behind)
    level = np.abs(dz + 5) < half * 0.72
    low_arch = (ring > 9) & (ring < 14.5) & level & (radial > -1) & (z < 306)
    spinous = (np.abs(x) < 4.5) & (behind < -9) & (behind > -44) & (np.abs(dz + 12 + 0.25 * (behind + 9)) < half * 0.62)
    reach = np.interp(z, [-150, 0, 60, 250], [44, 40, 32, 34]).astype(np.float32)
    across = np.abs(x)
    transverse = (across > 11) & (across < reach) & (np.abs(behind + 5 + 0.1 * across) < 4.5) & (np.abs(dz) < 6)
    facet = (np.abs(across - 16) < 7) & (np.abs(behind + 9) < 7) & (np.abs(np.abs(dz) - half) < 8)
    posterior = (low_arch | spinous | transverse | facet) & (z < 306)
    canvas.paint(box, posterior, Tissue.CORTICAL_BONE)
    core = ((np.abs(x) < 2) & spinous) | (np.abs(ring - 11.7) < 1.2) & low_arch | (np.abs(across - 16) < 4) & facet
    canvas.paint(box, core & posterior, Tissue.MARROW)
    canal = (ring < 9) & (z < 330) & (radial > 0)
    canvas.paint(box, canal, Tissue.SPINAL_CORD)
    canvas.paint(box, (ring > 7.5) & canal & (behind < 0), Tissue.INTERMUSCULAR_FAT)


def _paint_ribs(canvas: Canvas) -> None:
    box = canvas.box((-150, -130, -25), (150, 140, 300))
    if box is None:
        return
    shell = (canvas.cavity[box] > -0.5) & (canvas.cavity[box] < 12.5) & (canvas.z[box] > -45)
    index = np.nonzero(shell)
    x, y, z, s = (a[box][index] for a in (canvas.x, canvas.y, canvas.z, canvas.cavity))
    tissue = canvas.tissue[box][index]
    center = np.interp(z, [0, 120, 250], [25, 12, -8])
    angle = np.rad2deg(np.arctan2(np.abs(x), -(y - center)))  # 0 at the back, 180 at the front
    for rib in range(1, 13):
        head = 278 - np.interp(rib, range(1, 13), [0, 18, 36, 56, 76, 97, 119, 142, 166, 191, 218, 247])
        drop = np.interp(rib, [1, 3, 6, 9, 12], [35, 58, 82, 88, 60])
        end, cartilage = np.interp(rib, [1, 2, 7, 8, 9, 10, 11, 12], [138, 142, 146, 138, 130, 120, 92, 62]), 172.0
        turn = np.minimum(angle, end)
        track = head + 6 - drop * (1 - np.cos(np.deg2rad(turn * 1.05))) / 2
        track = track + np.maximum(angle - end, 0) * (1.15 if rib > 4 else 0.35)
        radius = np.hypot((s - 5.5) / 4.2, (z - track) / 6.6)
        bony = (radius < 1) & (angle > 9) & (angle < end)
        tissue[bony] = Tissue.CORTICAL_BONE
        tissue[bony & (radius < 0.62)] = Tissue.RIB_MARROW
        if rib <= 10:
            tissue[(radius < 1) & (angle >= end) & (angle < cartilage)] = Tissue.CARTILAGE
    canvas.tissue[box][index] = tissue


def _paint_sternum(canvas: Canvas) -> None:
    box = canvas.box((-35, 10, 60), (35, 140, 245))
    if box is None:
        return
    x, y, z, s = (a[box] for a in (canvas.x, canvas.y, canvas.z, canvas.cavity))
    half = np.interp(z, [70, 95, 120, 180, 200, 235], [3, 10, 17, 14, 22, 30]).astype(np.float32)
    plate: Mask = (np.abs(x) < half) & (s > 0.5) & (s < 12) & (y > 0) & (z > 78) & (z < 232)
    canvas.paint(box, plate, Tissue.CORTICAL_BONE)
    canvas.paint(box, plate & (np.abs(x) < half - 2) & (s > 2) & (s < 10.5), Tissue.RIB_MARROW)


def _paint_shoulders(canvas: Canvas, skeleton: Skeleton, arms: str) -> None:
    up = arms == "up"
    for _, side in _SIDES:
        clavicle = [(22, 52, 238, 8), (70, 55, 250, 6), (115, 20, 262 + 8 * up, 6), (146, -10, 258 + 12 * up, 7)]
        shaft = [(158, -22, 226, 24), (162, -24, 215, 17), (196, -34, 120, 12), (212, -20, 0, 11), (218, -10, -90, 10)]
        if up:
            shaft = [(150, -20, 222, 24), (150, -10, 250, 17), (153, 15, 320, 12), (155, 30, 400, 11)]
        bones = [clavicle, [(132, -55, 240, 8), (148, -40, 236, 9)]] + ([] if arms == "absent" else [shaft])
        for nodes in bones:
            found = tube([(side * x, y, z, r) for x, y, z, r in nodes], 14).distance(canvas)
            if found:
                _bone(canvas, *found, skeleton.cortex_mm)
        blade = ellipsoid((side * 105, -92, 190), (46, 4.2, 66), rotation(0, 0, side * 32))
        box = blade.box(canvas)
        if box is not None:
            radius = blade.radius(canvas, box)
            outside = canvas.cavity[box] > 8
            canvas.paint(box, (radius < 1) & outside & canvas.is_tissue(box, Tissue.MUSCLE), Tissue.CORTICAL_BONE)


def _paint_pelvis(canvas: Canvas, skeleton: Skeleton) -> None:
    for _, side in _SIDES:
        bowl = ellipsoid((side * 26, 84, -178), (108, 134, 112))
        box = canvas.box(
            (min(side * 28, side * 140), -75, -240),
            (max(side * 28, side * 140), 75, -100),
        )
        if box is not None:
            x, y, z = side * canvas.x[box], canvas.y[box], canvas.z[box]
            thick = np.interp(z, [-240, -215, -160, -108], [8, 6.5, 4.8, 6.5]).astype(np.float32)
            depth = bowl.distance(canvas, box)
            distance = np.abs(depth) - thick
            iliacus = np.maximum(np.abs(depth + 12) - 9, 0.0)
            front = 66 - 0.55 * np.maximum(z + 150, 0) + 0.25 * np.minimum(z + 150, 0)
            for edge in (y - front, -72 - y, z + 108 + 0.004 * (y - 5) ** 2, -238 - z, 34 - x):
                distance = np.maximum(distance, edge)
                iliacus = np.maximum(iliacus, edge + 3)
            canvas.paint(box, (iliacus <= 0) & canvas.is_free(box), Tissue.MUSCLE)
            _bone(canvas, box, distance.astype(np.float32), skeleton.cortex_mm)
        bars = [
            [(98, 22, -222, 15), (78, 36, -240, 12), (48, 56, -258, 9), (10, 60, -272, 11), (5, 54, -284, 9)],
            [(84, -6, -228, 18), (76, -18, -250, 15), (66, -28, -285, 15), (56, -22, -300, 12)],
            [(58, -16, -300, 9), (34, 22, -298, 7), (12, 48, -284, 8)],
        ]
        for nodes in bars:
            found = tube([(side * x, y, z, r) for x, y, z, r in nodes], 11).distance(canvas)
            if found:
                _bone(canvas, *found, skeleton.cortex_mm)
        socket = ellipsoid((side * 89, 12, -246), (38, 38, 38))
        box = socket.box(canvas)
        if box is not None:
            x, y, z = side * canvas.x[box], canvas.y[box], canvas.z[box]
            cup = np.maximum(socket.distance(canvas, box), 0.75 * (x - 89) - 0.65 * (z + 246) - 6)
            _bone(canvas, box, cup.astype(np.float32), skeleton.cortex_mm)


def _paint_femora(canvas: Canvas, skeleton: Skeleton) -> None:
    r = skeleton.femur_head_mm
    for name, side in _SIDES:
        shaft = [(146, -6, -262, 13), (138, -6, -285, 17), (134, -2, -310, 15), (130, 4, -360, 14)]
        neck = [(89, 12, -246, 16), (112, 4, -258, 15), (138, -6, -276, 18)]
        joint = ellipsoid((side * 89, 12, -246), (r + 3.5, r + 3.5, r + 3.5))
        box = joint.box(canvas)
        if box is not None:
            canvas.paint(box, joint.radius(canvas, box) < 1, Tissue.CARTILAGE)
        for nodes, cortex in ((shaft, 4.0), (neck, 2.5)):
            found = tube([(side * x, y, z, q) for x, y, z, q in nodes], 10).distance(canvas)
            if found:
                _bone(canvas, *found, cortex)
        head = ellipsoid((side * 89, 12, -246), (r, r, r))
        box = canvas.box((side * 95 - 55, -45, -310), (side * 95 + 55, 60, -205))
        if box is None:
            continue
        distance = head.distance(canvas, box)
        metal = skeleton.hip_prosthesis == name
        canvas.paint(box, distance < 0, Tissue.METAL if metal else Tissue.CORTICAL_BONE)
        if not metal:
            canvas.paint(box, distance < -1.5, Tissue.MARROW)
        x, z = side * canvas.x[box] - 89, canvas.z[box] + 246
        bone = canvas.is_tissue(box, Tissue.CORTICAL_BONE, Tissue.MARROW, Tissue.METAL)
        near_neck = (np.hypot(canvas.y[box] - 8 + 0.3 * x, 0.6 * x + 0.8 * z) < 17) & (x > 0)
        region = bone & ((distance < 0) | (near_neck & (0.8 * x - 0.6 * z < r + 12)))
        canvas.labels[box][region] = np.uint32(1 << (22 if side < 0 else 23))
