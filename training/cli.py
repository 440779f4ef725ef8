"""The `viscera-train` command."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape

if TYPE_CHECKING:
    from torch import Tensor

    from training.recipe import Recipe
    from training.text import TextProvenance

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Train, evaluate, make phantoms and text features.",
    pretty_exceptions_enable=False,
)
console = Console()

SeedOption = Annotated[int, typer.Option(min=0, help="The seed that everything is drawn from.")]


@app.command("train")
def train_command(
    run: Annotated[Path, typer.Option(help="Folder of the run: label maps, checkpoints, TensorBoard logs.")],
    recipe: Annotated[str, typer.Option(help="A recipe of the package by name, or a TOML file.")] = "default_compact",
    text_embeddings: Annotated[
        Path | None, typer.Option(help="CLIP text features of the labels (.safetensors or .pth).")
    ] = None,
    start_from: Annotated[
        Path | None, typer.Option(help="Bundle of the same architecture whose weights to start from.")
    ] = None,
) -> None:
    """Train a model from its recipe, or go on where the run was interrupted; writes RUN/model.pt."""
    from training.recipe import read_recipe
    from training.train import RunFolder, train

    settings = read_recipe(recipe)
    embedding, text = _text_features(settings, text_embeddings)
    console.print(f"Checkpoint: {train(settings, embedding, text, RunFolder(run), start_from=start_from)}")


@app.command("calibrate")
def calibrate_command(
    weights: Annotated[Path, typer.Argument(help="Checkpoint (.pt) or bundle, whose weights stay as they are.")],
    out: Annotated[Path, typer.Option(help="Checkpoint to write, with thresholds, peaks and least volumes.")],
    store: Annotated[Path, typer.Option(help="Folder for the phantoms that they are chosen on.")],
    phantoms: Annotated[int, typer.Option(min=1, help="How many.")] = 24,
    recipe: Annotated[str, typer.Option(help="For a bundle: the recipe of its network.")] = "default_compact",
    text_embeddings: Annotated[
        Path | None, typer.Option(help="For a bundle: the text features that it was trained with.")
    ] = None,
) -> None:
    """Choose how probabilities become masks, on phantoms never trained on."""
    import torch

    from training.calibrate import calibrate
    from training.checkpoint import load_checkpoint, save_checkpoint
    from training.recipe import FIRST_CALIBRATION_SEED, read_recipe
    from training.store import build_phantom_store
    from training.warm_start import open_bundle

    if weights.is_dir():
        settings = read_recipe(recipe)
        trained = open_bundle(weights, settings.model, *_text_features(settings, text_embeddings))
    else:
        trained = load_checkpoint(weights)
    seeds = range(FIRST_CALIBRATION_SEED, FIRST_CALIBRATION_SEED + phantoms)
    build_phantom_store(store, seeds, trained.config.spacing_mm[0])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    save_checkpoint(
        out,
        trained.model,
        label_names=trained.label_names,
        text=trained.text,
        training=trained.training,
        calibration=calibrate(trained.model.to(device), store, seeds, device),
    )
    console.print(f"Checkpoint: {out}")


@app.command("evaluate")
def evaluate_command(
    out: Annotated[Path, typer.Option(help="Folder for the phantoms, the masks and evaluation.md.")],
    bundle: Annotated[str | None, typer.Option(help="Bundle, by path or name; the default bundle if absent.")] = None,
    scans: Annotated[int, typer.Option(min=1, help="How many phantoms.")] = 20,
) -> None:
    """Dice per label, lesion sensitivity and false positives per scan, on phantoms never trained on."""
    from training.evaluate import evaluate, to_markdown

    table = to_markdown(evaluate(out, bundle=bundle, scans=scans))
    (out / "evaluation.md").write_text(table, encoding="utf-8")
    console.print(Markdown(table))


@app.command("phantom")
def phantom_command(
    out: Annotated[Path, typer.Option(help="Folder to write into.")],
    seed: SeedOption = 0,
    spacing: Annotated[
        tuple[float, float, float] | None, typer.Option(help="Voxel size in mm; drawn from the seed if absent.")
    ] = None,
    dicom: Annotated[bool, typer.Option("--dicom", help="A CT series instead of NIfTI with masks.")] = False,
) -> None:
    """Write one phantom CT."""
    from training.phantom.phantom import draw_phantom
    from training.phantom.write import write_dicom, write_nifti

    phantom = draw_phantom(seed, spacing_mm=spacing)
    out.mkdir(parents=True, exist_ok=True)
    if dicom:
        console.print(f"{len(write_dicom(phantom, out))} slices in {out}")
    else:
        console.print(f"{write_nifti(phantom, out)}")


@app.command("embed")
def embed_command(
    weights: Annotated[Path, typer.Option(help="Folder with the files of the text encoder; nothing is fetched.")],
    out: Annotated[Path, typer.Option(help="File to write (.safetensors), for `train --text-embeddings`.")],
    template: Annotated[
        str, typer.Option(help="V1, V2 or V3 of the paper, `published` (V3 without period), or a text with one {}.")
    ] = "published",
    names: Annotated[
        Path | None, typer.Option(help="Text file with one name per line; the 32 labels if absent.")
    ] = None,
    encoder: Annotated[str, typer.Option(help="Kind of the encoder.")] = "clip",
    source: Annotated[
        str | None, typer.Option(help="Where the weights came from, for the record; their folder's name if absent.")
    ] = None,
) -> None:
    """Write the text features of the labels, or of any names, with their provenance."""
    from training.labels import LABELS
    from training.prompts import TEMPLATES, Prompts, read_names
    from training.text import write_text_embedding
    from training.text_encoder import embed, open_encoder

    # For libraries that are imported from here on: no look-up, no telemetry.
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
    listed = tuple(label.prompt for label in LABELS) if names is None else read_names(names)
    prompts = Prompts(TEMPLATES.get(template, template), listed)
    source = source or f"made by viscera-train embed from the folder {weights.resolve().name}"
    embedding, text = embed(open_encoder(encoder, weights), prompts, source=source)
    write_text_embedding(out, embedding, text)
    console.print(f"{len(listed)} x {embedding.shape[1]} features of {text.encoder}: {escape(str(out))}")


def _text_features(settings: "Recipe", path: Path | None) -> "tuple[Tensor, TextProvenance]":
    """Those of the file, prepared as the recipe says, or random ones."""
    from training.text import random_text_embedding, read_text_embedding, whiten

    if path is None:
        console.print("No --text-embeddings: the labels are told apart by random vectors, not by language.")
        return random_text_embedding(settings.seed)
    embedding, text = read_text_embedding(path)
    return whiten(embedding, text) if settings.whiten_text else (embedding, text)


def main() -> None:
    """Entry point; a failure we foresaw is one line and exit code 2."""
    try:
        app()
    except (ValueError, OSError, RuntimeError) as error:
        # Escaped: a message may hold square brackets, which would be read as styles.
        Console(stderr=True).print(f"[red]{type(error).__name__}:[/red] {escape(str(error))}", highlight=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
