"""Cases: codes, what they mean, and voxels to crop around."""

import time
from pathlib import Path

import numpy as np
import pytest

from tests.support.training import bits, box_case
from training.labels import BY_NAME
from training.phantom.anatomy import rasterize, sample_anatomy
from training.phantom.tissues import Tissue
from training.store import (
    CENTERS_PER_LABEL,
    build_phantom_store,
    drawing_beside,
    encode_case,
    has_case,
    open_case,
    trunk_grid,
    write_case,
)


def test_codes_of_four_voxels() -> None:
    """Kinds in the order of tissue, then labels: air; liver; liver with a tumour; the same tumour tissue alone."""
    tissue = np.array([[[Tissue.LIVER, Tissue.AIR, Tissue.LIVER_TUMOR, Tissue.LIVER]]], np.uint8)
    liver, tumor = bits("liver"), bits("liver", "liver_tumor")
    labels = np.array([[[liver, 0, tumor, liver]]], np.uint32)
    case = encode_case(tissue, labels, np.random.default_rng(0), supervised=5)
    assert case.codes.tolist() == [[[1, 0, 2, 1]]]
    assert case.tissues.tolist() == [Tissue.AIR, Tissue.LIVER, Tissue.LIVER_TUMOR]
    assert case.labels.tolist() == [0, 1 << 5, 1 << 5 | 1 << 26]
    assert case.supervised == 5


def test_more_than_256_kinds_are_refused() -> None:
    labels = np.arange(257, dtype=np.uint32).reshape(257, 1, 1)
    with pytest.raises(ValueError, match="257 kinds of voxels; a code holds 256"):
        encode_case(np.zeros_like(labels, np.uint8), labels, np.random.default_rng(0))


def test_centers_lie_on_their_labels() -> None:
    case = box_case()
    labels = case.labels[case.codes]
    counts = {}
    for center, channel in zip(case.centers, case.center_channel, strict=True):
        assert labels[tuple(center)] >> channel & 1
        counts[int(channel)] = counts.get(int(channel), 0) + 1
    # The tumour has 5 x 6 x 8 voxels, fewer than are wanted; each is drawn once.
    sizes = {"kidney_right": CENTERS_PER_LABEL, "kidney_left": CENTERS_PER_LABEL, "kidney_tumor": 240}
    assert counts == {BY_NAME[name].channel: size for name, size in sizes.items()}
    rows = np.column_stack([case.centers, case.center_channel])
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_case_survives_its_files(tmp_path: Path) -> None:
    case = box_case(supervised=0x80000001)
    write_case(tmp_path, 12, case, source={"boxes": 0})
    again = open_case(tmp_path, 12)
    for name in ("codes", "tissues", "labels", "centers", "center_channel"):
        expected, read = getattr(case, name), getattr(again, name)
        assert read.dtype == expected.dtype
        np.testing.assert_array_equal(read, expected)
    assert again.supervised == 0x80000001
    assert isinstance(again.codes, np.memmap)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["000012.codes.npy", "000012.meta.npz"]


def test_absent_case_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_case(tmp_path, 0)


@pytest.mark.parametrize(("spacing_mm", "shape"), [(2.0, (220, 170, 350)), (3.0, (147, 114, 234))])
def test_trunk_grid_is_centred(spacing_mm: float, shape: tuple[int, int, int]) -> None:
    grid, affine = trunk_grid(spacing_mm)
    assert grid == shape
    first = affine[:3, 3]
    last = first + spacing_mm * (np.array(shape) - 1)
    np.testing.assert_allclose(first, -last)
    np.testing.assert_allclose(np.diag(affine), [spacing_mm] * 3 + [1])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # fork, from Python 3.12 on
def test_phantom_store_holds_the_phantom_and_is_built_once(tmp_path: Path) -> None:
    build_phantom_store(tmp_path, range(1, 2), 10.0, processes=1)
    raster = rasterize(sample_anatomy(1), *trunk_grid(10.0))
    case = open_case(tmp_path, 1)
    np.testing.assert_array_equal(case.tissues[case.codes], raster.tissue)
    np.testing.assert_array_equal(case.labels[case.codes], raster.labels)
    assert case.supervised == 0xFFFFFFFF

    write_case(tmp_path, 1, box_case(), source={})
    build_phantom_store(tmp_path, range(1, 2), 10.0, processes=1)
    assert open_case(tmp_path, 1).codes.shape == box_case().codes.shape  # not drawn again


def test_cases_are_drawn_beside_what_runs(tmp_path: Path) -> None:
    with drawing_beside(tmp_path, range(2), 8.0, processes=1):
        deadline = time.monotonic() + 120
        while not has_case(tmp_path, 1) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert [has_case(tmp_path, seed) for seed in range(3)] == [True, True, False]
    with drawing_beside(tmp_path, range(2), 8.0, processes=1):  # nothing is missing
        pass
