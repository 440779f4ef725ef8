"""Opening a bundle: one altered byte, one unknown version, one missing file, and it is refused by name."""

import hashlib
import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from service.errors import (
    BundleInvalid,
    BundleNotFound,
    BundleTampered,
    PrecisionNotOffered,
    UnknownLabel,
    UnknownSchemaVersion,
)
from service.inference import bundle as bundle_module
from service.inference.bundle import Bundle, default_bundle_path, find_bundles, open_bundle
from service.inference.model import load_bundle
from tests.support.tiny_bundle import read_manifest, write_manifest, write_tiny_bundle


@pytest.fixture
def bundle_path(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path)


def zipped(folder: Path, prefix: str = "") -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.iterdir():
            archive.write(file, prefix + file.name)
    return path


def test_what_an_open_bundle_holds(tiny_path: Path, tiny_bundle: Bundle) -> None:
    assert tiny_bundle.sha256 == hashlib.sha256((tiny_path / "manifest.json").read_bytes()).hexdigest()
    assert tiny_bundle.head.k.shape == (4, 153)
    assert tiny_bundle.head.w_image.shape == (153, 256)
    assert tiny_bundle.sample.logits.shape == (1, 4, 24, 24, 24)
    assert tiny_bundle.sample.logits.dtype == np.float32
    assert tiny_bundle.backbone(tiny_bundle.precision("fp32")) == (tiny_path / "backbone.onnx").read_bytes()
    with pytest.raises(PrecisionNotOffered, match=r"no precision 'bf16'; it has fp32 \(onnxruntime and openvino\)"):
        tiny_bundle.precision("bf16")


@pytest.mark.parametrize("prefix", ["", "viscera-tiny-1.0.0/"])
def test_a_zip_is_the_same_bundle(bundle_path: Path, prefix: str) -> None:
    assert open_bundle(zipped(bundle_path, prefix)).sha256 == open_bundle(bundle_path).sha256


@pytest.mark.parametrize("name", ["backbone.onnx", "head.safetensors", "sample.npz", "MODEL_CARD.md", "LICENSE"])
@pytest.mark.parametrize("as_zip", [False, True])
def test_one_altered_byte_is_refused_by_the_files_name(bundle_path: Path, name: str, as_zip: bool) -> None:
    file = bundle_path / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleTampered, match=name):
        open_bundle(zipped(bundle_path) if as_zip else bundle_path)


def test_a_damaged_zip_entry_is_refused_by_the_files_name(bundle_path: Path) -> None:
    path = zipped(bundle_path)
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("head.safetensors")
    content = bytearray(path.read_bytes())
    middle = entry.header_offset + 30 + len(entry.filename) + entry.compress_size // 2
    content[middle : middle + 8] = b"\xff" * 8
    path.write_bytes(content)
    with pytest.raises(BundleTampered, match=r"head\.safetensors"):
        open_bundle(path)


@pytest.mark.parametrize("change", ["missing", "longer", "shorter", "folder"])
def test_a_file_that_is_not_as_described_is_refused(bundle_path: Path, change: str) -> None:
    card = bundle_path / "MODEL_CARD.md"
    content = card.read_bytes()
    card.unlink()
    if change == "longer":
        card.write_bytes(content + b" ")
    elif change == "shorter":
        card.write_bytes(content[:-1])
    elif change == "folder":
        card.mkdir()
    with pytest.raises(BundleTampered, match=r"MODEL_CARD\.md"):
        open_bundle(bundle_path)


@pytest.mark.parametrize("version", [0, 2, "1", 1.0, True, None])
def test_an_unknown_schema_version_is_refused_before_anything_else(bundle_path: Path, version: object) -> None:
    (bundle_path / "backbone.onnx").unlink()
    manifest = {"schema_version": version, "what": "a manifest of another time"}
    write_manifest(bundle_path, manifest)
    with pytest.raises(UnknownSchemaVersion, match="reads version 1"):
        open_bundle(bundle_path)


def test_a_manifest_off_schema_says_where(bundle_path: Path) -> None:
    manifest = read_manifest(bundle_path)
    manifest["labels"][2]["threshold"] = 2.0
    write_manifest(bundle_path, manifest)
    with pytest.raises(BundleInvalid, match=r"manifest\.json: labels\[2\]\.threshold: .*less than 1"):
        open_bundle(bundle_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00", "[" * 100_000])
def test_a_manifest_that_is_not_json_is_refused(bundle_path: Path, content: str) -> None:
    (bundle_path / "manifest.json").write_text(content)
    with pytest.raises(BundleInvalid, match="JSON"):
        open_bundle(bundle_path)


def test_a_listed_name_cannot_lead_out_of_the_bundle(bundle_path: Path) -> None:
    outside = bundle_path.parent / "secret"
    outside.write_text("secret")
    manifest = read_manifest(bundle_path)
    write_manifest(bundle_path, manifest)
    manifest["files"]["../secret"] = {"sha256": hashlib.sha256(b"secret").hexdigest(), "bytes": 6}
    (bundle_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleInvalid, match="files"):
        open_bundle(bundle_path)


def test_a_file_that_is_not_listed_is_ignored(bundle_path: Path) -> None:
    before = open_bundle(bundle_path)
    (bundle_path / ".DS_Store").write_bytes(b"left by a file manager")
    after = open_bundle(bundle_path)
    assert after.sha256 == before.sha256
    assert set(after.files) == set(before.files)


def test_nothing_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFound):
        open_bundle(tmp_path / "none")
    with pytest.raises(BundleNotFound, match=r"no manifest\.json"):
        open_bundle(tmp_path)
    empty = tmp_path / "empty.zip"
    with zipfile.ZipFile(empty, "w"):
        pass
    with pytest.raises(BundleNotFound):
        open_bundle(empty)


def test_a_file_that_is_no_zip_is_invalid(tmp_path: Path) -> None:
    text = tmp_path / "bundle.zip"
    text.write_text("not a zip")
    with pytest.raises(BundleInvalid, match="zip"):
        open_bundle(text)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"W_image": np.zeros((153, 256), np.float32)}, "no array K"),
        (
            {"W_image": np.zeros((153, 256), np.float32), "K": np.zeros((3, 153), np.float32)},
            r"K is float32 \(3, 153\)",
        ),
        ({"W_image": np.zeros((153, 256), np.float64), "K": np.zeros((4, 153), np.float32)}, "W_image is float64"),
        ({"W_image": np.zeros((153, 256), np.float32), "K": np.full((4, 153), np.nan, np.float32)}, "not finite"),
    ],
)
def test_a_head_of_another_form_is_refused(bundle_path: Path, tensors: dict[str, np.ndarray], message: str) -> None:
    save_file(tensors, bundle_path / "head.safetensors")
    write_manifest(bundle_path, read_manifest(bundle_path))
    with pytest.raises(BundleInvalid, match=message):
        open_bundle(bundle_path)


def test_a_head_that_is_no_safetensors_is_refused(bundle_path: Path) -> None:
    (bundle_path / "head.safetensors").write_bytes(b"pickle")
    write_manifest(bundle_path, read_manifest(bundle_path))
    with pytest.raises(BundleInvalid, match="not a safetensors"):
        open_bundle(bundle_path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"window": np.zeros((1, 1, 48, 48, 48), np.float16)}, "window and its logits"),
        ({"window": np.zeros((1, 1, 48, 48, 40), np.float16), "logits": np.zeros(1)}, "multiples of 16"),
        (
            {"window": np.zeros((1, 1, 48, 48, 48), np.float16), "logits": np.zeros((1, 4, 48, 48, 48), np.float16)},
            r"\(1, 4, 24, 24, 24\) belongs there",
        ),
        ({"window": np.array([{"a": "pickle"}], dtype=object), "logits": np.zeros(1)}, "window and its logits"),
    ],
)
def test_a_sample_of_another_form_is_refused(bundle_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    (bundle_path / "sample.npz").write_bytes(buffer.getvalue())
    write_manifest(bundle_path, read_manifest(bundle_path))
    with pytest.raises(BundleInvalid, match=message):
        open_bundle(bundle_path)


def test_labels_by_name_keep_the_bundles_order(tiny_bundle: Bundle) -> None:
    assert [label.name for label in tiny_bundle.labels_for(["lung", "liver"])] == ["liver", "lung"]
    assert tiny_bundle.labels_for(None) == tiny_bundle.manifest.labels
    with pytest.raises(UnknownLabel, match="no label, group or code 'spleen'"):
        tiny_bundle.labels_for(["liver", "spleen"])


def test_finding_bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_path: Path) -> None:
    packaged, extra = tmp_path / "packaged", tmp_path / "extra"
    monkeypatch.setattr(bundle_module, "BUNDLES_DIR", packaged)
    with pytest.raises(BundleNotFound, match="not in this installation"):
        default_bundle_path()

    for version in ("1.9.0", "1.10.0"):
        shutil.copytree(tiny_path, packaged / f"viscera-compact-{version}")
    shutil.copytree(tiny_path, extra / "mine-1.0.0")
    (extra / "not-a-bundle").mkdir()

    assert default_bundle_path().name == "viscera-compact-1.10.0"
    found = [path.name for path in find_bundles([extra, tmp_path / "absent"])]
    assert found == ["mine-1.0.0", "viscera-compact-1.10.0", "viscera-compact-1.9.0"]


def test_a_model_that_is_open_keeps_no_bytes_of_its_files(tiny_path: Path) -> None:
    model = load_bundle(tiny_path)
    assert model.bundle.files == model.predictor.bundle.files == {}
    assert model.bundle.sha256 == open_bundle(tiny_path).sha256
