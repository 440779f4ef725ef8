"""Is the backbone of a checkpoint the one that a bundle holds as a graph? Its outputs say it, on every engine there is.

Compared are voxel features and pooled features themselves, so that no head can hide a difference; and logits after the
head that will read them, which is what the manifest states.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model_export.engines import available_engines, open_backbone, torch_inference
from model_export.errors import BackboneDiffers
from model_export.head import FoldedHead
from model_export.parity import relative_error
from model_export.precisions import FP32
from training.networks.universal import UniversalModel

Array = NDArray[np.float32]


@dataclass(frozen=True)
class BackboneParity:
    """One engine's worst relative error of the logits, over all windows."""

    engine: str
    max_relative_error: float


def backbone_outputs(model: UniversalModel, window: Array) -> tuple[Array, Array]:
    """Voxel features (B,8,D/s,H/s,W/s) and pooled features (B,256) that torch gives for a window (B,1,D,H,W)."""
    with torch_inference():
        features, pooled = model.backbone_outputs(torch.from_numpy(window))
    return features.numpy(), pooled.numpy()


def check_backbone(
    model: UniversalModel, onnx_path: Path, head: FoldedHead, windows: Mapping[str, Array]
) -> tuple[BackboneParity, ...]:
    """The parity of each installed engine on the graph with the model's backbone, both in front of `head`.

    Raises BackboneDiffers when they are not the same within the tolerance of an export, ExportError without an engine.
    """
    expected = {name: backbone_outputs(model, window) for name, window in windows.items()}
    parities = []
    for engine in available_engines():
        run = open_backbone(engine, onnx_path, FP32)
        errors = []
        for name, window in windows.items():
            found = run(window)
            if [output.shape for output in found] != [output.shape for output in expected[name]]:
                raise BackboneDiffers(f"The backbone of the checkpoint has other outputs than {onnx_path.name}.")
            for what, output, reference in zip(("voxel", "pooled"), found, expected[name], strict=True):
                _check(relative_error(output, reference), f"{what} features", engine, name)
            errors.append(relative_error(head.logits(*found), head.logits(*expected[name])))
            _check(errors[-1], "logits", engine, name)
        parities.append(BackboneParity(engine, max(errors)))
    return tuple(parities)


def _check(error: float, what: str, engine: str, window: str) -> None:
    allowed = FP32.max_relative_error
    if allowed is not None and not error <= allowed:  # NaN is no larger than anything
        raise BackboneDiffers(
            f"The backbone of the checkpoint is not that of the bundle: its {what} differ by {error:.1e} of the "
            f"largest from those of {engine} on the window {window!r}; allowed: {allowed:.0e}. Train with the "
            "backbone frozen, its norms' statistics too, or export the checkpoint as a bundle of its own."
        )
