"""A checkpoint becomes a bundle: written in a scratch folder, checked there, and only then given its name."""

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib import resources
from pathlib import Path

import numpy as np
import torch

from model_export.card import INTENDED_USE, CardFacts, in_short, on_phantoms, render_card
from model_export.errors import BundleExists, CheckpointRefused, ExportError
from model_export.half import write_half
from model_export.head import FoldedHead, fold_head, write_head
from model_export.manifest import (
    CARD_FILE,
    HEAD_FILE,
    LICENCE_FILE,
    MANIFEST_FILE,
    SAMPLE_FILE,
    SCHEMA_FILE,
    JsonObject,
    build_manifest,
    check_manifest,
    file_entry,
    label_entry,
    manifest_bytes,
    schema_text,
    thresholds_of,
)
from model_export.new_label import check_rules, new_label_entry
from model_export.onnx import export_backbone
from model_export.parity import PrecisionParity, Reference, check_parity, measure_precision, torch_reference
from model_export.precisions import DEFAULT_PRECISIONS, FP32, Precision
from model_export.sample import Sample, make_sample, write_sample
from model_export.windows import measuring_windows, synthetic_windows
from training.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from training.labels import BY_NAME
from training.text import embedding_sha256

APACHE_2 = "Apache-2.0"

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z]+(\.[0-9A-Za-z]+)*)?", re.ASCII)


def apache_2_text() -> str:
    """The text of the Apache licence, version 2.0."""
    return resources.files("model_export").joinpath("licence-apache-2.0.txt").read_text(encoding="utf-8")


@dataclass(frozen=True)
class BundleTexts:
    """What people read. `licence` is the SPDX identifier of the weights' licence and `licence_text` its text.

    `trained_on` replaces what the checkpoint says under `data`; `evaluation` is Markdown; None: the exporter's words.
    """

    description: str | None = None
    trained_on: str | None = None
    evaluation: str | None = None
    intended_use: str = INTENDED_USE
    licence: str = APACHE_2
    licence_text: str = field(default_factory=apache_2_text)


def write_bundle(
    checkpoint: Checkpoint,
    out_dir: Path,
    *,
    name: str,
    version: str,
    texts: BundleTexts | None = None,
    created: datetime | None = None,
    precisions: Sequence[Precision] = DEFAULT_PRECISIONS,
    scan: Path | None = None,
    force: bool = False,
) -> Path:
    """The folder `out_dir/<name>-<version>` of the new bundle. Between two writings `created` and seconds differ.

    Of `precisions`, fp32 first, those are offered that hold their tolerance on windows of the `scan` (None: a phantom);
    the card says which do not. Raises CheckpointRefused, ScanRefused, ParityError (fp32 does not hold),
    ManifestInvalid, BundleExists (unless `force`) or ExportError, and then leaves `out_dir` with the bundles it had.
    """
    check_name(name, version)
    target = out_dir / f"{name}-{version}"
    if target.exists() and not force:
        raise BundleExists(f"{target.name} exists already in {out_dir}; give another version, or force to replace it.")
    check_exportable(checkpoint)
    labels = label_entries(checkpoint)
    texts = texts or BundleTexts()
    training = stated_training(checkpoint, texts.trained_on)
    description = texts.description or _description(checkpoint, str(training["data"]))
    manifest = partial(
        build_manifest,
        checkpoint,
        name=name,
        version=version,
        created=created or creation_time(os.environ),
        description=description,
        intended_use=texts.intended_use,
        licence=texts.licence,
        training=training,
        labels=labels,
    )
    check_manifest(manifest(parities=(), files={}), but_for=("precisions", "files"))  # the rest takes minutes
    with drafted(target) as draft:
        parities = _write_network(draft, checkpoint, precisions, scan)
        facts = CardFacts(
            name=name,
            version=version,
            description=description,
            intended_use=texts.intended_use,
            licence=texts.licence,
            trained_on=str(training["data"]),
            evaluation=texts.evaluation,
            training=training,
            parities=parities,
        )
        (draft / CARD_FILE).write_text(render_card(checkpoint, facts, labels), encoding="utf-8")
        (draft / LICENCE_FILE).write_text(texts.licence_text, encoding="utf-8")
        (draft / SCHEMA_FILE).write_text(schema_text(), encoding="utf-8")
        finished = manifest(parities=parities, files={path.name: file_entry(path) for path in sorted(draft.iterdir())})
        check_manifest(finished)
        (draft / MANIFEST_FILE).write_bytes(manifest_bytes(finished))
    return target


@contextmanager
def drafted(target: Path) -> Iterator[Path]:
    """An empty folder that becomes `target`, in place of what is there, if the block ends well; else it is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the same file system as the target, so that the last step is one rename.
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        draft = Path(scratch) / "bundle"
        draft.mkdir()
        yield draft
        _publish(draft, target, Path(scratch) / "replaced")


def check_name(name: str, version: str) -> None:
    """Raises ExportError unless both fit into a folder name: lower-case words, and a semantic version."""
    if not _NAME.fullmatch(name):
        raise ExportError(f"The name {name!r} is not made of lower-case words and hyphens, as in viscera-compact.")
    if not _VERSION.fullmatch(version):
        raise ExportError(f"The version {version!r} is not a semantic version, as in 1.0.0 or 1.0.0-rc.1.")


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`. Raises CheckpointRefused for a missing, broken or foreign file."""
    if not path.is_file():
        raise CheckpointRefused(f"There is no checkpoint {path}.")
    try:
        return load_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointRefused(str(error)) from error
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise CheckpointRefused(f"{path.name} is not a usable checkpoint: {error}") from error


def check_exportable(checkpoint: Checkpoint) -> None:
    """Raises CheckpointRefused for weights that are not finite or labels that do not fit the head."""
    check_sound(checkpoint)
    names = checkpoint.label_names
    own = {label.name for label in checkpoint.own_labels}
    for name in names:
        if name in own:
            continue
        if name not in BY_NAME:
            raise CheckpointRefused(f"The label {name!r} is not in the label table; its codes and rules are unknown.")
        for host in BY_NAME[name].hosts:
            if host not in names:
                raise CheckpointRefused(f"The label {name!r} lies in {host!r}, which the checkpoint does not have.")


def label_entries(checkpoint: Checkpoint) -> list[JsonObject]:
    """The manifest's entries of a checkpoint's labels, by channel. Raises LabelRefused for an own one that is off."""
    own = {label.name: label for label in checkpoint.own_labels}
    entries: dict[str, JsonObject] = {}
    for name in checkpoint.label_names:
        if name in own:
            check_rules(own[name])
            entries[name] = new_label_entry(own[name], entries, checkpoint.calibration)
        else:
            entries[name] = label_entry(name, checkpoint.label_names, checkpoint.calibration)
    return list(entries.values())


def check_sound(checkpoint: Checkpoint) -> None:
    """Raises CheckpointRefused for weights that are not finite, or names and text that are not those of the head."""
    names, rows = checkpoint.label_names, len(checkpoint.model.text_embedding)
    if len(names) != rows:
        raise CheckpointRefused(f"The checkpoint names {len(names)} labels, its head has {rows} rows.")
    if checkpoint.text.names and len(checkpoint.text.names) != rows:
        raise CheckpointRefused(
            f"The text features are of {len(checkpoint.text.names)} names, the head has {rows} rows."
        )
    if len(set(names)) != len(names):
        raise CheckpointRefused("The checkpoint names a label twice.")
    for key, tensor in checkpoint.model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointRefused(f"The weights {key} hold values that are not finite; training went wrong.")
    if embedding_sha256(checkpoint.model.text_embedding) != checkpoint.text.sha256:
        raise CheckpointRefused("The text embedding in the weights is not the one whose hash the checkpoint states.")


def creation_time(environment: Mapping[str, str]) -> datetime:
    """SOURCE_DATE_EPOCH (seconds since 1970, reproducible-builds.org), or now; in UTC.

    Raises ExportError for a value that is not a number of seconds.
    """
    epoch = environment.get("SOURCE_DATE_EPOCH")
    if epoch is None:
        return datetime.now(UTC)
    try:
        return datetime.fromtimestamp(int(epoch), UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise ExportError(f"SOURCE_DATE_EPOCH is {epoch!r}, not a number of seconds since 1970.") from error


def bundle_bytes(bundle: Path) -> int:
    """Size of a bundle: the bytes of all its files."""
    return sum(path.stat().st_size for path in bundle.iterdir())


def _write_network(
    draft: Path, checkpoint: Checkpoint, precisions: Sequence[Precision], scan: Path | None
) -> tuple[PrecisionParity, ...]:
    """Writes sample, head and graph, and measures each precision as it lies on disk. Raises ParityError."""
    model, config = checkpoint.model, checkpoint.config
    sample = make_sample(model, config)
    check_sample(sample)
    write_sample(sample, draft / SAMPLE_FILE)
    measuring = measuring_windows(config, scan)
    head = fold_head(model)
    write_head(head, draft / HEAD_FILE)
    export_backbone(model, draft / FP32.file)
    reference = torch_reference(model, synthetic_windows(config, model.backbone.size_multiple, sample), measuring)
    thresholds = thresholds_of(checkpoint)
    return tuple(_write_precision(draft, precision, head, reference, thresholds) for precision in precisions)


def _write_precision(
    draft: Path, precision: Precision, head: FoldedHead, reference: Reference, thresholds: Mapping[str, float]
) -> PrecisionParity:
    """Measures one precision, whose file stays only if it is offered. Raises ParityError when fp32 does not hold."""
    path = draft / precision.file
    if not path.exists():
        write_half(draft / FP32.file, path)
    parity = measure_precision(precision, path, head, reference, thresholds)
    if precision.name == FP32.name:
        check_parity(parity)
    elif not parity.offered and precision.file != FP32.file:
        path.unlink()
    return parity


def check_sample(sample: Sample) -> None:
    """Raises CheckpointRefused when the logits do not fit into float16, or say nothing."""
    if not bool(np.isfinite(sample.logits).all()):
        raise CheckpointRefused("The model's logits on the sample window are beyond the range of float16.")
    if not bool(np.ptp(sample.logits, axis=(2, 3, 4)).any()):
        raise CheckpointRefused("The model's logits do not vary over the sample window: its voxel features are dead.")


def stated_training(checkpoint: Checkpoint, trained_on: str | None) -> JsonObject:
    """The checkpoint's provenance with its `data` stated. Raises CheckpointRefused when nobody states them."""
    training = dict(checkpoint.training)
    if trained_on is not None:
        training["data"] = trained_on
    if not training.get("data"):
        raise CheckpointRefused("The checkpoint does not say what it was trained on (`data`); state it at export.")
    return training


def _description(checkpoint: Checkpoint, trained_on: str) -> str:
    count, architecture = len(checkpoint.label_names), checkpoint.config.architecture
    purpose = f" {in_short(trained_on).capitalize()}, for demonstration and tests." if on_phantoms(trained_on) else ""
    return (
        f"CLIP-Driven Universal Model, {count} labels of abdominal and thoracic CT, backbone {architecture}.{purpose}"
    )


def _publish(draft: Path, target: Path, replaced: Path) -> None:
    """Gives the draft its name. A bundle that is replaced is moved to `replaced`, and back if the rename fails."""
    if target.exists():
        target.rename(replaced)
    try:
        draft.rename(target)
    except OSError:
        if replaced.exists():
            replaced.rename(target)
        raise
