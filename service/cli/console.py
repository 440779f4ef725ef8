"""What the commands print: progress and problems on stderr, results on stdout."""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.style import Style
from rich.table import Table
from rich.text import Text

from service.client import ProblemError, UnreachableError
from service.errors import VisceraError

OUT = Console(highlight=False, soft_wrap=False)
ERR = Console(stderr=True, highlight=False)

Findings = Mapping[str, Any]
Colors = Mapping[str, tuple[int, int, int]]
"""Display colours of labels, by name."""

NO_COLORS: Colors = {}


def report(error: Exception) -> bool:
    """Print a typed error in one line; False for an error that nobody expected."""
    if isinstance(error, VisceraError | ProblemError):
        line = f"{error.title}: {error.detail} ({error.code})"
    elif isinstance(error, UnreachableError):
        line = str(error)
    elif isinstance(error, ModuleNotFoundError):
        line = f"{error.name} is not installed; this command needs pip install 'viscera[cpu]' or 'viscera[gpu]'."
    elif isinstance(error, ValidationError):
        first = error.errors()[0]
        line = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
    else:
        return False
    print_problem(line)
    return True


def print_problem(line: str) -> None:
    """One line on stderr that says what went wrong."""
    ERR.print(f"[bold red]error[/] {escape(' '.join(line.split()))}", soft_wrap=True)


def progress_bar() -> Progress:
    """A bar for one study: what is being done, how far, for how long, and how long it will still take."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=ERR,
    )


def print_json(document: Mapping[str, Any]) -> None:
    """A document for programs: one line on stdout, never wrapped or coloured."""
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def problem_document(error: VisceraError | ProblemError) -> dict[str, str]:
    """A typed error for programs."""
    return {"code": error.code, "title": error.title, "detail": error.detail}


def print_findings(findings: Findings, colors: Colors = NO_COLORS) -> None:
    """The findings as tables: lesions, organs, and what to know before trusting them.

    A label that `colors` names has a swatch of its colour before it.
    """
    OUT.print(_lesion_table(findings["lesions"], colors))
    OUT.print(_organ_table(findings["organs"], colors))
    absent = [organ["display_name"] for organ in findings["organs"] if not organ["present"]]
    if absent:
        OUT.print(f"Not found: {', '.join(absent)}.", style="dim")
    for warning in findings["warnings"]:
        OUT.print(f"[yellow]warning[/] {escape(warning['message'])}")
    OUT.print(findings["statement"], style="italic")


def _swatched(name: str, label: str, colors: Colors) -> Text:
    if label not in colors:
        return Text(name)
    return Text.assemble(("\u25a0 ", Style(color="#{:02x}{:02x}{:02x}".format(*colors[label]))), name)


def _lesion_table(lesions: Iterable[Findings], colors: Colors) -> Table:
    table = Table(title="Lesions (axial diameters: longest, and across it)", title_justify="left")
    table.add_column("Lesion", no_wrap=True)
    table.add_column("In")
    for head in ("ml", "Longest, mm", "Across, mm", "Probability"):
        table.add_column(head, justify="right")
    for lesion in lesions:
        table.add_row(
            _swatched(lesion["id"], lesion["label"], colors),
            lesion["host_organ"] or "-",
            _number(lesion["volume_ml"], 2),
            _number(lesion["longest_axial_diameter_mm"], 1),
            _number(lesion["perpendicular_diameter_mm"], 1),
            _number(lesion["mean_probability"], 2),
        )
    if not table.rows:
        table.add_row("none found", *[""] * 5)
    return table


def _organ_table(organs: Iterable[Findings], colors: Colors) -> Table:
    table = Table(title="Organs", title_justify="left")
    table.add_column("Organ", no_wrap=True)
    for head in ("ml", "Mean HU", "SD HU"):
        table.add_column(head, justify="right")
    table.add_column("Cut by the field of view")
    for organ in organs:
        if organ["present"]:
            table.add_row(
                _swatched(organ["display_name"], organ["label"], colors),
                _number(organ["volume_ml"], 1),
                _number(organ["mean_hu"], 0),
                _number(organ["sd_hu"], 0),
                ", ".join(organ["cut_sides"]),
            )
    if not table.rows:
        table.add_row("none found", *[""] * 4)
    return table


def print_files(folder: Path, names: Iterable[str]) -> None:
    """Where the results are."""
    names = list(names)
    OUT.print(f"{len(names)} files in {folder}:", soft_wrap=True, markup=False)
    for name in names:
        OUT.print(f"  {name}", soft_wrap=True, markup=False)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
