"""A bundle is whole, true and reproducible; or it is not there."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from model_export.bundle import BundleTexts, bundle_bytes, creation_time, read_checkpoint, write_bundle
from model_export.card import _parity_table
from model_export.errors import BundleExists, CheckpointRefused, ExportError, ManifestInvalid, ParityError
from model_export.parity import EngineParity, PrecisionParity
from model_export.precisions import FP32
from model_export.sample import make_sample, read_sample
from training.checkpoint import Calibration, Checkpoint
from training.labels import LABELS
from training.networks.universal import UniversalModel

FILES = {"backbone.onnx", "head.safetensors", "sample.npz", "MODEL_CARD.md", "LICENSE", "bundle.schema.json"}


def test_every_file_is_listed_with_its_hash(written_bundle: Path) -> None:
    assert written_bundle.name == "viscera-small-1.2.3"
    assert {path.name for path in written_bundle.iterdir()} == FILES | {"manifest.json"}
    listed = json.loads((written_bundle / "manifest.json").read_text())["files"]
    for name in FILES:
        content = (written_bundle / name).read_bytes()
        assert listed[name] == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert listed.keys() == FILES
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in written_bundle.iterdir())
    assert [path.name for path in written_bundle.parent.iterdir()] == [written_bundle.name]  # no scratch left


def test_sample_is_the_torch_models_answer(written_bundle: Path, checkpoint: Checkpoint) -> None:
    with np.load(written_bundle / "sample.npz") as sample:
        window, logits = sample["window"], sample["logits"]
    assert window.shape == (1, 1, 48, 48, 48)
    assert logits.shape == (1, 32, 24, 24, 24)
    assert window.dtype == logits.dtype == np.float16
    with torch.inference_mode():
        expected = checkpoint.model(torch.from_numpy(window.astype(np.float32))).numpy()
    # Half a unit in the last place of float16 is 2^-11 = 4.9e-4 of the value.
    np.testing.assert_allclose(logits, expected, rtol=5e-4, atol=1e-7)


@pytest.mark.parametrize("threads", [1, 2])
def test_sample_does_not_depend_on_the_threads_of_the_process(
    threads: int, written_bundle: Path, checkpoint: Checkpoint
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        logits = make_sample(checkpoint.model, checkpoint.config).logits
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(logits, read_sample(written_bundle / "sample.npz").logits)


def test_only_creation_time_and_seconds_differ_between_two_writings(
    written_bundle: Path, checkpoint_path: Path, tmp_path: Path
) -> None:
    later = datetime(2026, 6, 7, tzinfo=UTC)
    again = write_bundle(
        read_checkpoint(checkpoint_path), tmp_path, name="viscera-small", version="1.2.3", created=later
    )
    for name in FILES - {"MODEL_CARD.md"}:  # it tells seconds
        assert (again / name).read_bytes() == (written_bundle / name).read_bytes(), name
    first, second = (json.loads((bundle / "manifest.json").read_text()) for bundle in (written_bundle, again))
    assert (first.pop("created"), second.pop("created")) == ("2025-01-02T03:04:05Z", "2026-06-07T00:00:00Z")
    for manifest in (first, second):
        del manifest["files"]["MODEL_CARD.md"]
        for parity in (parity for entry in manifest["precisions"] for parity in entry["parity"]):
            del parity["seconds_per_window"], parity["torch_seconds_per_window"]
    assert first == second


def test_an_existing_bundle_is_kept_unless_forced(checkpoint_path: Path, tmp_path: Path) -> None:
    target = tmp_path / "viscera-small-1.2.3"
    target.mkdir()
    (target / "mine.txt").write_text("kept")
    with pytest.raises(BundleExists, match=r"viscera-small-1\.2\.3 exists already"):
        write_bundle(read_checkpoint(checkpoint_path), tmp_path, name="viscera-small", version="1.2.3")
    assert (target / "mine.txt").read_text() == "kept"
    write_bundle(read_checkpoint(checkpoint_path), tmp_path, name="viscera-small", version="1.2.3", force=True)
    assert {path.name for path in target.iterdir()} == FILES | {"manifest.json"}
    assert os.listdir(tmp_path) == [target.name]  # noqa: PTH208  # names, hidden ones too


def _nan_weight(model: UniversalModel) -> None:
    model.controller.weight.data[3, 4] = torch.nan


def _infinite_statistics(model: UniversalModel) -> None:
    dict(model.named_buffers())["backbone.stem.1.1.running_var"][0] = torch.inf


def _huge_logits(model: UniversalModel) -> None:
    model.controller.weight.data *= 1e3


def _mute(model: UniversalModel) -> None:
    model.feature_head[2].weight.data.zero_()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_nan_weight, r"controller\.weight hold values that are not finite"),
        (_infinite_statistics, r"running_var hold values that are not finite"),
        (_huge_logits, "beyond the range of float16"),
        (_mute, "do not vary over the sample window"),
    ],
)
def test_weights_that_are_off_are_refused(
    write_checkpoint: Callable[..., Path], tmp_path: Path, change: Callable[[UniversalModel], None], reason: str
) -> None:
    _refused(write_checkpoint(change=change), tmp_path, reason)


def _names(write_checkpoint: Callable[..., Path], edit: Callable[[list[str]], None]) -> Path:
    names = [label.name for label in LABELS]
    edit(names)
    return write_checkpoint(label_names=tuple(names))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda names: names.pop(), "names 31 labels, its head has 32 rows"),
        (lambda names: names.__setitem__(0, "spleem"), "'spleem' is not in the label table"),
        (lambda names: names.__setitem__(0, "liver"), "names a label twice"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    write_checkpoint: Callable[..., Path], tmp_path: Path, edit: Callable[[list[str]], None], reason: str
) -> None:
    _refused(_names(write_checkpoint, edit), tmp_path, reason)


def test_a_lesion_without_its_host_is_refused(write_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    def keep_one_row(model: UniversalModel) -> None:
        model.text_embedding = model.text_embedding[:1].clone()

    path = write_checkpoint(change=keep_one_row, label_names=("kidney_cyst",))
    _refused(path, tmp_path, "'kidney_cyst' lies in 'kidney_right', which the checkpoint does not have")


def test_provenance_must_be_stated_and_true(write_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    _refused(write_checkpoint(text_sha256="0" * 64), tmp_path, "not the one whose hash the checkpoint states")
    silent = write_checkpoint(training={"steps": 7})
    _refused(silent, tmp_path, "does not say what it was trained on")
    texts = BundleTexts(trained_on="CT of volunteers")
    bundle = write_bundle(read_checkpoint(silent), tmp_path, name="viscera-small", version="1.2.3", texts=texts)
    card = (bundle / "MODEL_CARD.md").read_text()
    assert "Trained on: CT of volunteers" in card
    assert "trained on procedural phantoms" not in card


def test_a_manifest_that_would_be_off_is_refused_before_anything_is_measured(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_export.bundle._write_network", lambda *_: pytest.fail("measured"))
    nameless = replace(checkpoint, text=replace(checkpoint.text, prompt_template="A computed tomography"))
    with pytest.raises(ManifestInvalid, match=r"off at \$\.text\.prompt_template"):
        write_bundle(nameless, tmp_path, name="viscera-small", version="1.2.3")
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    _refused(tmp_path / "absent.ckpt", tmp_path / "out", "There is no checkpoint")
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    _refused(tmp_path / "text.ckpt", tmp_path / "out", r"text\.ckpt cannot be read")


def _refused(checkpoint: Path, out_dir: Path, reason: str) -> None:
    with pytest.raises(CheckpointRefused, match=reason):
        write_bundle(read_checkpoint(checkpoint), out_dir, name="viscera-small", version="1.2.3")
    assert not out_dir.exists() or not list(out_dir.iterdir())


def test_a_graph_that_is_off_leaves_nothing(checkpoint_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="allowed: 1e-12"):
        write_bundle(
            read_checkpoint(checkpoint_path),
            tmp_path,
            name="viscera-small",
            version="1.2.3",
            precisions=(replace(FP32, max_relative_error=1e-12),),
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "version"), [("../up", "1.0.0"), ("Viscera", "1.0.0"), ("a\n", "1.0.0"), ("a", "1.0"), ("a", "../1.0.0")]
)
def test_names_that_cannot_be_folders_are_refused(
    checkpoint_path: Path, tmp_path: Path, name: str, version: str
) -> None:
    with pytest.raises(ExportError, match="is not"):
        write_bundle(read_checkpoint(checkpoint_path), tmp_path, name=name, version=version)


def test_creation_time_follows_source_date_epoch() -> None:
    assert creation_time({"SOURCE_DATE_EPOCH": "86400"}) == datetime(1970, 1, 2, tzinfo=UTC)
    assert abs((creation_time({}) - datetime.now(UTC)).total_seconds()) < 5
    with pytest.raises(ExportError, match="SOURCE_DATE_EPOCH is 'yesterday'"):
        creation_time({"SOURCE_DATE_EPOCH": "yesterday"})


def test_calibration_of_a_checkpoint_reaches_manifest_and_card(checkpoint: Checkpoint, tmp_path: Path) -> None:
    calibration = Calibration(
        thresholds={"liver": 0.35},
        lesion_peaks={"liver_tumor": 0.85},
        lesion_volumes_ml={"liver_tumor": 0.5, "kidney_cyst": 0.5, "lung_tumor": 2.0},
    )
    calibrated = replace(checkpoint, calibration=calibration)
    bundle = write_bundle(calibrated, tmp_path, name="viscera-small", version="1.2.3")
    labels = {label["name"]: label for label in json.loads((bundle / "manifest.json").read_text())["labels"]}
    assert labels["liver"]["threshold"] == 0.35
    assert labels["spleen"]["threshold"] == labels["liver_tumor"]["threshold"] == 0.5
    assert {"rule": "min_peak", "probability": 0.85} in labels["liver_tumor"]["postprocessing"]["viscera"]
    assert "min_peak" not in {rule["rule"] for rule in labels["kidney_cyst"]["postprocessing"]["viscera"]}
    for name in ("liver_tumor", "kidney_cyst"):
        assert {"rule": "min_volume", "ml": 0.5} in labels[name]["postprocessing"]["viscera"]
    card = (bundle / "MODEL_CARD.md").read_text()
    assert "dropped for their size: liver tumor, kidney cyst below 0.5 ml; lung tumor below 2 ml." in card
    assert "not tuned" not in card


def test_card_says_what_the_bundle_is_and_is_not(written_bundle: Path) -> None:
    card = (written_bundle / "MODEL_CARD.md").read_text()
    for sentence in (
        "Research only. Not a medical device",
        "trained on procedural phantoms, for demonstration and tests",
        "Not evaluated",
        "| 32 | `kidney_cyst` | cyst | kidney_right, kidney_left | Cyst | 367643001 |",
        "| steps | 7 |",
        "| fp32 | onnxruntime |",
        "6 windows of a phantom",
    ):
        assert sentence in card
    assert "$" not in card  # no placeholder left


def test_card_names_the_windows_that_were_left_out() -> None:
    engine = EngineParity(FP32, "onnxruntime", 1e-5, "trunk", 0.0, "phantom", 2, {"liver": 1.0}, 1.0, 2.0)
    every = PrecisionParity(FP32, (engine,), {})
    assert "Not compared on" not in _parity_table([every])
    fewer = PrecisionParity(FP32, (replace(engine, unsteady=("air",)),), {})
    assert "\n\nNot compared on: air. With these weights" in _parity_table([fewer])


def test_the_default_network_stays_below_12_megabytes(written_bundle: Path) -> None:
    """The rest of a bundle does not depend on the backbone; 2.25 M float32 parameters are 8.99 MB."""
    rest = bundle_bytes(written_bundle) - (written_bundle / "backbone.onnx").stat().st_size
    assert rest + 9.1e6 < 12e6
    assert bundle_bytes(written_bundle) == sum(path.stat().st_size for path in written_bundle.iterdir())
