"""Training: cases to a checkpoint. `train` reads top to bottom; each step is one batch of windows."""

import math
import os
import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter

from training.assembly import Assembly, Split, labels_of, open_assembly
from training.checkpoint import read_content, save_checkpoint
from training.deep_supervision import VoxelClassifier, marginal_cross_entropy, most_specific_class
from training.label_table import LabelTable, OtherLabels
from training.labels import LabelKind
from training.losses import MaskedLoss, masked_dice_bce
from training.networks.universal import UniversalModel, apply_heads
from training.parallel import (
    Part,
    average_gradients,
    joined_processes,
    own_device,
    share_batch_norms,
    wait_for_all,
)
from training.precision import mixed_precision
from training.provenance import describe_run
from training.recipe import Recipe
from training.rendering import Batch
from training.samples import (
    Cases,
    NumberedPlans,
    first_windows,
    loader_processes,
    training_batches,
)
from training.store import build_phantom_store, drawing_beside
from training.text import TextProvenance
from training.validation import picture, validate
from training.warm_start import renew_heads, settle_norms, start_from_bundle, start_from_checkpoint

_SETTLING_WINDOWS = 8


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
        """The averaged weights, for evaluation and export; of a run that is not finished, those of its last save."""
        return self.path / "model.pt"

    @property
    def store(self) -> Path:
        """The phantoms that training crops from."""
        return self.path / "store"

    @property
    def description(self) -> Path:
        """What the run was made of: recipe, commit, hashes."""
        return self.path / "run.json"


def train(
    recipe: Recipe,
    text_embedding: Tensor,
    text: TextProvenance,
    run: RunFolder,
    *,
    start_from: Path | None = None,
    scans: Path | None = None,
) -> Path:
    """Runs the recipe to `run.final` and returns that path.

    It starts from the seed, or from the weights of `start_from`, a bundle or a checkpoint (.pt); an interrupted run
    goes on from its last checkpoint. `scans` is a store with an assembly, for a recipe that shows some of it. Started
    by `torchrun`, every process computes its part of each batch.
    `text_embedding` has a row for each label of the store (`run_text`), or of the 32 without one.
    Raises NoCases where the recipe shows scans that are not there, OtherLabels where text, store and an interrupted run
    are not of the same labels.
    """
    assembly = None if scans is None else open_assembly(scans)
    _check_rows(text_embedding, labels_of(assembly))
    _check_cases(recipe, run, assembly)
    with joined_processes() as part:
        _train(recipe, (text_embedding, text), run, start_from, assembly, part)
    return run.final


def _train(
    recipe: Recipe,
    texts: tuple[Tensor, TextProvenance],
    run: RunFolder,
    start_from: Path | None,
    scans: Assembly | None,
    part: Part,
) -> None:
    text_embedding, text = texts
    if part.is_first:
        build_phantom_store(run.store, recipe.open_seeds(recipe.training_seeds, 0), recipe.model.spacing_mm[0])
        build_phantom_store(run.store, recipe.validation_seeds, recipe.model.spacing_mm[0])
        describe_run(run.description, recipe, text, start_from, scans)
    wait_for_all()

    device = own_device()
    torch.backends.cudnn.benchmark = True  # windows have one size
    torch.manual_seed(recipe.seed)
    table = labels_of(scans)
    model = UniversalModel(recipe.model, text_embedding).to(device)
    if not run.last.exists():
        _give_first_weights(model, recipe, run.store, start_from, scans)
    model.backbone.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    classifier = VoxelClassifier(model.backbone.decoder_channels, len(table.labels)).to(device)
    if part.count > 1:
        share_batch_norms(model)
        share_batch_norms(classifier)
    ema = get_ema_multi_avg_fn(recipe.ema_decay)  # type: ignore[no-untyped-call]
    average = AveragedModel(model, multi_avg_fn=ema, use_buffers=True)
    if recipe.freeze_backbone:
        model.backbone.requires_grad_(False)
    optimizer = torch.optim.AdamW(parameter_groups(model, classifier, recipe), weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, recipe))
    first_step = _resume(run, model, classifier, average, optimizer, schedule, table)
    wait_for_all()  # the first process may write soon what the others still read
    save = partial(
        save_checkpoint,
        label_names=table.names,
        own_labels=table.own,
        text=text,
    )

    seeds = recipe.training_seeds if part.is_first else range(0)
    others = drawing_beside(run.store, seeds, recipe.model.spacing_mm[0], _painters(recipe))
    batches = training_batches(run.store, recipe, first_step, device, scans=scans, part=part)
    with others, _summary_writer(run, part) as writer, _progress_bar(part) as bar:
        task = bar.add_task("Training", total=recipe.steps, completed=first_step, loss=math.nan, dice="-")
        for step, batch in enumerate(batches, start=first_step + 1):
            model.train()
            model.backbone.train(not recipe.freeze_backbone)  # a norm in training mode would move its statistics
            scaffold = scaffold_strength(step, recipe)
            loss, side_loss = losses(model, classifier, batch, step, recipe, table)
            optimizer.zero_grad(set_to_none=True)
            # What is predicted where nothing is has its price once most of what is there has been learnt.
            total = loss.dice + loss.cross_entropy + (1.0 - scaffold) * loss.false_volume
            (total + recipe.deep_supervision * scaffold * side_loss).backward()  # type: ignore[no-untyped-call]
            average_gradients([*model.parameters(), *classifier.parameters()])
            if recipe.gradient_clip is not None:
                torch.nn.utils.clip_grad_norm_([*model.parameters(), *classifier.parameters()], recipe.gradient_clip)
            optimizer.step()
            schedule.step()
            average.update_parameters(model)

            if writer is None:
                continue
            if step % 10:  # reading a loss waits for the device
                bar.update(task, completed=step)
            else:
                bar.update(task, completed=step, loss=loss.total.item())
                _log_losses(writer, step, loss, side_loss, float(schedule.get_last_lr()[0]))
            if recipe.validation_samples and (step % recipe.validate_every == 0 or step == recipe.steps):
                dice = validate(_averaged(average), run.store, recipe, device, scans=scans)
                _log_validation(writer, step, dice, picture(_averaged(average), run.store, recipe, device, scans))
                bar.update(task, dice=f"{sum(dice.values()) / max(len(dice), 1):.3f}")
            if step % recipe.save_every == 0 or step == recipe.steps:
                state = {
                    "step": step,
                    "classifier": classifier.state_dict(),
                    "average": average.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                }
                so_far = _provenance(recipe, start_from, scans, step)
                save(run.final, _averaged(average), training=so_far)
                save(run.last, model, training=so_far, resume=state)
    wait_for_all()


def _check_rows(text_embedding: Tensor, table: LabelTable) -> None:
    if len(text_embedding) != len(table.labels):
        raise OtherLabels(
            f"Text features of {len(text_embedding)} labels for a store of {len(table.labels)}; see `run_text`."
        )


def _check_cases(recipe: Recipe, run: RunFolder, scans: Assembly | None) -> None:
    """Raises NoCases before the first step and not at the first validation."""
    NumberedPlans(Cases.to_train_on(run.store, recipe, scans), recipe)
    if recipe.validation_samples:
        NumberedPlans(Cases.to_validate_on(run.store, recipe, scans), recipe)


def losses(
    model: UniversalModel,
    classifier: VoxelClassifier,
    batch: Batch,
    step: int,
    recipe: Recipe,
    table: LabelTable,
) -> tuple[MaskedLoss, Tensor]:
    """The loss of a batch at a step of the recipe, and that of the deep supervision (0 without)."""
    image, eighths, supervised = batch
    device = image.device
    image = image.contiguous(memory_format=torch.channels_last_3d)
    # Neighbouring planes say nearly the same, and on all of them heads and losses cost more than the backbone.
    planes = slice(step % recipe.loss_plane_stride, None, recipe.loss_plane_stride)
    occupancy = eighths[:, :, planes].float() / 8.0
    scaffold = scaffold_strength(step, recipe)
    is_organ = torch.tensor([label.kind is LabelKind.ORGAN for label in table.labels], device=device)
    rarity = torch.where(is_organ, recipe.organ_rarity_exponent, recipe.lesion_rarity_exponent)
    with mixed_precision(device, wanted=recipe.mixed_precision):
        bottleneck, decoded = model.backbone(image)
        if recipe.freeze_backbone:
            # torch 2.13 on a CPU crashes in the bfloat16 gradient of a group norm whose input needs none.
            bottleneck, decoded = bottleneck.requires_grad_(), decoded.requires_grad_()
        features, pooled = model.read_out(bottleneck, decoded)
        logits = apply_heads(features[:, :, planes], model.head_params(pooled), leak=recipe.head_leak * scaffold)
        class_logits = None
        if recipe.deep_supervision > 0.0:
            seen = decoded.detach() if step <= recipe.classifier_warmup else decoded
            class_logits = classifier(seen[:, :, planes])
    loss = masked_dice_bce(
        logits.float(),
        occupancy,
        supervised,
        label_weight=torch.where(is_organ, 1.0, recipe.lesion_weight),
        rarity_exponent=rarity * scaffold if scaffold else None,
        half_cost_voxels=recipe.half_cost_voxels,
    )
    if class_logits is None:
        return loss, torch.zeros((), device=device)
    return loss, marginal_cross_entropy(class_logits.float(), most_specific_class(occupancy, table), supervised)


def _give_first_weights(
    model: UniversalModel, recipe: Recipe, store: Path, start_from: Path | None, scans: Assembly | None
) -> None:
    """Those of `start_from`, or random ones."""
    table = labels_of(scans)
    if start_from is None:
        model.reset_heads()
        return
    new: list[int] = []
    window = first_windows(store, recipe, _SETTLING_WINDOWS, scans=scans).to(model.text_embedding.device)
    if start_from.suffix == ".pt":
        new = start_from_checkpoint(model, start_from)
    else:
        start_from_bundle(model, start_from, logit_scale=recipe.start_logit_scale)
        settle_norms(model, window)
    if fresh := [*new, *(table.by_name[name].channel for name in recipe.fresh_labels)]:
        renew_heads(model, fresh, window)


def warmup_cosine(step: int, recipe: Recipe) -> float:
    """Share of the peak learning rate: linear over the warm-up, then a cosine to 0 at the last step."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


def scaffold_strength(step: int, recipe: Recipe) -> float:
    """Strength of what only helps training along: 1 at the start, linearly to 0 at `scaffold_share` of the steps."""
    return max(0.0, 1.0 - step / (recipe.scaffold_share * recipe.steps))


def parameter_groups(model: UniversalModel, classifier: VoxelClassifier, recipe: Recipe) -> list[dict[str, Any]]:
    """What learns, for an optimizer: the body, and the text branch with the controller at a rate of their own."""
    head = [p for name, p in model.named_parameters() if name.startswith(("text_to_vision.", "controller."))]
    in_head = {id(parameter) for parameter in head}
    learning = [p for p in (*model.parameters(), *classifier.parameters()) if p.requires_grad]
    body = [p for p in learning if id(p) not in in_head]
    return [
        {"params": body, "lr": recipe.learning_rate},
        {"params": head, "lr": recipe.learning_rate * recipe.head_learning_rate_factor},
    ]


def _log_losses(writer: SummaryWriter, step: int, loss: MaskedLoss, side_loss: Tensor, learning_rate: float) -> None:
    writer.add_scalar("loss/dice", loss.dice.item(), step)
    writer.add_scalar("loss/cross_entropy", loss.cross_entropy.item(), step)
    writer.add_scalar("loss/false_volume", loss.false_volume.item(), step)
    writer.add_scalar("loss/deep_supervision", side_loss.item(), step)
    writer.add_scalar("learning_rate", learning_rate, step)


def _log_validation(writer: SummaryWriter, step: int, dice: dict[str, float], shown: NDArray[np.uint8]) -> None:
    for name, value in dice.items():
        writer.add_scalar(f"dice/{name}", value, step)
    writer.add_image("truth and prediction", shown, step)


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
    table: LabelTable,
) -> int:
    """The step reached by the run's last checkpoint, all state restored; 0 for a new run."""
    if not run.last.exists():
        return 0
    content = read_content(run.last)
    if tuple(content["label_names"]) != table.names:
        raise OtherLabels(
            f"{run.path.name} was begun with {len(content['label_names'])} labels, now there are {len(table.names)}; "
            "start another run from its checkpoint."
        )
    model.load_state_dict(content["state_dict"])
    state = content["resume"]
    classifier.load_state_dict(state["classifier"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return int(state["step"])


def _provenance(recipe: Recipe, start_from: Path | None, scans: Assembly | None, steps: int) -> dict[str, Any]:
    """What a checkpoint says of its making, after so many steps; JSON-ready."""
    return {
        "recipe": recipe.name,
        "started from": "random weights" if start_from is None else _origin(start_from),
        "seed": recipe.seed,
        "steps": steps,
        "windows": steps * recipe.batch_size,
        "data": _data(recipe, scans),
        "torch": str(torch.__version__),  # a class of torch, made a plain string
        "python": platform.python_version(),
    }


def _origin(start_from: Path) -> str:
    if start_from.suffix == ".pt":
        return f"the checkpoint of the recipe {read_content(start_from)['training']['recipe']}"
    return f"the bundle {start_from.resolve().name}"


def _data(recipe: Recipe, scans: Assembly | None) -> str:
    seeds = recipe.training_seeds
    phantoms = (
        f"procedural phantoms, seeds {seeds.start} to {seeds.stop - 1}, rendered anew for every window"
        if recipe.scans < 1.0
        else "no phantoms"
    )
    if not recipe.scans or scans is None:
        return f"{phantoms}; no scan of a person"
    names = scans.datasets(Split.TRAIN)
    listed = ", ".join(f"{dataset} ({len(cases)} scans)" for dataset, cases in names.items())
    return f"{phantoms}; in {100 * recipe.scans:.0f} % of the windows scans of {listed}"


def _summary_writer(run: RunFolder, part: Part) -> AbstractContextManager[SummaryWriter | None]:
    """TensorBoard's, of the first process alone."""
    return SummaryWriter(str(run.path / "tensorboard")) if part.is_first else nullcontext()


def _progress_bar(part: Part) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  validation Dice {task.fields[dice]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        disable=not part.is_first,
    )
