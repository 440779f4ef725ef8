"""Seconds and memory of a training step of a recipe, on the GPU if there is one.

    python -m benchmarks.step [--recipe paper_swin_unetr] [--batch 6] [--steps 8] [--json FILE]

The windows are noise with labels at random: what is timed is the network, its losses, their gradients and the
optimizer, in the number format of the recipe and, where it is float32, in bfloat16 too.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from training.deep_supervision import VoxelClassifier
from training.label_table import STANDARD
from training.networks.backbones import feature_stride
from training.networks.universal import UniversalModel
from training.parallel import own_device
from training.recipe import Recipe, read_recipe
from training.rendering import Batch
from training.text import random_text_embedding
from training.train import losses, parameter_groups

_FIRST = 2  # steps that are not counted: kernels are chosen and memory is set aside in them


def random_batch(recipe: Recipe, size: int, device: torch.device) -> Batch:
    """So many windows of noise, a hundredth of whose voxels carry each label."""
    generator = torch.Generator().manual_seed(recipe.seed)
    low, high = recipe.model.output_range
    image = torch.empty(size, 1, *[recipe.patch] * 3).uniform_(low, high, generator=generator)
    on_features = [recipe.patch // feature_stride(recipe.model)] * 3
    carried = torch.rand(size, len(STANDARD.labels), *on_features, generator=generator) < 0.01
    supervised = torch.ones(size, len(STANDARD.labels), dtype=torch.bool)
    return image.to(device), (carried * 8).to(torch.uint8).to(device), supervised.to(device)


def measure(recipe: Recipe, batch: Batch, steps: int) -> dict[str, Any]:
    """Median seconds of a step, and the peak of the GPU's memory."""
    device = batch[0].device
    torch.manual_seed(recipe.seed)
    model = UniversalModel(recipe.model, random_text_embedding(recipe.seed)[0]).to(device)
    model.reset_heads()
    model.backbone.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # torch's own signature
    classifier = VoxelClassifier(model.backbone.decoder_channels, len(STANDARD.labels)).to(device)
    optimizer = torch.optim.AdamW(parameter_groups(model, classifier, recipe), weight_decay=recipe.weight_decay)
    model.train()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for step in range(1, steps + _FIRST + 1):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss, side_loss = losses(model, classifier, batch, step, recipe, STANDARD)
        (loss.total + recipe.deep_supervision * side_loss).backward()  # type: ignore[no-untyped-call]  # as above
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    found = {
        "computed in": "bfloat16" if recipe.mixed_precision else "float32",
        "seconds a step": median(seconds[_FIRST:]),
        "windows a second": len(batch[0]) / median(seconds[_FIRST:]),
    }
    if device.type == "cuda":
        found["peak GPU memory, GB"] = torch.cuda.max_memory_allocated(device) / 1e9
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table with a row for each number format, and one line of JSON."""
    parser = argparse.ArgumentParser(description="A training step.")
    parser.add_argument("--recipe", default="paper_swin_unetr")
    parser.add_argument("--batch", type=int, default=6, help="windows of this GPU")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    recipe, device = read_recipe(options.recipe), own_device()
    torch.backends.cudnn.benchmark = True  # as in training
    batch = random_batch(recipe, options.batch, device)
    formats = (True,) if recipe.mixed_precision else (False, True)
    found = [measure(recipe.model_copy(update={"mixed_precision": mixed}), batch, options.steps) for mixed in formats]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    table = Table(*found[0], title=f"{recipe.name}, {options.batch} windows of {recipe.patch}^3, {name}")
    for run in found:
        table.add_row(*(value if isinstance(value, str) else f"{value:.3g}" for value in run.values()))
    Console().print(table)
    text = json.dumps({"device": name, "recipe": recipe.name, "batch": options.batch, "runs": found})
    if options.json is not None:
        options.json.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
