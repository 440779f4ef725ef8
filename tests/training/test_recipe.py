"""Recipes, and the learning rate that one describes."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.support.training import tiny_recipe
from training.recipe import RECIPES, RecipeError, read_recipe
from training.train import warmup_cosine

DEFAULT = RECIPES / "default_compact.toml"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_package_parses(path: Path) -> None:
    recipe = read_recipe(path.stem)
    assert recipe.name == path.stem
    assert recipe == read_recipe(str(path))
    assert recipe.warmup_steps < recipe.steps


def test_default_recipe_describes_the_compact_network() -> None:
    recipe = read_recipe("default_compact")
    assert recipe.model.architecture == "compact"
    assert recipe.model.spacing_mm == (2.0, 2.0, 2.0)
    assert all(edge >= recipe.patch for edge in recipe.model.roi_size)  # never less context than in training


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(RecipeError) as refused:
        read_recipe("grand_unified")
    known = ", ".join(sorted(path.stem for path in RECIPES.glob("*.toml")))
    assert str(refused.value) == f"No recipe 'grand_unified'; known: {known}; or give the path of a TOML file."


@pytest.mark.parametrize(("old", "new", "said"), [
    ("steps =", "stepps =", r"stepps\n.*Extra inputs are not permitted"),
    ("seed =", "sead =", r"seed\n.*Field required"),
    ("steps = 7200", 'steps = "many"', r"steps\n.*valid integer"),
    ("overlap =", "over_lap =", r"model\.over_lap\n.*Extra inputs"),
    ("[model]", "[model", r"Expected '\]'"),
])  # fmt: skip
def test_errors_name_the_file_and_the_key(old: str, new: str, said: str, tmp_path: Path) -> None:
    text = DEFAULT.read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "mine.toml").write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(RecipeError) as refused:
        read_recipe(str(tmp_path / "mine.toml"))
    assert str(refused.value).startswith("mine.toml is not a recipe: ")
    assert re.search(said, str(refused.value))


@pytest.mark.parametrize("change", [
    {"steps": 0}, {"batch_size": 0}, {"patch": 56}, {"patch": 32}, {"learning_rate": 0.0}, {"ema_decay": 1.0},
    {"seed": -1}, {"save_every": 0}, {"loader_processes": -1},
])  # fmt: skip
def test_impossible_numbers_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        tiny_recipe(**change)


def test_learning_rate_by_hand() -> None:
    """Two steps up, then half a cosine over four: 0, 1/4, 1/2, 3/4 and all of the way down."""
    recipe = tiny_recipe(warmup_steps=2, steps=6)
    rates = [warmup_cosine(step, recipe) for step in range(8)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447, 0.0, 0.0], abs=1e-6)


def test_without_warmup_the_first_step_is_the_fastest() -> None:
    assert warmup_cosine(0, tiny_recipe(warmup_steps=0)) == 1.0
