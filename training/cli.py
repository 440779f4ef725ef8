"""The `viscera-train` command."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from training.evaluation.subjects import Subject
    from training.label_table import LabelTable

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Bring datasets together, train, evaluate, make phantoms and text features.",
    pretty_exceptions_enable=False,
)
console = Console()

LabelOption = Annotated[
    list[Path] | None,
    typer.Option(help="TOML file of a label beyond the 32 (docs/bundles.md); may be given several times."),
]
SeedOption = Annotated[int, typer.Option(min=0, help="The seed that everything is drawn from.")]


@app.command("train")
def train_command(
    run: Annotated[Path, typer.Option(help="Folder of the run: label maps, checkpoints, TensorBoard logs.")],
    recipe: Annotated[str, typer.Option(help="A recipe of the package by name, or a TOML file.")] = "default_compact",
    text_embeddings: Annotated[
        Path | None, typer.Option(help="CLIP text features of the labels (.safetensors or .pth).")
    ] = None,
    start_from: Annotated[
        Path | None, typer.Option(help="Bundle or checkpoint (.pt) of the same architecture to start from.")
    ] = None,
    store: Annotated[Path | None, typer.Option(help="Store of `harmonize`, for a recipe that shows scans.")] = None,
) -> None:
    """Train a model from its recipe, or go on where the run was interrupted; writes RUN/model.pt.

    It is written at every save of the recipe, so that a run that has to be stopped leaves what it had learnt.

    Several processes share each batch when started by `torchrun`.
    """
    from training.assembly import labels_of, open_assembly
    from training.memory import keep_freed_memory
    from training.recipe import read_recipe
    from training.run_text import run_text
    from training.train import RunFolder, train

    settings = read_recipe(recipe)
    table = labels_of(None if store is None else open_assembly(store))
    text = run_text(settings, table, features=text_embeddings, start_from=start_from)
    if text_embeddings is None and (start_from is None or start_from.suffix != ".pt"):
        console.print("No --text-embeddings: the labels are told apart by random vectors, not by language.")
    elif text.drawn:
        console.print(f"No text features of {', '.join(text.drawn)}: told apart by random vectors, not by language.")
    keep_freed_memory()
    finished = train(settings, text.embedding, text.provenance, RunFolder(run), start_from=start_from, scans=store)
    console.print(f"Checkpoint: {finished}")


@app.command("harmonize")
def harmonize_command(
    dataset: Annotated[Path, typer.Argument(help="Folder of the dataset as it was downloaded and unpacked.")],
    described_as: Annotated[
        str, typer.Option("--as", help="A dataset of the registry by name (see `datasets`), or a YAML file.")
    ],
    out: Annotated[Path, typer.Option(help="Store to write into; several datasets share one.")],
    recipe: Annotated[str, typer.Option(help="The recipe whose spacing and crop the store gets.")] = "paper_swin_unetr",
    order: Annotated[
        str | None, typer.Option(help="Label order, for a dataset that has several; volumes decide otherwise.")
    ] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Cases at a time; one per core otherwise.")] = None,
    label: LabelOption = None,
) -> None:
    """Bring a labelled dataset into a store: oriented, resampled, labels by name, with a report. Resumable."""
    from training.datasets.description import read_description
    from training.datasets.harmonize import Grid, harmonize
    from training.datasets.report import write_report
    from training.label_table import read_table, table_with
    from training.recipe import read_recipe

    table = table_with(out, read_table(label or ()))
    description = read_description(described_as, table)
    grid = Grid.of(read_recipe(recipe).model)
    outcomes = harmonize(dataset, description, out, grid, order=order, processes=processes, table=table)
    report, volumes = write_report(out, description, outcomes)
    console.print(Markdown(report.read_text(encoding="utf-8")))
    console.print(f"Report: {report} and {volumes}", soft_wrap=True)


@app.command("datasets")
def datasets_command(
    store: Annotated[Path | None, typer.Argument(help="A store, to see what it holds and how it is split.")] = None,
) -> None:
    """List the datasets that are known, or the scans of a store by dataset and split."""
    from training.assembly import Split, open_assembly
    from training.datasets.description import known_datasets, read_description

    table = Table()
    if store is None:
        for heading in ("name", "labelled cases", "labels", "licence"):
            table.add_column(heading)
        for name in known_datasets():
            known = read_description(name)
            table.add_row(name, str(known.labelled_cases), ", ".join(known.supervised_in("")), known.licence)
    else:
        assembly = open_assembly(store)
        for heading in ("dataset", *(split.name.lower() for split in Split)):
            table.add_column(heading)
        for name in sorted({source.dataset for source in assembly.scans.values()}):
            table.add_row(name, *(str(len(assembly.datasets(split).get(name, ()))) for split in Split))
    console.print(table)


@app.command("calibrate")
def calibrate_command(
    weights: Annotated[Path, typer.Argument(help="Checkpoint (.pt) or bundle, which stays as it is.")],
    out: Annotated[Path, typer.Option(help="Checkpoint to write, with scaled logits, thresholds, peaks and volumes.")],
    store: Annotated[Path, typer.Option(help="Folder for the phantoms that they are chosen on.")],
    phantoms: Annotated[int, typer.Option(min=1, help="How many.")] = 30,
    recipe: Annotated[str, typer.Option(help="For a bundle: the recipe of its network.")] = "default_compact",
    text_embeddings: Annotated[
        Path | None, typer.Option(help="For a bundle: the text features that it was trained with.")
    ] = None,
    bfloat16: Annotated[
        bool, typer.Option("--bfloat16", help="First round the weights to bfloat16, for nearly the same masks in it.")
    ] = False,
) -> None:
    """Choose how probabilities become masks, on phantoms never trained on."""
    import torch

    from training.calibrate import calibrate
    from training.checkpoint import load_checkpoint, save_checkpoint
    from training.memory import keep_freed_memory
    from training.recipe import FIRST_CALIBRATION_SEED, read_recipe
    from training.rounding import round_to_bfloat16
    from training.run_text import text_of_the_32
    from training.store import build_phantom_store
    from training.warm_start import open_bundle

    if weights.is_dir():
        settings = read_recipe(recipe)
        trained = open_bundle(weights, settings.model, *text_of_the_32(settings, text_embeddings))
    else:
        trained = load_checkpoint(weights)
    if bfloat16:
        round_to_bfloat16(trained.model)
    keep_freed_memory()
    seeds = range(FIRST_CALIBRATION_SEED, FIRST_CALIBRATION_SEED + phantoms)
    build_phantom_store(store, seeds, trained.config.spacing_mm[0])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    save_checkpoint(
        out,
        trained.model,
        label_names=trained.label_names,
        text=trained.text,
        training=trained.training | ({"weights": "rounded to bfloat16"} if bfloat16 else {}),
        calibration=calibrate(trained.model.to(device), store, seeds, device),
        own_labels=trained.own_labels,
    )
    console.print(f"Checkpoint: {out}")


@app.command("evaluate")
def evaluate_command(
    out: Annotated[Path, typer.Option(help="Folder for the studies, the masks and evaluation.md.")],
    bundle: Annotated[str | None, typer.Option(help="Bundle, by path or name; the default bundle if absent.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint (.pt) instead of a bundle.")] = None,
    scans: Annotated[
        int | None, typer.Option(min=1, help="How many: 20 phantoms, or all of a dataset or store.")
    ] = None,
    dataset: Annotated[Path | None, typer.Option(help="Evaluate on this downloaded dataset.")] = None,
    described_as: Annotated[str | None, typer.Option("--as", help="Its name in the registry, or a YAML file.")] = None,
    order: Annotated[str | None, typer.Option(help="Its label order, if it has several.")] = None,
    store: Annotated[Path | None, typer.Option(help="Evaluate on the scans of this store.")] = None,
    split: Annotated[str, typer.Option(help="Of a store: test, validation, train or all.")] = "test",
    processes: Annotated[
        int | None, typer.Option(min=1, help="Scans scored at a time; one per core otherwise.")
    ] = None,
    label: LabelOption = None,
) -> None:
    """Measure a model: on phantoms never trained on, on a downloaded dataset, or on the scans of a store."""
    from training.evaluate import evaluate, to_markdown

    if bundle is not None and checkpoint is not None:
        raise ValueError("Give --bundle or --checkpoint, not both.")
    if dataset is None and store is None:
        from training.commands import export

        if checkpoint is not None:
            bundle = str(export(checkpoint, out / "bundle"))
        scores = to_markdown(evaluate(out, bundle=bundle, scans=scans or 20))
        (out / "evaluation.md").write_text(scores, encoding="utf-8")
        console.print(Markdown(scores))
        return
    from training.evaluation.run import evaluate_subjects

    subjects, title, table = _subjects(dataset, described_as, order, store, split, label or [])
    _, report = evaluate_subjects(
        subjects[:scans], out, weights=checkpoint or bundle, title=title, processes=processes, table=table
    )
    console.print(Markdown(report.read_text(encoding="utf-8")))
    console.print(f"Report: {report.with_suffix('.html')}", soft_wrap=True)


@app.command("submit")
def submit_command(
    results: Annotated[Path, typer.Argument(help="Folder with results of `viscera segment`, one folder per study.")],
    described_as: Annotated[str, typer.Option("--as", help="Dataset whose label values to write.")],
    out: Annotated[Path, typer.Option(help="Folder for one label map per study.")],
    order: Annotated[str | None, typer.Option(help="Its label order, if it has several.")] = None,
    label: LabelOption = None,
) -> None:
    """Write results as label maps with a dataset's own values, for its challenge."""
    from training.datasets.description import read_description
    from training.datasets.submission import write_submission
    from training.label_table import read_table

    description = read_description(described_as, read_table(label or ()))
    for path in write_submission(results, description, out, order=order):
        console.print(f"{path}", soft_wrap=True)


@app.command("pseudo-label")
def pseudo_label_command(
    store: Annotated[Path, typer.Argument(help="Store of `harmonize`; it stays as it is.")],
    out: Annotated[Path, typer.Option(help="Store to write the scans with more labels into.")],
    bundle: Annotated[str | None, typer.Option(help="Bundle, by path or name; the default bundle if absent.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint (.pt) instead of a bundle.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="Labels to fill in, by comma; the organs of the 32 if absent.")
    ] = None,
) -> None:
    """Let a model fill in the labels that were not annotated, in all scans but those of the test split."""
    from training.pseudo import fill_in

    if bundle is not None and checkpoint is not None:
        raise ValueError("Give --bundle or --checkpoint, not both.")
    wanted = None if labels is None else tuple(name.strip() for name in labels.split(","))
    filled = fill_in(store, out, weights=checkpoint or bundle, labels=wanted)
    console.print(f"{len(filled)} scans in {out}", soft_wrap=True)


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
        Path | None, typer.Option(help="Text file, one name per line; the 32 labels and those of --label if absent.")
    ] = None,
    encoder: Annotated[str, typer.Option(help="Kind of the encoder.")] = "clip",
    source: Annotated[
        str | None, typer.Option(help="Where the weights came from, for the record; their folder's name if absent.")
    ] = None,
    label: LabelOption = None,
) -> None:
    """Write the text features of the labels, or of any names, with their provenance."""
    from training.label_table import read_table
    from training.prompts import TEMPLATES, Prompts, read_names
    from training.text import write_text_embedding
    from training.text_encoder import embed, open_encoder

    # For libraries that are imported from here on: no look-up, no telemetry.
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
    if names is not None and label:
        raise ValueError("Give --names or --label, not both.")
    listed = tuple(one.prompt for one in read_table(label or ()).labels) if names is None else read_names(names)
    prompts = Prompts(TEMPLATES.get(template, template), listed)
    source = source or f"made by viscera-train embed from the folder {weights.resolve().name}"
    embedding, text = embed(open_encoder(encoder, weights), prompts, source=source)
    write_text_embedding(out, embedding, text)
    console.print(f"{len(listed)} x {embedding.shape[1]} features of {text.encoder}: {escape(str(out))}")


def _subjects(
    dataset: Path | None,
    described_as: str | None,
    order: str | None,
    store: Path | None,
    split: str,
    labels: list[Path],
) -> "tuple[list[Subject], str, LabelTable]":
    """The scans that the options name, what they are, and which labels they may have."""
    from training.assembly import Split, open_assembly
    from training.datasets.description import read_description
    from training.evaluation.subjects import subjects_of_dataset, subjects_of_store
    from training.label_table import read_table

    if dataset is not None and store is not None:
        raise ValueError("Give --dataset or --store, not both.")
    if store is not None:
        splits = {one.name.lower(): one for one in Split}
        if split != "all" and split not in splits:
            raise ValueError(f"No split {split!r}; known: {', '.join(splits)}, all.")
        title = f"Evaluation on the store {store.name}, {split} scans"
        return subjects_of_store(store, splits.get(split)), title, open_assembly(store).table
    if dataset is None or described_as is None:
        raise ValueError("--dataset needs --as: a dataset of the registry or a YAML file.")
    table = read_table(labels)
    description = read_description(described_as, table)
    subjects = subjects_of_dataset(dataset, description, order=order, table=table)
    return subjects, f"Evaluation on {description.title}", table


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
