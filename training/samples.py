"""The endless, numbered sequence of training samples: sample n is the same in every run, at any number of loaders."""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.augment import draw_sample
from training.recipe import Recipe
from training.store import Case, open_case

MOST_LOADERS = 8  # each holds gigabytes of windows and mapped cases, and a machine has more than one tenant

Batch = tuple[Tensor, Tensor, Tensor]  # image (B,1,D,H,W) float32, occupancy (B,C,..) uint8 0..8, supervised (B,C) bool


class NumberedSamples(Dataset[Batch]):
    """Item n: one case drawn by n, one random window of it."""

    def __init__(self, store: Path, seeds: range, recipe: Recipe) -> None:
        self.store, self.seeds, self.recipe = store, seeds, recipe
        self._cases: dict[int, Case] = {}

    def __getitem__(self, number: int) -> Batch:
        rng = np.random.default_rng((self.recipe.seed, self.seeds.start, number))
        seed = int(rng.choice(self.seeds))
        if seed not in self._cases:
            self._cases[seed] = open_case(self.store, seed)
        around = (self.recipe.lesion_windows, self.recipe.label_windows)
        sample = draw_sample(self._cases[seed], self.recipe.model, self.recipe.patch, rng, around=around)
        return torch.from_numpy(sample.image), torch.from_numpy(sample.occupancy), torch.from_numpy(sample.supervised)


def loader_processes(recipe: Recipe) -> int:
    """As many as the recipe names; else one per core but one, at least 1 and at most `MOST_LOADERS`."""
    if recipe.loader_processes is not None:
        return recipe.loader_processes
    return min(max(1, (os.cpu_count() or 1) - 1), MOST_LOADERS)


def training_batches(store: Path, recipe: Recipe, first_step: int) -> DataLoader[Batch]:
    """Batches from `first_step` to the last step: a resumed run goes on with the sample that came next."""
    size = recipe.batch_size
    processes = loader_processes(recipe)
    return DataLoader(
        NumberedSamples(store, recipe.training_seeds, recipe),
        batch_size=size,
        sampler=range(first_step * size, recipe.steps * size),
        num_workers=processes,
        prefetch_factor=4 if processes else None,
    )


def validation_batches(store: Path, recipe: Recipe) -> DataLoader[Batch]:
    """The same validation windows at every call."""
    return DataLoader(
        NumberedSamples(store, recipe.validation_seeds, recipe),
        batch_size=1,
        sampler=range(recipe.validation_samples),
    )
