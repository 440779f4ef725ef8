"""Sliding windows: MONAI's answer at stride 1, exact blending at stride 2, and a job that can be stopped."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.data.utils import compute_importance_map
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray

from service.errors import JobCanceled
from service.imaging.geometry import Geometry
from service.inference.bundle import Bundle
from service.inference.grid import cropped, whole_grid
from service.inference.manifest import Label, SlidingWindow
from service.inference.preprocessing import NetworkInput
from service.inference.sliding_window import blended_slabs, importance_map, predict_windows
from service.progress import Stage

Float32 = NDArray[np.float32]


class FakePredictor:
    """Two labels from any function of a batch of windows (B, D, H, W); remembers how often it ran."""

    def __init__(self, labels: tuple[Label, ...], stride: int, function: Callable[[Float32], Float32]) -> None:
        self.labels = labels
        self.feature_stride = stride
        self.device = torch.device("cpu")
        self.batch_size = 1
        self._function = function
        self.windows: list[Float32] = []

    def __call__(self, windows: torch.Tensor, spent: torch.Tensor | None = None) -> torch.Tensor:
        self.windows.append(windows.numpy().copy())
        if spent is not None:
            spent.fill_(float("nan"))  # whoever still reads it would notice
        return torch.from_numpy(self._function(windows.numpy()))


@pytest.fixture
def two_labels(tiny_bundle: Bundle) -> tuple[Label, ...]:
    return tiny_bundle.manifest.labels[:2]


def network_input(values: Float32) -> NetworkInput:
    return NetworkInput(values, whole_grid(Geometry(values.shape, np.diag([2.0, 2.0, 2.0, 1.0])), (2.0,) * 3), -1.0)


def windows_of(overlap: float) -> SlidingWindow:
    return SlidingWindow(roi_size=(16, 32, 16), overlap=overlap, importance="gaussian", sigma_scale=0.125)


def random_values(*shape: int) -> Float32:
    return np.random.default_rng(5).uniform(-0.9, 1, shape).astype(np.float32)


def block_means(windows: Float32) -> Float32:
    """(B, 2, D/2, H/2, W/2): the mean of each 2 x 2 x 2 block and its negative; knows nothing of the window."""
    b, d, h, w = windows.shape
    means = windows.reshape(b, d // 2, 2, h // 2, 2, w // 2, 2).mean(axis=(2, 4, 6))
    return np.stack([means, -means], axis=1)


def all_logits(scan: NetworkInput, predictor: FakePredictor, sliding_window: SlidingWindow) -> Float32:
    """Every slab, one on the other: no plane is missing, none comes twice."""
    slabs = [replace(slab, values=slab.values.clone()) for slab in blended_slabs(scan, predictor, sliding_window)]
    assert [slab.start for slab in slabs] == list(np.cumsum([0, *(slab.values.shape[3] for slab in slabs[:-1])]))
    return torch.cat([slab.values for slab in slabs], dim=3).numpy()


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.7])
@pytest.mark.parametrize("shape", [(16, 32, 16), (37, 41, 29), (9, 33, 50), (5, 1, 7)])
def test_parity_with_monai_at_stride_one(
    two_labels: tuple[Label, ...], overlap: float, shape: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(4, 2, 3, padding=1)
    ).requires_grad_(False)  # padding makes the answer depend on the window: every position and weight counts
    values = random_values(*shape)
    sliding_window = windows_of(overlap)
    expected = sliding_window_inference(
        torch.from_numpy(values)[None, None],
        sliding_window.roi_size,
        1,
        network,
        overlap=overlap,
        mode="gaussian",
        sigma_scale=0.125,
        cval=-1.0,
    )[0]

    predictor = FakePredictor(two_labels, 1, lambda windows: network(torch.from_numpy(windows)[:, None]).numpy())
    logits = all_logits(network_input(values), predictor, sliding_window)

    assert logits.shape == (2, *shape)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_the_importance_is_monais() -> None:
    expected = compute_importance_map((16, 8, 24), mode="gaussian", sigma_scale=0.125)
    np.testing.assert_allclose(importance_map((16, 8, 24), 0.125), expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(16, 32, 16), (37, 41, 29), (50, 32, 16), (7, 33, 3), (1, 1, 1)])
def test_windows_meet_on_whole_feature_voxels(two_labels: tuple[Label, ...], shape: tuple[int, int, int]) -> None:
    """Where all windows agree, blending changes nothing: the result is that of the whole scan at once."""
    values = random_values(*shape)
    predictor = FakePredictor(two_labels, 2, block_means)

    logits = all_logits(network_input(values), predictor, windows_of(0.5))

    padded = np.pad(values, [(0, n % 2) for n in shape], constant_values=-1.0)
    np.testing.assert_allclose(logits, block_means(padded[None])[0], atol=1e-6)
    assert all(window.shape == (1, 16, 32, 16) for window in predictor.windows)


def test_a_small_scan_lies_in_the_middle_of_background(two_labels: tuple[Label, ...]) -> None:
    predictor = FakePredictor(two_labels, 2, block_means)
    predict_windows(network_input(np.full((8, 32, 5), 0.5, np.float32)), predictor, windows_of(0.5))

    (window,) = predictor.windows
    inside = window[0] == 0.5
    np.testing.assert_array_equal(np.flatnonzero(inside.any(axis=(1, 2))), np.arange(4, 12))
    np.testing.assert_array_equal(np.flatnonzero(inside.any(axis=(0, 1))), np.arange(4, 9))  # an even start
    assert (window[0][~inside] == -1.0).all()


def test_windows_of_background_alone_run_once(two_labels: tuple[Label, ...]) -> None:
    values = np.full((16, 32, 160), -1.0, np.float32)
    values[:, :, 70:80] = 0.3
    predictor = FakePredictor(two_labels, 2, block_means)

    logits = all_logits(network_input(values), predictor, windows_of(0.5))

    empty = [bool((window == -1.0).all()) for window in predictor.windows]
    assert sum(empty) == 1
    assert len(empty) < 10  # of the 19 positions
    np.testing.assert_allclose(logits, block_means(values[None])[0], atol=1e-6)


def test_progress_is_told_after_each_window(two_labels: tuple[Label, ...]) -> None:
    told: list[tuple[Stage, float]] = []
    values = random_values(16, 32, 32)  # starts 0, 8, 16
    predict_windows(
        network_input(values), FakePredictor(two_labels, 2, block_means), windows_of(0.5), lambda *at: told.append(at)
    )
    assert told == [(Stage.INFERENCE, fraction) for fraction in (0.0, 1 / 3, 2 / 3, 1.0)]


def test_a_cancel_stops_between_two_windows(two_labels: tuple[Label, ...]) -> None:
    def cancel_after_half(stage: Stage, fraction: float) -> None:
        if fraction > 0.5:
            raise JobCanceled("Stopped at the caller's request.")

    predictor = FakePredictor(two_labels, 2, block_means)
    with pytest.raises(JobCanceled):
        predict_windows(network_input(random_values(16, 32, 40)), predictor, windows_of(0.5), cancel_after_half)
    assert len(predictor.windows) == 3  # of 4


@pytest.mark.parametrize(
    ("crop", "continued"),
    [
        (slice(0, 4), (3, 3)),
        (slice(1, 4), (0, 3)),  # the crop left a plane out below: there is nobody
        (slice(0, 3), (3, 0)),
    ],
)
def test_a_short_scan_goes_on_for_a_few_planes(
    two_labels: tuple[Label, ...], crop: slice, continued: tuple[int, int]
) -> None:
    whole = random_values(16, 32, 4)
    scan = network_input(whole)
    inside = np.ascontiguousarray(whole[:, :, crop])
    scan = NetworkInput(inside, cropped(scan.grid, (slice(0, 16), slice(0, 32), crop)), -1.0)
    predictor = FakePredictor(two_labels, 2, block_means)
    windows = windows_of(0.5).model_copy(update={"continued_planes": 3})

    list(blended_slabs(scan, predictor, windows))

    (window,) = (batch[0] for batch in predictor.windows)
    height = inside.shape[2]
    before = (16 - height) // 2 // 2 * 2
    below, above = continued
    expected = np.full((16, 32, 16), -1.0, np.float32)
    expected[:, :, before : before + height] = inside
    for plane in range(before - below, before):
        expected[:, :, plane] = inside[:, :, 0]
    for plane in range(before + height, before + height + above):
        expected[:, :, plane] = inside[:, :, -1]
    np.testing.assert_array_equal(window, expected)


@pytest.mark.parametrize("height", [15, 16, 17, 29])
def test_a_scan_as_high_as_a_window_does_not_go_on(two_labels: tuple[Label, ...], height: int) -> None:
    scan = network_input(random_values(16, 32, height))
    answers = [
        all_logits(scan, FakePredictor(two_labels, 2, block_means), windows)
        for windows in (windows_of(0.5), windows_of(0.5).model_copy(update={"continued_planes": 5}))
    ]
    last = -(-height // 2) if height >= 16 else height // 2  # of 15 planes the last feature voxel sees one copy
    np.testing.assert_array_equal(*(answer[..., :last] for answer in answers))
