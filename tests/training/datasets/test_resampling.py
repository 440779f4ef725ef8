"""Scans on another grid: by hand, and as the service resamples them."""

import numpy as np
import pytest

from service.inference.manifest import Interpolation
from service.inference.resampling import axis_weights
from training.datasets.resampling import grid_size, resample_hu, resample_labels, tent_weights


@pytest.mark.parametrize(
    ("size", "step", "expected"), [(10, 1.0, 10), (10, 2.0, 5), (11, 2.0, 6), (10, 0.5, 19), (1, 3.0, 1)]
)
def test_grid_spans_the_centres(size: int, step: float, expected: int) -> None:
    assert grid_size(size, step) == expected


@pytest.mark.parametrize("step", [0.37, 1.0, 1.5, 2.6])
def test_weights_are_those_that_the_service_uses(step: float) -> None:
    ours = tent_weights(40, step)
    theirs = axis_weights(40, np.arange(len(ours)) * step, Interpolation.LINEAR_ANTIALIAS, step=step)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_half_the_voxels_by_hand() -> None:
    """Tents of half width 2: weights 1/4, 1/2, 1/4, and 2/3, 1/3 at the first voxel."""
    hu = np.zeros((4, 1, 1), np.int16)
    hu[:, 0, 0] = [0, 90, 300, 900]
    halved = resample_hu(hu, (1.0, 1.0, 1.0), (2.0, 1.0, 1.0))
    assert halved[:, 0, 0].tolist() == [30, round(90 / 4 + 300 / 2 + 900 / 4)]


def test_labels_come_from_the_nearest_voxel() -> None:
    labels = np.arange(8, dtype=np.uint32).reshape(8, 1, 1)
    doubled = resample_labels(labels, (2.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    assert doubled[:, 0, 0].tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]
