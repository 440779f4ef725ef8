"""`viscera segment`: studies in, results out, in this process and with no service."""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from service.catalog import Catalog
from service.cli.console import (
    ERR,
    OUT,
    print_files,
    print_findings,
    print_json,
    problem_document,
    progress_bar,
    report,
)
from service.cli.studies import folders_for
from service.errors import VisceraError
from service.opening import open_with_pipeline
from service.progress import Stage, overall_percent
from service.reporting.schema import Findings
from service.request import SegmentationRequest
from service.settings import Settings


def segment(
    studies: Sequence[Path],
    out: Path,
    request: SegmentationRequest,
    *,
    bundle: str | None = None,
    engine: str | None = None,
    precision: str | None = None,
    as_json: bool = False,
) -> int:
    """Segment each study; 2 when one of them could not be, after the others were done.

    `as_json` prints a JSON document for each study, one a line, in place of tables: `study` and `out`, and `findings`
    and `files` or the `problem`.

    Raises:
        VisceraError: the bundle, a target, the engine or the precision was refused, before any study is read.
    """
    # Whether the name is one of an engine is for the settings to check.
    settings = Settings() if engine is None else Settings(engine=engine)  # type: ignore[arg-type]  # pydantic checks it
    path = _bundle_path(Catalog.from_settings(settings), bundle)
    model, segment_study = open_with_pipeline(
        path,
        engine=settings.engine,
        precision=precision or settings.precision,
        threads=settings.threads,
        engine_cache=settings.engine_cache_dir,
    )
    model.bundle.labels_for(request.targets)
    colors = {label.name: label.color for label in model.bundle.manifest.labels}
    status = 0
    for study, target in folders_for(studies, out):
        try:
            findings = _segment_into(target, study, partial(segment_study, model=model, request=request))
        except VisceraError as error:
            (ERR if as_json else OUT).print(f"{study}:", soft_wrap=True, markup=False)
            report(error)
            status = 2
            if as_json:
                print_json({"study": str(study), "out": str(target), "problem": problem_document(error)})
            continue
        document, names = findings.model_dump(mode="json"), _names(target)
        if as_json:
            print_json({"study": str(study), "out": str(target), "findings": document, "files": names})
        else:
            print_findings(document, colors)
            print_files(target, names)
    return status


def _bundle_path(catalog: Catalog, bundle: str | None) -> Path:
    """The bundle at a path, or the catalog's of that id or name."""
    if bundle is not None and Path(bundle).exists():
        return Path(bundle)
    return catalog.find(bundle).path


def _segment_into(target: Path, study: Path, segment_study: Callable[..., Findings]) -> Findings:
    """Results appear in `target` when all of them are written; a study that fails leaves nothing there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".viscera-", dir=target.parent) as scratch, progress_bar() as bar:
        working = bar.add_task(study.name, total=100)

        def show(stage: Stage, fraction: float) -> None:
            bar.update(working, completed=overall_percent(stage, fraction), description=f"{study.name}: {stage}")

        result = Path(scratch) / "result"
        result.mkdir()
        findings = segment_study(study, result, progress=show)
        bar.update(working, completed=100, description=f"{study.name}: done")
        for name in _names(result):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (result / name).replace(target / name)
    return findings


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
