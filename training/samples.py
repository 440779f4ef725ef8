"""The endless, numbered sequence of training windows: window n is the same in every run, at any number of loaders.

Loaders draw plans. On a CPU they render them too, each on one core; on a GPU the training's device does, from cases
that stay in its memory.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from training.augment import WindowPlan, draw_plan
from training.recipe import Recipe
from training.rendering import Batch, CaseMemory, render
from training.store import Case, has_case, open_case

MOST_LOADERS = 8  # each holds gigabytes of windows and mapped cases, and a machine has more than one tenant
_GPU_SHARE = 0.4  # of the free memory, for cases
_UNLIMITED = 2**62  # on a CPU cases are mapped from disk: what is held is no more than an address
_LONGEST_WAIT_S = 600.0


class NumberedPlans(Dataset[WindowPlan]):
    """Item n: one case drawn by n, one random window of it."""

    def __init__(self, store: Path, seeds: range, recipe: Recipe) -> None:
        self.store, self.seeds, self.recipe = store, seeds, recipe
        self._cases: dict[int, Case] = {}

    def __getitem__(self, number: int) -> WindowPlan:
        rng = np.random.default_rng((self.recipe.seed, self.seeds.start, number))
        seed = int(rng.choice(self.recipe.open_seeds(self.seeds, number)))
        around = (self.recipe.lesion_windows, self.recipe.label_windows)
        case = self._case(seed)
        return draw_plan(case, self.recipe.model, self.recipe.patch, rng, around=around, seed=seed)

    def _case(self, seed: int) -> Case:
        if seed not in self._cases:
            wait_for_case(self.store, seed)
            self._cases[seed] = open_case(self.store, seed)
        return self._cases[seed]


class RenderedPlans(Dataset[Batch]):
    """Plans, each rendered where it is drawn."""

    def __init__(self, plans: NumberedPlans) -> None:
        self.plans = plans
        self._codes = _case_memory(plans.store, torch.device("cpu"))

    def __getitem__(self, number: int) -> Batch:
        plan = default_collate([self.plans[number]])
        image, occupancy, supervised = render(plan, [self._codes(int(plan.seed))], self.plans.recipe.model)
        return image[0], occupancy[0], supervised[0]


def loader_processes(recipe: Recipe) -> int:
    """As many as the recipe names; else one per core but one, at least 1 and at most `MOST_LOADERS`."""
    if recipe.loader_processes is not None:
        return recipe.loader_processes
    return min(max(1, (os.cpu_count() or 1) - 1), MOST_LOADERS)


def training_batches(store: Path, recipe: Recipe, first_step: int, device: torch.device) -> Iterator[Batch]:
    """Batches on the device, from `first_step` to the last step: a resumed run goes on with the sample that came
    next."""
    plans = NumberedPlans(store, recipe.training_seeds, recipe)
    numbers = range(first_step * recipe.batch_size, recipe.steps * recipe.batch_size)
    return _batches(plans, numbers, recipe.batch_size, loader_processes(recipe), device)


def validation_batches(store: Path, recipe: Recipe, device: torch.device) -> Iterator[Batch]:
    """The same validation windows at every call, one in a batch."""
    plans = NumberedPlans(store, recipe.validation_seeds, recipe)
    return _batches(plans, range(recipe.validation_samples), 1, 0, device)


def first_windows(store: Path, recipe: Recipe, count: int) -> Tensor:
    """Images (count,1,D,H,W) of the run's first samples."""
    samples = RenderedPlans(NumberedPlans(store, recipe.training_seeds, recipe))
    return torch.stack([samples[number][0] for number in range(count)])


def wait_for_case(store: Path, seed: int) -> None:
    """Returns when the store has the case: it may still be drawn. Raises TimeoutError after ten minutes."""
    deadline = time.monotonic() + _LONGEST_WAIT_S
    while not has_case(store, seed):
        if time.monotonic() > deadline:
            raise TimeoutError(f"The store has no case {seed}, and none has come in {_LONGEST_WAIT_S:.0f} s.")
        time.sleep(0.1)


def _batches(plans: NumberedPlans, numbers: range, size: int, processes: int, device: torch.device) -> Iterator[Batch]:
    on_cpu = device.type == "cpu"
    loader: DataLoader[Batch | WindowPlan] = DataLoader(
        RenderedPlans(plans) if on_cpu else plans,
        batch_size=size,
        sampler=numbers,
        num_workers=processes,
        prefetch_factor=4 if processes else None,
    )
    if on_cpu:
        yield from loader
        return
    codes = _case_memory(plans.store, device)
    for fields in loader:
        plan = WindowPlan(*fields)
        yield render(plan, [codes(seed) for seed in plan.seed.tolist()], plans.recipe.model)


def _case_memory(store: Path, device: torch.device) -> CaseMemory:
    most_bytes = _UNLIMITED
    if device.type == "cuda":
        most_bytes = int(_GPU_SHARE * torch.cuda.mem_get_info(device)[0])
    return CaseMemory(lambda seed: torch.from_numpy(open_case(store, seed).codes), device, most_bytes)
