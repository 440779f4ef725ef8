"""Checkpoints: the network, how to feed it, and where it came from; read without running any pickled code."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.torch_version import TorchVersion

from training.config import ModelConfig
from training.label_table import json_of, labels_from
from training.networks.universal import UniversalModel
from training.new_label import NewLabel
from training.text import TextProvenance

FORMAT = 1
_KEYS = {"config", "state_dict", "label_names", "text", "training", "calibration", "resume"}


class CheckpointError(ValueError):
    """The file is not a checkpoint of this package."""


@dataclass(frozen=True)
class Calibration:
    """How probabilities become masks, chosen on cases that were not trained on (`calibrate`).

    `thresholds` by label: a mask is where the probability lies above. `lesion_peaks` by lesion type: a lesion counts if
    its probability lies above that somewhere, and from `lesion_volumes_ml` of its type on. `logit_scale` is what the
    logits were multiplied by for that; the weights have it in them.
    """

    thresholds: Mapping[str, float] = field(default_factory=dict)
    lesion_peaks: Mapping[str, float] = field(default_factory=dict)
    lesion_volumes_ml: Mapping[str, float] = field(default_factory=dict)
    logit_scale: float = 1.0

    def threshold(self, label: str) -> float:
        """The threshold of a label; 0.5, as in the reference, if none was chosen."""
        return self.thresholds.get(label, 0.5)


NOT_CALIBRATED = Calibration()


@dataclass(frozen=True)
class Checkpoint:
    """A trained model in eval mode. `training` is JSON-ready provenance; `sha256` is of the file.

    `own_labels` describes those of `label_names` that are not among the 32, in the same order.
    """

    model: UniversalModel
    config: ModelConfig
    label_names: tuple[str, ...]
    text: TextProvenance
    training: dict[str, Any]
    sha256: str
    calibration: Calibration = NOT_CALIBRATED
    own_labels: tuple[NewLabel, ...] = ()


def save_checkpoint(
    path: Path,
    model: UniversalModel,
    *,
    label_names: tuple[str, ...],
    text: TextProvenance,
    training: dict[str, Any],
    calibration: Calibration = NOT_CALIBRATED,
    own_labels: tuple[NewLabel, ...] = (),
    resume: dict[str, Any] | None = None,
) -> None:
    """Writes one checkpoint atomically. `resume` holds optimiser, scheduler and step, when training may go on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    content = {
        "format": FORMAT,
        "config": model.config.model_dump(mode="json"),
        "state_dict": model.state_dict(),
        "label_names": list(label_names),
        "own_labels": json_of(own_labels),
        "text": asdict(text),
        "training": training,
        "calibration": asdict(calibration),
        "resume": resume,
    }
    with part.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read_content(path: Path) -> dict[str, Any]:
    """The raw content of a checkpoint of ours. Raises CheckpointError."""
    try:
        with torch.serialization.safe_globals([TorchVersion]):  # a string; `torch.__version__` noted as it is
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a broken file
        raise CheckpointError(f"{path.name} cannot be read: {type(error).__name__}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or not content.keys() >= _KEYS:
        raise CheckpointError(f"{path.name} is not a viscera checkpoint of format {FORMAT}.")
    return content


def load_checkpoint(path: Path) -> Checkpoint:
    """The model of a checkpoint, ready for evaluation or export. Raises CheckpointError."""
    content = read_content(path)
    state = content["state_dict"]
    try:
        config = ModelConfig.model_validate(content["config"])
        model = UniversalModel(config, state["text_embedding"])
        model.load_state_dict(state, strict=True)
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path.name} does not fit its own configuration: {error}") from error
    model.eval()
    return Checkpoint(
        model=model,
        config=config,
        label_names=tuple(content["label_names"]),
        text=TextProvenance(**content["text"]),
        training=content["training"],
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        calibration=Calibration(**content["calibration"]),
        own_labels=labels_from(content.get("own_labels", ())),
    )
