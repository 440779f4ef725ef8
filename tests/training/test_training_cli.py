"""The `viscera-train` command."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from typer.testing import CliRunner

from tests.support.training import tiny_recipe, write_box_store
from training import cli
from training.checkpoint import load_checkpoint
from training.labels import LABELS
from training.recipe import RECIPES

run = CliRunner().invoke


def failing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `viscera-train` says on standard error when it ends with exit code 2, on one line."""
    monkeypatch.setattr(sys, "argv", ["viscera-train", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    return " ".join(err.split())


def test_phantom_as_nifti(tmp_path: Path) -> None:
    result = run(cli.app, ["phantom", "--seed", "1", "--spacing", "4", "4", "5", "--out", str(tmp_path / "new" / "p")])
    assert result.exit_code == 0, result.output
    image = nibabel.load(tmp_path / "new" / "p" / "ct.nii.gz")
    np.testing.assert_allclose(image.header.get_zooms(), (4, 4, 5))
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    masks = {path.name.removesuffix(".nii.gz") for path in (tmp_path / "new" / "p" / "labels").iterdir()}
    assert masks == {label.name for label in LABELS}
    assert json.loads((tmp_path / "new" / "p" / "phantom.json").read_text())["seed"] == 1


def test_phantom_as_dicom(tmp_path: Path) -> None:
    result = run(cli.app, ["phantom", "--seed", "1", "--spacing", "8", "8", "10", "--out", str(tmp_path), "--dicom"])
    assert result.exit_code == 0, result.output
    slices = [pydicom.dcmread(path) for path in sorted(tmp_path.iterdir())]
    assert f"{len(slices)} slices in" in result.output
    assert {(s.Modality, float(s.SliceThickness), *map(float, s.PixelSpacing)) for s in slices} == {("CT", 10, 8, 8)}
    assert len({s.SeriesInstanceUID for s in slices}) == 1


def test_train_from_a_recipe_file(tmp_path: Path) -> None:
    recipe = tiny_recipe(steps=1)
    model = "\n".join(f"{key} = {json.dumps(value)}" for key, value in recipe.model.model_dump(mode="json").items())
    rest = "\n".join(
        f"{key} = {json.dumps(value)}" for key, value in recipe.model_dump(mode="json", exclude={"model"}).items()
    )
    (tmp_path / "one_step.toml").write_text(f"{rest}\n[model]\n{model}\n")
    write_box_store(tmp_path / "run" / "store", recipe)
    result = run(cli.app, ["train", "--recipe", str(tmp_path / "one_step.toml"), "--run", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert "told apart by random vectors" in result.output
    assert load_checkpoint(tmp_path / "run" / "model.pt").training["steps"] == 1


def test_missing_recipe_is_one_line_and_exit_code_2() -> None:
    """In a process of its own, as a user runs it."""
    ended = subprocess.run(
        [sys.executable, "-m", "training.cli", "train", "--run", "absent", "--recipe", "grand_unified"],
        capture_output=True, text=True, check=False, cwd=Path(cli.__file__).parents[1],
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert " ".join(ended.stderr.split()).startswith("RecipeError: No recipe 'grand_unified'; known: default_compact")


def test_square_brackets_of_a_message_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are not styles: `[type=extra_forbidden]` would vanish, `[/model]` would end in a traceback."""
    text = (RECIPES / "default_compact.toml").read_text(encoding="utf-8")
    (tmp_path / "mine.toml").write_text(f'"[/model]" = 1\n{text}', encoding="utf-8")
    said = failing(monkeypatch, capsys, "train", "--run", "absent", "--recipe", str(tmp_path / "mine.toml"))
    assert said.startswith("RecipeError: mine.toml is not a recipe")
    assert "[/model]" in said
    assert "[type=extra_forbidden" in said


def test_unreadable_text_embeddings_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("train", "--run", str(tmp_path / "run"), "--text-embeddings", str(tmp_path / "absent.pth"))
    assert failing(monkeypatch, capsys, *arguments).startswith("TextEmbeddingError: absent.pth is not a readable")
    assert not (tmp_path / "run").exists()
