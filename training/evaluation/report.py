"""An evaluation for people and for spreadsheets: Markdown, CSV, PNG figures, and an HTML page with the worst cases."""

import base64
import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from training.evaluation.bootstrap import Interval, bootstrap
from training.evaluation.lesions import (
    FALSE_POSITIVE_RATES,
    LesionScores,
    calibration,
    calibration_error,
    false_positives_per_scan,
    froc,
    froc_score,
    patient_level,
    sensitivity,
)
from training.evaluation.metrics import Overlap, nsd_tolerance_mm
from training.evaluation.scoring import ScanScores, Shown
from training.label_table import STANDARD, LabelTable

WORST = 8
_STYLE = (
    "body{font:15px sans-serif;max-width:75em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}"
    "td,th{border:1px solid #ccc;padding:.2em .6em;text-align:left}img{max-width:100%;image-rendering:pixelated}"
)


@dataclass(frozen=True)
class Evaluation:
    """All scores of a bundle on one set of scans. `refused` maps scans that could not be scored to the reason.

    `shown` has a picture of each scan; `table` has the labels that it may be about.
    """

    title: str
    scans: Sequence[ScanScores]
    shown: Mapping[str, Shown]
    refused: Mapping[str, str]
    table: LabelTable = STANDARD

    def of_label(self, name: str) -> list[Overlap]:
        """Overlaps of a label in the scans that show it."""
        return [scan.overlaps[name] for scan in self.scans if name in scan.overlaps]

    def lesions(self, name: str) -> list[LesionScores]:
        """Scores of a lesion label in the scans it was annotated in."""
        return [scan.lesions[name] for scan in self.scans if name in scan.lesions]

    def worst(self) -> list[ScanScores]:
        """The scans of the lowest mean Dice, the worst first."""
        scored = [scan for scan in self.scans if scan.overlaps]
        return sorted(scored, key=lambda scan: scan.mean_dice)[:WORST]


@dataclass(frozen=True)
class Table:
    """Rows under headings, of strings."""

    title: str
    note: str
    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def write_report(evaluation: Evaluation, folder: Path) -> Path:
    """Writes evaluation.md, evaluation.html, labels.csv, lesions.csv, scans.csv and figures/; gives evaluation.md."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    tables = [label_table(evaluation), lesion_table(evaluation)]
    figures = draw_figures(evaluation, folder / "figures")
    for table, name in zip(tables, ("labels.csv", "lesions.csv"), strict=True):
        (folder / name).write_text(_csv([table.headings, *table.rows]), encoding="utf-8")
    (folder / "scans.csv").write_text(scans_csv(evaluation), encoding="utf-8")
    markdown = folder / "evaluation.md"
    markdown.write_text(to_markdown(evaluation, tables, figures), encoding="utf-8")
    (folder / "evaluation.html").write_text(to_html(evaluation, tables, folder, figures), encoding="utf-8")
    return markdown


def label_table(evaluation: Evaluation) -> Table:
    """Overlap of each label over the scans that show it."""
    rows = []
    for label in evaluation.table.labels:
        overlaps = evaluation.of_label(label.name)
        if not overlaps:
            continue
        distances = [overlap.hd95_mm for overlap in overlaps if overlap.hd95_mm is not None]
        errors = [100.0 * (o.predicted_ml - o.truth_ml) / o.truth_ml for o in overlaps]
        rows.append((
            label.display_name,
            str(len(overlaps)),
            str(_mean(overlaps, lambda overlap: overlap.dice)),
            str(_mean(overlaps, lambda overlap: overlap.nsd)),
            f"{nsd_tolerance_mm(label.name):g}",
            f"{np.median(distances):.1f}" if distances else "-",
            f"{np.median(errors):+.1f}",
            f"{np.median(np.abs(errors)):.1f}",
            str(sum(overlap.hd95_mm is None for overlap in overlaps)),
        ))  # fmt: skip
    return Table(
        "Labels",
        "Mean over the scans that show the label, with 95 % bootstrap intervals over scans; medians for the rest.",
        ("label", "scans", "Dice", "NSD", "NSD tolerance mm", "HD95 mm", "volume error %", "absolute %", "missed"),
        rows,
    )


def lesion_table(evaluation: Evaluation) -> Table:
    """Detection of each kind of lesion, by lesion and by patient."""
    rows = []
    for label in evaluation.table.lesions:
        scans = evaluation.lesions(label.name)
        if not scans:
            continue
        calibrated = calibration(scans)
        statistics: list[Callable[[Sequence[LesionScores]], float]] = [
            sensitivity,
            false_positives_per_scan,
            lambda drawn: patient_level(drawn).sensitivity,
            lambda drawn: patient_level(drawn).specificity,
            lambda drawn: patient_level(drawn).harmonic_mean,
        ]
        rows.append((
            label.display_name,
            str(len(scans)),
            str(sum(len(scan.found_at) for scan in scans)),
            *(str(bootstrap(scans, statistic)) for statistic in statistics),
            _plain_or_dash(froc_score(scans)),
            _plain_or_dash(calibration_error(calibrated)),
        ))  # fmt: skip
    return Table(
        "Lesions",
        "A lesion of at least 0.5 ml is found when predictions cover a tenth of it. A patient is called diseased when "
        "anything is predicted. FROC: mean sensitivity at "
        f"{', '.join(f'{rate:g}' for rate in FALSE_POSITIVE_RATES)} false positives per scan.",
        (
            "label", "scans", "lesions", "sensitivity", "false positives per scan", "patient sensitivity",
            "patient specificity", "harmonic mean", "FROC", "calibration error",
        ),
        rows,
    )  # fmt: skip


def scans_csv(evaluation: Evaluation) -> str:
    """One row per scan and label, with every number that the tables are made of."""
    rows: list[Sequence[object]] = [(
        "scan", "patient", "label", "dice", "nsd", "hd95_mm", "truth_ml", "predicted_ml", "lesions", "found",
        "false_positives",
    )]  # fmt: skip
    for scan in evaluation.scans:
        for label in evaluation.table.labels:
            overlap, lesions = scan.overlaps.get(label.name), scan.lesions.get(label.name)
            if overlap is None and lesions is None and label.name not in scan.false_ml:
                continue
            row: list[object] = [scan.name, scan.patient, label.name]
            if overlap is None:
                row += ["", "", "", "", _plain(scan.false_ml.get(label.name))]
            else:
                row += [_plain(n) for n in (overlap.dice, overlap.nsd, overlap.hd95_mm)]
                row += [_plain(overlap.truth_ml), _plain(overlap.predicted_ml)]
            if lesions is not None:
                found = sum(at is not None for at in lesions.found_at)
                row += [len(lesions.found_at), found, len(lesions.false_at)]
            rows.append(row)
    return _csv(rows)


def draw_figures(evaluation: Evaluation, folder: Path) -> list[Path]:
    """dice.png, and froc.png and calibration.png where lesions were annotated."""
    paths = []
    overlaps = {label.display_name: evaluation.of_label(label.name) for label in evaluation.table.labels}
    shown = {name: [overlap.dice for overlap in found] for name, found in overlaps.items() if found}
    if shown:
        figure = Figure(figsize=(9, 1.0 + 0.3 * len(shown)), layout="constrained")
        axes = figure.subplots()
        axes.boxplot(list(shown.values()), orientation="horizontal", tick_labels=list(shown))
        axes.set(xlabel="Dice", xlim=(-0.02, 1.02))
        axes.invert_yaxis()
        paths.append(_save(figure, folder / "dice.png"))
    lesions = {label.display_name: evaluation.lesions(label.name) for label in evaluation.table.lesions}
    curves = {name: froc(scans) for name, scans in lesions.items() if scans}
    if any(len(rates) for rates, _ in curves.values()):
        figure = Figure(figsize=(7, 5), layout="constrained")
        axes = figure.subplots()
        for name, (rates, sensitivities) in curves.items():
            if len(rates):
                axes.step(rates, sensitivities, where="post", label=name, marker=".")
        axes.set(xlabel="false positives per scan", ylabel="sensitivity", ylim=(-0.02, 1.02))
        axes.legend()
        paths.append(_save(figure, folder / "froc.png"))
    bins = calibration([scan for scans in lesions.values() for scan in scans])
    if bins:
        figure = Figure(figsize=(5, 5), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
        axes.plot([one.probability for one in bins], [one.true_share for one in bins], marker="o")
        axes.set(xlabel="probability of a predicted lesion", ylabel="share that are lesions", xlim=(0, 1), ylim=(0, 1))
        paths.append(_save(figure, folder / "calibration.png"))
    return paths


def to_markdown(evaluation: Evaluation, tables: Sequence[Table], figures: Sequence[Path]) -> str:
    """The report as a page of text."""
    lines = [f"# {evaluation.title}", "", _summary(evaluation), ""]
    for table in tables:
        if table.rows:
            lines += [
                f"## {table.title}",
                "",
                table.note,
                "",
                _row(table.headings),
                _row(["---"] * len(table.headings)),
            ]
            lines += [*map(_row, table.rows), ""]
    lines += [f"![{path.stem}](figures/{path.name})" for path in figures]
    lines += ["", "## Worst scans", ""]
    lines += [f"- {scan.name}: mean Dice {scan.mean_dice:.3f}" for scan in evaluation.worst()]
    if evaluation.refused:
        lines += ["", "## Not scored", "", *(f"- {name}: {why}" for name, why in evaluation.refused.items())]
    return "\n".join(lines).rstrip() + "\n"


def to_html(evaluation: Evaluation, tables: Sequence[Table], folder: Path, figures: Sequence[Path]) -> str:
    """One page that needs no other file."""
    parts = [f"<h1>{escape(evaluation.title)}</h1><p>{escape(_summary(evaluation))}</p>"]
    for table in tables:
        if table.rows:
            head = "".join(f"<th>{escape(heading)}</th>" for heading in table.headings)
            body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
            parts.append(f"<h2>{table.title}</h2><p>{escape(table.note)}</p><table><tr>{head}</tr>{body}</table>")
    parts += [_image(path.read_bytes(), path.stem) for path in figures]
    parts.append("<h2>Worst scans</h2><p>Where truth (left) and prediction (right) of the worst label differ most.</p>")
    for scan in evaluation.worst():
        shown = evaluation.shown[scan.name]
        stream = io.BytesIO()
        Image.fromarray(shown.picture).save(stream, "PNG")
        said = f"{scan.name}: mean Dice {scan.mean_dice:.3f}; worst {shown.label} {scan.overlaps[shown.label].dice:.3f}"
        parts.append(f"<h3>{escape(said)}</h3>{_image(stream.getvalue(), scan.name)}")
    refused = "".join(f"<li>{escape(name)}: {escape(why)}</li>" for name, why in evaluation.refused.items())
    parts.append(f"<h2>Not scored</h2><ul>{refused}</ul>" if refused else "")
    title = escape(evaluation.title)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        + "\n".join(parts)
        + "</html>\n"
    )


def _summary(evaluation: Evaluation) -> str:
    patients = len({scan.patient for scan in evaluation.scans})
    refused = f" {len(evaluation.refused)} scans could not be scored." if evaluation.refused else ""
    return (
        f"{len(evaluation.scans)} scans of {patients} patients, segmented by `viscera segment`, scored on each scan's "
        f"own grid. Labels that were not annotated are left out.{refused}"
    )


def _mean(overlaps: Sequence[Overlap], of: Callable[[Overlap], float]) -> Interval:
    values = [of(overlap) for overlap in overlaps]
    return bootstrap(values, lambda drawn: float(np.mean(drawn)))


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _plain_or_dash(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"


def _csv(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _image(png: bytes, name: str) -> str:
    return f'<p><img alt="{escape(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}"></p>'


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure).print_png(path)  # type: ignore[no-untyped-call]
    return path
