"""Published weights become a checkpoint of ours: read without running code, recognised by their keys, none left over.

Checkpoints of ours pass through, so that a caller need not know which kind a file is. What the published weights expect
of their input: Liu et al., ICCV 2023 (arXiv 2301.00785), and the released code's constants.
"""

import hashlib
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from model_export.bundle import APACHE_2, apache_2_text, read_checkpoint
from model_export.errors import CheckpointUnreadable, CheckpointUnsafe, ExportError, KeysMismatch, NetworkUnknown
from model_export.published_keys import BACKBONES, LEARNED_EMBEDDING, PublishedBackbone, our_key, published_key
from training.checkpoint import Checkpoint
from training.config import ModelConfig
from training.labels import LABELS
from training.networks.universal import EMBEDDING_CHANNELS, TEXT_CHANNELS, UniversalModel
from training.text import PUBLISHED_ENCODER, PUBLISHED_SOURCE, PUBLISHED_TEMPLATE, TextProvenance, embedding_sha256

CC_BY_NC_ND_4 = "CC-BY-NC-ND-4.0"

#: How the input of published weights is prepared, and how their windows overlap.
PUBLISHED_INPUT = ModelConfig(
    patch_merging="duplicated",
    spacing_mm=(1.5, 1.5, 1.5),
    intensity_range_hu=(-175.0, 250.0),
    output_range=(0.0, 1.0),
    interpolation="linear",
    foreground_above_hu=-175.0,
    roi_size=(96, 96, 96),
    overlap=0.5,
)
PUBLISHED_DATA = (
    "14 public CT datasets, as arXiv 2301.00785 has it: BTCV, Pancreas-CT, CHAOS, LiTS, KiTS, WORD, AbdomenCT-1K, "
    "AMOS, CT-ORG, and of the Medical Segmentation Decathlon Lung, Pancreas, HepaticVessel, Spleen and Colon. Assumed "
    "from the layout of the file, which does not say it itself."
)
_LEARNED_TEXT = ("none: an embedding learned for each label", "{}", "learned with the imported weights")
_LABEL_COUNTS = (31, 32)  # the kidney cyst came last

_NAMED_KEYS = 3  # how many keys an error names; it counts the rest
# What torch's reader of plain data says of a pickle that wants more than that, as opposed to one that is damaged.
_CODE = re.compile(
    r"unsupported GLOBAL|WeightsUnpickler error: .*(GLOBAL|class|function|Can only|persistent)", re.DOTALL
)


@dataclass(frozen=True)
class ImportedCheckpoint:
    """A checkpoint, and the SPDX identifier of its weights' licence as far as the layout tells."""

    checkpoint: Checkpoint
    licence: str


def import_checkpoint(path: Path) -> ImportedCheckpoint:
    """The checkpoint in a file of ours or of a published layout.

    Raises CheckpointRefused or one of its kinds: CheckpointUnreadable, CheckpointUnsafe, NetworkUnknown, KeysMismatch.
    """
    content = _read(path)
    if isinstance(content, dict) and "format" in content:
        return ImportedCheckpoint(read_checkpoint(path), APACHE_2)
    published = _state_dict(content, path.name)
    model = _load(published, path.name)
    embedding = model.text_embedding
    text = (PUBLISHED_ENCODER, PUBLISHED_TEMPLATE, PUBLISHED_SOURCE)
    if model.text_to_vision is None:
        text = _LEARNED_TEXT
    training: dict[str, Any] = {"data": PUBLISHED_DATA, "imported_from": path.name}
    if isinstance(epoch := content.get("epoch"), int):
        training["epoch"] = epoch
    checkpoint = Checkpoint(
        model=model,
        config=model.config,
        label_names=tuple(label.name for label in LABELS[: len(embedding)]),
        text=TextProvenance(*text, sha256=embedding_sha256(embedding)),
        training=training,
        sha256=_sha256(path),
    )
    return ImportedCheckpoint(checkpoint, CC_BY_NC_ND_4)


def licence_text(licence: str) -> str:
    """What LICENSE says for a licence that is known here. Raises ExportError for another one."""
    if licence == APACHE_2:
        return apache_2_text()
    if licence != CC_BY_NC_ND_4:
        raise ExportError(f"The licence {licence} needs its text: give --licence-file.")
    return resources.files("model_export").joinpath("licence-cc-by-nc-nd-4.0.txt").read_text(encoding="utf-8")


def _read(path: Path) -> Any:  # noqa: ANN401  # whatever was saved
    """What `torch.save` wrote, if it is tensors and plain values."""
    if not path.is_file():
        raise CheckpointUnreadable(f"There is no checkpoint {path}.")
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    if zipped:
        _check_archive(path)
    try:
        with torch.serialization.safe_globals([TorchVersion]):  # a string; checkpoints of ours may hold it
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a broken file
        if isinstance(error, pickle.UnpicklingError) and _CODE.search(str(error)):
            raise CheckpointUnsafe(
                f"{path.name} holds more than tensors and plain values; it was not loaded, since that could run code. "
                "Save its state dict alone."
            ) from error
        raise CheckpointUnreadable(f"{path.name} is not a file that torch wrote, or it is damaged.") from error


def _check_archive(path: Path) -> None:
    """Raises CheckpointUnreadable for a zip that is cut off, or that torch did not write."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise CheckpointUnreadable(f"{path.name} is cut off or damaged; fetch it again.") from error
    if not any(name.endswith("/data.pkl") for name in names):
        raise CheckpointUnreadable(f"{path.name} is a zip, but not one that torch wrote.")


def _state_dict(content: object, file: str) -> dict[str, Tensor]:
    """The weights under `net`, under `state_dict`, or bare."""
    state = content
    if isinstance(content, dict):
        state = next((content[key] for key in ("net", "state_dict") if key in content), content)
    if not isinstance(state, dict) or not state or not all(map(_is_weight, state.items())):
        raise NetworkUnknown(f"{file} holds no weights by name, neither bare nor under `net` or `state_dict`.")
    return dict(state)


def _is_weight(item: tuple[object, object]) -> bool:
    key, value = item
    return (
        isinstance(key, str)
        and isinstance(value, Tensor)
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and not value.is_quantized
    )


def _load(published: Mapping[str, Tensor], file: str) -> UniversalModel:
    """The network of published weights in eval mode; its tensors are those that were read."""
    state: dict[str, Tensor] = {}
    names: dict[str, str] = {}  # ours -> as it is in the file
    for name, tensor in published.items():
        key = our_key(name)
        if key is None:
            continue
        if key in state:
            raise KeysMismatch(f"{file} holds {names[key]} and {name}, two names of the same weights.")
        names[key], state[key] = name, tensor.float() if tensor.is_floating_point() else tensor
    backbone = _recognise(names, file)
    if state.get("controller.weight", torch.empty(0)).shape[2:] == (1, 1, 1):
        state["controller.weight"] = state["controller.weight"].flatten(1)
    learned = any(name.endswith(LEARNED_EMBEDDING) for name in published)
    complaint = f"{file} does not fit {backbone.architecture}"
    model = _empty_model(backbone, state, learned, complaint)
    _compare(model.state_dict(), state, names, complaint)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def _recognise(names: Mapping[str, str], file: str) -> PublishedBackbone:
    """The one backbone whose keys are among ours, which `names` maps to those in the file."""
    found = [backbone for backbone in BACKBONES if any(key.startswith(f"backbone.{backbone.mark}") for key in names)]
    if len(found) != 1:
        known = ", ".join(backbone.architecture for backbone in BACKBONES)
        raise NetworkUnknown(
            f"{file} holds the weights of another network: its keys are not those of one of {known}; it has "
            f"{_some(names.values())}."
        )
    return found[0]


def _empty_model(
    backbone: PublishedBackbone, state: Mapping[str, Tensor], learned: bool, complaint: str
) -> UniversalModel:
    """The network without memory for its weights, as wide and with as many labels as the file says."""
    embedding, widest = state.get("text_embedding"), state.get(f"backbone.{backbone.width_key}")
    rows = _LABEL_COUNTS[-1] if embedding is None else _rows(embedding)
    if rows not in _LABEL_COUNTS:
        raise KeysMismatch(
            f"{complaint}: organ_embedding has {rows} rows; {_LABEL_COUNTS[0]} or {_LABEL_COUNTS[1]} labels are known."
        )
    feature_size = None if widest is None else _rows(widest) or None
    config = PUBLISHED_INPUT.model_copy(update={"architecture": backbone.architecture, "feature_size": feature_size})
    try:
        with torch.device("meta"):
            return UniversalModel(config, torch.empty(rows, EMBEDDING_CHANNELS if learned else TEXT_CHANNELS))
    except ValueError as error:
        raise KeysMismatch(f"{complaint}: {backbone.width_key} is off. {error}") from error


def _rows(tensor: Tensor) -> int:
    return len(tensor) if tensor.ndim else 0


def _compare(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], names: Mapping[str, str], complaint: str
) -> None:
    """Raises KeysMismatch, naming what is missing, left over or of another shape."""
    missing = [published_key(key) for key in expected if key not in state]
    left_over = [names[key] for key in state if key not in expected]
    misshapen = [
        f"{names[key]} {tuple(tensor.shape)} for {tuple(expected[key].shape)}"
        for key, tensor in state.items()
        if key in expected and tensor.shape != expected[key].shape
    ]
    faults = [
        f"{len(keys)} {fault}: {_some(keys)}"
        for fault, keys in (("missing", missing), ("left over", left_over), ("of another shape", misshapen))
        if keys
    ]
    if faults:
        raise KeysMismatch(f"{complaint}: {'; '.join(faults)}.")


def _some(keys: Iterable[str]) -> str:
    """The first keys, and that there are more."""
    listed = list(keys)
    return ", ".join(listed[:_NAMED_KEYS]) + (", ..." if len(listed) > _NAMED_KEYS else "")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
