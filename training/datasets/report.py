"""What harmonize says of a dataset: what became of each case, volumes per label, and what is worth a look."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from training.datasets.description import DatasetDescription
from training.datasets.harmonize import Outcome, ScanSource, case_name
from training.datasets.quality import far_from_the_rest
from training.label_table import STANDARD, read_store_table
from training.labels import LABELS, Label

_DONE = ("written", "present")


def write_report(store: Path, description: DatasetDescription, outcomes: Sequence[Outcome]) -> tuple[Path, Path]:
    """Writes STORE/reports/<dataset>.md and .csv, of all cases that the store has of the dataset; gives their paths."""
    folder = store / "reports"
    folder.mkdir(exist_ok=True)
    sources = {
        outcome.case: ScanSource.read(store, case_name(description, outcome.case))
        for outcome in outcomes
        if outcome.status in _DONE
    }
    labels = (read_store_table(store) or STANDARD).labels
    remarks = remarks_on(sources, labels)
    markdown, table = folder / f"{description.name}.md", folder / f"{description.name}.csv"
    markdown.write_text(to_markdown(description, outcomes, sources, remarks, labels), encoding="utf-8")
    table.write_text(to_csv(outcomes, sources, remarks, labels), encoding="utf-8")
    return markdown, table


def remarks_on(sources: dict[str, ScanSource], labels: Sequence[Label] = LABELS) -> dict[str, list[str]]:
    """What is worth a look, by case: implausible volumes, and those far from the same label's in other cases."""
    remarks = {case: list(source.remarks) for case, source in sources.items()}
    for label in labels:
        whole = {
            case: source.volumes_ml[label.name]
            for case, source in sources.items()
            if label.name in source.volumes_ml and label.name not in source.cut
        }
        for case in sorted(far_from_the_rest(whole)):
            remarks[case].append(f"{label.name} of {whole[case]:.4g} ml is far from the others'")
    return {case: said for case, said in remarks.items() if said}


def to_markdown(
    description: DatasetDescription,
    outcomes: Sequence[Outcome],
    sources: dict[str, ScanSource],
    remarks: dict[str, list[str]],
    labels: Sequence[Label] = LABELS,
) -> str:
    """The report for people."""
    counts = Counter(outcome.status for outcome in outcomes)
    lines = [f"# {description.title}", "", f"Licence: {description.licence}. {description.citation}", ""]
    if description.labelled_cases is not None:
        lines += [f"{len(sources)} cases in the store; {description.labelled_cases} were published with labels.", ""]
    lines += ["| outcome | cases |", "|---|---|", *(f"| {status} | {n} |" for status, n in sorted(counts.items())), ""]
    lines += [
        "| label | annotated in | visible in | smallest ml | median ml | largest ml |",
        "|---|---|---|---|---|---|",
    ]
    for label in labels:
        volumes = [s.volumes_ml[label.name] for s in sources.values() if label.name in s.volumes_ml]
        seen = [volume for volume in volumes if volume > 0]
        if volumes:
            figures = [f"{f(seen):.4g}" if seen else "-" for f in (min, np.median, max)]
            lines.append(f"| {label.name} | {len(volumes)} | {len(seen)} | {' | '.join(figures)} |")
    lines += ["", "## Worth a look", "", *(f"- {case}: {'; '.join(said)}" for case, said in remarks.items())]
    refused = [outcome for outcome in outcomes if outcome.status not in _DONE]
    lines += ["", "## Left out", "", *(f"- {o.case}: {o.status}. {o.reason}" for o in refused)]
    return "\n".join(lines).rstrip() + "\n"


def to_csv(
    outcomes: Sequence[Outcome],
    sources: dict[str, ScanSource],
    remarks: dict[str, list[str]],
    labels: Sequence[Label] = LABELS,
) -> str:
    """One row per case: outcome, where it comes from, millilitres of each label (empty where it was not annotated)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [label.name for label in labels if any(label.name in s.volumes_ml for s in sources.values())]
    writer.writerow(["case", "outcome", "reason", "patient", "fingerprint", "shape", "spacing_mm", "remarks", *names])
    for outcome in outcomes:
        source = sources.get(outcome.case)
        row = [outcome.case, outcome.status, outcome.reason]
        if source is not None:
            row += [source.patient, source.fingerprint, "x".join(map(str, source.shape))]
            row += ["x".join(f"{size:.4g}" for size in source.spacing_mm), "; ".join(remarks.get(outcome.case, []))]
            row += [str(source.volumes_ml.get(name, "")) for name in names]
        writer.writerow(row)
    return text.getvalue()
