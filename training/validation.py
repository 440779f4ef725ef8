"""What a training looks at as it goes: Dice and pictures of the fixed validation windows."""

from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from training.assembly import Assembly, labels_of
from training.networks.universal import UniversalModel
from training.pictures import fullest_slice, overlay, pack
from training.precision import mixed_precision
from training.recipe import Recipe
from training.samples import validation_batches

_PICTURES = 4


@torch.no_grad()
def validate(
    model: UniversalModel, store: Path, recipe: Recipe, device: torch.device, *, scans: Assembly | None = None
) -> dict[str, float]:
    """Dice per label over the fixed validation windows, all voxels of a label counted as one set.

    Labels that no window contains, or that were not annotated, are absent from the answer. Occupancy of half a voxel or
    more counts as foreground.
    """
    model.eval()
    table = labels_of(scans)
    overlap, total, present = (torch.zeros(len(table.labels), device=device) for _ in range(3))
    for image, occupancy, supervised in validation_batches(store, recipe, device, scans=scans):
        annotated = supervised[:, :, None, None, None]
        with mixed_precision(device, wanted=recipe.mixed_precision):
            predicted = (model(image) > 0) & annotated
        truth = (occupancy >= 4) & annotated
        overlap += (predicted & truth).sum(dim=(0, 2, 3, 4))
        total += predicted.sum(dim=(0, 2, 3, 4)) + truth.sum(dim=(0, 2, 3, 4))
        present += truth.sum(dim=(0, 2, 3, 4))
    dice = 2.0 * overlap / total.clamp(min=1)
    return {name: float(dice[c]) for c, name in enumerate(table.names) if present[c] > 0}


@torch.no_grad()
def picture(
    model: UniversalModel, store: Path, recipe: Recipe, device: torch.device, scans: Assembly | None = None
) -> NDArray[np.uint8]:
    """The fullest slice of the first validation windows (3,rows,columns): truth on top, the prediction below.

    What was not annotated is left out of both.
    """
    columns = []
    stride = model.feature_stride
    table = labels_of(scans)
    low, high = recipe.model.output_range
    for image, occupancy, supervised in islice(validation_batches(store, recipe, device, scans=scans), _PICTURES):
        annotated = supervised[0, :, None, None, None]
        with mixed_precision(device, wanted=recipe.mixed_precision):
            predicted = (model.eval()(image)[0] > 0) & annotated
        bits = [pack(masks.cpu().numpy()) for masks in ((occupancy[0] >= 4) & annotated, predicted)]
        plane = fullest_slice(bits[0])
        gray = image[0, 0, ::stride, ::stride, plane * stride].float().cpu().numpy()
        columns.append(np.concatenate([overlay(gray, of[:, :, plane], low, high, table=table) for of in bits]))
    return np.concatenate(columns, axis=1).transpose(2, 0, 1)
