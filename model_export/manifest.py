"""manifest.json: what the service must know about a model, gathered from checkpoint, labels and measurements.

The form is `bundle.schema.json`, which is copied into each bundle; a manifest that does not follow it is not written.
"""

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

from jsonschema import Draft202012Validator

from model_export.errors import ManifestInvalid
from model_export.parity import EngineParity, PrecisionParity
from model_export.rules import companions, rules_by_name
from training.checkpoint import NOT_CALIBRATED, Calibration, Checkpoint
from training.config import ModelConfig
from training.labels import BY_NAME, Code
from training.networks.universal import EMBEDDING_CHANNELS, FEATURE_CHANNELS, UniversalModel, count_parameters
from training.text import TextProvenance

JsonObject: TypeAlias = dict[str, Any]

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
HEAD_FILE = "head.safetensors"
SAMPLE_FILE = "sample.npz"
CARD_FILE = "MODEL_CARD.md"
LICENCE_FILE = "LICENSE"
SCHEMA_FILE = "bundle.schema.json"

_CODING_SCHEME = "SCT"  # SNOMED CT, as DICOM PS3.16 designates it
_SIGMA_SCALE = 0.125  # standard deviation of the Gaussian blending in window edges, as in the reference


def schema_text() -> str:
    """The JSON Schema of manifest.json."""
    return resources.files("model_export").joinpath(SCHEMA_FILE).read_text(encoding="utf-8")


def check_manifest(manifest: JsonObject, *, but_for: Collection[str] = ()) -> None:
    """Raises ManifestInvalid with the place and the reason of the first fault, except in the parts `but_for`."""
    faults = Draft202012Validator(json.loads(schema_text())).iter_errors(manifest)
    counted = (fault for fault in faults if not fault.absolute_path or fault.absolute_path[0] not in but_for)
    fault = min(counted, key=lambda error: (error.json_path, error.message), default=None)
    if fault is not None:
        raise ManifestInvalid(f"{MANIFEST_FILE} is off at {fault.json_path}: {fault.message}.")


def manifest_bytes(manifest: JsonObject) -> bytes:
    """The file's bytes. Their SHA-256 is the hash of the bundle."""
    return (json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def file_entry(path: Path) -> JsonObject:
    """Hash and length of a file of the bundle."""
    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}


def label_entry(name: str, names: Collection[str], calibration: Calibration = NOT_CALIBRATED) -> JsonObject:
    """A label with its codes, threshold and rules, in a bundle of the labels `names`. KeyError for an unknown name."""
    label = BY_NAME[name]
    return {
        "index": label.index,
        "name": label.name,
        "display_name": label.display_name,
        "kind": label.kind.value,
        "hosts": list(label.hosts),
        "color": list(label.color),
        "category": code_entry(label.category),
        "type": code_entry(label.type),
        "laterality": code_entry(label.laterality),
        "anatomic_region": code_entry(label.anatomic_region),
        "threshold": calibration.threshold(name),
        "postprocessing": {
            rule_set: [asdict(rule) for rule in rules if companions(rule) <= set(names)]
            for rule_set, rules in rules_by_name(label, calibration).items()
        },
    }


def preprocessing_entry(config: ModelConfig) -> JsonObject:
    """How the input of the network is prepared."""
    crop = config.foreground_above_hu
    return {
        "orientation": "RAS",
        "spacing_mm": list(config.spacing_mm),
        "intensity_range_hu": list(config.intensity_range_hu),
        "output_range": list(config.output_range),
        "interpolation": config.interpolation,
        "foreground_crop": None if crop is None else {"above_hu": crop},
    }


def text_entry(text: TextProvenance) -> JsonObject:
    """Where the text features came from; no hash of the encoder's weights and no names where their file states none."""
    return {
        "encoder": text.encoder,
        "prompt_template": text.prompt_template,
        "source": text.source,
        "embedding_sha256": text.sha256,
        "weights_sha256": text.weights_sha256,
        "names": list(text.names),
    }


def exported_parameters(model: UniversalModel) -> int:
    """Trained values that backbone.onnx stands for: the backbone and the two layers that read it."""
    return sum(count_parameters(part) for part in (model.backbone, model.feature_head, model.gap))


def precision_entry(parity: PrecisionParity) -> JsonObject:
    """A precision with the parity of each engine that it is offered for."""
    precision = parity.precision
    return {
        "name": precision.name,
        "file": precision.file,
        "hint": precision.hint,
        "parity": [_parity_entry(engine) for engine in parity.offered],
    }


def _parity_entry(parity: EngineParity) -> JsonObject:
    """Errors rounded up to two digits, since the third depends on the machine; Dice rounded down to four."""
    lowest = parity.lowest_dice
    return {
        "engine": parity.engine,
        "max_relative_error": round_up(parity.max_relative_error),
        "tolerance": parity.precision.max_relative_error,
        "max_probability_error": round_up(parity.max_probability_error),
        "masks": {
            "source": parity.source,
            "windows": parity.windows,
            "tolerance": parity.precision.least_dice,
            "lowest_dice": None if lowest is None else _round_down(lowest[1]),
            "dice": {label: _round_down(dice) for label, dice in parity.dice.items()},
        },
        "seconds_per_window": float(f"{parity.seconds:.2g}"),
        "torch_seconds_per_window": float(f"{parity.torch_seconds:.2g}"),
    }


def round_up(value: float) -> float:
    """The next number of two significant digits that is not below; 0 stays 0."""
    if value == 0.0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit) * unit:.1e}")


def _round_down(dice: float) -> float:
    return math.floor(dice * 1e4) / 1e4


def thresholds_of(checkpoint: Checkpoint) -> dict[str, float]:
    """The threshold of each label's probability, in the order of the labels."""
    stated = {label.name: label.threshold for label in checkpoint.own_labels if label.threshold is not None}
    return {name: stated.get(name, checkpoint.calibration.threshold(name)) for name in checkpoint.label_names}


def build_manifest(
    checkpoint: Checkpoint,
    *,
    name: str,
    version: str,
    created: datetime,
    description: str,
    intended_use: str,
    licence: str,
    training: JsonObject,
    parities: Iterable[PrecisionParity],
    labels: Sequence[JsonObject],
    files: JsonObject,
) -> JsonObject:
    """The whole manifest as JSON; `labels` are the entries by channel, `files` maps each file's name to its
    `file_entry`, `created` is in UTC."""
    config, model = checkpoint.config, checkpoint.model
    return {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "version": version,
        "created": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "description": description,
        "intended_use": intended_use,
        "licence": licence,
        "files": files,
        "labels": list(labels),
        "preprocessing": preprocessing_entry(config),
        "sliding_window": {
            "roi_size": list(config.roi_size),
            "overlap": config.overlap,
            "importance": "gaussian",
            "sigma_scale": _SIGMA_SCALE,
            "continued_planes": config.continued_planes,
        },
        "mask_interpolation": "linear",
        "backbone": {
            "architecture": config.architecture,
            "feature_channels": FEATURE_CHANNELS,
            "pooled_channels": EMBEDDING_CHANNELS,
            "feature_stride": model.feature_stride,
            "parameters": exported_parameters(model),
        },
        "precisions": [precision_entry(parity) for parity in parities if parity.offered],
        "text": text_entry(checkpoint.text),
        "training": {**training, "checkpoint_sha256": checkpoint.sha256},
        "additions": [],
    }


def code_entry(code: Code | None) -> JsonObject | None:
    """A code of the label table as the manifest has it."""
    return None if code is None else {"scheme": _CODING_SCHEME, "value": code.value, "meaning": code.meaning}
