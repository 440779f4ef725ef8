"""Metrics by hand, and against distances that are looked up point by point."""

import numpy as np
import pytest
from scipy.ndimage import binary_erosion
from scipy.spatial import cKDTree

from training.evaluation.metrics import measure_overlap, nsd_tolerance_mm

SPACING = (1.0, 2.0, 3.0)


def box(low: int, high: int) -> np.ndarray:
    mask = np.zeros((24, 16, 16), bool)
    mask[low:high, 4:12, 4:12] = True
    return mask


def test_a_perfect_mask() -> None:
    overlap = measure_overlap(box(4, 12), box(4, 12), SPACING, 1.0)
    assert (overlap.dice, overlap.nsd, overlap.hd95_mm) == (1.0, 1.0, 0.0)
    assert overlap.truth_ml == overlap.predicted_ml == pytest.approx(8 * 8 * 8 * 6 / 1000)


def test_nothing_predicted() -> None:
    overlap = measure_overlap(box(4, 4), box(4, 12), SPACING, 1.0)
    assert (overlap.dice, overlap.nsd, overlap.hd95_mm, overlap.predicted_ml) == (0.0, 0.0, None, 0.0)


def test_a_face_that_lies_two_voxels_too_far() -> None:
    """8 x 8 x 8 voxels against 10 x 8 x 8: two thirds of a ml apart, and 2 mm where they differ."""
    overlap = measure_overlap(box(4, 14), box(4, 12), SPACING, 2.5)
    assert overlap.dice == pytest.approx(2 * 512 / (512 + 640))
    assert overlap.hd95_mm == pytest.approx(2.0)
    assert overlap.nsd == 1.0  # all within 2.5 mm
    assert measure_overlap(box(4, 14), box(4, 12), SPACING, 1.5).nsd < 0.95


def test_hd95_against_distances_point_by_point() -> None:
    rng = np.random.default_rng(1)
    centers = rng.uniform(6, 14, (2, 3))
    grid = np.stack(np.indices((20, 20, 20)), axis=-1)
    predicted, truth = (np.linalg.norm(grid - center, axis=-1) < 5 for center in centers)
    edges = [np.argwhere(mask & ~binary_erosion(mask)) * SPACING for mask in (predicted, truth)]
    directed = [cKDTree(b).query(a)[0] for a, b in (edges, edges[::-1])]
    expected = max(np.percentile(distances, 95) for distances in directed)
    assert measure_overlap(predicted, truth, SPACING, 1.0).hd95_mm == pytest.approx(expected, rel=1e-5)


def test_nsd_of_two_balls_as_geometry_has_it() -> None:
    """Of a sphere moved by d, the share t / d lies within t of the other: the points that face across the move."""
    grid = np.stack(np.indices((70, 64, 64)), axis=-1)
    predicted, truth = (np.linalg.norm(grid - center, axis=-1) < 28 for center in ((31, 32, 32), (39, 32, 32)))
    for tolerance in (2.0, 4.0, 6.0):
        found = measure_overlap(predicted, truth, (1.0, 1.0, 1.0), tolerance).nsd
        assert found == pytest.approx(tolerance / 8, abs=0.08)
    assert measure_overlap(predicted, truth, (0.5, 0.5, 0.5), 2.0).nsd == pytest.approx(4 / 8, abs=0.08)


def test_every_label_has_a_tolerance() -> None:
    assert [nsd_tolerance_mm(name) for name in ("liver", "spleen", "colon_tumor", "uterus")] == [7, 3, 4, 3]
