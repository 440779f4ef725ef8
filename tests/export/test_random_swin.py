"""What benchmarks run with: a network of random weights offers the precision asked for, whatever it finds."""

import json
from pathlib import Path

import pytest

from benchmarks import random_swin
from tests.support.training import tiny_recipe


@pytest.mark.parametrize("finds_nothing", [False, True])
def test_every_precision_is_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finds_nothing: bool) -> None:
    monkeypatch.setattr(random_swin, "read_recipe", lambda _: tiny_recipe())
    written = random_swin.random_swin(tmp_path, precisions=("fp32", "fp16"), finds_nothing=finds_nothing)
    offered = json.loads((written.bundle / "manifest.json").read_text())["precisions"]
    assert [precision["name"] for precision in offered] == ["fp32", "fp16"]
    lowest = [engine["masks"]["lowest_dice"] for precision in offered for engine in precision["parity"]]
    assert all((dice is None) is finds_nothing for dice in lowest)
