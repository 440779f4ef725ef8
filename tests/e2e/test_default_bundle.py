"""The bundle that is shipped: its promises, and that an altered one is refused."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from service.errors import BundleTampered, SelfTestFailed, UnknownSchemaVersion
from service.inference.bundle import default_bundle_path, open_bundle
from service.inference.engines import CPU_ENGINES, open_engine
from service.inference.model import load_bundle
from service.inference.predictor import Predictor
from training.labels import LABELS


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(default_bundle_path(), tmp_path / default_bundle_path().name))


def test_it_is_at_most_12_megabytes_and_knows_every_label():
    files = [file for file in default_bundle_path().rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 12_000_000
    assert [label.name for label in open_bundle(default_bundle_path()).manifest.labels] == [
        label.name for label in LABELS
    ]


def test_the_card_says_what_it_is():
    card = (default_bundle_path() / "MODEL_CARD.md").read_text()
    assert "phantom" in card
    assert "not a medical device" in card.lower()


@pytest.mark.parametrize("scene", ["tissue", "air", "a body in air"])
def test_the_engines_agree_on_a_whole_window(scene: str):
    """On what is constant, too, of which a norm would enlarge the rounding."""
    bundle = open_bundle(default_bundle_path())
    size, (air, most) = bundle.manifest.sliding_window.roi_size, bundle.manifest.preprocessing.output_range
    window = torch.full((1, *size), air)
    body = {"tissue": slice(0, 96), "air": slice(0, 0), "a body in air": slice(30, 70)}[scene]
    window[:, body, body].uniform_(air, most, generator=torch.Generator().manual_seed(0))

    one, other = (Predictor(bundle, open_engine(bundle, name, threads=1))(window) for name in CPU_ENGINES)

    assert float((one - other).abs().max() / other.abs().max()) < 1e-4


@pytest.mark.parametrize("name", ["backbone.onnx", "head.safetensors", "sample.npz", "MODEL_CARD.md"])
def test_one_altered_byte_is_refused(copy: Path, name: str):
    raw = bytearray((copy / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (copy / name).write_bytes(bytes(raw))
    with pytest.raises(BundleTampered, match=name):
        open_bundle(copy)


def test_unknown_schema_version_is_refused(copy: Path):
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    with pytest.raises(UnknownSchemaVersion, match="99"):
        open_bundle(copy)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_failing_self_test_is_refused(copy: Path, engine: str):
    with np.load(copy / "sample.npz") as sample:
        np.savez(copy / "sample.npz", window=sample["window"], logits=sample["logits"] + np.float16(1.0))
    raw = (copy / "sample.npz").read_bytes()
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["sample.npz"] = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SelfTestFailed):
        load_bundle(copy, engine=engine)
