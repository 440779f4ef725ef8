"""`viscera models`: what is here, which is the default, and how published weights get here."""

import sys
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from service.cli import app, pull
from service.errors import PullFailed
from tests.support.api import write_model

run = CliRunner().invoke


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder of the commands, with one installed model beside the packaged one."""
    monkeypatch.setenv("VISCERA_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("VISCERA_DEFAULT_MODEL", raising=False)
    write_model(tmp_path / "data" / "models", "other", "2.0.0")
    return tmp_path / "data"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "published.pth"
    path.write_bytes(b"weights")
    return path


def test_models_of_the_package_and_of_the_data_folder_are_listed(data: Path):
    result = run(app, ["models", "list"])
    assert result.exit_code == 0, result.output
    assert "other-2.0.0" in result.output
    assert "viscera-compact" in result.output
    assert result.output.count("(default)") == 1


def test_a_model_is_shown_with_its_labels_and_codes(data: Path):
    result = run(app, ["models", "show", "other"])
    assert result.exit_code == 0, result.output
    for word in ("other-2.0.0", "liver_tumor", "108369006", "fp32", "Apache-2.0"):
        assert word in result.output


def test_the_default_is_chosen_and_kept(data: Path):
    assert run(app, ["models", "default", "other"]).exit_code == 0
    shown = run(app, ["models", "show", "other"]).output
    assert "other-2.0.0 (default)" in shown
    refused = run(app, ["models", "remove", "other"])
    assert refused.exit_code == 2
    assert "model-in-use" in refused.output
    assert (data / "models" / "other-2.0.0").is_dir()


def test_an_environment_variable_goes_before_the_chosen_default(data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VISCERA_DEFAULT_MODEL", "viscera-compact")
    result = run(app, ["models", "default", "other"])
    assert "VISCERA_DEFAULT_MODEL is set to viscera-compact" in result.output
    assert "(default)" not in run(app, ["models", "show", "other"]).output


def test_an_installed_model_is_removed_and_the_packaged_one_is_not(data: Path):
    assert run(app, ["models", "remove", "other-2.0.0"]).exit_code == 0
    assert list((data / "models").iterdir()) == []
    packaged = run(app, ["models", "remove", "viscera-compact"])
    assert packaged.exit_code == 2
    assert "came with the package" in packaged.output


@pytest.mark.parametrize("command", ["show", "default", "remove"])
def test_a_model_that_is_not_here_is_named(data: Path, command: str):
    result = run(app, ["models", command, "vista"])
    assert result.exit_code == 2
    assert "'vista'" in result.output
    assert "other-2.0.0" in result.output


def test_pulled_weights_become_a_model(data: Path, weights: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[list[str]] = []

    def run_export(command: list[str], **_: object) -> SimpleNamespace:
        asked.append(command)
        write_model(Path(command[command.index("--out") + 1]), "universal-unet", "1.0.0")
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(pull.subprocess, "run", run_export)
    result = run(app, ["models", "pull", "universal-unet", "--accept-licence", "--weights", str(weights)])

    assert result.exit_code == 0, result.output
    assert asked[0][1:3] == ["import", str(weights)]
    assert "CC-BY-NC-ND-4.0" in result.output
    assert sha256(b"weights").hexdigest() in result.output
    assert "universal-unet-1.0.0" in run(app, ["models", "list"]).output


def test_the_licence_comes_before_everything_else(data: Path, weights: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pull.subprocess, "run", lambda *_, **__: pytest.fail("nothing may run"))
    result = run(app, ["models", "pull", "universal-unet", "--weights", str(weights)])
    assert result.exit_code == 2
    assert "not for commercial use" in " ".join(result.output.split())
    assert "--accept-licence" in result.output


def test_unknown_weights_are_answered_with_those_there_are(data: Path):
    result = run(app, ["models", "pull", "universal-resnet", "--accept-licence"])
    assert result.exit_code == 2
    assert "universal-swin-unetr" in result.output


def test_a_file_that_the_export_refuses_is_an_error_and_no_model(data: Path, weights: Path):
    result = run(app, ["models", "pull", "universal-unet", "--accept-licence", "--weights", str(weights)])
    assert result.exit_code == 2
    assert "pull-failed" in result.output
    assert sorted(path.name for path in (data / "models").iterdir()) == ["other-2.0.0"]


def test_without_a_network_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch):
    def no_network(*_: object) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=no_network))
    with pytest.raises(PullFailed, match=r"ConnectionError. Check the network, or fetch the file elsewhere"):
        pull.download_from_hub(pull.PUBLISHED["universal-unet"])


def test_without_the_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(PullFailed, match=r"viscera\[pull\]"):
        pull.download_from_hub(pull.PUBLISHED["universal-unet"])
