"""A Swin UNETR of the published size with random weights: what a job with it costs, without anybody's weights.

    python -m benchmarks.random_swin FOLDER [--precisions fp32,fp16] [--finds-nothing]

Weights are random signs: as good as any for the clock, and a bundle of 250 MB travels in a thirtieth of it.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from model_export.bundle import write_bundle
from model_export.precisions import FP32, precisions_of
from training.checkpoint import load_checkpoint, save_checkpoint
from training.labels import LABELS
from training.networks.universal import TEXT_CHANNELS, UniversalModel
from training.recipe import read_recipe
from training.text import TextProvenance, embedding_sha256

_NEVER = -1000.0  # a logit's shift, far below what random weights add to it


@dataclass(frozen=True)
class RandomSwin:
    """The same weights in both forms."""

    checkpoint: Path
    bundle: Path


def random_swin(folder: Path, *, precisions: Sequence[str] = (FP32.name,), finds_nothing: bool = False) -> RandomSwin:
    """The paper's Swin UNETR with every label at random, written into `folder`; minutes of computing.

    It offers all `precisions`, whatever their masks are: those of random weights are all surface, and no precision but
    fp32 agrees on them. With `finds_nothing` no logit comes near a threshold, and masks are empty: nothing to agree on.
    """
    torch.manual_seed(0)
    model = UniversalModel(read_recipe("paper_swin_unetr").model, torch.randn(len(LABELS), TEXT_CHANNELS) * 0.4)
    if finds_nothing:
        model.reset_heads()
        torch.nn.init.constant_(model.controller.bias[-1:], _NEVER)
    with torch.no_grad():
        for weights in model.backbone.parameters():
            if weights.ndim > 1:
                weights.copy_(torch.where(weights < 0, -1.0, 1.0) * weights.std())
    text = TextProvenance("none", "random numbers for a {}", "random numbers", embedding_sha256(model.text_embedding))
    names = tuple(label.name for label in LABELS)
    checkpoint = folder / "model.pt"
    save_checkpoint(checkpoint, model.eval(), label_names=names, text=text, training={"data": "nothing: random signs"})
    offered = [
        precision if precision is FP32 else replace(precision, least_dice=None)
        for precision in precisions_of(precisions)
    ]
    bundle = write_bundle(
        load_checkpoint(checkpoint), folder, name="random-swin-unetr", version="1.0.0", precisions=offered
    )
    return RandomSwin(checkpoint, bundle)


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes both and prints where they are."""
    parser = argparse.ArgumentParser(description="A Swin UNETR with random weights.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precisions", default=FP32.name)
    parser.add_argument("--finds-nothing", action="store_true")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    precisions = options.precisions.split(",")
    print(random_swin(options.folder, precisions=precisions, finds_nothing=options.finds_nothing))


if __name__ == "__main__":
    main()
