"""A tiny network, a tiny recipe and a patient made of boxes: training in seconds."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.config import ModelConfig
from training.labels import BY_NAME
from training.networks.universal import UniversalModel
from training.phantom.tissues import Tissue
from training.recipe import Recipe
from training.store import Case, encode_case, write_case
from training.text import random_text_embedding

TINY_CONFIG = ModelConfig(channels=(16, 16, 16, 32), roi_size=(32, 32, 32))


def tiny_model(seed: int = 0) -> UniversalModel:
    """A network in eval mode whose batch norms do something, as after training."""
    torch.manual_seed(seed)
    model = UniversalModel(TINY_CONFIG, random_text_embedding(seed)[0])
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.normal_(0.0, 0.2)
            module.running_var.uniform_(0.2, 2.0)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0.0, 0.2)
    return model.eval()


def tiny_recipe(**changes: Any) -> Recipe:
    """Two training cases and one validation case, windows of 48 voxels, no loader processes."""
    values = {
        "name": "tiny", "seed": 3, "steps": 6, "batch_size": 2, "patch": 48, "learning_rate": 1e-2,
        "weight_decay": 1e-4, "warmup_steps": 2, "gradient_clip": 2.0, "ema_decay": 0.5, "phantoms": 2,
        "validation_phantoms": 1, "validation_samples": 2, "validate_every": 100, "save_every": 2,
        "loader_processes": 0, "model": TINY_CONFIG,
    }  # fmt: skip
    return Recipe(**(values | changes))


def bits(*names: str) -> np.uint32:
    """The named labels as one bit field."""
    return np.uint32(sum(1 << BY_NAME[name].channel for name in names))


def box_case(seed: int = 0, *, supervised: int = 0xFFFFFFFF) -> Case:
    """40 x 36 x 44 voxels of air: a right kidney at large x, its mirror image at small x, a tumour in the right one.

    RAS: x grows towards the patient's right.
    """
    tissue = np.full((40, 36, 44), Tissue.AIR, np.uint8)
    labels = np.zeros(tissue.shape, np.uint32)
    tissue[4:36, 6:30, 6:38] = Tissue.VISCERAL_FAT
    right, left, tumor = np.s_[24:34, 10:26, 10:34], np.s_[6:16, 10:26, 10:34], np.s_[26:31, 14:20, 16:24]
    tissue[right] = tissue[left] = Tissue.CORTICAL_BONE
    labels[right], labels[left] = bits("kidney_right"), bits("kidney_left")
    tissue[tumor] = Tissue.METAL
    labels[tumor] |= bits("kidney_tumor")
    return encode_case(tissue, labels, np.random.default_rng(seed), supervised=supervised)


def write_box_store(folder: Path, recipe: Recipe, *, supervised: int = 0xFFFFFFFF) -> None:
    """All cases of a recipe, so that training draws no phantom."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in (*recipe.training_seeds, *recipe.validation_seeds):
        write_case(folder, seed, box_case(seed, supervised=supervised), source={"boxes": seed})
