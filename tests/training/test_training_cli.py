"""The `viscera-train` command."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from tests.support.clip_folder import write_clip_folder
from tests.support.training import box_case, tiny_model, tiny_recipe, write_box_store
from training import cli
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.labels import LABELS
from training.recipe import FIRST_CALIBRATION_SEED, RECIPES
from training.store import write_case
from training.text import random_text_embedding, read_text_embedding

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
    model = "\n".join(
        f"{key} = {json.dumps(value)}" for key, value in recipe.model.model_dump(mode="json", exclude_none=True).items()
    )
    rest = "\n".join(
        f"{key} = {json.dumps(value)}"
        for key, value in recipe.model_dump(mode="json", exclude={"model"}, exclude_none=True).items()
    )
    (tmp_path / "one_step.toml").write_text(f"{rest}\n[model]\n{model}\n")
    write_box_store(tmp_path / "run" / "store", recipe)
    result = run(cli.app, ["train", "--recipe", str(tmp_path / "one_step.toml"), "--run", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert "told apart by random vectors" in result.output
    assert load_checkpoint(tmp_path / "run" / "model.pt").training["steps"] == 1


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A checkpoint of a tiny network that is not calibrated yet."""
    path = tmp_path / "model.pt"
    _, text = random_text_embedding(0)
    save_checkpoint(path, tiny_model(), label_names=("a",), text=text, training={"recipe": "tiny"})
    return path


def calibrated(trained: Path, *options: str) -> Checkpoint:
    """What `calibrate` makes of it on one patient of boxes."""
    out, store = trained.with_name("calibrated.pt"), trained.with_name("store")
    store.mkdir()
    write_case(store, FIRST_CALIBRATION_SEED, box_case(), source={})
    asked = ["calibrate", str(trained), "--out", str(out), "--store", str(store), "--phantoms", "1", *options]
    result = run(cli.app, asked)
    assert result.exit_code == 0, result.output
    return load_checkpoint(out)


def test_calibrate_scales_the_logits_and_leaves_the_rest_alone(trained: Path) -> None:
    before, after = load_checkpoint(trained), calibrated(trained)
    weights = after.model.state_dict()
    changed = {name for name, value in before.model.state_dict().items() if not weights[name].equal(value)}
    assert changed <= {"controller.weight", "controller.bias"}
    window = torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = before.model(window) * after.calibration.logit_scale
        assert torch.allclose(after.model(window), expected, rtol=1e-4, atol=1e-5)
    assert after.training == {"recipe": "tiny"}
    assert before.calibration.thresholds == {}
    assert after.calibration.thresholds.keys() == {label.name for label in LABELS}


def test_calibrate_rounds_the_weights_first_where_asked(trained: Path) -> None:
    rounded = calibrated(trained, "--bfloat16")
    weight = rounded.model.backbone.encoder0[0].weight
    assert torch.equal(weight, weight.bfloat16().float())
    assert rounded.training == {"recipe": "tiny", "weights": "rounded to bfloat16"}


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


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip_folder(tmp_path_factory.mktemp("cli") / "tiny-clip")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command sets for its own process is put back."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")


def test_embed_says_one_line_and_nothing_else(clip_folder: Path, tmp_path: Path) -> None:
    """In a process of its own: a progress bar or a report of the library would stand on standard error."""
    out = tmp_path / "new" / "text.safetensors"
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-m", "training.cli", "embed", "--weights", str(clip_folder),
         "--out", str(out)],
        capture_output=True, text=True, check=False, cwd=Path(cli.__file__).parents[1],
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    said = " ".join(ended.stdout.split())
    assert said.startswith("32 x 512 features of CLIP text model (2 layers, width 8): ")
    _, text = read_text_embedding(out)
    assert text.prompt_template == "A computerized tomography of a {}"
    assert text.names == tuple(label.prompt for label in LABELS)
    assert text.source == "made by viscera-train embed from the folder tiny-clip"


@pytest.mark.usefixtures("environment")
def test_embed_names_of_a_file_with_a_template(clip_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("liver\nleft kidney\n")
    arguments = ["--out", str(tmp_path / "a.safetensors"), "--names", str(tmp_path / "names.txt"), "--template", "V2"]
    result = run(cli.app, ["embed", "--weights", str(clip_folder), *arguments, "--source", "a friend"])
    assert result.exit_code == 0, result.output
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert file.get_tensor("text_embedding").shape == (2, 512)
        metadata = file.metadata()
    assert metadata["prompt_template"] == "There is {} in this computerized tomography."
    assert (json.loads(metadata["names"]), metadata["source"]) == (["liver", "left kidney"], "a friend")


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--template", "A [CLS].", "PromptError: Template 'A [CLS].' has 0 places {} for the name; it needs 1."),
        ("--names", "absent.txt", "PromptError: absent.txt is not a readable list of names: FileNotFoundError."),
        ("--encoder", "bert", "TextEncoderError: No text encoder 'bert'; known: clip."),
        ("--weights", "absent", "TextEncoderError: There is no folder absent; give the one with the encoder's files."),
        ("--out", "text.pth", "TextEmbeddingError: text.pth must end with .safetensors"),
    ],
)
def test_embed_refuses_in_one_line(
    option: str,
    value: str,
    said: str,
    clip_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = {"--weights": str(clip_folder), "--out": "text.safetensors"} | {option: value}
    pairs = [word for pair in arguments.items() for word in pair]
    assert failing(monkeypatch, capsys, "embed", *pairs).startswith(said)
    assert list(tmp_path.iterdir()) == []
