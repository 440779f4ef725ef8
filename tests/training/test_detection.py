"""Overlap and lesion detection, by hand."""

import numpy as np
import pytest

from training.detection import Detections, count_detections, dice


def row(*voxels: int, length: int = 40) -> np.ndarray:
    """A line of voxels along z; the numbered ones are set."""
    mask = np.zeros((1, 1, length), bool)
    mask[0, 0, list(voxels)] = True
    return mask


NOTHING = row()


def test_dice_by_hand() -> None:
    assert dice(row(1, 2, 3), row(3, 4)) == pytest.approx(2 * 1 / (3 + 2))
    assert dice(row(1, 2), row(1, 2)) == 1.0
    assert dice(row(1), row(2)) == 0.0


def test_dice_of_empty_masks() -> None:
    assert dice(NOTHING, NOTHING) == 1.0
    assert dice(row(1), NOTHING) == 0.0
    assert dice(NOTHING, row(1)) == 0.0


@pytest.mark.parametrize(("predicted", "truth", "expected"), [
    # One voxel is a tenth of ten, and less than a tenth of eleven.
    (row(9), row(*range(10)), Detections(1, 1, 0)),
    (row(10), row(*range(11)), Detections(1, 0, 0)),
    (NOTHING, row(*range(10)), Detections(1, 0, 0)),
    (NOTHING, NOTHING, Detections(0, 0, 0)),
    # A prediction beside the lesion touches no voxel of it.
    (row(10, 11), row(*range(10)), Detections(1, 0, 1)),
    (row(20, 30), NOTHING, Detections(0, 0, 2)),
    # One prediction over two lesions finds both; two on one lesion find it once, and neither is false.
    (row(*range(15)), row(*range(5), *range(10, 15)), Detections(2, 2, 0)),
    (row(0, 8), row(*range(10)), Detections(1, 1, 0)),
    (row(3, 25), row(*range(5), *range(10, 15)), Detections(2, 1, 1)),
])  # fmt: skip
def test_hits_misses_and_false_positives(predicted: np.ndarray, truth: np.ndarray, expected: Detections) -> None:
    assert count_detections(predicted, truth, voxel_ml=0.5) == expected


def test_slivers_count_neither_way() -> None:
    truth = row(0, 1, *range(10, 13))
    third = float(np.nextafter(np.float32(0.5 / 3), np.float32(0.0)))  # as an affine in float32 would have it
    assert 3 * third < 0.5
    assert count_detections(NOTHING, truth, voxel_ml=third) == Detections(1, 0, 0)
    assert count_detections(row(1), truth, voxel_ml=third) == Detections(1, 0, 0)  # not a false positive either
    assert count_detections(row(1, 11), truth, voxel_ml=0.16) == Detections(0, 0, 0)


def test_voxels_that_meet_at_a_corner_are_one_lesion() -> None:
    corner = np.zeros((3, 3, 3), bool)
    corner[0, 0, 0] = corner[1, 1, 1] = True
    assert count_detections(corner, corner, voxel_ml=0.25) == Detections(1, 1, 0)
    apart = np.zeros((3, 3, 3), bool)
    apart[0, 0, 0] = apart[2, 2, 2] = True
    assert count_detections(apart, apart, voxel_ml=0.5) == Detections(2, 2, 0)
