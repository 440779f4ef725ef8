"""The bundle that is shipped: its promises, and that an altered one is refused."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from service.errors import BundleTampered, EngineUnavailable, SelfTestFailed, UnknownSchemaVersion
from service.inference.bundle import default_bundle_path, open_bundle
from service.inference.engines import CPU_ENGINES, open_engine
from service.inference.model import load_bundle
from service.inference.predictor import Predictor
from training.labels import LABELS
from training.phantom.phantom import FieldOfView, draw_phantom


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


def test_its_convolutions_are_rounded_to_bfloat16():
    """So that float32 and bfloat16 compute with the same weights: docs/weights.md, Precisions."""
    graph = onnx.load(default_bundle_path() / "backbone.onnx").graph
    values = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    inputs = [name for node in graph.node if node.op_type in ("Conv", "ConvTranspose") for name in node.input[1:]]
    assert len(inputs) == 44
    assert all(torch.equal(values[name], values[name].bfloat16().float()) for name in inputs)


def test_bfloat16_gives_the_masks_of_float32():
    """Two windows of a phantom, nothing blended; structures of at least 2 ml."""
    try:
        rounded = load_bundle(precision="bf16")
    except EngineUnavailable as error:
        assert "this processor does not compute in bf16" in error.detail  # noqa: PT017  # the reason, not the error
        pytest.skip("this processor does not compute in bf16; one with AMX or the bf16 of AVX-512 does")
    exact = load_bundle(engine="openvino")
    phantom = draw_phantom(44, spacing_mm=(2.0, 2.0, 2.0), field_of_view=FieldOfView(low_z=-200.0, high_z=100.0))
    hu = np.clip(phantom.hu, -1000, 1000) / np.float32(1000)
    middle = hu.shape[1] // 2 - 48
    windows = np.stack(
        [hu[x : x + 96, middle : middle + 96, 30:126] for x in (hu.shape[0] // 2 - 96, hu.shape[0] // 2)]
    )
    masks, expected = (model.logits(windows) > 0 for model in (rounded, exact))
    large = [c for c in range(len(LABELS)) if expected[:, c].sum() * 0.064 >= 2.0]
    assert len(large) >= 10
    for channel in large:
        ours, theirs = masks[:, channel], expected[:, channel]
        assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) >= 0.99, LABELS[channel].name


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
