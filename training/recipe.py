"""Recipes: every number of a training run, in one TOML file that travels with the checkpoint."""

import tomllib
from enum import StrEnum
from pathlib import Path
from typing import Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from training.augment import Augmentation
from training.config import ModelConfig

RECIPES = Path(__file__).parent / "recipes"
FIRST_CALIBRATION_SEED = 950_000
_ALL_OPEN_AFTER = 0.9  # share of a training's windows: the last phantoms are to be seen often, too


class RecipeError(ValueError):
    """The recipe cannot be found or does not hold what a recipe holds."""


class EvenOver(StrEnum):
    """What the scans that training shows are spread evenly over."""

    DATASETS = "datasets"  #: every dataset as often as the others, whatever its size
    LABELS = "labels"  #: every annotated label as often as the others, by each dataset that annotates it alike


class Recipe(BaseModel):
    """How a run is made from its seed.

    `whiten_text` centres the text embeddings and makes them orthogonal (`text.whiten`) before anything else.
    `batch_size` counts windows of `patch`^3 voxels of the model grid. The learning rate rises linearly over
    `warmup_steps`, then falls as a cosine to zero at `steps`. `ema_decay` is per step; no `gradient_clip` clips none.
    The text branch and the controller learn at `head_learning_rate_factor` times the rate: one step of theirs moves
    all heads at once.
    `organ_rarity_exponent`, `lesion_rarity_exponent` (`losses.masked_dice_bce`) and the weight `deep_supervision`
    (`deep_supervision.py`) are scaffolds: they fall linearly to zero at the share `scaffold_share` of the steps.
    Over the first `classifier_warmup` steps the classifier of the deep supervision learns without moving the network,
    so that it does not harm one that starts from a bundle.
    `lesion_weight` is the say of a lesion in the loss's means, an organ's being 1; `half_cost_voxels` is of the loss
    too. Of the windows a share `lesion_windows` lies around a lesion, a share
    `label_windows` around a voxel of any label, the rest anywhere in the patient. A share `scans` of them shows scans
    of an assembly, spread as `even_over` says and varied as `augmentation` says; the rest shows phantoms.
    No `validation_samples`: no validation. `start_logit_scale` is for a run that starts from a bundle
    (`warm_start.start_from_bundle`), `fresh_labels` for one whose start has heads that died
    (`warm_start.renew_heads`). `loader_processes` render windows beside the training; None:
    by the machine (`samples.loader_processes`). Their number changes no sample.
    The phantoms are those of the seeds from `first_phantom` on: a run that goes on from another's weights may see
    others. Training begins with `phantoms_at_start` of them (None: with all), and the others join as they are drawn
    beside it: window n is the same however fast they come (`open_seeds`). Of the planes along z, losses see every
    `loss_plane_stride`-th. `head_leak` is the slope below 0 of the generated heads' ReLU, a
    scaffold too: with none a head can end up with all its units off where it is wrong, and learn nothing there.
    Validation goes without it. `freeze_backbone` leaves the backbone as it starts, its norms too: only what reads it
    learns. `mixed_precision` computes in bfloat16 where the device can.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    seed: NonNegativeInt
    whiten_text: bool = False
    steps: PositiveInt
    batch_size: PositiveInt
    # From 48 on: over a bottleneck of 2^3 voxels oneDNN gives a wrong bfloat16 weight gradient (torch 2.13, AVX-512).
    patch: int = Field(ge=48, multiple_of=16)
    learning_rate: PositiveFloat
    weight_decay: float = Field(ge=0.0)
    warmup_steps: NonNegativeInt
    gradient_clip: PositiveFloat | None = None
    ema_decay: float = Field(ge=0.0, lt=1.0)
    head_learning_rate_factor: PositiveFloat = 1.0
    organ_rarity_exponent: float = Field(default=0.0, ge=0.0, le=1.0)
    lesion_rarity_exponent: float = Field(default=0.0, ge=0.0, le=1.0)
    deep_supervision: float = Field(default=0.0, ge=0.0)
    scaffold_share: float = Field(default=0.7, gt=0.0, le=1.0)
    classifier_warmup: NonNegativeInt = 0
    lesion_weight: PositiveFloat = 1.0
    half_cost_voxels: PositiveFloat | None = None
    lesion_windows: float = Field(default=0.4, ge=0.0, le=1.0)
    label_windows: float = Field(default=0.4, ge=0.0, le=1.0)
    start_logit_scale: PositiveFloat = 1.0
    fresh_labels: tuple[str, ...] = ()
    loss_plane_stride: PositiveInt = 3
    freeze_backbone: bool = False
    mixed_precision: bool = True
    head_leak: float = Field(default=0.0, ge=0.0, lt=1.0)
    scans: float = Field(default=0.0, ge=0.0, le=1.0)
    even_over: EvenOver = EvenOver.DATASETS
    augmentation: Augmentation = Augmentation.MODERN
    phantoms: NonNegativeInt
    first_phantom: NonNegativeInt = 0
    phantoms_at_start: PositiveInt | None = None
    validation_phantoms: NonNegativeInt
    validation_samples: NonNegativeInt
    validate_every: PositiveInt
    save_every: PositiveInt
    loader_processes: NonNegativeInt | None = None
    model: ModelConfig

    @model_validator(mode="after")
    def _phantoms_where_needed(self) -> Self:
        if self.scans < 1.0 and not (self.phantoms and self.validation_phantoms):
            raise ValueError("phantoms and validation_phantoms must be at least 1 where scans is below 1")
        return self

    @property
    def training_seeds(self) -> range:
        """Seeds of the phantoms that are trained on."""
        return range(self.first_phantom, self.first_phantom + self.phantoms)

    def open_seeds(self, seeds: range, number: int) -> range:
        """Those of `seeds` that window `number` may show: of the training's at first `phantoms_at_start`, and all after
        `_ALL_OPEN_AFTER` of the windows."""
        if self.phantoms_at_start is None or seeds != self.training_seeds:
            return seeds
        done = number / (self.steps * self.batch_size * _ALL_OPEN_AFTER)
        more = int((self.phantoms - self.phantoms_at_start) * min(1.0, done))
        return seeds[: self.phantoms_at_start + more]

    @property
    def validation_seeds(self) -> range:
        """Seeds that only validation sees."""
        return range(900_000, 900_000 + self.validation_phantoms)


def read_recipe(name_or_path: str) -> Recipe:
    """A recipe of this package by name, or any TOML file by path. Raises RecipeError."""
    named = RECIPES / f"{name_or_path}.toml"
    path = named if named.is_file() else Path(name_or_path)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.toml")))
        raise RecipeError(f"No recipe {name_or_path!r}; known: {known}; or give the path of a TOML file.")
    try:
        return Recipe.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (ValidationError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path.name} is not a recipe: {error}") from error
