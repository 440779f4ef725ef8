"""A written bundle against the checkpoint it claims to come from: structure first, then every number again."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError

from model_export.backbone_check import backbone_outputs
from model_export.bundle import check_sound
from model_export.engines import reason_against
from model_export.errors import BundleDamaged
from model_export.head import FoldedHead, fold_head, read_head
from model_export.importing import import_checkpoint
from model_export.manifest import (
    HEAD_FILE,
    MANIFEST_FILE,
    SAMPLE_FILE,
    JsonObject,
    check_manifest,
    file_entry,
    thresholds_of,
)
from model_export.parity import EngineParity, Reference, measure_precision, relative_error, torch_reference
from model_export.precisions import PRECISIONS
from model_export.sample import SELF_TEST_TOLERANCE, Sample, read_sample
from model_export.windows import measuring_windows, synthetic_windows
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


@dataclass(frozen=True)
class Verification:
    """The comparisons of a bundle with its checkpoint, whether they passed or not.

    Of the engines that the manifest states for a precision, `not_measured` are those that this machine does not have,
    and `broken` those that cannot run the file; each with the reason.
    """

    checks: tuple[Check, ...]
    parities: tuple[EngineParity, ...]
    not_measured: tuple[str, ...]
    broken: tuple[str, ...]

    @property
    def failures(self) -> tuple[str, ...]:
        """What does not hold, in words."""
        return (
            *(check.subject for check in self.checks if not check.passed),
            *(f"{p.engine} {p.precision.name} ({p.fault})" for p in self.parities if not p.holds),
            *self.broken,
        )


def verify_bundle(bundle: Path, checkpoint_path: Path, scan: Path | None = None) -> Verification:
    """Every comparison of a bundle folder with a checkpoint; masks on windows of the `scan` (None: of a phantom).

    Raises BundleDamaged or ManifestInvalid when the bundle is not sound in itself, CheckpointRefused and ScanRefused.
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
    checks += [*_entry_checks(manifest), *_head_checks(head, checkpoint), _sample_check(sample, checkpoint)]
    if len(head.K) != len(checkpoint.label_names):
        return Verification(tuple(checks), (), (), ())
    model, config = checkpoint.model, checkpoint.config
    synthetic = synthetic_windows(config, model.backbone.size_multiple, sample)
    reference = torch_reference(model, synthetic, measuring_windows(config, scan))
    return _measure_again(bundle, manifest, head, reference, thresholds_of(checkpoint), tuple(checks))


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


def _sample_check(sample: Sample, checkpoint: Checkpoint) -> Check:
    with torch.inference_mode():
        logits = checkpoint.model(torch.from_numpy(sample.window).float()).numpy()
    same_shape = logits.shape == sample.logits.shape
    return Check(
        "sample logits", relative_error(sample.logits, logits) if same_shape else math.nan, SELF_TEST_TOLERANCE
    )


def _entry_checks(manifest: JsonObject) -> list[Check]:
    """Whether each precision is run from the file and with the hint that its name stands for."""
    checks: list[Check] = []
    for entry in manifest["precisions"]:
        precision = PRECISIONS[entry["name"]]
        same = (entry["file"], entry.get("hint")) == (precision.file, precision.hint)
        checks.append(Check(f"{precision.name} file and hint", 0.0 if same else math.nan, 0.0))
    return checks


def _measure_again(
    bundle: Path,
    manifest: JsonObject,
    head: FoldedHead,
    reference: Reference,
    thresholds: Mapping[str, float],
    checks: tuple[Check, ...],
) -> Verification:
    """Every precision on every engine that the manifest states, measured as at export."""
    parities: list[EngineParity] = []
    not_measured: list[str] = []
    broken: list[str] = []
    for entry in manifest["precisions"]:
        precision = PRECISIONS[entry["name"]]
        parity = measure_precision(precision, bundle / entry["file"], head, reference, thresholds)
        measured = {engine.engine: engine for engine in parity.measured}
        for engine in (stated["engine"] for stated in entry["parity"]):
            if engine in measured:
                parities.append(measured[engine])
                not_measured += [
                    f"{engine} {precision.name} on {name}, where torch is off by its own rounding"
                    for name in measured[engine].unsteady
                ]
            elif engine in parity.unable and reason_against(engine, precision) is None:
                broken.append(f"{engine} {precision.name} ({parity.unable[engine]})")
            else:
                not_measured.append(f"{engine} {precision.name} ({parity.unable.get(engine, 'not installed')})")
    return Verification(checks, tuple(parities), tuple(not_measured), tuple(broken))
