"""The engines' makers hear nothing: neither onnxruntime nor OpenVINO may leave what it would send."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BACKBONE = Path(__file__).parents[2] / "service" / "bundles" / "viscera-compact-2.4.2" / "backbone.onnx"


@pytest.mark.parametrize("package", ["service", "model_export"])
def test_engines_write_no_identifier_and_no_queue_of_events(package: str, tmp_path: Path) -> None:
    code = f"""
import {package}, onnxruntime, openvino
onnxruntime.InferenceSession({str(BACKBONE)!r}, providers=["CPUExecutionProvider"])
openvino.Core()
"""
    silenced = ("CI", "XDG_CACHE_HOME", "ORT_DISABLE_TELEMETRY")  # by which they would say nothing anyway
    environment = {name: value for name, value in os.environ.items() if name not in silenced}
    subprocess.run([sys.executable, "-c", code], env={**environment, "HOME": str(tmp_path)}, check=True)
    assert list(tmp_path.rglob("*")) == []
