"""fp16 and bf16 in a bundle: offered when they hold, run by the service, and true to what the manifest says."""

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from typer.testing import CliRunner

from model_export.bundle import write_bundle
from model_export.cli import app
from model_export.engines import reason_against
from model_export.errors import ExportError
from model_export.precisions import BF16, FP16, FP32, PRECISIONS, precisions_of
from model_export.verify import verify_bundle
from service.inference.model import load_bundle
from tests.export.conftest import LABEL_NAMES
from tests.support.networks import narrow_model
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.config import ModelConfig
from training.networks.universal import UniversalModel
from training.phantom.phantom import TRUNK, draw_phantom
from training.text import TextProvenance, embedding_sha256

# Masks of random weights have voxels near the threshold everywhere, which trained ones do not.
LENIENT = (FP32, replace(FP16, least_dice=0.5), replace(BF16, least_dice=0.001))
COMPUTES_BF16 = reason_against("openvino", BF16) is None
Json = dict[str, Any]


def manifest_of(bundle: Path) -> Json:
    content: Json = json.loads((bundle / "manifest.json").read_text())
    return content


def write(checkpoint: Checkpoint, folder: Path) -> Path:
    return write_bundle(checkpoint, folder, name="viscera-small", version="1.0.0", precisions=LENIENT)


@pytest.fixture(scope="module")
def bundle(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All precisions of a small compact network."""
    return write(checkpoint, tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What holds for random weights, for the commands too."""
    for precision in LENIENT:
        monkeypatch.setitem(PRECISIONS, precision.name, precision)


def test_fp16_has_a_file_of_half_the_size_and_bf16_none(bundle: Path) -> None:
    entries = {entry["name"]: entry for entry in manifest_of(bundle)["precisions"]}
    assert entries.keys() == {"fp32", "fp16"} | ({"bf16"} if COMPUTES_BF16 else set())
    assert [entries["fp16"]["file"], entries["fp16"]["hint"]] == ["backbone-fp16.onnx", None]
    sizes = [(bundle / name).stat().st_size for name in ("backbone.onnx", "backbone-fp16.onnx")]
    assert sizes[1] < 0.55 * sizes[0]
    assert "backbone-fp16.onnx" in manifest_of(bundle)["files"]
    if COMPUTES_BF16:
        assert [entries["bf16"]["file"], entries["bf16"]["hint"]] == ["backbone.onnx", "bf16"]
        assert [parity["engine"] for parity in entries["bf16"]["parity"]] == ["openvino"]


def test_fp16_graph_is_float32_at_both_ends_and_in_its_norms(bundle: Path) -> None:
    graph = onnx.load(bundle / "backbone-fp16.onnx").graph
    ends = (*graph.input, *graph.output)
    assert [value.name for value in ends] == ["window", "features", "pooled"]
    assert all(value.type.tensor_type.elem_type == TensorProto.FLOAT for value in ends)
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    weights = Counter(types[node.input[1]] for node in graph.node if node.op_type in ("Conv", "ConvTranspose"))
    assert set(weights) == {TensorProto.FLOAT16}
    roots = {name for node in graph.node if node.op_type == "Sqrt" for name in node.output}
    reciprocals = [node for node in graph.node if node.op_type == "Reciprocal"]
    assert reciprocals
    assert all(node.input[0] in roots for node in reciprocals)  # no cast to float16 in between


def test_the_repeated_casts_of_older_converters_become_one(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime before 1.32 casts a result once for each node that reads it; the file is the same."""
    from model_export import half

    convert = half._converter()

    def older(graph: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
        made = convert(graph, **options)
        casts = [node for node in made.graph.node if node.output[0].endswith("_cast_to_fp32")]
        assert casts
        made.graph.node.extend(casts)
        return made

    monkeypatch.setattr(half, "_converter", lambda: older)
    half.write_half(bundle / "backbone.onnx", tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (bundle / "backbone-fp16.onnx").read_bytes()


def test_two_writings_of_fp16_give_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    from model_export.half import write_half

    write_half(bundle / "backbone.onnx", tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (bundle / "backbone-fp16.onnx").read_bytes()


def phantom_windows(config: ModelConfig) -> list[np.ndarray]:
    """The six fullest tiles of the phantom, cut and mapped here a second time."""
    hu = draw_phantom(2_000_003, spacing_mm=config.spacing_mm, field_of_view=TRUNK).hu.astype(np.float64)
    nx, ny, nz = config.roi_size
    tiles = []
    for x in range(0, hu.shape[0], nx):
        for y in range(0, hu.shape[1], ny):
            for z in range(0, hu.shape[2], nz):
                tile = np.full(config.roi_size, -1000.0)
                part = hu[x : x + nx, y : y + ny, z : z + nz]
                tile[: part.shape[0], : part.shape[1], : part.shape[2]] = part
                tiles.append(tile)
    tiles.sort(key=lambda tile: -(tile > -300).sum())  # stable, as the order of the tiles is
    return [(np.clip(tile, -1000, 1000) / 1000).astype(np.float32) for tile in tiles[:6]]


def dice_by_label(logits: list[np.ndarray], expected: list[np.ndarray]) -> dict[str, float]:
    """Of masks as sets of voxels, for every label that either has."""
    dice = {}
    for channel, label in enumerate(LABEL_NAMES):
        mine, theirs = ({(n, *voxel) for n, one in enumerate(many) for voxel in np.argwhere(one[channel] > 0)}
                        for many in (logits, expected))  # fmt: skip
        if mine or theirs:
            dice[label] = 2 * len(mine & theirs) / (len(mine) + len(theirs))
    return dice


def test_numbers_of_the_manifest_are_those_of_the_service(bundle: Path, checkpoint: Checkpoint) -> None:
    """Logits through the service's own line against torch.

    The numbers are of the file. In bf16 the service keeps the end of it in float32: its masks are as good at least, and
    without that they are those of the manifest.
    """
    windows = phantom_windows(checkpoint.config)
    with torch.inference_mode():
        expected = [checkpoint.model(torch.from_numpy(window)[None, None]).numpy()[0] for window in windows]
    for entry in manifest_of(bundle)["precisions"]:
        for parity in entry["parity"]:
            model = load_bundle(bundle, engine=parity["engine"], precision=entry["name"])  # passes its self-test
            assert model.predictor.engine.precision == entry["name"]
            logits = [model.logits(window[None])[0] for window in windows]
            worst = max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(logits, expected, strict=True))
            # The manifest's worst is over the synthetic windows too.
            assert 0.0 < worst <= 1.05 * parity["max_relative_error"]
            dice = dice_by_label(logits, expected)
            stated = parity["masks"]
            if entry["name"] == "bf16":
                assert all(stated["dice"][label] <= value + 2e-3 for label, value in dice.items())
                with patch("service.inference.read_out.read_out_in_float32"):
                    as_the_file = load_bundle(bundle, engine=parity["engine"], precision=entry["name"])
                dice = dice_by_label([as_the_file.logits(window[None])[0] for window in windows], expected)
            assert stated["dice"].keys() == dice.keys()
            assert len(dice) > 5
            for label, value in dice.items():
                assert stated["dice"][label] == pytest.approx(value, abs=2e-3), (entry["name"], parity["engine"], label)
            assert stated["lowest_dice"] == min(stated["dice"].values())
            assert (stated["source"], stated["windows"]) == ("phantom", 6)
            assert parity["seconds_per_window"] > 0.0
            assert parity["torch_seconds_per_window"] > 0.0


def test_what_does_not_hold_is_not_written_and_the_card_says_so(checkpoint: Checkpoint, tmp_path: Path) -> None:
    impossible = replace(FP16, least_dice=1.01)
    bundle = write_bundle(checkpoint, tmp_path, name="viscera-small", version="1.0.0", precisions=(FP32, impossible))
    assert [entry["name"] for entry in manifest_of(bundle)["precisions"]] == ["fp32"]
    assert not (bundle / "backbone-fp16.onnx").exists()
    rows = [line for line in (bundle / "MODEL_CARD.md").read_text().splitlines() if line.startswith("| fp16 |")]
    assert len(rows) == 2
    assert all("| no: Dice " in row and "needed: 1.01" in row for row in rows)


@pytest.fixture(scope="module")
def small_unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow network of a published layout, with a small window."""
    model = narrow_model("unet")
    config = model.config.model_copy(update={"roi_size": (32, 32, 32), "output_range": (-1.0, 1.0)})
    narrow = UniversalModel(config, model.text_embedding)
    narrow.load_state_dict(model.state_dict())
    path = tmp_path_factory.mktemp("checkpoint") / "unet.pt"
    text = TextProvenance(
        "random", "A computerized tomography of a {}.", "made here", embedding_sha256(narrow.text_embedding)
    )
    save_checkpoint(path, narrow.eval(), label_names=LABEL_NAMES, text=text, training={"data": "nothing"})
    return path


@pytest.mark.slow  # the import of this layout, in fp32, is among the quick ones
def test_a_network_of_a_published_layout_has_precisions_too(small_unet: Path, tmp_path: Path, lenient: None) -> None:
    bundle = write(load_checkpoint(small_unet), tmp_path)
    manifest = manifest_of(bundle)
    fp16 = next(entry for entry in manifest["precisions"] if entry["name"] == "fp16")
    assert fp16["parity"]
    assert all(1e-5 < parity["max_relative_error"] < 0.1 for parity in fp16["parity"])
    for entry in manifest["precisions"]:
        for parity in entry["parity"]:
            load_bundle(bundle, engine=parity["engine"], precision=entry["name"])
    assert verify_bundle(bundle, small_unet).failures == ()


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_commands_write_and_verify_every_precision(checkpoint_path: Path, tmp_path: Path, lenient: None) -> None:
    written = run("bundle", checkpoint_path, "--out", tmp_path, "--name", "viscera-small", "--version", "1.0.0",
                  "--precisions", "fp32,fp16,bf16")  # fmt: skip
    assert written.exit_code == 0, written.stderr
    assert "backbone-fp16.onnx" in written.stdout
    verified = run("verify", tmp_path / "viscera-small-1.0.0", "--checkpoint", checkpoint_path)
    assert verified.exit_code == 0, verified.stderr
    for row in ("fp32", "fp16") + (("bf16",) if COMPUTES_BF16 else ()):
        assert row in verified.stdout
    assert "time/torch" in verified.stdout


def _rehash(bundle: Path) -> None:
    manifest = manifest_of(bundle)
    for name in manifest["files"]:
        content = (bundle / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_verify_catches_another_precision_file(bundle: Path, checkpoint_path: Path, tmp_path: Path) -> None:
    """One weight tensor upside down, the manifest's hash made to fit: only measuring again can tell."""
    copy = tmp_path / bundle.name
    shutil.copytree(bundle, copy)
    graph = onnx.load(copy / "backbone-fp16.onnx")
    largest = max(graph.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    largest.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(largest), largest.name))
    onnx.save(graph, copy / "backbone-fp16.onnx")
    altered = run("verify", copy, "--checkpoint", checkpoint_path)
    assert altered.exit_code == 2
    assert "backbone-fp16.onnx was altered" in altered.stderr
    _rehash(copy)
    failures = verify_bundle(copy, checkpoint_path).failures
    assert [failure for failure in failures if "fp16 (Dice " in failure or "fp16 (off" in failure]
    assert not [failure for failure in failures if "fp32" in failure]


def test_verify_catches_a_hint_that_is_not_the_precisions(bundle: Path, checkpoint_path: Path, tmp_path: Path) -> None:
    copy = tmp_path / bundle.name
    shutil.copytree(bundle, copy)
    manifest = manifest_of(copy)
    manifest["precisions"][0]["hint"] = "bf16"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert "fp32 file and hint" in verify_bundle(copy, checkpoint_path).failures


def test_precisions_by_name() -> None:
    assert precisions_of(["bf16", "fp32"]) == (FP32, BF16)
    with pytest.raises(ExportError, match="no precision 'int8'; choose from fp32, fp16, bf16"):
        precisions_of(["fp32", "int8"])
    with pytest.raises(ExportError, match="Every bundle holds fp32"):
        precisions_of(["fp16"])


def test_unknown_precision_is_one_line(checkpoint_path: Path, tmp_path: Path) -> None:
    result = run("bundle", checkpoint_path, "--out", tmp_path / "out", "--name", "a", "--version", "1.0.0",
                 "--precisions", "fp32,int8")  # fmt: skip
    assert result.exit_code == 2
    assert "There is no precision 'int8'" in result.stderr
    assert not (tmp_path / "out").exists()
