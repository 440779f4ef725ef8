"""The numbered sequence of samples: the same at any number of loaders, and after a pause."""

from pathlib import Path

import pytest
import torch

from tests.support.training import tiny_recipe, write_box_store
from training.rendering import Batch
from training.samples import (
    Cases,
    NumberedPlans,
    RenderedPlans,
    loader_processes,
    training_batches,
    validation_batches,
    wait_for_case,
)

RECIPE = tiny_recipe(steps=4)
CPU = torch.device("cpu")
FORKS = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12 on


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    write_box_store(folder, RECIPE)
    return folder


def assert_same(batches: list[Batch], expected: list[Batch]) -> None:
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


def test_batches_hold_the_samples_in_order(store: Path) -> None:
    batches = list(training_batches(store, RECIPE, 0, CPU))
    samples = RenderedPlans(NumberedPlans(Cases.to_train_on(store, RECIPE, None), RECIPE))
    for step, (image, occupancy, supervised) in enumerate(batches):
        assert image.shape == (2, 1, 48, 48, 48)
        assert occupancy.shape == (2, 32, 24, 24, 24)
        assert supervised.shape == (2, 32)
        for row in range(2):
            assert torch.equal(image[row], samples[2 * step + row][0])
            assert torch.equal(occupancy[row], samples[2 * step + row][1])
    assert len(batches) == 4


@FORKS
@pytest.mark.parametrize("processes", [1, 2])
def test_loader_processes_change_nothing(store: Path, processes: int) -> None:
    parallel = RECIPE.model_copy(update={"loader_processes": processes})
    assert_same(list(training_batches(store, parallel, 0, CPU)), list(training_batches(store, RECIPE, 0, CPU)))


def test_a_recipe_that_names_no_number_leaves_a_core_to_training(monkeypatch: pytest.MonkeyPatch) -> None:
    unnamed = RECIPE.model_copy(update={"loader_processes": None})
    for cores, processes in ((64, 8), (3, 2), (2, 1), (1, 1), (None, 1)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert loader_processes(unnamed) == processes
    assert loader_processes(RECIPE) == RECIPE.loader_processes == 0


def test_a_resumed_run_goes_on_with_the_next_sample(store: Path) -> None:
    assert_same(list(training_batches(store, RECIPE, 3, CPU)), list(training_batches(store, RECIPE, 0, CPU))[3:])
    assert list(training_batches(store, RECIPE, 4, CPU)) == []


def test_samples_differ_by_number_seed_and_purpose(store: Path) -> None:
    samples = RenderedPlans(NumberedPlans(Cases.to_train_on(store, RECIPE, None), RECIPE))
    other_seed = RenderedPlans(NumberedPlans(Cases.to_train_on(store, RECIPE, None), tiny_recipe(seed=4)))
    unseen = RenderedPlans(NumberedPlans(Cases.to_validate_on(store, RECIPE, None), RECIPE))
    images = [samples[0][0], samples[1][0], other_seed[0][0], unseen[0][0]]
    assert len({image.numpy().tobytes() for image in images}) == 4


def test_validation_windows_are_always_the_same(store: Path) -> None:
    batches = list(validation_batches(store, RECIPE, CPU))
    assert len(batches) == RECIPE.validation_samples == 2
    assert_same(list(validation_batches(store, RECIPE, CPU)), batches)


def test_validation_patients_are_not_trained_on() -> None:
    assert not set(RECIPE.training_seeds) & set(RECIPE.validation_seeds)
    assert tiny_recipe(phantoms=120, validation_phantoms=12).validation_seeds == range(900_000, 900_012)


def test_phantoms_join_while_they_are_drawn() -> None:
    """Of 10, 4 at first; 6 join over 90 % of the 20 windows: the third of them after 9."""
    recipe = tiny_recipe(steps=10, phantoms=10, phantoms_at_start=4)
    seeds = recipe.training_seeds
    assert [len(recipe.open_seeds(seeds, number)) for number in (0, 2, 3, 9, 17, 18, 19)] == [4, 4, 5, 7, 9, 10, 10]
    assert recipe.open_seeds(recipe.validation_seeds, 0) == recipe.validation_seeds
    assert tiny_recipe(phantoms=10).open_seeds(range(10), 0) == range(10)


def test_a_run_may_see_other_phantoms_than_the_one_it_goes_on_from() -> None:
    other = tiny_recipe(phantoms=10, first_phantom=560, phantoms_at_start=4)
    assert other.training_seeds == range(560, 570)
    assert other.open_seeds(other.training_seeds, 0) == range(560, 564)
    assert tiny_recipe(phantoms=10).training_seeds == range(10)


def test_a_case_that_never_comes_ends_the_wait_and_one_that_is_late_is_told(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("training.samples._LONG_WAIT_S", 0.05)
    monkeypatch.setattr("training.samples._LONGEST_WAIT_S", 0.4)
    wait_for_case(store, 0)
    assert not caplog.records
    with pytest.raises(TimeoutError, match="no case 77"):
        wait_for_case(store, 77)
    assert [record.getMessage()[:30] for record in caplog.records] == ["Training waits for phantom 77,"]
