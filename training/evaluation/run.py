"""An evaluation on labelled scans: the service segments them, their masks are scored, a report is written."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.progress import track

from training.commands import CommandError, export, segment, study_name
from training.datasets.errors import CaseError
from training.evaluation.report import Evaluation, write_report
from training.evaluation.scoring import ScanScores, Shown, score_scan
from training.evaluation.subjects import Subject
from training.label_table import STANDARD, LabelTable
from training.pools import process_pool

_Scored = tuple[ScanScores, Shown] | str


def evaluate_subjects(
    subjects: Sequence[Subject],
    out: Path,
    *,
    weights: Path | str | None,
    title: str,
    processes: int | None = None,
    table: LabelTable = STANDARD,
) -> tuple[Evaluation, Path]:
    """Scores of a bundle (by path or name; None: the default) or of a checkpoint (.pt), and the report's path.

    `out` gets the studies, the results and the report. A scan that cannot be used is reported and the others go on.
    `processes` score at a time; None: one per core. `table` is that of the subjects' truth.
    Raises CommandError where no scan at all could be segmented.
    """
    bundle = None if weights is None else str(weights)
    if bundle is not None and bundle.endswith(".pt"):
        bundle = str(export(Path(bundle), out / "bundle"))
    refused: dict[str, str] = {}
    studies: dict[str, Path] = {}
    for subject in track(subjects, description="Studies"):
        try:
            studies[subject.name] = subject.study(out / "studies")
        except CaseError as error:
            refused[subject.name] = str(error)
    results = out / "segmented"
    if studies:
        _segment_all(list(studies.values()), results, bundle)
    todo = []
    for subject in subjects:
        if subject.name in studies and _result(results, studies[subject.name]).is_dir():
            todo.append((subject, _result(results, studies[subject.name])))
        elif subject.name in studies:
            refused[subject.name] = "The service refused the scan; see its message."
    scans, shown = [], {}
    for (subject, _), scored in zip(todo, track(_score_all(todo, processes), "Scores", len(todo)), strict=True):
        if isinstance(scored, str):
            refused[subject.name] = scored
        else:
            scans.append(scored[0])
            shown[subject.name] = scored[1]
    evaluation = Evaluation(title, scans, shown, refused, table)
    return evaluation, write_report(evaluation, out)


def _result(results: Path, study: Path) -> Path:
    return results / study_name(study)


def _segment_all(studies: Sequence[Path], results: Path, bundle: str | None) -> None:
    """Those that fail are left without a result; if all do, the failure is the whole call's."""
    for study in studies:  # of an earlier model
        shutil.rmtree(_result(results, study), ignore_errors=True)
    try:
        segment(studies, results, bundle)
    except CommandError:
        if not any(_result(results, study).is_dir() for study in studies):
            raise


def _score_all(todo: Sequence[tuple[Subject, Path]], processes: int | None) -> "map[_Scored] | list[_Scored]":
    """In order, in this process or in several."""
    if processes == 1 or len(todo) < 2:
        return map(_score, todo)
    with process_pool(processes) as pool:
        return list(pool.map(_score, todo))


def _score(one: tuple[Subject, Path]) -> _Scored:
    try:
        return score_scan(*one)
    except CaseError as error:
        return f"{type(error).__name__}. {error}"
