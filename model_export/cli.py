"""`viscera-export`: a checkpoint or published weights in, a bundle out; a label added; a bundle verified."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

if TYPE_CHECKING:
    from model_export.manifest import JsonObject
    from model_export.parity import EngineParity
    from model_export.precisions import Precision
    from model_export.verify import Check

FAILED = 2  # the exit code when no bundle was written, or one does not hold

app = typer.Typer(
    help="Turn checkpoints into bundles that the service opens.", no_args_is_help=True, add_completion=False
)
_out, _err = Console(), Console(stderr=True)


_Out = Annotated[Path, typer.Option(help="Folder that gets <name>-<version>/.")]
_Name = Annotated[str, typer.Option(help="Lower-case words and hyphens.")]
_Version = Annotated[str, typer.Option(help="Semantic version.")]
_Evaluation = Annotated[Path | None, typer.Option(help="Markdown for the model card.")]
_Description = Annotated[str | None, typer.Option(help="One sentence about the model.")]
_TrainedOn = Annotated[str | None, typer.Option(help="The data, if the checkpoint does not say.")]
_Precisions = Annotated[str, typer.Option(help="What the bundle should offer, of fp32, fp16 and bf16, by comma.")]
_Scan = Annotated[Path | None, typer.Option(help="A CT to measure on, NIfTI or DICOM folder; else a phantom.")]
_Force = Annotated[bool, typer.Option("--force", help="Replace a bundle of that name and version.")]


@app.command()
def bundle(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint written by viscera-train.")],
    out: _Out,
    name: _Name,
    version: _Version,
    evaluation: _Evaluation = None,
    description: _Description = None,
    trained_on: _TrainedOn = None,
    licence: Annotated[str, typer.Option(help="SPDX identifier of the weights' licence.")] = "Apache-2.0",
    licence_file: Annotated[Path | None, typer.Option(help="Its text; needed for any but Apache-2.0.")] = None,
    precisions: _Precisions = "fp32,bf16",
    scan: _Scan = None,
    force: _Force = False,
) -> None:
    """Write a bundle: backbone as ONNX, folded head, manifest, sample, model card; refused if anything is off."""
    try:
        from model_export.bundle import APACHE_2, BundleTexts, apache_2_text, read_checkpoint, write_bundle
        from model_export.precisions import precisions_of
    except ModuleNotFoundError as error:
        _fail_without(error)
    from model_export.errors import ExportError

    if licence != APACHE_2 and licence_file is None:
        _fail(f"The licence {licence} needs its text: give --licence-file.")
    try:
        asked = precisions_of(precisions.split(","))
        texts = BundleTexts(
            description=description,
            trained_on=trained_on,
            evaluation=_read_text(evaluation),
            licence=licence,
            licence_text=_read_text(licence_file) or apache_2_text(),
        )
        with _exporting(checkpoint):
            source = read_checkpoint(checkpoint)
            written = write_bundle(
                source, out, name=name, version=version, texts=texts, precisions=asked, scan=scan, force=force
            )
    except (ExportError, OSError, UnicodeDecodeError) as error:
        _fail(str(error))
    _print_files(written)
    _print_precisions(written, asked)


@app.command("import")
def import_(
    checkpoint: Annotated[Path, typer.Argument(help="Published weights, or a checkpoint of viscera-train.")],
    out: _Out,
    name: _Name,
    version: _Version,
    evaluation: _Evaluation = None,
    description: _Description = None,
    trained_on: _TrainedOn = None,
    licence: Annotated[
        str | None, typer.Option(help="SPDX identifier; as published (CC-BY-NC-ND-4.0) if not given.")
    ] = None,
    licence_file: Annotated[Path | None, typer.Option(help="Its text; needed for a licence of your own.")] = None,
    precisions: _Precisions = "fp32,bf16",
    scan: _Scan = None,
    force: _Force = False,
) -> None:
    """Write a bundle of published weights of the CLIP-Driven Universal Model, recognised by their keys."""
    try:
        from model_export.bundle import BundleTexts, write_bundle
        from model_export.importing import import_checkpoint, licence_text
        from model_export.precisions import precisions_of
    except ModuleNotFoundError as error:
        _fail_without(error)
    from model_export.errors import ExportError

    try:
        asked = precisions_of(precisions.split(","))
        with _exporting(checkpoint):
            imported = import_checkpoint(checkpoint)
            spdx = licence or imported.licence
            texts = BundleTexts(
                description=description,
                trained_on=trained_on,
                evaluation=_read_text(evaluation),
                licence=spdx,
                licence_text=_read_text(licence_file) or licence_text(spdx),
            )
            source = imported.checkpoint
            written = write_bundle(
                source, out, name=name, version=version, texts=texts, precisions=asked, scan=scan, force=force
            )
    except (ExportError, OSError, UnicodeDecodeError) as error:
        _fail(str(error))
    _print_files(written)
    _print_precisions(written, asked)


@app.command("add-label")
def add_label_(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle that gets the label; it stays as it is.")],
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint with the bundle's backbone; its heads may be others.")],
    label: Annotated[Path, typer.Option(help="TOML file that describes the label.")],
    out: _Out,
    version: _Version,
    name: Annotated[str | None, typer.Option(help="Name of the new bundle; that of the old one if absent.")] = None,
    embedding: Annotated[
        Path | None, typer.Option(help="Text features with a row for the label, unless the checkpoint has it.")
    ] = None,
    text_embeddings: Annotated[
        Path | None, typer.Option(help="What the training had as --text-embeddings; needed if it whitened them.")
    ] = None,
    evaluation: _Evaluation = None,
    description: _Description = None,
    trained_on: _TrainedOn = None,
) -> None:
    """Write a new bundle: an existing one with one label more, and the very same backbone."""
    try:
        from model_export.extension import Extension, add_label, read_base
        from model_export.importing import import_checkpoint
        from model_export.new_label import read_label
    except ModuleNotFoundError as error:
        _fail_without(error)
    from model_export.errors import ExportError

    try:
        extension = Extension(
            label=read_label(label),
            features=embedding,
            trained_features=text_embeddings,
            description=description,
            evaluation=_read_text(evaluation),
            trained_on=trained_on,
        )
        base = read_base(bundle)
        with _err.status(f"Adding {escape(extension.label.name)} to {escape(base.id)}"):
            source = import_checkpoint(checkpoint).checkpoint
            named = base.manifest["name"] if name is None else name
            written = add_label(base, source, extension, out, name=named, version=version)
    except (ExportError, OSError, UnicodeDecodeError) as error:
        _fail(str(error))
    _print_files(written)


def _read_text(path: Path | None) -> str | None:
    return None if path is None else path.read_text(encoding="utf-8")


def _exporting(checkpoint: Path) -> Status:
    return _err.status(f"Exporting {escape(checkpoint.name)} and measuring its parity")


def _print_files(bundle: Path) -> None:
    """Every file with its size, then the folder."""
    files = Table("file", "bytes", box=None)
    files.columns[1].justify = "right"
    sizes = {path.name: path.stat().st_size for path in sorted(bundle.iterdir())}
    for name, size in sizes.items():
        files.add_row(name, f"{size:,}")
    _out.print(files)
    _out.print(f"{bundle}  {sum(sizes.values()) / 1e6:.2f} MB", soft_wrap=True, markup=False, highlight=False)


def _print_precisions(bundle: Path, asked: "Iterable[Precision]") -> None:
    """What the bundle offers, and what it was asked for and does not."""
    from model_export.verify import read_manifest

    table = Table("precision", "engine", "error", "Dice", "time/torch", box=None)
    entries = {entry["name"]: entry for entry in read_manifest(bundle)["precisions"]}
    for name, entry in entries.items():
        for parity in entry["parity"]:
            lowest, ratio = parity["masks"]["lowest_dice"], _ratio(parity)
            dice = "-" if lowest is None else f"{lowest:.4f}"
            table.add_row(name, parity["engine"], f"{parity['max_relative_error']:.1e}", dice, ratio)
    _out.print(table)
    for precision in asked:
        if precision.name not in entries:
            _out.print(f"{precision.name} is not offered; MODEL_CARD.md says why.", style="yellow")


def _ratio(parity: "JsonObject") -> str:
    """Seconds of an entry of the manifest relative to torch; a bundle may state none."""
    seconds, torch_seconds = (parity.get(key) for key in ("seconds_per_window", "torch_seconds_per_window"))
    return f"{seconds / torch_seconds:.2f}" if seconds and torch_seconds else "-"


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.")],
    checkpoint: Annotated[Path, typer.Option(help="The checkpoint or published weights it was written from.")],
    scan: _Scan = None,
) -> None:
    """Hold a bundle against its checkpoint: hashes, schema, head, sample, and every precision on every engine again."""
    try:
        from model_export.verify import verify_bundle
    except ModuleNotFoundError as error:
        _fail_without(error)
    from model_export.errors import ExportError

    try:
        with _err.status(f"Verifying {escape(bundle.name)}"):
            verification = verify_bundle(bundle, checkpoint, scan)
    except (ExportError, OSError) as error:
        _fail(str(error))
    _out.print(_check_table(verification.checks))
    _out.print(_parity_table(verification.parities))
    for subject in verification.not_measured:
        _out.print(f"Not measured: {subject}.", style="yellow", highlight=False, soft_wrap=True)
    if verification.failures:
        _fail(f"{bundle.name} does not hold against {checkpoint.name}: {', '.join(verification.failures)}.")


def _check_table(checks: "Iterable[Check]") -> Table:
    table = Table("check", "relative error", "allowed", "")
    for check in checks:
        table.add_row(check.subject, f"{check.measured:.1e}", f"{check.allowed:.0e}", _verdict(check.passed))
    return table


def _parity_table(parities: "Iterable[EngineParity]") -> Table:
    # Eight columns within the 80 characters of a plain terminal.
    table = Table("precision", "engine", "error", "allowed", "Dice", "needed", "time/torch", "", box=None)
    for parity in parities:
        precision, lowest = parity.precision, parity.lowest_dice
        table.add_row(
            precision.name,
            parity.engine,
            f"{parity.max_relative_error:.1e}",
            "" if precision.max_relative_error is None else f"{precision.max_relative_error:.0e}",
            "-" if lowest is None else f"{lowest[1]:.4f}",
            "" if precision.least_dice is None else f"{precision.least_dice:g}",
            f"{parity.seconds / parity.torch_seconds:.2f}",
            _verdict(parity.holds),
        )
    return table


def _verdict(passed: bool) -> str:
    return "[green]ok[/green]" if passed else "[red]off[/red]"


def _fail(sentence: str) -> NoReturn:
    """One line on standard error, exit code 2."""
    _err.print(f"error: {' '.join(sentence.split())}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(FAILED)


def _fail_without(error: ModuleNotFoundError) -> NoReturn:
    _fail(f"The export needs {error.name}: install viscera with its extra `training`.")


def main() -> None:
    """Entry point of the script."""
    app()
