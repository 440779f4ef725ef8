"""Plans become images: the same place in image and labels, and the same physics as the phantom's own renderer."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from tests.support.training import TINY_CONFIG, bits, box_case
from training.augment import WindowPlan, draw_plan, label_fields, plain_plan, point_spread
from training.config import ModelConfig
from training.labels import BY_NAME
from training.phantom.render import noise_gain, render_hu
from training.phantom.tissues import Tissue
from training.rendering import Batch, CaseMemory, Voxels, occupancy_at_stride_2, render
from training.store import Case

RIGHT, LEFT, TUMOR = (BY_NAME[name].channel for name in ("kidney_right", "kidney_left", "kidney_tumor"))
IN_HU = ModelConfig(intensity_range_hu=(-5000.0, 5000.0), output_range=(-5000.0, 5000.0))


def rendered(*plans: WindowPlan, case: Case | None = None, config: ModelConfig = TINY_CONFIG) -> Batch:
    codes = torch.from_numpy((case or box_case()).codes)
    return render(default_collate(list(plans)), [Voxels(codes)] * len(plans), config)


def draws(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images (32,)*3 and occupancies (C,16,16,16)."""
    case = box_case()
    for number in range(count):
        image, occupancy, _ = rendered(draw_plan(case, TINY_CONFIG, 32, np.random.default_rng(number)), case=case)
        yield image[0, 0].numpy(), occupancy[0].numpy()


def plain(case: Case, **changes: float) -> WindowPlan:
    """The case as it lies, on an axis of 48 voxels; without noise, texture and gain unless changed."""
    plan = plain_plan(case, TINY_CONFIG, (48, 48, 48), np.random.default_rng(3))
    fixed = {"noise_hu": 0.0, "gain": 1.0, "offset_hu": 0.0} | changes
    plan = plan._replace(texture_hu=torch.zeros(256), along_z=plan.along_x)
    return plan._replace(**{name: torch.tensor(value) for name, value in fixed.items()})


def test_a_batch_is_what_the_network_takes() -> None:
    case = box_case()
    image, occupancy, supervised = rendered(
        *(draw_plan(case, TINY_CONFIG, 32, np.random.default_rng(n)) for n in (0, 1))
    )
    assert (image.shape, image.dtype) == ((2, 1, 32, 32, 32), torch.float32)
    assert (occupancy.shape, occupancy.dtype) == ((2, 32, 16, 16, 16), torch.uint8)
    assert (supervised.shape, supervised.dtype) == ((2, 32), torch.bool)
    assert -1 <= image.min() < image.max() <= 1
    assert occupancy.max() <= 8


def test_a_window_does_not_depend_on_its_batch() -> None:
    case = box_case()
    plans = [draw_plan(case, TINY_CONFIG, 32, np.random.default_rng(n)) for n in range(3)]
    together = rendered(*plans)
    for row, plan in enumerate(plans):
        image, occupancy, _ = rendered(plan)
        torch.testing.assert_close(image[0], together[0][row], rtol=0, atol=1e-5)
        assert torch.equal(occupancy[0], together[1][row])


def test_occupancy_of_one_feature_voxel() -> None:
    """Codes 1 and 2 carry liver, 2 carries its tumour too: 3 + 2 of 8 voxels and 2 of 8."""
    fields = label_fields(np.array([0, bits("liver"), bits("liver", "liver_tumor")], np.uint64), 32)
    codes = torch.tensor([1, 1, 1, 2, 2, 0, 0, 0], dtype=torch.int32).reshape(2, 2, 2)
    (occupancy,) = occupancy_at_stride_2(fields[None], codes[None])
    assert occupancy.shape == (32, 1, 1, 1)
    assert {c: int(n) for c, n in enumerate(occupancy.flatten()) if n} == {5: 5, 26: 2}


def test_occupancy_equals_a_naive_count() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2**32, 40, dtype=np.uint64)
    labels[7] = 0xFFFFFFFF
    codes = rng.integers(0, 40, (6, 4, 8), dtype=np.int32)
    codes[:2, :2, :2] = 7  # every field at its largest: none may carry into the next
    expected = np.zeros((32, 3, 2, 4), np.uint8)
    for x, y, z in np.ndindex(codes.shape):
        for channel in range(32):
            expected[channel, x // 2, y // 2, z // 2] += int(labels[codes[x, y, z]]) >> channel & 1
    (occupancy,) = occupancy_at_stride_2(label_fields(labels, 32)[None], torch.from_numpy(codes)[None])
    np.testing.assert_array_equal(occupancy, expected)
    assert expected[:, 0, 0, 0].tolist() == [8] * 32


def test_a_case_as_it_lies_comes_out_voxel_by_voxel() -> None:
    """No point spread, no noise: every voxel has the HU of its own tissue, and air lies beyond the case."""
    case = box_case()
    plan = plain(case)._replace(along_x=torch.eye(48), along_y=torch.eye(48), along_z=torch.eye(48))
    image, occupancy, _ = rendered(plan, case=case, config=IN_HU)
    expected = np.full((48, 48, 48), float(plan.hu[plan.air]), np.float32)
    expected[:40, :36, :44] = plan.hu.numpy()[case.codes]
    np.testing.assert_allclose(image[0, 0], expected, atol=2e-3)
    for name, voxels in (("kidney_right", 10 * 16 * 24), ("kidney_tumor", 5 * 6 * 8), ("liver", 0)):
        assert occupancy[0, BY_NAME[name].channel].sum() == voxels, name


@pytest.mark.parametrize("kernel_mm", [0.5, 1.2, 1.8])
def test_the_point_spread_is_that_of_the_phantoms_renderer(kernel_mm: float) -> None:
    """`render_hu` filters with scipy; here it is a product of matrices."""
    case = box_case()
    plan = plain(case)
    sigma = max(0.4, kernel_mm / 2.0)
    spread = torch.from_numpy(point_spread(48, sigma))
    plan = plan._replace(along_x=spread, along_y=spread, along_z=spread)
    tissue = np.full((48, 48, 48), Tissue.AIR, np.uint8)
    tissue[:40, :36, :44] = case.tissues[case.codes]
    hu = np.zeros(256, np.float32)
    hu[case.tissues] = plan.hu.numpy()[: len(case.tissues)]
    expected = render_hu(
        tissue, hu, np.random.default_rng(0), spacing_mm=(2.0,) * 3, noise_hu=0.0, kernel_mm=kernel_mm, texture=False
    )
    image = rendered(plan, case=case, config=IN_HU)[0][0, 0]
    inside = np.s_[2:-2, 2:-2, 2:-2]
    assert np.abs(image.numpy().clip(-1024, 3071) - expected)[inside].max() <= 0.51  # that one rounds


def test_noise_has_its_deviation_in_the_finished_image() -> None:
    case = box_case()
    quiet, plan = plain(case), plain_plan(case, TINY_CONFIG, (48, 48, 48), np.random.default_rng(3))
    sigma = 0.7
    spread = torch.from_numpy(point_spread(48, sigma))
    along = {"along_x": spread, "along_y": spread, "along_z": spread}
    noisy = quiet._replace(noise_hu=torch.tensor(20.0 / noise_gain(sigma) ** 3), **along)
    difference = rendered(noisy, config=IN_HU)[0] - rendered(quiet._replace(**along), config=IN_HU)[0]
    assert difference[0, 0, 4:-4, 4:-4, 4:-4].std() == pytest.approx(20.0, rel=0.03)
    assert plan.noise_hu > 0


def test_only_scanned_planes_show_the_patient() -> None:
    case = box_case()
    plan = plain(case)._replace(scanned=torch.tensor((10, 20)))
    _, occupancy, _ = rendered(plan, case=case)
    planes = torch.nonzero(occupancy[0].flatten(0, 2).any(0)).flatten()
    assert planes.tolist() == [5, 6, 7, 8, 9]  # of the feature grid


def test_image_and_occupancy_show_the_same_place() -> None:
    """The tumour is of metal, the rest is not."""
    seen = 0
    for image, occupancy in draws(80):
        means = image.reshape(16, 2, 16, 2, 16, 2).mean(axis=(1, 3, 5))
        inside = occupancy[TUMOR] == 8
        empty = (occupancy == 0).all(axis=0)
        if inside.sum() >= 8 and empty.any():
            seen += 1
            assert means[inside].mean() > 0.8 > 0.2 > means[empty].mean()
    assert seen > 10


def test_left_and_right_are_never_flipped() -> None:
    seen = 0
    for _, occupancy in draws(150):
        right, left = (np.nonzero(occupancy[channel] > 4)[0] for channel in (RIGHT, LEFT))
        if len(right) and len(left):
            seen += 1
            assert right.mean() > left.mean()
    assert seen > 30


def test_intensities_by_hand() -> None:
    """HU -175 to 250 on 0 to 1: metal is cut at 1, air at 0, fat of -100 HU lies at 75/425."""
    case = box_case()
    plan = plain(case)._replace(along_x=torch.eye(48), along_y=torch.eye(48), along_z=torch.eye(48))
    plan.hu[case.codes[5, 7, 7]] = -100.0
    narrow = ModelConfig(intensity_range_hu=(-175.0, 250.0), output_range=(0.0, 1.0))
    image = rendered(plan, case=case, config=narrow)[0][0, 0]
    assert image[5, 7, 7] == pytest.approx(75 / 425, abs=1e-5)
    assert float(image[28, 17, 20]) == pytest.approx(1.0)
    assert float(image[0, 0, 0]) == 0.0


def test_memory_of_cases_forgets_the_one_not_seen_for_longest() -> None:
    reads: list[int] = []

    def read(seed: int) -> Voxels:
        reads.append(seed)
        return Voxels(torch.full((10, 10, 10), seed, dtype=torch.uint8))

    memory = CaseMemory(read, torch.device("cpu"), 2500)
    assert [int(memory(seed).codes[0, 0, 0]) for seed in (1, 2, 1, 3, 1, 2)] == [1, 2, 1, 3, 1, 2]
    assert reads == [1, 2, 3, 2]
