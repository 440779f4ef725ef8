"""A written bundle against the checkpoint it claims to come from: structure first, then every number again."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError

from model_export.backbone_check import backbone_outputs
from model_export.bundle import check_sound
from model_export.errors import BundleDamaged
from model_export.head import FoldedHead, fold_head, read_head
from model_export.importing import import_checkpoint
from model_export.manifest import (
    BACKBONE_FILE,
    HEAD_FILE,
    MANIFEST_FILE,
    SAMPLE_FILE,
    JsonObject,
    check_manifest,
    file_entry,
)
from model_export.parity import measure_parity, parity_windows, relative_error
from model_export.sample import SELF_TEST_TOLERANCE, Sample, read_sample
from training.checkpoint import Checkpoint

HEAD_TOLERANCE = 1e-6  # float32 rounding of one matrix product


@dataclass(frozen=True)
class Check:
    """One comparison: how far the bundle is off, and how far it may be. Relative errors; NaN when not comparable."""

    subject: str
    measured: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether the bundle holds; NaN does not."""
        return self.measured <= self.allowed


def verify_bundle(bundle: Path, checkpoint_path: Path) -> tuple[Check, ...]:
    """Every comparison of a bundle folder with a checkpoint, whether it passed or not.

    Raises BundleDamaged or ManifestInvalid when the bundle is not sound in itself, and CheckpointRefused.
    """
    manifest = read_manifest(bundle)
    check_manifest(manifest)
    check_files(bundle, manifest)
    head, sample = read_arrays(bundle, manifest)
    checkpoint = import_checkpoint(checkpoint_path).checkpoint
    check_sound(checkpoint)
    names = [label["name"] for label in manifest["labels"]]
    additions = manifest.get("additions", ())
    own = [name for name in checkpoint.label_names if name in names]
    same_labels = set(own) == set(checkpoint.label_names) >= set(names) - {addition["label"] for addition in additions}
    same_file = checkpoint.sha256 in {part["checkpoint_sha256"] for part in (manifest["training"], *additions)}
    checks = [
        Check("checkpoint hash", 0.0 if same_file else math.nan, 0.0),
        Check("labels", 0.0 if same_labels else math.nan, 0.0),
    ]
    # The checkpoint does not know labels that were added from their text; the others are held against it.
    checks += _added_checks(head, sample, [n for n, name in enumerate(names) if name not in own], checkpoint)
    rows = [names.index(name) for name in own]
    head, sample = FoldedHead(head.W_image, head.K[rows]), Sample(sample.window, sample.logits[:, rows])
    return (*checks, *_head_checks(head, checkpoint), *_logit_checks(bundle, head, sample, checkpoint))


def read_manifest(bundle: Path) -> JsonObject:
    """The manifest as JSON, unchecked. Raises BundleDamaged when it is missing or not an object."""
    try:
        manifest = json.loads((bundle / MANIFEST_FILE).read_bytes())
    except OSError as error:
        raise BundleDamaged(f"{bundle} has no readable {MANIFEST_FILE}; give the folder of a bundle.") from error
    except ValueError as error:
        raise BundleDamaged(f"{MANIFEST_FILE} is not JSON: {error}") from error
    if not isinstance(manifest, dict):
        raise BundleDamaged(f"{MANIFEST_FILE} holds a {type(manifest).__name__}, not an object.")
    return manifest


def check_files(bundle: Path, manifest: JsonObject) -> None:
    """Raises BundleDamaged for a file that is missing, altered or not listed."""
    found = {path.name for path in bundle.iterdir()} - {MANIFEST_FILE}
    if stranger := min(found - manifest["files"].keys(), default=None):
        raise BundleDamaged(f"{stranger} is in the bundle but not in its manifest.")
    for name, stated in manifest["files"].items():
        if name not in found:
            raise BundleDamaged(f"{name} is in the manifest but not in the bundle.")
        if file_entry(bundle / name) != stated:
            raise BundleDamaged(f"{name} was altered: its hash or length is not the manifest's.")


def read_arrays(bundle: Path, manifest: JsonObject) -> tuple[FoldedHead, Sample]:
    """Head and sample. Raises BundleDamaged for a file that cannot be read, or that has not a row for each label."""
    try:
        head, sample = read_head(bundle / HEAD_FILE), read_sample(bundle / SAMPLE_FILE)
    except (BadZipFile, KeyError, OSError, SafetensorError, ValueError) as error:
        raise BundleDamaged(f"{HEAD_FILE} or {SAMPLE_FILE} cannot be read: {error}") from error
    labels = len(manifest["labels"])
    if len(head.K) != labels or sample.logits.shape[1] != labels:
        raise BundleDamaged(
            f"{labels} labels are in the manifest, {len(head.K)} in {HEAD_FILE} and {sample.logits.shape[1]} in "
            f"{SAMPLE_FILE}."
        )
    return head, sample


def _added_checks(head: FoldedHead, sample: Sample, rows: list[int], checkpoint: Checkpoint) -> list[Check]:
    """Whether the sample's logits of these rows are what they make of the checkpoint's backbone; none without a row."""
    if not rows:
        return []
    outputs = backbone_outputs(checkpoint.model, sample.window.astype(np.float32))
    logits = FoldedHead(head.W_image, head.K[rows]).logits(*outputs)
    return [Check("sample logits of added labels", relative_error(sample.logits[:, rows], logits), SELF_TEST_TOLERANCE)]


def _head_checks(head: FoldedHead, checkpoint: Checkpoint) -> list[Check]:
    expected = fold_head(checkpoint.model)
    pairs = {"W_image": (head.W_image, expected.W_image), "K": (head.K, expected.K)}
    return [
        Check(f"head {name}", relative_error(a, b) if a.shape == b.shape else math.nan, HEAD_TOLERANCE)
        for name, (a, b) in pairs.items()
    ]


def _logit_checks(bundle: Path, head: FoldedHead, sample: Sample, checkpoint: Checkpoint) -> list[Check]:
    model = checkpoint.model
    with torch.inference_mode():
        logits = model(torch.from_numpy(sample.window).float()).numpy()
    if logits.shape != sample.logits.shape or len(head.K) != len(checkpoint.label_names):
        return [Check("sample logits", math.nan, SELF_TEST_TOLERANCE)]
    windows = parity_windows(checkpoint.config, model.backbone.size_multiple)
    parities = measure_parity(model, bundle / BACKBONE_FILE, head, windows)
    return [
        Check("sample logits", relative_error(sample.logits, logits), SELF_TEST_TOLERANCE),
        *(
            Check(f"{parity.engine} fp32, worst on {parity.window}", parity.max_relative_error, parity.tolerance)
            for parity in parities
        ),
    ]
