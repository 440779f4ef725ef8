"""Logits in little memory: what is forgotten changes no mask, and most is."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from service.imaging.geometry import Geometry
from service.inference.grid import ModelGrid, whole_grid
from service.inference.logits import FORGOTTEN, INSIDE, Logits, Slab, gather_logits
from service.inference.manifest import Interpolation, Label
from service.inference.model import Model
from service.inference.restoration import restore_masks
from service.inference.spool import Spool
from service.request import PostProcessing
from tests.support.logits import all_values, whole_logits

Float32 = NDArray[np.float32]

SPACING = (2.0, 2.0, 2.0)


def grid_of(shape: tuple[int, int, int], stride: int) -> ModelGrid:
    """The model grid under a feature grid; at stride 2 its last voxel is missing along each axis."""
    x, y, z = (n * stride - (stride - 1) for n in shape)
    return whole_grid(Geometry((x, y, z), np.diag([*SPACING, 1.0])), SPACING)


def blobs(labels: int, shape: tuple[int, int, int], seed: int) -> Float32:
    """Logits like a network's: smooth islands on a low ground, some across every border."""
    noise = np.random.default_rng(seed).normal(0.0, 1.0, (labels, *shape))
    smooth = np.stack([gaussian_filter(of, 2.0, mode="wrap") for of in noise])
    return (60.0 * smooth - 2.5).astype(np.float32)


def slabs_of(values: Float32, heights: list[int]) -> Iterator[Slab]:
    """The scan cut into slabs of these heights, again and again."""
    start, turn = 0, 0
    while start < values.shape[3]:
        stop = start + heights[turn % len(heights)]
        yield Slab(start, torch.from_numpy(values[..., start:stop]))
        start, turn = stop, turn + 1


def labels_of(model: Model) -> tuple[Label, ...]:
    """Two organs with a rule, one without, and a lesion in its host; thresholds of their own."""
    thresholds = (0.5, 0.35, 0.8, 0.5)
    return tuple(
        label.model_copy(update={"threshold": threshold})
        for label, threshold in zip(model.bundle.manifest.labels, thresholds, strict=True)
    )


def test_what_is_kept_is_the_same_in_memory_and_on_disk(tiny_model: Model, tmp_path: Path) -> None:
    labels, shape = labels_of(tiny_model), (22, 26, 41)
    values, grid = blobs(len(labels), shape, seed=1), grid_of(shape, 1)
    in_memory, partly, on_disk = (
        gather_logits(slabs_of(values, [7]), labels, 1, grid, Spool(tmp_path, limit)) for limit in (10**9, 20_000, 0)
    )
    np.testing.assert_array_equal(all_values(on_disk), all_values(in_memory))
    np.testing.assert_array_equal(all_values(partly), all_values(in_memory))
    assert not list(tmp_path.iterdir())  # the file has no name, so nothing is left behind


@pytest.mark.parametrize("heights", [[1], [3], [2, 7], [24], [100]])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("interpolation", [Interpolation.LINEAR, Interpolation.NEAREST])
def test_masks_are_those_of_all_logits(
    tiny_model: Model, stride: int, heights: list[int], interpolation: Interpolation
) -> None:
    labels, shape = labels_of(tiny_model), (22, 26, 41)
    values, grid = blobs(len(labels), shape, seed=stride), grid_of(shape, stride)
    source = Geometry((50, 55, 60), np.diag([*(1.45 * stride * n / 55 for n in shape), 1.0]))
    for rules in (PostProcessing.VISCERA, PostProcessing.NONE):
        few, all_of_them = (
            restore_masks(logits, labels, onto=source, mask_interpolation=interpolation, postprocessing=rules)
            for logits in (
                gather_logits(slabs_of(values, heights), labels, stride, grid),
                whole_logits(values, labels, stride, grid),
            )
        )
        assert any(mask.bounds() for mask in few.of_labels)
        assert few.sha256 == all_of_them.sha256
        for name, lesion in all_of_them.lesion_probability.items():
            np.testing.assert_array_equal(few.lesion_probability[name], lesion)


def test_blocks_around_a_voxel_are_kept_and_no_more(tiny_model: Model) -> None:
    """One voxel above, in the last plane of a slab, the first of its block: 27 blocks, less those off the grid."""
    labels = tiny_model.bundle.manifest.labels[:1]
    values = np.full((1, 21, 9, 24), -3.0, np.float32)
    values[0, 9, 1, 8] = 1.0
    logits = gather_logits(slabs_of(values, [9]), labels, 1, grid_of((21, 9, 24), 1))
    assert logits.kept[0].above == (slice(9, 10), slice(1, 2), slice(8, 9))
    assert bytes_of(logits) == (3 * 2 * 3) * 4**3 * 4
    expected = np.full(values.shape[1:], FORGOTTEN)
    expected[4:16, 0:8, 4:16] = values[0, 4:16, 0:8, 4:16]
    np.testing.assert_array_equal(all_values(logits)[0], expected)
    np.testing.assert_array_equal(
        logits.kept[0].read((slice(3, 10), slice(1, 9), slice(5, 18))), expected[3:10, 1:9, 5:18]
    )


def test_deep_inside_an_organ_nothing_is_kept_but_that_it_is_inside(tiny_model: Model) -> None:
    """A cube of 5 blocks along each edge: of an organ the inner 3 are known by their sign, of a lesion by value."""
    labels = tuple(label for label in tiny_model.bundle.manifest.labels if label.name in ("liver", "liver_tumor"))
    values = np.full((2, 36, 36, 36), -3.0, np.float32)
    values[:, 8:28, 8:28, 8:28] = np.random.default_rng(0).uniform(1.0, 2.0, (20, 20, 20))
    logits = gather_logits(slabs_of(values, [5]), labels, 1, grid_of((36, 36, 36), 1))
    organ, lesion = all_values(logits)
    assert not labels[0].kind.is_lesion
    inside = np.zeros((36, 36, 36), bool)
    inside[12:24, 12:24, 12:24] = True
    np.testing.assert_array_equal(organ == INSIDE, inside)
    kept = np.zeros((36, 36, 36), bool)
    kept[4:32, 4:32, 4:32] = True
    np.testing.assert_array_equal(organ[kept & ~inside], values[0][kept & ~inside])
    np.testing.assert_array_equal(lesion[kept], values[1][kept])
    assert (organ[~kept] == FORGOTTEN).all()


def test_a_label_that_fills_the_scan_takes_no_memory(tiny_model: Model) -> None:
    """As with random weights: nothing but inside, up to the borders of the scan."""
    labels = tiny_model.bundle.manifest.labels[:1]
    values = np.full((1, 16, 20, 24), 2.0, np.float32)
    logits = gather_logits(slabs_of(values, [7]), labels, 1, grid_of((16, 20, 24), 1))
    assert (all_values(logits) == INSIDE).all()
    assert bytes_of(logits) == 0


def test_nothing_above_keeps_nothing(tiny_model: Model) -> None:
    labels = labels_of(tiny_model)
    values = np.full((4, 8, 8, 8), -1.0, np.float32)
    logits = gather_logits(slabs_of(values, [3]), labels, 1, grid_of((8, 8, 8), 1))
    assert [kept.above for kept in logits.kept.values()] == [None] * 4
    assert bytes_of(logits) == 0


@pytest.mark.parametrize("heights", [[1], [2], [3], [4], [5, 11], [8], [13], [24, 1]])
def test_what_is_kept_does_not_depend_on_how_the_scan_is_cut(tiny_model: Model, heights: list[int]) -> None:
    """Islands with nothing between them, at every distance from the slabs' ends: as of the whole scan at once."""
    labels = (tiny_model.bundle.manifest.labels[0],) * 12
    rng = np.random.default_rng(heights[0])
    values = rng.uniform(-4.0, -1.0, (len(labels), 13, 12, 97)).astype(np.float32)
    for channel, of in enumerate(values):
        for first in (channel, 30 + channel, 96 - channel):
            of[3:9, 2:8, first : first + channel] += 4.5
    grid = grid_of((13, 12, 97), 1)
    cut, at_once = (gather_logits(slabs_of(values, some), labels, 1, grid) for some in (heights, [97]))
    for channel in range(len(labels)):
        one, other = cut.kept[channel], at_once.kept[channel]
        assert one.above == other.above
        np.testing.assert_array_equal(one.numbers, other.numbers)
        np.testing.assert_array_equal([len(read()) for read in one.blocks], [len(read()) for read in other.blocks])
    np.testing.assert_array_equal(all_values(cut), all_values(at_once))
    assert bytes_of(cut)


def test_most_of_a_long_scan_is_forgotten(tiny_model: Model) -> None:
    labels = labels_of(tiny_model)
    values = np.full((4, 40, 40, 200), -4.0, np.float32)
    for channel in range(4):
        values[channel, 10:20, 10:20, 40 * channel + 10 : 40 * channel + 25] = 2.0
    logits = gather_logits(slabs_of(values, [24]), labels, 2, grid_of((40, 40, 200), 2))
    assert bytes_of(logits) == 4 * (5 * 5 * 7) * 4**3 * 4  # labels, blocks, voxels, bytes: 3.5 % of all


def bytes_of(logits: Logits) -> int:
    return sum(blocks().nbytes for kept in logits.kept.values() for blocks in kept.blocks)


GROWTH = """
from pathlib import Path
import torch
from service.inference.bundle import open_bundle
from service.inference.logits import Slab, gather_logits
from tests.inference.test_logits import grid_of, resident_mib

shape, planes, slabs = (232, 172), 96, 16
labels = open_bundle(Path(BUNDLE)).manifest.labels
said = []

def all_of_them():
    values = torch.full((len(labels), *shape, planes), -1.0)
    values[:, 100:120, 60:80, 30:60] = 1.0
    for number in range(slabs):
        yield Slab(number * planes, values)
        said.append(resident_mib())

gather_logits(all_of_them(), labels, 1, grid_of((*shape, slabs * planes), 1))
print(said[-1] - said[1])
"""


def test_a_scan_takes_hardly_more_memory_the_longer_it_is(tiny_path: Path) -> None:
    """Arrays of 15 MB come and go with each label and slab, and small ones last: they must not lie in between."""
    script = GROWTH.replace("BUNDLE", repr(str(tiny_path)))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 250  # it was 700 to 820 when they did, and is 20 to 80; 20 of it are numbers and blocks


def resident_mib() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024
