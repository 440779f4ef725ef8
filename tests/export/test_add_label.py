"""A bundle with one label more: the same backbone, the row that torch would give, and the service opens it."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from model_export.errors import (
    BackboneDiffers,
    BundleExists,
    CheckpointRefused,
    EmbeddingRefused,
    ExportError,
    LabelRefused,
)
from model_export.extension import Extension, add_label, read_base
from model_export.new_label import read_label
from service.inference.bundle import open_bundle
from service.inference.model import load_bundle
from tests.export.conftest import CREATED, LABEL_NAMES, WriteCheckpoint
from tests.support.added_label import NEW_ROWS, SPLEEN_TUMOR, TEXT, UTERUS, with_row, write_features
from training.checkpoint import Calibration, Checkpoint, load_checkpoint
from training.labels import LABELS
from training.networks.universal import UniversalModel
from training.text import TextProvenance, embedding_sha256, random_text_embedding, whiten, write_text_embedding

WriteFile = Callable[..., Path]


@pytest.fixture
def label_file(tmp_path: Path) -> WriteFile:
    def write(content: str = UTERUS) -> Path:
        path = tmp_path / "label.toml"
        path.write_text(content)
        return path

    return write


@pytest.fixture
def features(tmp_path: Path) -> WriteFile:
    """A file of features of both new names, as `viscera-train embed` writes it."""

    return partial(write_features, tmp_path / "new.safetensors")


@pytest.fixture(scope="session")
def retrained_path(write_checkpoint: WriteCheckpoint) -> Path:
    """The heads of `checkpoint_path` trained further with the backbone frozen; its label `liver` calibrated."""

    def train_heads(model: UniversalModel) -> None:
        generator = torch.Generator().manual_seed(5)
        for part in (model.text_to_vision, model.controller):
            for parameter in part.parameters():  # type: ignore[union-attr]  # there is a text branch
                parameter.data += torch.randn(parameter.shape, generator=generator) * 0.02

    return write_checkpoint(0, change=train_heads)


def added(base: Path, checkpoint: Checkpoint, extension: Extension, out: Path, version: str = "1.3.0") -> Path:
    return add_label(
        read_base(base), checkpoint, extension, out, name="viscera-small", version=version, created=CREATED
    )


def manifest_of(bundle: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    return content


def torch_logits(model: UniversalModel, window: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(window)).numpy()


def test_a_label_from_its_text_gets_the_logits_of_torch_and_leaves_the_others_alone(
    written_bundle: Path, checkpoint: Checkpoint, label_file: WriteFile, features: WriteFile, tmp_path: Path
) -> None:
    bundle = added(written_bundle, checkpoint, Extension(read_label(label_file()), features()), tmp_path / "out")

    assert os.listdir(tmp_path / "out") == ["viscera-small-1.3.0"]  # noqa: PTH208  # names, hidden ones too
    before, after = manifest_of(written_bundle), manifest_of(bundle)
    backbone = hashlib.sha256((bundle / "backbone.onnx").read_bytes()).hexdigest()
    assert after["files"]["backbone.onnx"]["sha256"] == backbone == before["files"]["backbone.onnx"]["sha256"]
    old, new = (load_file(path / "head.safetensors") for path in (written_bundle, bundle))
    np.testing.assert_array_equal(new["W_image"], old["W_image"])
    np.testing.assert_array_equal(new["K"][:32], old["K"])
    assert new["K"].shape == (33, 153)
    with np.load(written_bundle / "sample.npz") as before_sample, np.load(bundle / "sample.npz") as sample:
        np.testing.assert_array_equal(sample["window"], before_sample["window"])
        np.testing.assert_array_equal(sample["logits"][:, :32], before_sample["logits"])
        assert sample["logits"].shape[1] == 33
    assert after["labels"][:32] == before["labels"]
    for key in ("text", "training", "preprocessing", "sliding_window", "backbone", "licence"):
        assert after[key] == before[key]

    # The original network with 33 embeddings, run by torch alone.
    reference = with_row(checkpoint, "uterus", NEW_ROWS[0]).model
    window = np.random.default_rng(3).uniform(-1, 1, (1, 1, 48, 48, 48)).astype(np.float32)
    expected = torch_logits(reference, window)
    found = load_bundle(bundle, engine="onnxruntime", threads=1).logits(window)
    assert found.shape == (1, 33, 24, 24, 24)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found[:, 32] / scale, expected[:, 32] / scale, rtol=0, atol=1e-5)
    assert np.ptp(expected[:, 32]) > 0.01 * scale
    np.testing.assert_array_equal(
        found[:, :32], load_bundle(written_bundle, engine="onnxruntime", threads=1).logits(window)
    )


def test_manifest_and_card_say_what_was_added_and_that_it_is_untested(
    written_bundle: Path, checkpoint: Checkpoint, label_file: WriteFile, features: WriteFile, tmp_path: Path
) -> None:
    bundle = added(written_bundle, checkpoint, Extension(read_label(label_file()), features()), tmp_path / "out")
    manifest = open_bundle(bundle).manifest
    assert (manifest.name, manifest.version) == ("viscera-small", "1.3.0")
    uterus = manifest.label("uterus")
    assert uterus.index == 33
    assert (uterus.type.scheme, uterus.type.value) == ("SCT", "35039007")
    assert uterus.category.meaning == "Anatomical Structure"
    assert uterus.threshold == 0.5
    assert [rule.rule for rule in uterus.postprocessing.viscera] == ["keep_largest"]
    (addition,) = manifest.additions
    base_sha256 = hashlib.sha256((written_bundle / "manifest.json").read_bytes()).hexdigest()
    assert (addition.label, addition.heads, addition.trained) == ("uterus", "kept", False)
    assert (addition.base.name, addition.base.version, addition.base.sha256) == (
        "viscera-small",
        "1.2.3",
        base_sha256,
    )
    assert addition.checkpoint_sha256 == checkpoint.sha256
    assert (addition.text.name, addition.text.weights_sha256) == ("Uterus", "ab" * 32)
    assert addition.text.embedding_sha256 == embedding_sha256(NEW_ROWS[0])
    card = (bundle / "MODEL_CARD.md").read_text()
    for sentence in (
        "# viscera-small 1.3.0",
        "viscera-small 1.2.3 with one label more",
        "| 33 | `uterus` | organ |  | Uterus | 35039007 | 0.5 |",
        "Untested: no voxel of this label was seen in training",
        "The other labels are untouched",
        "`A computerized tomography of a Uterus.`",
        "## viscera-small 1.2.3",  # the card of the base, one level lower
    ):
        assert sentence in card
    assert "$" not in card


def test_a_lesion_is_limited_to_its_hosts_and_follows_an_added_organ(
    written_bundle: Path, checkpoint: Checkpoint, label_file: WriteFile, features: WriteFile, tmp_path: Path
) -> None:
    first = added(written_bundle, checkpoint, Extension(read_label(label_file()), features()), tmp_path / "out")
    lesion = read_label(label_file(SPLEEN_TUMOR.replace('"stomach"', '"uterus"')))
    second = added(first, checkpoint, Extension(lesion, features()), tmp_path / "out", "1.4.0")

    manifest = open_bundle(second).manifest
    assert [label.name for label in manifest.labels] == [*LABEL_NAMES, "uterus", "spleen_tumor"]
    tumor = manifest.label("spleen_tumor")
    assert tumor.hosts == ("spleen", "uterus")
    assert tumor.companions("viscera") == {"spleen", "uterus"}
    assert (tumor.type.meaning, tumor.category.meaning) == ("Neoplasm", "Morphologically Altered Structure")
    assert tumor.anatomic_region is not None
    assert tumor.anatomic_region.meaning == "Spleen"
    assert tumor.threshold == 0.7
    assert [rule.rule for rule in tumor.postprocessing.viscera] == ["within_hosts", "min_volume"]
    assert [addition.label for addition in manifest.additions] == ["uterus", "spleen_tumor"]
    assert manifest.additions[1].base.version == "1.3.0"
    rows = [load_file(path / "head.safetensors")["K"] for path in (first, second)]
    np.testing.assert_array_equal(rows[1][:33], rows[0])


@pytest.mark.parametrize("knows_the_label", [True, False])
def test_heads_that_were_trained_further_come_as_a_whole(
    knows_the_label: bool,
    written_bundle: Path,
    retrained_path: Path,
    label_file: WriteFile,
    features: WriteFile,
    tmp_path: Path,
) -> None:
    retrained = replace(load_checkpoint(retrained_path), calibration=Calibration({"liver": 0.625, "uterus": 0.75}))
    reference = with_row(retrained, "uterus", NEW_ROWS[0])
    source = reference if knows_the_label else retrained
    extension = Extension(read_label(label_file()), None if knows_the_label else features(), evaluation="Dice 0.5.")
    bundle = added(written_bundle, source, extension, tmp_path / "out")

    window = np.random.default_rng(3).uniform(-1, 1, (1, 1, 48, 48, 48)).astype(np.float32)
    expected = torch_logits(reference.model, window)
    found = load_bundle(bundle, engine="onnxruntime", threads=1).logits(window)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    before, after = manifest_of(written_bundle), manifest_of(bundle)
    assert after["files"]["backbone.onnx"] == before["files"]["backbone.onnx"]
    thresholds = {label["name"]: label["threshold"] for label in after["labels"]}
    assert (thresholds["liver"], thresholds["uterus"], thresholds["spleen"]) == (0.625, 0.75, 0.5)
    assert after["training"]["checkpoint_sha256"] == source.sha256
    assert after["text"]["embedding_sha256"] == source.text.sha256
    (addition,) = after["additions"]
    assert (addition["heads"], addition["trained"]) == ("replaced", knows_the_label)
    card = (bundle / "MODEL_CARD.md").read_text()
    assert "The heads of the other labels were replaced too" in card
    assert "do not hold for this bundle" in card
    assert "Dice 0.5." in card
    assert ("Untested" in card) is not knows_the_label


def test_rows_of_two_trainings_do_not_stand_side_by_side(
    written_bundle: Path,
    checkpoint: Checkpoint,
    retrained_path: Path,
    label_file: WriteFile,
    features: WriteFile,
    tmp_path: Path,
) -> None:
    first = added(written_bundle, checkpoint, Extension(read_label(label_file()), features()), tmp_path / "out")
    extension = Extension(read_label(label_file(SPLEEN_TUMOR)), features())
    with pytest.raises(CheckpointRefused, match="has no row for 'uterus'"):
        added(first, load_checkpoint(retrained_path), extension, tmp_path / "out", "1.4.0")


def test_a_whitened_run_needs_the_features_it_was_trained_with(
    written_bundle: Path, write_checkpoint: WriteCheckpoint, label_file: WriteFile, features: WriteFile, tmp_path: Path
) -> None:
    raw, _ = random_text_embedding(0)
    whitened, text = whiten(raw, TextProvenance(TEXT.encoder, TEXT.prompt_template, TEXT.source, ""))

    def use_whitened(model: UniversalModel) -> None:
        model.text_embedding = whitened

    checkpoint = replace(load_checkpoint(write_checkpoint(0, change=use_whitened)), text=text)
    halfway = (raw[3:4] + raw[8:9]) / 2
    new = features(halfway, ("Uterus",))
    label = read_label(label_file())
    with pytest.raises(EmbeddingRefused, match="was whitened over its labels"):
        added(written_bundle, checkpoint, Extension(label, new), tmp_path / "out")
    other = tmp_path / "other.safetensors"
    names = tuple(one.prompt for one in LABELS)
    write_text_embedding(other, raw.flip(0), replace(text, names=names))
    with pytest.raises(EmbeddingRefused, match=r"other\.safetensors does not give the text embedding"):
        added(written_bundle, checkpoint, Extension(label, new, other), tmp_path / "out")
    assert not (tmp_path / "out").exists()

    trained = tmp_path / "trained.safetensors"
    write_text_embedding(trained, raw, replace(text, names=names))
    bundle = added(written_bundle, checkpoint, Extension(label, new, trained), tmp_path / "out")
    # Whitening is affine: the mean of two raw rows is the mean of two whitened ones.
    reference = with_row(checkpoint, "uterus", (whitened[3] + whitened[8]) / 2).model
    row = load_file(bundle / "head.safetensors")["K"][32]
    np.testing.assert_allclose(row, reference.text_rows().detach().numpy()[32], rtol=0, atol=1e-5 * np.abs(row).max())


def _other_backbone(model: UniversalModel) -> None:
    next(model.backbone.parameters()).data *= 1.01


def _drifted_statistics(model: UniversalModel) -> None:
    """What a backbone that was frozen in its parameters alone, in training mode, ends up with."""
    norm = next(part for part in model.modules() if isinstance(part, torch.nn.BatchNorm3d))
    norm.running_mean += 0.01


def _other_pooling_without_effect_on_logits(model: UniversalModel) -> None:
    model.gap[3].bias.data += 0.01
    model.controller.weight.data[:, :256] = 0.0


@pytest.mark.parametrize("change", [_other_backbone, _drifted_statistics, _other_pooling_without_effect_on_logits])
def test_another_backbone_is_refused(
    change: Callable[[UniversalModel], None],
    written_bundle: Path,
    write_checkpoint: WriteCheckpoint,
    label_file: WriteFile,
    features: WriteFile,
    tmp_path: Path,
) -> None:
    other = load_checkpoint(write_checkpoint(0, change=change))
    with pytest.raises(BackboneDiffers, match="is not that of the bundle"):
        added(written_bundle, other, Extension(read_label(label_file()), features()), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_input_or_a_learned_embedding_is_refused(
    written_bundle: Path, checkpoint: Checkpoint, label_file: WriteFile, features: WriteFile, tmp_path: Path
) -> None:
    extension = Extension(read_label(label_file()), features())
    coarse = replace(checkpoint, config=checkpoint.config.model_copy(update={"spacing_mm": (3.0, 3.0, 3.0)}))
    with pytest.raises(CheckpointRefused, match="preprocessing"):
        added(written_bundle, coarse, extension, tmp_path / "out")
    learned = UniversalModel(checkpoint.config, torch.randn(32, 256)).eval()
    text = replace(checkpoint.text, sha256=embedding_sha256(learned.text_embedding))
    with pytest.raises(EmbeddingRefused, match="reads no text"):
        added(written_bundle, replace(checkpoint, model=learned, text=text), extension, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"encoder": "CLIP ViT-B/32"}, "is of the encoder 'CLIP ViT-B/32', the checkpoint was trained on 'random'"),
        ({"prompt_template": "A photo of a {}."}, "made with the template 'A photo of a {}.'"),
        ({"names": ("Womb", "Spleen tumor")}, "has 0 rows of 'Uterus'; it has 'Womb', 'Spleen tumor'"),
        ({"rows": random_text_embedding(0)[0][5:7]}, "are those of the label 'liver'"),
    ],
)
def test_text_features_of_another_kind_are_refused(
    change: dict[str, Any],
    reason: str,
    written_bundle: Path,
    checkpoint: Checkpoint,
    label_file: WriteFile,
    features: WriteFile,
    tmp_path: Path,
) -> None:
    with pytest.raises(EmbeddingRefused, match=reason.replace("(", r"\(").replace("{", r"\{").replace("}", r"\}")):
        added(written_bundle, checkpoint, Extension(read_label(label_file()), features(**change)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_features_by_other_weights_of_the_encoder_are_refused(
    written_bundle: Path, checkpoint: Checkpoint, label_file: WriteFile, features: WriteFile, tmp_path: Path
) -> None:
    stated = replace(checkpoint, text=replace(checkpoint.text, weights_sha256="cd" * 32))
    with pytest.raises(EmbeddingRefused, match="other weights of random"):
        added(written_bundle, stated, Extension(read_label(label_file()), features()), tmp_path / "out")


def test_a_file_that_does_not_fit_is_refused(
    written_bundle: Path, checkpoint: Checkpoint, label_file: WriteFile, tmp_path: Path
) -> None:
    label = read_label(label_file())
    narrow, bare = tmp_path / "narrow.pth", tmp_path / "bare.pth"
    torch.save(torch.zeros(1, 256), narrow)
    torch.save(torch.ones(1, 512), bare)
    for path, reason in (
        (narrow, r"holds \(1, 256\); needed: \(names, 512\)"),
        (bare, "is of the encoder 'unknown'"),
        (tmp_path / "absent.pth", "not a readable embedding file"),
        (None, "give its text features with --embedding"),
    ):
        with pytest.raises(EmbeddingRefused, match=reason):
            added(written_bundle, checkpoint, Extension(label, path), tmp_path / "out")
    knows = with_row(checkpoint, "uterus", NEW_ROWS[0])
    with pytest.raises(EmbeddingRefused, match="leave out --embedding"):
        added(written_bundle, knows, Extension(label, bare), tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (UTERUS.replace('name = "uterus"', 'name = "liver"', 1), "has a label 'liver' already"),
        ("index = 6\n" + UTERUS, "Index 6 is that of 'liver'"),
        (SPLEEN_TUMOR.replace('"spleen"', '"heart"'), "The host 'heart' of 'spleen_tumor' is not an organ"),
        (SPLEEN_TUMOR.replace('"spleen"', '"liver_tumor"'), "The host 'liver_tumor'"),
        (
            UTERUS + '[[postprocessing.viscera]]\nrule = "cut_below"\norgan = "heart"\n',
            "looks at 'heart', which is not an organ",
        ),
    ],
)
def test_a_label_that_does_not_fit_the_bundle_is_refused(
    content: str,
    reason: str,
    written_bundle: Path,
    checkpoint: Checkpoint,
    label_file: WriteFile,
    features: WriteFile,
    tmp_path: Path,
) -> None:
    with pytest.raises(LabelRefused, match=reason):
        added(written_bundle, checkpoint, Extension(read_label(label_file(content)), features()), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("name = uterus", "is not TOML"),
        (UTERUS.replace('"organ"', '"vessel"'), "is off at kind"),
        (UTERUS.replace("214", "314"), r"is off at color\.0"),
        (UTERUS.replace('name = "uterus"', 'name = "Uterus"', 1), "is off at name"),
        (UTERUS + "colour = [1, 2, 3]\n", "is off at colour: Extra inputs"),
        (UTERUS.replace("type =", "# type ="), "an organ needs its type"),
        ('hosts = ["liver"]\n' + UTERUS, "an organ has neither hosts"),
        (UTERUS + '[[postprocessing.viscera]]\nrule = "magic"\n', "there is no rule 'magic'; choose from keep_largest"),
        (
            UTERUS + '[[postprocessing.viscera]]\nrule = "keep_largest"\ncount = 0\n',
            "keep_largest: 0 is less than the minimum of 1",
        ),
        (
            SPLEEN_TUMOR.replace("dilation_mm = 4.0", "dilation_mm = 400.0"),
            "within_hosts: 400.0 is greater than the maximum of 50",
        ),
        (SPLEEN_TUMOR.replace('hosts = ["spleen", "stomach"]\n', ""), "within_hosts needs hosts"),
    ],
)
def test_a_label_file_that_is_off_is_refused(content: str, reason: str, label_file: WriteFile) -> None:
    with pytest.raises(LabelRefused, match=reason):
        read_label(label_file(content))


def test_a_bundle_that_is_there_stays(
    written_bundle: Path, checkpoint: Checkpoint, label_file: WriteFile, features: WriteFile, tmp_path: Path
) -> None:
    (tmp_path / "out" / "viscera-small-1.3.0").mkdir(parents=True)
    extension = Extension(read_label(label_file()), features())
    with pytest.raises(BundleExists, match="give another version"):
        added(written_bundle, checkpoint, extension, tmp_path / "out")
    with pytest.raises(ExportError, match="is not a semantic version"):
        added(written_bundle, checkpoint, extension, tmp_path / "out", "2")


def test_a_bundle_holds_64_labels_and_no_more(
    written_bundle: Path, checkpoint: Checkpoint, label_file: WriteFile, features: WriteFile, tmp_path: Path
) -> None:
    base = read_base(written_bundle)
    spleen = base.manifest["labels"][0]
    more = [{**spleen, "name": f"more_{n}", "index": n} for n in range(33, 65)]
    full = replace(base, manifest={**base.manifest, "labels": [*base.manifest["labels"], *more]})
    extension = Extension(read_label(label_file()), features())
    with pytest.raises(LabelRefused, match="has 64 labels; a bundle holds no more"):
        add_label(full, checkpoint, extension, tmp_path / "out", name="viscera-small", version="1.3.0")


def test_a_base_that_was_altered_is_refused(written_bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / written_bundle.name
    shutil.copytree(written_bundle, copy)
    (copy / "LICENSE").write_text("mine\n")
    with pytest.raises(ExportError, match="LICENSE was altered"):
        read_base(copy)
