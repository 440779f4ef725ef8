"""A Swin UNETR of the published size with random weights: what a job with it costs, without anybody's weights."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from model_export.bundle import write_bundle
from model_export.precisions import BF16, FP32
from training.checkpoint import load_checkpoint, save_checkpoint
from training.labels import LABELS
from training.networks.universal import TEXT_CHANNELS, UniversalModel
from training.recipe import read_recipe
from training.text import TextProvenance, embedding_sha256

# All masks of random weights are surface, and no precision but fp32 agrees on them: for the clock it need not.
_BF16_AS_IT_IS = replace(BF16, least_dice=0.0)


@dataclass(frozen=True)
class RandomSwin:
    """The same weights in both forms."""

    checkpoint: Path
    bundle: Path


def random_swin(folder: Path, *, bf16: bool = False) -> RandomSwin:
    """The paper's Swin UNETR with every label at random, written into `folder`; minutes of computing.

    `bf16`: it also offers that precision, whatever its masks are.
    """
    torch.manual_seed(0)
    model = UniversalModel(read_recipe("paper_swin_unetr").model, torch.randn(len(LABELS), TEXT_CHANNELS) * 0.4)
    text = TextProvenance("none", "random numbers for a {}", "random numbers", embedding_sha256(model.text_embedding))
    names = tuple(label.name for label in LABELS)
    weights = folder / "model.pt"
    save_checkpoint(weights, model.eval(), label_names=names, text=text, training={"data": "nothing: random weights"})
    precisions = (FP32, _BF16_AS_IT_IS) if bf16 else (FP32,)
    bundle = write_bundle(
        load_checkpoint(weights), folder, name="random-swin-unetr", version="1.0.0", precisions=precisions
    )
    return RandomSwin(weights, bundle)
