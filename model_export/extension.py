"""A label is appended to a bundle: one row more in the head, and the backbone byte for byte the one that was there.

The row is `W_text @ relu(T @ text + t) + b` of a checkpoint with the bundle's backbone. Two cases:

- The heads were trained further with the backbone frozen. Then W_image and all rows are the checkpoint's (`replaced`):
  W_image is one matrix for all labels, so rows of two trainings cannot stand side by side.
- The controller is still the bundle's. Then its rows stay as they are (`kept`), bit for bit, and one is appended.

In both the checkpoint may know the label, and its own row is taken; or it does not, and the row follows from its text
alone: no voxel of it was ever seen in training, and the card says so.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import torch

from model_export.backbone_check import BackboneParity, backbone_outputs, check_backbone
from model_export.bundle import check_name, check_sample, check_sound, creation_time, drafted, stated_training
from model_export.errors import BundleExists, CheckpointRefused, EmbeddingRefused, LabelRefused
from model_export.extension_card import ExtensionFacts, render_extension_card
from model_export.head import FoldedHead, fold_head, write_head
from model_export.manifest import (
    CARD_FILE,
    HEAD_FILE,
    LICENCE_FILE,
    MANIFEST_FILE,
    SAMPLE_FILE,
    SCHEMA_FILE,
    JsonObject,
    check_manifest,
    file_entry,
    label_entry,
    manifest_bytes,
    preprocessing_entry,
    round_up,
    schema_text,
    text_entry,
)
from model_export.new_label import new_label_entry
from model_export.parity import relative_error
from model_export.precisions import FP32
from model_export.sample import Sample, rounded_sample, write_sample
from model_export.text_row import TextRow, row_from_text, row_of_checkpoint
from model_export.verify import HEAD_TOLERANCE, check_files, read_arrays, read_manifest
from model_export.windows import synthetic_windows
from training.checkpoint import Checkpoint
from training.labels import BY_NAME
from training.new_label import NewLabel

MAX_LABELS = 64  # bits of a voxel in the service's masks


@dataclass(frozen=True)
class BaseBundle:
    """A bundle folder that is sound in itself; `sha256` is of its manifest."""

    folder: Path
    manifest: JsonObject
    sha256: str
    head: FoldedHead
    sample: Sample

    @property
    def labels(self) -> dict[str, JsonObject]:
        """The entries by name, in the order of the rows."""
        return {label["name"]: label for label in self.manifest["labels"]}

    @property
    def id(self) -> str:
        """Name and version, as its folder is called."""
        return f"{self.manifest['name']}-{self.manifest['version']}"


@dataclass(frozen=True)
class Extension:
    """What is added: the label, from which text (None: the checkpoint knows it), and what people read.

    `features` holds the row of its name; `trained_features` is the file that a whitened run was trained with.
    `evaluation` is Markdown; `trained_on` replaces what the checkpoint says under `data`.
    """

    label: NewLabel
    features: Path | None = None
    trained_features: Path | None = None
    description: str | None = None
    evaluation: str | None = None
    trained_on: str | None = None


@dataclass(frozen=True)
class _Extended:
    """Everything of the new bundle that is not yet a file.

    `kept`: the head's rows before the last one are the base's, bit for bit. `moved` is how far the logits of the old
    labels are from the base's on its sample, relatively.
    """

    base: BaseBundle
    checkpoint: Checkpoint
    extension: Extension
    entry: JsonObject
    row: TextRow
    head: FoldedHead
    kept: bool
    parities: tuple[BackboneParity, ...]
    sample: Sample
    moved: float

    @property
    def text(self) -> JsonObject:
        """Where the text of the other labels came from."""
        text: JsonObject = self.base.manifest["text"] if self.kept else text_entry(self.checkpoint.text)
        return text

    @property
    def training(self) -> JsonObject:
        """Where the other labels' rows came from. Raises CheckpointRefused when nobody states the data."""
        if self.kept:
            training: JsonObject = self.base.manifest["training"]
            return training
        training = stated_training(self.checkpoint, self.extension.trained_on)
        return {**training, "checkpoint_sha256": self.checkpoint.sha256}

    @property
    def addition(self) -> JsonObject:
        """How the label came in."""
        manifest, row = self.base.manifest, self.row
        return {
            "label": self.entry["name"],
            "base": {"name": manifest["name"], "version": manifest["version"], "sha256": self.base.sha256},
            "heads": "kept" if self.kept else "replaced",
            "trained": self.entry["name"] in self.checkpoint.label_names,
            "checkpoint_sha256": self.checkpoint.sha256,
            "text": {
                "name": row.name,
                "source": row.source,
                "embedding_sha256": row.sha256,
                "weights_sha256": row.weights_sha256,
            },
        }


def read_base(folder: Path) -> BaseBundle:
    """The bundle in a folder. Raises BundleDamaged or ManifestInvalid."""
    manifest = read_manifest(folder)
    check_manifest(manifest)
    check_files(folder, manifest)
    sha256 = hashlib.sha256((folder / MANIFEST_FILE).read_bytes()).hexdigest()
    return BaseBundle(folder, manifest, sha256, *read_arrays(folder, manifest))


def add_label(
    base: BaseBundle,
    checkpoint: Checkpoint,
    extension: Extension,
    out_dir: Path,
    *,
    name: str,
    version: str,
    created: datetime | None = None,
) -> Path:
    """The folder `out_dir/<name>-<version>` of a new bundle: the base with one label more.

    Raises LabelRefused, EmbeddingRefused, CheckpointRefused (BackboneDiffers among them), BundleExists, ManifestInvalid
    or ExportError, and then leaves nothing in `out_dir`.
    """
    check_name(name, version)
    target = out_dir / f"{name}-{version}"
    if target.exists():
        raise BundleExists(f"{target.name} exists already in {out_dir}; give another version.")
    extended = _extend(base, checkpoint, extension)
    facts = _facts(extended, name, version)
    created = created or creation_time(os.environ)
    with drafted(target) as draft:
        _copy_files(base, draft)
        write_head(extended.head, draft / HEAD_FILE)
        write_sample(extended.sample, draft / SAMPLE_FILE)
        (draft / CARD_FILE).write_text(render_extension_card(facts), encoding="utf-8")
        (draft / SCHEMA_FILE).write_text(schema_text(), encoding="utf-8")
        files = {path.name: file_entry(path) for path in sorted(draft.iterdir())}
        manifest = _manifest(extended, facts, files, created)
        check_manifest(manifest)
        (draft / MANIFEST_FILE).write_bytes(manifest_bytes(manifest))
    return target


def _extend(base: BaseBundle, checkpoint: Checkpoint, extension: Extension) -> _Extended:
    """The label's entry, the new head, and the proof that the backbone is the checkpoint's."""
    check_sound(checkpoint)
    _check_input(base, checkpoint)
    if len(base.labels) == MAX_LABELS:
        raise LabelRefused(f"{base.id} has {MAX_LABELS} labels; a bundle holds no more.")
    entry = new_label_entry(extension.label, base.labels, checkpoint.calibration)
    row = _text_row(extension, checkpoint)
    head, kept = _head(base, checkpoint, row)
    windows = synthetic_windows(checkpoint.config, checkpoint.model.backbone.size_multiple, base.sample)
    parities = check_backbone(checkpoint.model, base.folder / FP32.file, head, windows)
    sample, moved = _sample(base, checkpoint, head, kept)
    check_sample(sample)
    return _Extended(base, checkpoint, extension, entry, row, head, kept, parities, sample, moved)


def _check_input(base: BaseBundle, checkpoint: Checkpoint) -> None:
    """Raises CheckpointRefused when the checkpoint expects another input, or is another network altogether."""
    stated = {
        "architecture": (base.manifest["backbone"]["architecture"], checkpoint.config.architecture),
        "feature stride": (base.manifest["backbone"]["feature_stride"], checkpoint.model.feature_stride),
        "preprocessing": (base.manifest["preprocessing"], preprocessing_entry(checkpoint.config)),
    }
    for what, (of_bundle, of_checkpoint) in stated.items():
        if of_bundle != of_checkpoint:
            raise CheckpointRefused(
                f"The checkpoint's {what} is {of_checkpoint}, that of {base.id} is {of_bundle}; "
                "a label is added with a checkpoint of the bundle's own backbone."
            )


def _text_row(extension: Extension, checkpoint: Checkpoint) -> TextRow:
    label = extension.label
    if label.name in checkpoint.label_names:
        if extension.features is not None:
            raise EmbeddingRefused(
                f"The checkpoint was trained with {label.name!r} and has its row; leave out --embedding."
            )
        return row_of_checkpoint(checkpoint, label.name, label.prompted)
    if extension.features is None:
        raise EmbeddingRefused(f"The checkpoint does not have {label.name!r}; give its text features with --embedding.")
    return row_from_text(extension.features, label.prompted, checkpoint, extension.trained_features)


def _head(base: BaseBundle, checkpoint: Checkpoint, row: TextRow) -> tuple[FoldedHead, bool]:
    """The head with the new row last, and whether the other rows are the base's.

    Raises CheckpointRefused when a row has to be replaced that the checkpoint does not have.
    """
    own = fold_head(checkpoint.model)
    of_checkpoint = dict(zip(checkpoint.label_names, own.K, strict=True))
    with torch.inference_mode():
        new = checkpoint.model.text_rows(row.row[None]).numpy()
    shared = [number for number, name in enumerate(base.labels) if name in of_checkpoint]
    names = [name for name in base.labels if name in of_checkpoint]
    same_rows = relative_error(np.stack([of_checkpoint[name] for name in names]), base.head.K[shared]) if names else 0.0
    if max(relative_error(own.W_image, base.head.W_image), same_rows) <= HEAD_TOLERANCE:
        return FoldedHead(base.head.W_image, np.concatenate([base.head.K, new])), True
    if strangers := [name for name in base.labels if name not in of_checkpoint]:
        raise CheckpointRefused(
            f"The checkpoint's heads are not those of {base.id}, and it has no row for {strangers[0]!r}; "
            "all rows must come from one training."
        )
    rows = np.stack([of_checkpoint[name] for name in base.labels])
    return FoldedHead(own.W_image, np.concatenate([rows, new])), False


def _sample(base: BaseBundle, checkpoint: Checkpoint, head: FoldedHead, kept: bool) -> tuple[Sample, float]:
    """The base's window with the new logits; and how far those of the old labels are from the base's, relatively."""
    outputs = backbone_outputs(checkpoint.model, base.sample.window.astype(np.float32))
    sample = rounded_sample(base.sample.window, head.logits(*outputs))
    moved = relative_error(sample.logits[:, :-1], base.sample.logits)
    if kept:
        logits = np.concatenate([base.sample.logits, sample.logits[:, -1:]], axis=1)
        return Sample(sample.window, logits), moved
    return sample, moved


def _labels(extended: _Extended) -> list[JsonObject]:
    """The base's entries and the new one; with replaced heads, thresholds and limits are those of the checkpoint."""
    labels = extended.base.labels
    if extended.kept:
        return [*labels.values(), extended.entry]
    return [*(_for_new_heads(label, labels, extended.checkpoint) for label in labels.values()), extended.entry]


def _for_new_heads(label: JsonObject, labels: Mapping[str, JsonObject], checkpoint: Checkpoint) -> JsonObject:
    calibration = checkpoint.calibration
    if label["name"] in BY_NAME:
        return label_entry(label["name"], labels, calibration)
    return {**label, "threshold": calibration.threshold(label["name"])}


def _copy_files(base: BaseBundle, draft: Path) -> None:
    """The backbone, and the licence of the weights."""
    for file in (FP32.file, LICENCE_FILE):
        shutil.copyfile(base.folder / file, draft / file)


def _precisions(base: JsonObject, parities: Iterable[BackboneParity]) -> list[JsonObject]:
    """fp32 with the larger of the errors that were measured for the base and now.

    No other: those are offered for their masks, and nobody has compared the masks of the new label.
    """
    (fp32,) = (precision for precision in base["precisions"] if precision["name"] == FP32.name)
    measured = {parity.engine: round_up(parity.max_relative_error) for parity in parities}
    stated = [
        {**parity, "max_relative_error": max(parity["max_relative_error"], measured.get(parity["engine"], 0.0))}
        for parity in fp32["parity"]
    ]
    return [{**fp32, "parity": stated}]


def _facts(extended: _Extended, name: str, version: str) -> ExtensionFacts:
    """What the card says."""
    base, extension, entry = extended.base, extended.extension, extended.entry
    how = "trained" if extended.addition["trained"] else "from its text alone, untested"
    return ExtensionFacts(
        name=name,
        version=version,
        description=extension.description or f"{base.manifest['description']} Added: {entry['display_name']} ({how}).",
        entry=entry,
        addition=extended.addition,
        text=extended.text,
        base=base.manifest,
        base_card=(base.folder / CARD_FILE).read_text(encoding="utf-8"),
        evaluation=extension.evaluation,
        errors={parity.engine: parity.max_relative_error for parity in extended.parities},
        moved=extended.moved,
        training=None if extended.kept else extended.training,
    )


def _manifest(extended: _Extended, facts: ExtensionFacts, files: JsonObject, created: datetime) -> JsonObject:
    """The base's manifest with what is different now."""
    base = extended.base.manifest
    return {
        **base,
        "name": facts.name,
        "version": facts.version,
        "created": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "description": facts.description,
        "files": files,
        "labels": _labels(extended),
        "precisions": _precisions(base, extended.parities),
        "text": extended.text,
        "training": extended.training,
        "additions": [*base.get("additions", ()), extended.addition],
    }
