"""`viscera-export`, as a user calls it: exit code 0, or 2 with one line that says why."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from model_export.cli import app


def _run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _failed_with_one_line(result: Result) -> str:
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    (line,) = [line for line in result.stderr.splitlines() if line.strip()]
    assert line.startswith("error: ")
    return line


def test_bundle_then_verify(checkpoint_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    table = tmp_path / "evaluation.md"
    table.write_text("| label | Dice |\n|---|---|\n| liver | 0.97 |\n")
    options = ("--out", tmp_path / "out", "--name", "viscera-small", "--version", "1.2.3", "--evaluation", table)
    result = _run("bundle", checkpoint_path, *options)
    assert result.exit_code == 0, result.stderr
    bundle = tmp_path / "out" / "viscera-small-1.2.3"
    assert "backbone.onnx" in result.stdout
    assert str(bundle) in result.stdout
    assert "MB" in result.stdout
    assert "| liver | 0.97 |" in (bundle / "MODEL_CARD.md").read_text()
    assert '"created": "1970-01-01T00:00:00Z"' in (bundle / "manifest.json").read_text()

    assert "exists already" in _failed_with_one_line(_run("bundle", checkpoint_path, *options))

    verified = _run("verify", bundle, "--checkpoint", checkpoint_path)
    assert verified.exit_code == 0, verified.stderr
    assert "onnxruntime" in verified.stdout
    assert "sample logits" in verified.stdout
    assert "off" not in verified.stdout


def test_verify_sees_another_checkpoint(written_bundle: Path, write_checkpoint: Callable[..., Path]) -> None:
    result = _run("verify", written_bundle, "--checkpoint", write_checkpoint(1))
    line = _failed_with_one_line(result)
    for subject in ("checkpoint hash", "head W_image", "head K", "sample logits", "onnxruntime fp32"):
        assert subject in line
    assert "labels" not in line.split(":")[-1]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda bundle: (bundle / "head.safetensors").unlink(), "head.safetensors is in the manifest but not"),
        (lambda bundle: (bundle / "extra.bin").touch(), "extra.bin is in the bundle but not"),
        (lambda bundle: _flip_last_byte(bundle / "backbone.onnx"), "backbone.onnx was altered"),
        (lambda bundle: (bundle / "manifest.json").write_text("{"), "manifest.json is not JSON"),
        (lambda bundle: (bundle / "manifest.json").write_text("{}"), "manifest.json is off at $"),
        (lambda bundle: (bundle / "manifest.json").unlink(), "no readable manifest.json"),
    ],
)
def test_verify_refuses_a_damaged_bundle(
    written_bundle: Path, checkpoint_path: Path, tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    bundle = tmp_path / written_bundle.name
    shutil.copytree(written_bundle, bundle)
    damage(bundle)
    assert reason in _failed_with_one_line(_run("verify", bundle, "--checkpoint", checkpoint_path))


def _flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_bundle_refuses_in_one_line(checkpoint_path: Path, tmp_path: Path) -> None:
    options = ("--out", tmp_path / "out", "--name", "viscera-small", "--version", "1.2.3")
    assert "There is no checkpoint" in _failed_with_one_line(_run("bundle", tmp_path / "absent", *options))
    licensed = (*options, "--licence", "CC-BY-NC-ND-4.0")
    assert "needs its text" in _failed_with_one_line(_run("bundle", checkpoint_path, *licensed))
    evaluated = (*options, "--evaluation", tmp_path / "absent.md")
    assert "absent.md" in _failed_with_one_line(_run("bundle", checkpoint_path, *evaluated))
    assert not (tmp_path / "out").exists()
