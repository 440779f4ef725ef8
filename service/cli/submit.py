"""`viscera submit`: send studies to a service, follow their jobs, print and fetch what was found."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

from service.cli.console import (
    ERR,
    OUT,
    Colors,
    print_files,
    print_findings,
    print_json,
    print_problem,
    problem_document,
    progress_bar,
    report,
)
from service.cli.studies import folders_for
from service.client import JobDocument, ProblemError, Viscera, study_files
from service.jobs.job import Priority
from service.request import SegmentationRequest


@dataclass(frozen=True)
class Handling:
    """How the jobs are to be handled; nothing of this changes a result."""

    priority: Priority = Priority.ROUTINE
    reuse: bool = True
    batch_id: str | None = None
    time_limit_seconds: float | None = None
    callback_url: str | None = None
    push: tuple[str, ...] = ()
    idempotency_key: str | None = None  #: of the one study; each gets a fresh one otherwise


DEFAULT_HANDLING = Handling()


@dataclass(frozen=True)
class _Study:
    """What is sent for one job, and where its results go."""

    path: Path
    files: Sequence[Path]
    out: Path | None


def submit(
    paths: Sequence[Path],
    request: SegmentationRequest,
    *,
    url: str,
    api_key: str | None,
    wait: bool,
    out: Path | None,
    model: str | None,
    handling: Handling = DEFAULT_HANDLING,
    as_json: bool = False,
) -> int:
    """Submit each study and, with `wait`, see the jobs through; the exit status.

    All are sent before the first is followed, and several share a batch. 2 when one of them was refused or did not
    succeed, after the others were done.

    `as_json` prints a JSON document per study and line in place of tables: `study`, the `job` or the `problem`,
    and where it was waited for the `findings` and the `files` that were fetched.

    Raises:
        UnreachableError: nothing answers at `url`.
    """
    places = [(path, None) for path in paths] if out is None else folders_for(paths, out)
    studies = [_Study(path, study_files(path), folder) for path, folder in places]
    for study in studies:
        if not study.files:
            print_problem(f"There is no file in {study.path}.")
            return 2
    several = len(studies) > 1
    if several and handling.batch_id is None:
        handling = replace(handling, batch_id=uuid4().hex)
    say = _Words(as_json, several)
    with Viscera(url, api_key=api_key) as viscera:
        sent = [(study, _submitted(viscera, study, model, request, handling, say)) for study in studies]
        jobs = [(study, job) for study, job in sent if job is not None]
        if several:
            say.line(f"Batch {handling.batch_id}: {len(jobs)} of {len(studies)} studies")
        if not wait:
            for study, job in jobs:
                say.line(f"Follow it at {viscera.url}{job['links']['self']}")
                say.document(study, job=job)
            return 0 if len(jobs) == len(studies) else 2
        succeeded = [_see_through(viscera, study, job["id"], say) for study, job in jobs]
    return 0 if succeeded.count(True) == len(studies) else 2


@dataclass(frozen=True)
class _Words:
    """What is told of the studies: tables and lines on stdout, or documents there and the lines on stderr."""

    as_json: bool
    several: bool

    def line(self, text: str) -> None:
        (ERR if self.as_json else OUT).print(text, soft_wrap=True, markup=False)

    def name(self, study: _Study) -> None:
        """Which study the next lines are about, where there are several."""
        if self.several:
            self.line(f"{study.path}:")

    def document(self, study: _Study, **content: object) -> None:
        if self.as_json:
            print_json({"study": str(study.path), **content})


def _submitted(
    viscera: Viscera,
    study: _Study,
    model: str | None,
    request: SegmentationRequest,
    handling: Handling,
    say: _Words,
) -> JobDocument | None:
    """The job of a study; None, after one line, when the service refuses it."""
    try:
        job = _send(viscera, study.files, model, request, handling)
    except ProblemError as problem:
        say.name(study)
        report(problem)
        say.document(study, problem=problem_document(problem))
        return None
    say.line(f"Job {job['id']}" + (f": {study.path}" if say.several else ""))
    return job


def _send(
    viscera: Viscera, files: Sequence[Path], model: str | None, request: SegmentationRequest, handling: Handling
) -> JobDocument:
    with progress_bar() as bar:
        sending = bar.add_task("uploading", total=sum(file.stat().st_size for file in files))
        return viscera.submit(
            files,
            model=model,
            targets=request.targets or (),
            mode=request.mode,
            overlap=request.overlap,
            postprocessing=request.postprocessing,
            series=request.series,
            outputs=request.outputs or (),
            seg_type=request.seg_type,
            deidentify=request.deidentify,
            priority=handling.priority,
            reuse=handling.reuse,
            batch_id=handling.batch_id,
            time_limit_seconds=handling.time_limit_seconds,
            callback_url=handling.callback_url,
            push=handling.push,
            idempotency_key=handling.idempotency_key,
            on_sent=lambda sent: bar.update(sending, completed=sent),
        )


def _see_through(viscera: Viscera, study: _Study, job_id: str, say: _Words) -> bool:
    """Follow a job, print what it found and fetch the files; False, after one line, when it did not succeed."""
    ended = _follow(viscera, job_id)
    say.name(study)
    if ended["status"] != "succeeded":
        print_problem(_why(ended))
        say.document(study, job=ended)
        return False
    findings = viscera.findings(job_id)
    if not say.as_json:
        print_findings(findings, _colors(viscera, ended["model"]))
    names = [] if study.out is None else _fetch(viscera, job_id, study.out)
    if study.out is not None and not say.as_json:
        print_files(study.out, names)
    say.document(study, job=ended, findings=findings, files=names)
    return True


def _colors(viscera: Viscera, model: str) -> Colors:
    """Those of the model's labels; none when the service no longer has it."""
    found = next((one for one in viscera.models() if one["id"] == model), None)
    return {} if found is None else {label["name"]: tuple(label["color"]) for label in found["labels"]}


def _follow(viscera: Viscera, job_id: str) -> JobDocument:
    with progress_bar() as bar:
        following = bar.add_task("queued", total=100)

        def show(job: JobDocument) -> None:
            place = f", place {job['queue_position']}" if job["queue_position"] else ""
            bar.update(following, completed=job["percent"], description=f"{job['stage'] or job['status']}{place}")

        try:
            return viscera.wait(job_id, show)
        except KeyboardInterrupt:
            ERR.print(f"Stopped waiting; job {job_id} goes on.")
            raise


def _fetch(viscera: Viscera, job_id: str, out: Path) -> list[str]:
    """The names of the files that now lie in `out`."""
    names = [artifact["name"] for artifact in viscera.artifacts(job_id)]
    with progress_bar() as bar:
        fetching = bar.add_task("downloading", total=len(names))
        for name in names:
            viscera.download(job_id, name, out)
            bar.advance(fetching)
    return names


def _why(job: JobDocument) -> str:
    error = job["error"]
    if error is None:
        return "The job was canceled."
    return f"{error['title']}: {error['detail']} ({error['type'].rpartition('/')[2]})"
