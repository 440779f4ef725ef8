"""A whole run in seconds: what it writes, that it can be interrupted, and that it learns."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.training import bits, tiny_recipe, write_box_store
from training import train as training_run
from training.checkpoint import load_checkpoint, read_content
from training.labels import LABELS
from training.recipe import Recipe
from training.samples import training_batches, validation_batches
from training.text import random_text_embedding
from training.train import RunFolder, train
from training.validation import validate


def run_recipe(folder: Path, recipe: Recipe, *, supervised: int = 0xFFFFFFFF) -> RunFolder:
    run = RunFolder(folder)
    if not run.store.exists():
        write_box_store(run.store, recipe, supervised=supervised)
    embedding, text = random_text_embedding(recipe.seed)
    assert train(recipe, embedding, text, run) == run.final
    return run


def assert_identical(value: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(value, expected)
    elif isinstance(expected, dict):
        assert value.keys() == expected.keys()
        for key in expected:
            assert_identical(value[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(value) == len(expected)
        for one, other in zip(value, expected, strict=True):
            assert_identical(one, other)
    else:
        assert value == expected


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run_recipe(tmp_path_factory.mktemp("run"), tiny_recipe(validate_every=3))


def test_a_run_leaves_checkpoints_and_logs(finished: RunFolder) -> None:
    assert {path.name for path in finished.path.iterdir()} == {
        "last.pt", "model.pt", "run.json", "store", "tensorboard",
    }  # fmt: skip

    assert list((finished.path / "tensorboard").glob("events.out.tfevents.*"))


def test_the_final_checkpoint_says_how_it_was_made(finished: RunFolder) -> None:
    final = load_checkpoint(finished.final)
    assert final.label_names == tuple(label.name for label in LABELS)
    assert final.training["recipe"] == "tiny"
    assert (final.training["seed"], final.training["steps"], final.training["windows"]) == (3, 6, 12)
    assert "seeds 0 to 1" in final.training["data"]
    assert final.text.encoder == "random (seed 3)"
    assert {type(value) for value in final.training.values()} == {str, int}
    assert read_content(finished.final)["resume"] is None


def test_the_final_weights_are_the_averaged_ones(finished: RunFolder) -> None:
    """Average and raw weights differ; the average is what is exported."""
    last, final = read_content(finished.last), read_content(finished.final)
    assert last["resume"]["step"] == 6
    average = {key.removeprefix("module."): value for key, value in last["resume"]["average"].items()}
    del average["n_averaged"]
    assert_identical(final["state_dict"], average)
    assert not torch.equal(final["state_dict"]["controller.bias"], last["state_dict"]["controller.bias"])


def test_a_classifier_that_warms_up_does_not_move_the_network(tmp_path: Path) -> None:
    def backbone_after_two_steps(name: str, **changes: Any) -> torch.Tensor:
        recipe = tiny_recipe(steps=2, warmup_steps=0, ema_decay=0.0, gradient_clip=1e6, **changes)
        weights = load_checkpoint(run_recipe(tmp_path / name, recipe).final).model.state_dict()
        return weights["backbone.decoder0.0.weight"]

    without = backbone_after_two_steps("without")
    warming_up = backbone_after_two_steps("warming", deep_supervision=50.0, classifier_warmup=2)
    supervised = backbone_after_two_steps("supervised", deep_supervision=50.0)
    torch.testing.assert_close(warming_up, without, rtol=0, atol=1e-6)
    assert (supervised - without).abs().max() > 1e-3


def test_a_frozen_backbone_stays_as_it_was_and_the_heads_learn(tmp_path: Path) -> None:
    def weights_after(steps: int) -> dict[str, torch.Tensor]:
        recipe = tiny_recipe(steps=steps, warmup_steps=0, ema_decay=0.0, freeze_backbone=True, deep_supervision=1.0)
        return load_checkpoint(run_recipe(tmp_path / str(steps), recipe).final).model.state_dict()

    early, late = weights_after(1), weights_after(3)
    backbone = {name for name in early if name.startswith("backbone.")}
    assert any(name.endswith("running_mean") for name in backbone)
    for name in backbone:
        assert torch.equal(early[name], late[name]), name
    for name in ("controller.weight", "feature_head.2.weight", "gap.3.weight"):
        assert not torch.equal(early[name], late[name]), name


def test_an_interrupted_run_ends_bit_for_bit_like_one_that_was_not(
    finished: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved after step 2, interrupted after step 3: what it had learnt by step 2 can be used, and step 3 is done again,
    on the same samples."""
    starts = []

    def three_batches(store: Path, recipe: Recipe, first_step: int, device: torch.device, **more: Any) -> Iterator[Any]:
        starts.append(first_step)
        for number, batch in enumerate(training_batches(store, recipe, first_step, device, **more)):
            if number == 3 and first_step == 0:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(training_run, "training_batches", three_batches)
    recipe = tiny_recipe(validate_every=3)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(tmp_path, recipe)
    so_far = load_checkpoint(tmp_path / "model.pt").training
    assert (so_far["steps"], so_far["windows"]) == (2, 4)
    resumed = run_recipe(tmp_path, recipe)
    assert starts == [0, 2]
    for name in ("last.pt", "model.pt"):
        assert_identical(read_content(resumed.path / name), read_content(finished.path / name))


def test_a_finished_run_has_nothing_left_to_do(finished: RunFolder) -> None:
    before = read_content(finished.final)
    run_recipe(finished.path, tiny_recipe(validate_every=3))
    assert_identical(read_content(finished.final), before)


def test_two_bright_boxes_are_learnt(tmp_path: Path) -> None:
    """Alike but for their side. The tumour is there too, but not annotated."""
    recipe = tiny_recipe(
        seed=4, steps=120, warmup_steps=10, learning_rate=4e-3, ema_decay=0.8, save_every=120, validation_samples=6
    )
    run = run_recipe(tmp_path, recipe, supervised=int(bits("kidney_right", "kidney_left")))
    log = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    loss = [event.value for event in log.Scalars("loss/dice")]
    assert len(loss) == 12
    assert sum(loss[-3:]) / 3 < 0.6 * loss[0]
    dice = validate(load_checkpoint(run.final).model, run.store, recipe, torch.device("cpu"))
    assert dice.keys() == {"kidney_right", "kidney_left"}
    assert min(dice.values()) > 0.5
    logged = {name: log.Scalars(f"dice/{name}")[-1].value for name in dice}
    assert logged == pytest.approx(dice, rel=1e-5)


class Everywhere(torch.nn.Module):
    """Calls every voxel foreground of every label."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.ones(1, 32, *(n // 2 for n in image.shape[2:]))


def test_validation_dice_counts_all_windows_as_one_set(tmp_path: Path) -> None:
    recipe = tiny_recipe(validation_samples=3)
    write_box_store(tmp_path, recipe)
    dice = validate(Everywhere(), tmp_path, recipe, torch.device("cpu"))
    truth = sum(
        (occupancy[0] >= 4).sum(dim=(1, 2, 3))
        for _, occupancy, _ in validation_batches(tmp_path, recipe, torch.device("cpu"))
    )
    expected = {
        label.name: 2 * int(truth[label.channel]) / (3 * 24**3 + int(truth[label.channel]))
        for label in LABELS
        if truth[label.channel]
    }
    assert dice == pytest.approx(expected)
    assert {"kidney_right", "kidney_left"} & expected.keys()
