"""The three stores of the benchmark of partial labels: the same images, each with what its model may learn from."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.partial_labels import ARMS, RECIPE, UNION, harmonize_arms, write_datasets
from tests.support.assembly import WRITERS, small_phantom
from tests.support.training import bits
from training.assembly import open_assembly
from training.datasets.description import PAIRS, read_description
from training.store import Case, open_case, scan_names


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One patient of each dataset: a phantom on a very coarse grid, whose HU tell the five apart."""
    folder = tmp_path_factory.mktemp("partial")
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(steps=1, even_over="labels"))
    drawn = small_phantom(12, (12.0, 12.0, 12.0))
    phantoms = {seed: replace(drawn, hu=drawn.hu + np.int16(seed), seed=seed) for seed in range(1 + len(WRITERS))}
    write_datasets(folder, {name: [seed] for seed, name in enumerate(WRITERS, 1)}, [0], phantoms)
    harmonize_arms(folder, recipe)
    return {arm: folder / arm / "store" for arm in ARMS}


def labels_of(case: Case) -> NDArray[np.uint32]:
    return case.labels[case.codes]


def without_sides(labels: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Labels with each pair as its right side."""
    for right, left in PAIRS.values():
        labels = np.where(labels & bits(left), labels & ~bits(left) | bits(right), labels)
    return labels


def own_of(scan: str) -> np.uint32:
    """What the dataset of a scan annotates."""
    dataset, _, case = scan.partition("-")
    return bits(*read_description(dataset).supervised_in(case))


def test_the_images_and_their_splits_are_the_same(stores: dict[str, Path]) -> None:
    names = {arm: scan_names(store) for arm, store in stores.items()}
    assert names["full"] == names["partial"] == names["background"]
    assert [name.partition("-")[0] for name in names["full"]] == sorted(WRITERS)
    splits = {arm: open_assembly(store).splits for arm, store in stores.items()}
    assert splits["full"] == splits["partial"] == splits["background"]
    images = [np.asarray(open_case(stores["full"], name).hu) for name in names["full"]]
    for arm in ("partial", "background"):
        for name, image in zip(names[arm], images, strict=True):
            np.testing.assert_array_equal(np.asarray(open_case(stores[arm], name).hu), image)
    assert len({image.tobytes() for image in images}) == len(WRITERS)  # each dataset has patients of its own


def test_full_labels_are_the_union_in_every_scan(stores: dict[str, Path]) -> None:
    union = np.bitwise_or.reduce([own_of(f"{dataset}-0") for dataset in WRITERS])
    assert union == bits(*UNION)
    for name in scan_names(stores["full"]):
        case = open_case(stores["full"], name)
        assert case.supervised == union
        seen = np.bitwise_or.reduce(labels_of(case), axis=None)
        organs = bits("spleen", "kidney_right", "kidney_left", "liver", "lung_right", "lung_left", "urinary_bladder")
        assert seen & organs == organs


def test_partial_labels_are_the_full_ones_of_the_dataset_alone(stores: dict[str, Path]) -> None:
    for name in scan_names(stores["partial"]):
        case, own = open_case(stores["partial"], name), own_of(name)
        assert case.supervised == own
        mine, full = labels_of(case), labels_of(open_case(stores["full"], name)) & own
        assert np.count_nonzero(mine != full) < 0.02 * np.count_nonzero(full)  # sides of lungs that touch are guessed
        np.testing.assert_array_equal(without_sides(mine), without_sides(full))


def test_without_masking_what_a_dataset_does_not_annotate_is_background(stores: dict[str, Path]) -> None:
    for name in scan_names(stores["background"]):
        case = open_case(stores["background"], name)
        assert case.supervised == bits(*UNION)
        assert not (labels_of(case) & ~own_of(name)).any()
        np.testing.assert_array_equal(labels_of(case), labels_of(open_case(stores["partial"], name)))
