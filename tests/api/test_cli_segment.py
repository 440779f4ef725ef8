"""`viscera segment`: where results go, what a failure leaves, and one study for real."""

import json
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import service.cli.segment as command
from service.cli import app, console
from service.errors import TooFewSlices
from service.inference.bundle import open_bundle
from service.progress import Stage
from service.reporting.schema import Findings
from tests.support.findings import example_findings
from tests.support.nifti_files import write_nifti
from tests.support.tiny_bundle import TINY_LABELS, write_tiny_bundle

run = CliRunner().invoke


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """A pipeline that writes one mask, or fails for a study called `short`; returns the studies it was given."""
    seen: list[Path] = []

    def segment_study(study, out_dir, model, request, progress):
        seen.append(study)
        (out_dir / "masks").mkdir()
        (out_dir / "masks" / "liver.nii.gz").write_text(study.name)
        progress(Stage.INFERENCE, 0.5)
        if "short" in study.name:
            raise TooFewSlices("The series has 3 slices; at least 10 are needed.")
        return Findings.model_validate(example_findings())

    def open_with_pipeline(path, **_):
        return SimpleNamespace(bundle=open_bundle(path)), segment_study

    monkeypatch.setattr(command, "open_with_pipeline", open_with_pipeline)
    monkeypatch.setenv("VISCERA_DATA_DIR", str(tmp_path / "data"))
    return seen


def _file(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("scan")
    return str(path)


def test_one_study_goes_straight_into_the_folder(quick, tiny: Path, tmp_path: Path):
    study = _file(tmp_path / "ct.nii.gz")

    result = run(app, ["segment", study, "--out", str(tmp_path / "out"), "--bundle", str(tiny)])

    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "masks" / "liver.nii.gz").read_text() == "ct.nii.gz"
    assert "liver_tumor-1" in result.output
    assert "masks/liver.nii.gz" in result.output
    assert "Research use only" in result.output


def test_labels_have_swatches_of_their_colors(quick, tiny: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(
        console, "OUT", Console(force_terminal=True, color_system="truecolor", width=120, highlight=False)
    )
    red, green, blue = next(label.color for label in open_bundle(tiny).manifest.labels if label.name == "liver")

    result = run(app, ["segment", _file(tmp_path / "ct.nii"), "--out", str(tmp_path / "out"), "--bundle", str(tiny)])

    assert result.exit_code == 0, result.output
    assert f"\x1b[38;2;{red};{green};{blue}m■ \x1b[0mLiver" in result.stdout


def test_json_is_all_that_is_on_stdout(quick, tiny: Path, tmp_path: Path):
    studies = [_file(tmp_path / "short.nii"), _file(tmp_path / "long.nii")]

    result = run(app, ["segment", *studies, "--out", str(tmp_path / "out"), "--bundle", str(tiny), "--json"])

    assert result.exit_code == 2
    refused, done = map(json.loads, result.stdout.splitlines())
    assert (refused["study"], refused["problem"]["code"]) == (studies[0], "too-few-slices")
    assert (done["study"], done["out"]) == (studies[1], str(tmp_path / "out" / "long"))
    assert Findings.model_validate(done["findings"]) == Findings.model_validate(example_findings())
    assert "masks/liver.nii.gz" in done["files"]
    assert "Too few slices" in result.stderr


def test_several_studies_get_folders_of_their_names(quick, tiny: Path, tmp_path: Path):
    studies = [_file(tmp_path / folder / "ct.nii.gz") for folder in ("a", "b")] + [_file(tmp_path / "c" / "1.zip")]

    result = run(app, ["segment", *studies, "--out", str(tmp_path / "out"), "--bundle", str(tiny)])

    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1", "ct", "ct-2"]


def test_a_study_that_fails_leaves_nothing_and_does_not_stop_the_others(quick, tiny: Path, tmp_path: Path):
    studies = [_file(tmp_path / "short.nii"), _file(tmp_path / "long.nii")]

    result = run(app, ["segment", *studies, "--out", str(tmp_path / "out"), "--bundle", str(tiny)])

    assert result.exit_code == 2
    assert "error Too few slices: The series has 3 slices; at least 10 are needed. (too-few-slices)" in result.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["long"]


def test_a_second_run_replaces_the_files_of_the_first(quick, tiny: Path, tmp_path: Path):
    for content in ("first.nii", "second.nii"):
        study = _file(tmp_path / content)
        assert run(app, ["segment", study, "--out", str(tmp_path / "out"), "--bundle", str(tiny)]).exit_code == 0

    assert (tmp_path / "out" / "masks" / "liver.nii.gz").read_text() == "second.nii"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--bundle", "none-such"], "model-not-found"),
        (["--targets", "brain"], "unknown-label"),
        (["--engine", "abacus"], ""),
    ],
)
def test_what_cannot_be_asked_for_is_refused_before_a_study_is_read(
    quick, tiny: Path, tmp_path: Path, monkeypatch, options, code
):
    monkeypatch.setenv("VISCERA_BUNDLES_DIR", f'["{tiny.parent}"]')
    monkeypatch.setenv("VISCERA_DEFAULT_MODEL", "viscera-tiny")

    result = run(app, ["segment", _file(tmp_path / "ct.nii"), "--out", str(tmp_path / "out"), *options])

    assert result.exit_code == 2
    assert code in result.output
    assert "Traceback" not in result.output
    assert quick == []
    assert not (tmp_path / "out").exists()


def test_a_path_that_does_not_exist_is_refused(quick, tmp_path: Path):
    result = run(app, ["segment", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")])

    assert result.exit_code == 2


def test_a_study_for_real(tiny: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("VISCERA_DATA_DIR", str(tmp_path / "data"))
    study = write_nifti(tmp_path / "ct.nii.gz")

    result = run(app, ["segment", str(study), "--out", str(tmp_path / "out"), "--bundle", str(tiny)])

    assert result.exit_code == 0, result.output
    findings = Findings.model_validate_json((tmp_path / "out" / "findings.json").read_text())
    assert [organ.label for organ in findings.organs] == ["liver", "bone", "lung"]
    source = nib.load(study)
    for label in TINY_LABELS:
        mask = nib.load(tmp_path / "out" / "masks" / f"{label}.nii.gz")
        assert mask.shape == source.shape
        np.testing.assert_array_equal(mask.affine, source.affine)
    listed = {item["name"] for item in json.loads((tmp_path / "out" / "artifacts.json").read_text())}
    assert {"segmentation.nii.gz", "findings.json", "overview.png"} <= listed
