"""Training: cases to a checkpoint. `train` reads top to bottom; each step is one batch of windows."""

import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter

from training.checkpoint import read_content, save_checkpoint
from training.deep_supervision import VoxelClassifier, marginal_cross_entropy, most_specific_class
from training.labels import BY_NAME, LABELS, ORGANS
from training.losses import masked_dice_bce
from training.networks.universal import UniversalModel, apply_heads
from training.precision import mixed_precision
from training.recipe import Recipe
from training.samples import first_windows, loader_processes, training_batches, validation_batches
from training.store import build_phantom_store, drawing_beside
from training.text import TextProvenance
from training.warm_start import renew_heads, settle_norms, start_from_bundle, start_from_checkpoint

_SETTLING_WINDOWS = 8
LABEL_NAMES = tuple(label.name for label in LABELS)


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps what it makes."""

    path: Path

    @property
    def last(self) -> Path:
        """Checkpoint to resume from: raw weights, optimiser, step."""
        return self.path / "last.pt"

    @property
    def final(self) -> Path:
        """The averaged weights, for evaluation and export."""
        return self.path / "model.pt"

    @property
    def store(self) -> Path:
        """The label maps that training crops from."""
        return self.path / "store"


def train(
    recipe: Recipe, text_embedding: Tensor, text: TextProvenance, run: RunFolder, *, start_from: Path | None = None
) -> Path:
    """Runs the recipe to `run.final` and returns that path.

    It starts from the seed, or from the weights of `start_from`, a bundle or a checkpoint (.pt); an interrupted run
    goes on from its last checkpoint.
    """
    build_phantom_store(run.store, recipe.open_seeds(recipe.training_seeds, 0), recipe.model.spacing_mm[0])
    build_phantom_store(run.store, recipe.validation_seeds, recipe.model.spacing_mm[0])

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True  # windows have one size
    torch.manual_seed(recipe.seed)
    model = UniversalModel(recipe.model, text_embedding).to(device)
    if not run.last.exists():
        _give_first_weights(model, recipe, run.store, start_from)
    model.backbone.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    classifier = VoxelClassifier(model.backbone.decoder_channels).to(device)
    ema = get_ema_multi_avg_fn(recipe.ema_decay)  # type: ignore[no-untyped-call]
    average = AveragedModel(model, multi_avg_fn=ema, use_buffers=True)
    optimizer = torch.optim.AdamW(_parameter_groups(model, classifier, recipe), weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, recipe))
    first_step = _resume(run, model, classifier, average, optimizer, schedule)
    provenance = _provenance(recipe, start_from)
    is_organ = torch.tensor([label in ORGANS for label in LABELS], device=device)
    rarity = torch.where(is_organ, recipe.organ_rarity_exponent, recipe.lesion_rarity_exponent)
    label_weight = torch.where(is_organ, 1.0, recipe.lesion_weight)

    others = drawing_beside(run.store, recipe.training_seeds, recipe.model.spacing_mm[0], _painters(recipe))
    with others, SummaryWriter(str(run.path / "tensorboard")) as writer, _progress_bar() as bar:
        task = bar.add_task("Training", total=recipe.steps, completed=first_step, loss=math.nan, dice=math.nan)
        for step, batch in enumerate(training_batches(run.store, recipe, first_step, device), start=first_step + 1):
            model.train()
            image, eighths, supervised = batch
            image = image.contiguous(memory_format=torch.channels_last_3d)
            # Neighbouring planes say nearly the same, and on all of them heads and losses cost more than the backbone.
            planes = slice(step % recipe.loss_plane_stride, None, recipe.loss_plane_stride)
            occupancy = eighths[:, :, planes].float() / 8.0
            scaffold = scaffold_strength(step, recipe)
            with mixed_precision(device):
                bottleneck, decoded = model.backbone(image)
                features, pooled = model.read_out(bottleneck, decoded)
                logits = apply_heads(
                    features[:, :, planes], model.head_params(pooled), leak=recipe.head_leak * scaffold
                )
                class_logits = None
                if recipe.deep_supervision > 0.0:
                    seen = decoded.detach() if step <= recipe.classifier_warmup else decoded
                    class_logits = classifier(seen[:, :, planes])
            loss = masked_dice_bce(
                logits.float(),
                occupancy,
                supervised,
                label_weight=label_weight,
                rarity_exponent=rarity * scaffold if scaffold else None,
                half_cost_voxels=recipe.half_cost_voxels,
            )
            side_loss = torch.zeros((), device=device)
            if class_logits is not None:
                side_loss = marginal_cross_entropy(class_logits.float(), most_specific_class(occupancy), supervised)
            optimizer.zero_grad(set_to_none=True)
            # What is predicted where nothing is has its price once most of what is there has been learnt.
            total = loss.dice + loss.cross_entropy + (1.0 - scaffold) * loss.false_volume
            (total + recipe.deep_supervision * scaffold * side_loss).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_([*model.parameters(), *classifier.parameters()], recipe.gradient_clip)
            optimizer.step()
            schedule.step()
            average.update_parameters(model)

            if step % 10:  # reading a loss waits for the device
                bar.update(task, completed=step)
            else:
                bar.update(task, completed=step, loss=loss.total.item())
                writer.add_scalar("loss/dice", loss.dice.item(), step)
                writer.add_scalar("loss/cross_entropy", loss.cross_entropy.item(), step)
                writer.add_scalar("loss/false_volume", loss.false_volume.item(), step)
                writer.add_scalar("loss/deep_supervision", side_loss.item(), step)
                writer.add_scalar("learning_rate", schedule.get_last_lr()[0], step)
            if step % recipe.validate_every == 0 or step == recipe.steps:
                dice = validate(_averaged(average), run.store, recipe, device)
                for name, value in dice.items():
                    writer.add_scalar(f"dice/{name}", value, step)
                bar.update(task, dice=sum(dice.values()) / max(len(dice), 1))
            if step % recipe.save_every == 0 or step == recipe.steps:
                state = {
                    "step": step,
                    "classifier": classifier.state_dict(),
                    "average": average.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                }
                save_checkpoint(run.last, model, label_names=LABEL_NAMES, text=text, training=provenance, resume=state)
    final = _averaged(average)
    save_checkpoint(run.final, final, label_names=LABEL_NAMES, text=text, training=provenance)
    return run.final


def _give_first_weights(model: UniversalModel, recipe: Recipe, store: Path, start_from: Path | None) -> None:
    """Those of `start_from`, or random ones."""
    if start_from is None:
        model.reset_heads()
        return
    window = first_windows(store, recipe, _SETTLING_WINDOWS).to(model.text_embedding.device)
    if start_from.suffix == ".pt":
        start_from_checkpoint(model, start_from)
    else:
        start_from_bundle(model, start_from, logit_scale=recipe.start_logit_scale)
        settle_norms(model, window)
    if recipe.fresh_labels:
        renew_heads(model, [BY_NAME[name].channel for name in recipe.fresh_labels], window)


def warmup_cosine(step: int, recipe: Recipe) -> float:
    """Share of the peak learning rate: linear over the warm-up, then a cosine to 0 at the last step."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


def scaffold_strength(step: int, recipe: Recipe) -> float:
    """Strength of what only helps training along: 1 at the start, linearly to 0 at `scaffold_share` of the steps."""
    return max(0.0, 1.0 - step / (recipe.scaffold_share * recipe.steps))


def _parameter_groups(model: UniversalModel, classifier: VoxelClassifier, recipe: Recipe) -> list[dict[str, Any]]:
    head = [p for name, p in model.named_parameters() if name.startswith(("text_to_vision.", "controller."))]
    in_head = {id(parameter) for parameter in head}
    body = [p for p in (*model.parameters(), *classifier.parameters()) if id(p) not in in_head]
    return [
        {"params": body, "lr": recipe.learning_rate},
        {"params": head, "lr": recipe.learning_rate * recipe.head_learning_rate_factor},
    ]


@torch.no_grad()
def validate(model: UniversalModel, store: Path, recipe: Recipe, device: torch.device) -> dict[str, float]:
    """Dice per label over the fixed validation windows, all voxels of a label counted as one set.

    Labels that no window contains, or that were not annotated, are absent from the answer. Occupancy of half a voxel or
    more counts as foreground.
    """
    model.eval()
    overlap, total, present = (torch.zeros(len(LABELS), device=device) for _ in range(3))
    for image, occupancy, supervised in validation_batches(store, recipe, device):
        annotated = supervised[:, :, None, None, None]
        with mixed_precision(device):
            predicted = (model(image) > 0) & annotated
        truth = (occupancy >= 4) & annotated
        overlap += (predicted & truth).sum(dim=(0, 2, 3, 4))
        total += predicted.sum(dim=(0, 2, 3, 4)) + truth.sum(dim=(0, 2, 3, 4))
        present += truth.sum(dim=(0, 2, 3, 4))
    dice = 2.0 * overlap / total.clamp(min=1)
    return {name: float(dice[c]) for c, name in enumerate(LABEL_NAMES) if present[c] > 0}


def _painters(recipe: Recipe) -> int:
    """Processes that draw phantoms beside a training: the cores that it leaves."""
    return max(1, (os.cpu_count() or 1) - loader_processes(recipe) - 1)


def _averaged(average: AveragedModel) -> UniversalModel:
    model = average.module
    assert isinstance(model, UniversalModel)
    return model


def _resume(
    run: RunFolder,
    model: UniversalModel,
    classifier: VoxelClassifier,
    average: AveragedModel,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
) -> int:
    """The step reached by the run's last checkpoint, all state restored; 0 for a new run."""
    if not run.last.exists():
        return 0
    content = read_content(run.last)
    model.load_state_dict(content["state_dict"])
    state = content["resume"]
    classifier.load_state_dict(state["classifier"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return int(state["step"])


def _provenance(recipe: Recipe, start_from: Path | None) -> dict[str, Any]:
    """What the checkpoint says of its making; JSON-ready."""
    return {
        "recipe": recipe.name,
        "started from": "random weights" if start_from is None else _origin(start_from),
        "seed": recipe.seed,
        "steps": recipe.steps,
        "windows": recipe.steps * recipe.batch_size,
        "data": _data(recipe),
        "torch": str(torch.__version__),  # a class of torch, made a plain string
        "python": platform.python_version(),
    }


def _origin(start_from: Path) -> str:
    if start_from.suffix == ".pt":
        return f"the checkpoint of the recipe {read_content(start_from)['training']['recipe']}"
    return f"the bundle {start_from.resolve().name}"


def _data(recipe: Recipe) -> str:
    seeds = recipe.training_seeds
    return (
        f"procedural phantoms, seeds {seeds.start} to {seeds.stop - 1}, rendered anew for every window; "
        "no scan of a person"
    )


def _progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  validation Dice {task.fields[dice]:.3f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
