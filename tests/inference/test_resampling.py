"""Resampling: weights that can be read, and parity with PIL's reduction and torch's interpolation."""

from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from service.inference import resampling
from service.inference.manifest import Interpolation
from service.inference.resampling import axis_weights, resample

LINEAR, ANTIALIAS, NEAREST = Interpolation.LINEAR, Interpolation.LINEAR_ANTIALIAS, Interpolation.NEAREST


def test_linear_weights_by_hand() -> None:
    weights = axis_weights(3, np.array([-1.0, 0.0, 0.25, 1.5, 2.0, 9.0]), LINEAR)
    expected = [[1, 0, 0], [1, 0, 0], [0.75, 0.25, 0], [0, 0.5, 0.5], [0, 0, 1], [0, 0, 1]]
    np.testing.assert_array_equal(weights, np.array(expected, np.float32))


def test_nearest_weights_by_hand() -> None:
    weights = axis_weights(3, np.array([-1.0, 0.49, 0.5, 1.6, 9.0]), NEAREST)
    np.testing.assert_array_equal(weights.argmax(axis=1), [0, 0, 1, 2, 2])
    np.testing.assert_array_equal(weights.sum(axis=1), np.ones(5))


def test_antialias_weights_by_hand() -> None:
    """At half the resolution the triangle reaches two voxels: 1/4, 1/2, 1/4; at the edge 2/3, 1/3."""
    weights = axis_weights(5, np.array([0.0, 2.0, 4.0]), ANTIALIAS, step=2.0)
    expected = [[2 / 3, 1 / 3, 0, 0, 0], [0, 0.25, 0.5, 0.25, 0], [0, 0, 0, 1 / 3, 2 / 3]]
    np.testing.assert_allclose(weights, expected, atol=1e-7)


@pytest.mark.parametrize("step", [0.3, 1.0])
def test_antialias_is_linear_where_nothing_shrinks(step: float) -> None:
    positions = np.arange(20) * step
    np.testing.assert_array_equal(
        axis_weights(20, positions, ANTIALIAS, step=step), axis_weights(20, positions, LINEAR)
    )


@pytest.mark.parametrize("interpolation", [LINEAR, ANTIALIAS, NEAREST])
@pytest.mark.parametrize("n_in", [1, 2, 37])
def test_every_row_sums_to_one(interpolation: Interpolation, n_in: int) -> None:
    weights = axis_weights(n_in, np.linspace(-3, n_in + 3, 19), interpolation, step=2.7)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-6)
    assert weights.dtype == np.float32


def test_antialias_parity_with_pil() -> None:
    """PIL keeps the edges of an image, not its first centre: its positions are (i + 0.5) * step - 0.5."""
    line = np.random.default_rng(0).uniform(0, 100, 60).astype(np.float32)
    reduced = np.asarray(Image.fromarray(np.tile(line, (1, 1))).resize((24, 1), Image.Resampling.BILINEAR))[0]
    step = 60 / 24
    weights = axis_weights(60, (np.arange(24) + 0.5) * step - 0.5, ANTIALIAS, step=step)
    np.testing.assert_allclose(weights @ line, reduced, rtol=1e-5)


def test_upsampling_parity_with_torch() -> None:
    volume = np.random.default_rng(0).standard_normal((5, 6, 7)).astype(np.float32)
    weights = [axis_weights(n, (np.arange(2 * n) + 0.5) / 2 - 0.5, LINEAR) for n in volume.shape]
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(volume)[None, None], scale_factor=2, mode="trilinear", align_corners=False
    )[0, 0]
    np.testing.assert_allclose(resample(volume, tuple(weights)), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.bool_])
def test_axis_by_axis_is_the_product_over_all_axes(dtype: type[np.generic]) -> None:
    generator = np.random.default_rng(0)
    volume = (generator.uniform(-2, 2, (70, 5, 40)) * (1 if dtype is np.bool_ else 400)).astype(dtype)
    w0 = axis_weights(70, np.arange(33) * 2.1, ANTIALIAS, step=2.1)
    w1 = axis_weights(5, np.arange(9) * 0.5, LINEAR)
    w2 = axis_weights(40, np.arange(90) * 0.44, NEAREST)

    resampled = resample(volume[::-1], (w0, w1, w2))  # a flipped view, as a scan in another orientation is

    expected = np.einsum("ai,bj,ck,ijk->abc", w0, w1, w2, volume[::-1].astype(np.float64), optimize=True)
    assert resampled.dtype == np.float32
    np.testing.assert_allclose(resampled, expected, rtol=1e-4, atol=1e-3)


def test_rows_without_weights_give_zeros() -> None:
    """A band cut down to a box: what lies outside the box counts as nothing."""
    weights = axis_weights(100, np.arange(100.0), LINEAR)[:, 40:50]
    ones = np.ones((10, 1, 1), np.float32)
    identity = np.ones((1, 1), np.float32)
    resampled = resample(ones, (weights, identity, identity)).ravel()
    np.testing.assert_array_equal(np.flatnonzero(resampled), np.arange(40, 50))


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_how_a_scan_lies_in_memory_does_not_matter(dtype: type[np.generic]) -> None:
    generator = np.random.default_rng(0)
    for axes in permutations(range(3)):
        stored = generator.uniform(-1000, 1000, (9, 40, 70)).astype(dtype)
        for flips in ((1, 1, 1), (-1, 1, -1), (1, -1, 1)):
            i, j, k = (slice(None, None, flip) for flip in flips)
            view = stored.transpose(axes)[i, j, k]
            weights = tuple(axis_weights(n, np.arange(n // 2) * 1.9, ANTIALIAS, step=1.9) for n in view.shape)
            expected = np.einsum("ai,bj,ck,ijk->abc", *weights, view.astype(np.float64), optimize=True)
            np.testing.assert_allclose(resample(view, weights), expected, rtol=1e-4, atol=1e-3)


def test_a_scan_is_read_in_the_order_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is turned around plane by plane takes several times as long."""
    seen = []

    def planes(volume: NDArray[np.generic]) -> Callable[[slice], torch.Tensor]:
        seen.append(volume)
        return resampling_planes(volume)

    resampling_planes = resampling._planes_on_cpu
    monkeypatch.setattr(resampling, "_planes_on_cpu", planes)
    stored = np.zeros((7, 6, 5), np.int16)
    for view in (stored, stored.T, stored[::-1, :, ::-1], stored.transpose(1, 2, 0)[:, ::-1]):
        resample(view, tuple(axis_weights(n, np.arange(n), LINEAR) for n in view.shape))
    assert len(seen) == 4
    assert all(volume.flags.c_contiguous for volume in seen)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_planes_of_a_volume_sent_to_a_device_are_those_on_the_cpu(dtype: type[np.generic]) -> None:
    stored = np.random.default_rng(0).integers(-1000, 1000, (7, 6, 5)).astype(dtype)
    stored.flags.writeable = False  # as a file that is mapped for reading is
    for view in (stored, stored[:, 1:4], stored[2:]):
        sent = resampling._planes_on_device(view, torch.device("cpu"))(slice(1, 4))
        read = resampling._planes_on_cpu(view)(slice(1, 4))
        assert sent.is_contiguous()
        assert sent.dtype is torch.float32
        torch.testing.assert_close(sent, read, rtol=0, atol=0)


def test_a_device_without_room_leaves_it_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = np.random.default_rng(0).standard_normal((5, 6, 7)).astype(np.float32)
    w0, w1, w2 = (axis_weights(n, np.arange(n) / 2, LINEAR) for n in volume.shape)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(resampling, "_planes_on_device", full)
    on_device = resample(volume, (w0, w1, w2), torch.device("meta"))
    np.testing.assert_array_equal(on_device, resample(volume, (w0, w1, w2)))
