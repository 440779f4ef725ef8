"""The endless, numbered sequence of training windows: window n is the same in every run, at any number of loaders.

Loaders draw plans. On a CPU they render them too, each on one core; on a GPU the training's device does, from cases
that stay in its memory. Scans that are more than it holds are left to the loaders, with all windows beside them.
"""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from training.assembly import Assembly, Split, labels_of
from training.augment import WindowPlan, draw_plan
from training.datasets.errors import NoCases
from training.label_table import LabelTable
from training.networks.backbones import feature_stride
from training.parallel import ALONE, Part
from training.recipe import EvenOver, Recipe
from training.rendering import Batch, CaseMemory, Voxels, render
from training.store import Case, CaseKey, has_case, open_case

MOST_OPEN = 256
MOST_LOADERS = 8  # each holds gigabytes of windows and mapped cases, and a machine has more than one tenant
_GPU_SHARE = 0.4  # of the free memory, for cases
_LONG_WAIT_S, _LONGEST_WAIT_S = 5.0, 600.0
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cases:
    """What windows are drawn from: phantoms of a folder by their seeds, and the scans of one split of an assembly."""

    phantoms: Path
    seeds: range
    scans: Assembly | None = None
    split: Split = Split.TRAIN

    @property
    def table(self) -> LabelTable:
        """The labels of the scans; phantoms, which have the first 32 of them, supervise no others."""
        return labels_of(self.scans)

    def number(self, key: CaseKey) -> int:
        """What plans call the case: a phantom by its seed, scans from -1 down in the order of their names."""
        return key if isinstance(key, int) else -1 - self._names.index(key)

    def voxels(self, number: int) -> Voxels:
        """The case of that number, mapped from disk. Raises FileNotFoundError."""
        if number >= 0:
            return Voxels.of(open_case(self.phantoms, number))
        assert self.scans is not None
        return Voxels.of(open_case(self.scans.store, self._names[-1 - number]))

    def bytes_of_scans(self) -> int:
        """What the voxels of all scans of the split take."""
        return sum(self.voxels(-1 - place).nbytes for place in range(len(self._names)))

    @cached_property
    def _names(self) -> list[str]:
        """The scans of the split."""
        by_dataset = {} if self.scans is None else self.scans.datasets(self.split)
        return sorted(name for names in by_dataset.values() for name in names)

    @classmethod
    def to_train_on(cls, phantoms: Path, recipe: Recipe, scans: Assembly | None) -> "Cases":
        """Those of the recipe's training."""
        return cls(phantoms, recipe.training_seeds, scans, Split.TRAIN)

    @classmethod
    def to_validate_on(cls, phantoms: Path, recipe: Recipe, scans: Assembly | None) -> "Cases":
        """Those of the recipe's validation."""
        return cls(phantoms, recipe.validation_seeds, scans, Split.VALIDATION)


class NumberedPlans(Dataset[WindowPlan]):
    """Item n: one case drawn by n, one random window of it.

    Without scans in its split, validation shows phantoms alone: of a handful of scans the split often gets none.
    Raises NoCases where the recipe wants scans to train on and there are none, or has no phantoms to validate on.
    """

    def __init__(self, cases: Cases, recipe: Recipe) -> None:
        self.cases, self.recipe = cases, recipe
        self._open: dict[CaseKey, Case] = {}
        self._pools: tuple[tuple[tuple[str, ...], ...], ...] = ()
        if recipe.scans:
            if cases.scans is None:
                raise NoCases(f"The recipe {recipe.name} shows scans; give the store that holds them.")
            self._pools = _pools(cases.scans, cases.split, recipe.even_over)
            if not self._pools and (cases.split is Split.TRAIN or recipe.scans == 1.0):
                raise NoCases(f"The store has no scans for {cases.split.name.lower()}; harmonize more cases.")

    def __getitem__(self, number: int) -> WindowPlan:
        return self.draw(number)[0]

    def draw(self, number: int) -> tuple[WindowPlan, Case]:
        """Window `number`, and the case that it shows."""
        rng = np.random.default_rng((self.recipe.seed, self.cases.seeds.start, number))
        key = self._draw_key(number, rng)
        case = self._case(key)
        plan = draw_plan(
            case,
            self.recipe.model,
            self.recipe.patch,
            rng,
            around=(self.recipe.lesion_windows, self.recipe.label_windows),
            number=self.cases.number(key),
            augmentation=self.recipe.augmentation,
            table=self.cases.table,
        )
        return plan, case

    def _draw_key(self, number: int, rng: np.random.Generator) -> CaseKey:
        """A scan, its pool and then its dataset drawn first, each as likely as the others; or a phantom."""
        if self._pools and rng.random() < self.recipe.scans:
            datasets = self._pools[int(rng.integers(len(self._pools)))]
            names = datasets[int(rng.integers(len(datasets)))]
            return names[int(rng.integers(len(names)))]
        return int(rng.choice(self.recipe.open_seeds(self.cases.seeds, number)))

    def _case(self, key: CaseKey) -> Case:
        if key not in self._open:
            if isinstance(key, int):
                wait_for_case(self.cases.phantoms, key)
                self._open[key] = open_case(self.cases.phantoms, key)
            else:
                assert self.cases.scans is not None
                if len(self._open) >= MOST_OPEN:  # each holds two files open
                    self._open.clear()
                self._open[key] = open_case(self.cases.scans.store, key)
        return self._open[key]


class RenderedPlans(Dataset[Batch]):
    """Plans, each rendered where it is drawn."""

    def __init__(self, plans: NumberedPlans) -> None:
        self.plans = plans
        self._stride = feature_stride(plans.recipe.model)

    def __getitem__(self, number: int) -> Batch:
        plan, case = self.plans.draw(number)
        image, occupancy, supervised = render(
            default_collate([plan]), [Voxels.of(case)], self.plans.recipe.model, stride=self._stride
        )
        return image[0], occupancy[0], supervised[0]


def _pools(scans: Assembly, split: Split, even_over: EvenOver) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """What scans are drawn from: all of a split, or those that annotate a label, for each label; names by dataset."""
    datasets = tuple(scans.datasets(split).values())
    if even_over is EvenOver.DATASETS:
        return (datasets,) if datasets else ()
    annotated = {
        name: {*scans.scans[name].supervised, *scans.scans[name].pseudo} for names in datasets for name in names
    }
    pools = []
    for label in scans.table.labels:
        by_dataset = (tuple(name for name in names if label.name in annotated[name]) for names in datasets)
        pools.append(tuple(names for names in by_dataset if names))
    return tuple(pool for pool in pools if pool)


def loader_processes(recipe: Recipe) -> int:
    """As many as the recipe names; else one per core but one, at least 1 and at most `MOST_LOADERS`."""
    if recipe.loader_processes is not None:
        return recipe.loader_processes
    return min(max(1, (os.cpu_count() or 1) - 1), MOST_LOADERS)


def training_batches(
    store: Path,
    recipe: Recipe,
    first_step: int,
    device: torch.device,
    *,
    scans: Assembly | None = None,
    part: Part = ALONE,
) -> Iterator[Batch]:
    """Batches on the device, from `first_step` to the last step: a resumed run goes on with the sample that came
    next. With several processes each gets its part of every batch."""
    plans = NumberedPlans(Cases.to_train_on(store, recipe, scans), recipe)
    size = part.share_of(recipe.batch_size)
    numbers = [
        step * recipe.batch_size + part.number * size + row
        for step in range(first_step, recipe.steps)
        for row in range(size)
    ]
    return _batches(plans, numbers, size, loader_processes(recipe), device)


def validation_batches(
    store: Path, recipe: Recipe, device: torch.device, *, scans: Assembly | None = None
) -> Iterator[Batch]:
    """The same validation windows at every call, one in a batch."""
    plans = NumberedPlans(Cases.to_validate_on(store, recipe, scans), recipe)
    return _batches(plans, range(recipe.validation_samples), 1, 0, device)


def first_windows(store: Path, recipe: Recipe, count: int, *, scans: Assembly | None = None) -> Tensor:
    """Images (count,1,D,H,W) of the run's first samples."""
    samples = RenderedPlans(NumberedPlans(Cases.to_train_on(store, recipe, scans), recipe))
    return torch.stack([samples[number][0] for number in range(count)])


def wait_for_case(store: Path, seed: int) -> None:
    """Returns when the store has the case: it may still be drawn. Raises TimeoutError after ten minutes.

    A training that waits for long is told: it asks for phantoms sooner than they are drawn.
    """
    start, told = time.monotonic(), False
    while not has_case(store, seed):
        waited = time.monotonic() - start
        if waited > _LONGEST_WAIT_S:
            raise TimeoutError(f"The store has no case {seed}, and none has come in {_LONGEST_WAIT_S:.0f} s.")
        if waited > _LONG_WAIT_S and not told:
            told = True
            _logger.warning(
                "Training waits for phantom %d, which is still being drawn; with fewer `phantoms`, or with a "
                "store that has them already, it would not.",
                seed,
            )
        time.sleep(0.1)


def _batches(
    plans: NumberedPlans, numbers: Sequence[int], size: int, processes: int, device: torch.device
) -> Iterator[Batch]:
    if device.type != "cpu":
        most_bytes = int(_GPU_SHARE * torch.cuda.mem_get_info(device)[0])
        if plans.cases.bytes_of_scans() <= most_bytes:
            return rendered_on_device(plans, numbers, size, processes, device, most_bytes)
    return rendered_by_loaders(plans, numbers, size, processes, device)


def rendered_by_loaders(
    plans: NumberedPlans, numbers: Sequence[int], size: int, processes: int, device: torch.device
) -> Iterator[Batch]:
    """Batches that loaders render: what travels are windows."""
    for image, occupancy, supervised in _loader(RenderedPlans(plans), numbers, size, processes):
        yield image.to(device), occupancy.to(device), supervised.to(device)


def rendered_on_device(
    plans: NumberedPlans, numbers: Sequence[int], size: int, processes: int, device: torch.device, most_bytes: int
) -> Iterator[Batch]:
    """Batches that the device renders, of cases that it holds in so many bytes: what travels are plans."""
    held = CaseMemory(plans.cases.voxels, device, most_bytes)
    stride = feature_stride(plans.recipe.model)
    for fields in _loader(plans, numbers, size, processes):
        plan = WindowPlan(*fields)
        yield render(plan, [held(number) for number in plan.number.tolist()], plans.recipe.model, stride=stride)


def _loader(dataset: Dataset[Any], numbers: Sequence[int], size: int, processes: int) -> DataLoader[Any]:
    return DataLoader(
        dataset, batch_size=size, sampler=numbers, num_workers=processes, prefetch_factor=4 if processes else None
    )
