"""`viscera doctor`, and what every command has in common."""

import subprocess
import sys
from pathlib import Path

import openvino
import pytest
import torch
from typer.testing import CliRunner

from service.cli import app, doctor
from service.settings import Settings
from tests.support.tiny_bundle import write_tiny_bundle

run = CliRunner().invoke


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("VISCERA_DATA_DIR", str(tmp_path / "data"))
    return monkeypatch


def test_a_sound_installation_has_everything(tiny: Path, settings):
    settings.setenv("VISCERA_BUNDLES_DIR", f'["{tiny.parent}"]')
    settings.setenv("VISCERA_DEFAULT_MODEL", "viscera-tiny")

    result = run(app, ["doctor"])

    assert result.exit_code == 0, result.output
    assert "viscera-tiny-1.0.0, self-test passed with openvino in fp32" in result.output
    assert "Everything needed is here." in result.output


def test_an_altered_bundle_is_missing_with_its_remedy(tiny: Path, settings, tmp_path: Path):
    altered = write_tiny_bundle(tmp_path / "altered")
    with (altered / "head.safetensors").open("r+b") as head:
        head.seek(-1, 2)
        head.write(b"\xff")
    settings.setenv("VISCERA_BUNDLES_DIR", f'["{altered.parent}"]')
    settings.setenv("VISCERA_DEFAULT_MODEL", "viscera-tiny")

    result = run(app, ["doctor"])

    assert result.exit_code == 1
    assert "missing default model" in result.output
    assert "VISCERA_BUNDLES_DIR" in result.output


def test_what_cannot_be_used_is_named(settings, tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    settings.setenv("VISCERA_DATA_DIR", str(tmp_path / "file"))
    settings.setenv("VISCERA_DATABASE_URL", f"sqlite:///{tmp_path / 'file'}")
    settings.setenv("VISCERA_BROKER_URL", "redis://127.0.0.1:9/0")
    settings.setenv("VISCERA_DEFAULT_MODEL", "none-such")

    result = run(app, ["doctor"])

    assert result.exit_code == 1
    for name in ("data folder", "database", "broker", "default model"):
        assert f"missing {name}" in result.output
    assert "4 missing." in result.output


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(doctor, "_installed", lambda name: name != "nibabel")

    (check,) = doctor.check_packages()

    assert (check.verdict, check.remedy) == (doctor.Verdict.MISSING, "pip install nibabel")


def test_no_engine_is_missing(monkeypatch):
    monkeypatch.setattr(doctor, "_openvino", lambda: iter(()))
    monkeypatch.setattr(doctor, "_onnxruntime", lambda: iter(()))

    (check,) = doctor.check_engines()

    assert check.verdict is doctor.Verdict.MISSING
    assert "viscera[cpu]" in check.remedy


def test_a_nearly_full_disk_is_noted(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(doctor, "LOW_DISK_BYTES", 1 << 80)

    folder, space = doctor.check_data_folder(Settings(data_dir=tmp_path))

    assert (folder.verdict, space.verdict) == (doctor.Verdict.OK, doctor.Verdict.NOTE)


def test_help_and_version_need_no_numerical_stack_and_no_server():
    code = (
        "import sys, service.cli; from typer.testing import CliRunner\n"
        "for option in ('--help', '--version'):\n"
        "    assert CliRunner().invoke(service.cli.app, [option]).exit_code == 0\n"
        "heavy = {'numpy', 'torch', 'pydicom', 'fastapi', 'celery', 'sqlalchemy', 'httpx'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(__file__).parents[2])


def test_the_api_process_has_no_numerical_stack():
    # pydicom reads the heads of what comes by STOW-RS, and takes numpy where it finds it.
    code = (
        "import sys, service.main, service.openapi\n"
        "heavy = {'torch', 'onnxruntime', 'openvino', 'nibabel', 'scipy', 'highdicom'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(__file__).parents[2])


def test_a_gpu_that_cannot_be_used_is_noted_and_missing_only_where_it_is_asked_for(tiny: Path, settings):
    settings.setenv("VISCERA_BUNDLES_DIR", f'["{tiny.parent}"]')
    settings.setenv("VISCERA_DEFAULT_MODEL", "viscera-tiny")
    settings.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])

    (noted,) = doctor.check_gpu(Settings())
    (missing,) = doctor.check_gpu(Settings(engine="tensorrt"))

    assert noted.verdict is doctor.Verdict.NOTE
    assert "without CUDAExecutionProvider: pip install 'viscera[gpu]'" in noted.detail
    assert missing.verdict is doctor.Verdict.MISSING
    assert "without TensorrtExecutionProvider" in missing.detail
    assert "VISCERA_ENGINE" in missing.remedy


def test_a_faster_precision_of_this_processor_is_noted_until_it_is_used(settings):
    """With the default model as it is shipped, on a processor that says what it computes in, and how fast."""
    computes, has = ["FP32"], {"avx512_fp16": True, "cpu_name": "Intel Xeon"}
    settings.setattr(torch.cpu, "get_capabilities", lambda: has)

    class Processor(openvino.Core):
        def get_property(self, *_names: str) -> list[str]:
            return computes

        def compile_model(self, model: openvino.Model, device: str, options: dict[str, object]) -> object:
            return super().compile_model(model, device, {**options, "INFERENCE_PRECISION_HINT": "f32"})

    settings.setattr(openvino, "Core", Processor)

    def noted(**chosen: str) -> list[doctor.Check]:
        checks = list(doctor.check_default_model(Settings(**chosen)))
        assert checks[0].verdict is doctor.Verdict.OK
        return checks[1:]

    assert noted() == []
    computes.append("BF16")
    has["avx512_bf16"] = True
    assert noted() == []  # without AMX fp32 is faster there
    has["amx_bf16"] = True
    assert noted(precision="bf16") == noted(engine="onnxruntime") == []
    (note,) = noted()
    assert note.verdict is doctor.Verdict.NOTE
    assert "viscera-compact is faster on this processor in bf16" in note.detail
    assert "VISCERA_PRECISION to bf16" in note.remedy
