"""`viscera submit`: send a study to a service, follow the job, print and fetch what was found."""

from collections.abc import Sequence
from pathlib import Path

from service.cli.console import ERR, OUT, print_files, print_findings, print_problem, progress_bar
from service.client import JobDocument, Viscera, study_files
from service.request import SegmentationRequest


def submit(
    study: Path,
    request: SegmentationRequest,
    *,
    url: str,
    api_key: str | None,
    wait: bool,
    out: Path | None,
    model: str | None,
) -> int:
    """Submit one study and, with `wait`, see it through; the exit status.

    Raises:
        ProblemError: the service refused something.
        UnreachableError: nothing answers at `url`.
    """
    files = study_files(study)
    if not files:
        print_problem(f"There is no file in {study}.")
        return 2
    with Viscera(url, api_key=api_key) as viscera:
        job = _send(viscera, files, model, request)
        OUT.print(f"Job {job['id']}", soft_wrap=True)
        if not wait:
            OUT.print(f"Follow it at {url.rstrip('/')}{job['links']['self']}", soft_wrap=True)
            return 0
        ended = _follow(viscera, job["id"])
        if ended["status"] != "succeeded":
            print_problem(_why(ended))
            return 2
        print_findings(viscera.findings(job["id"]))
        if out is not None:
            _fetch(viscera, job["id"], out)
    return 0


def _send(viscera: Viscera, files: Sequence[Path], model: str | None, request: SegmentationRequest) -> JobDocument:
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
            on_sent=lambda sent: bar.update(sending, completed=sent),
        )


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


def _fetch(viscera: Viscera, job_id: str, out: Path) -> None:
    names = [artifact["name"] for artifact in viscera.artifacts(job_id)]
    with progress_bar() as bar:
        fetching = bar.add_task("downloading", total=len(names))
        for name in names:
            viscera.download(job_id, name, out)
            bar.advance(fetching)
    print_files(out, names)


def _why(job: JobDocument) -> str:
    error = job["error"]
    if error is None:
        return "The job was canceled."
    return f"{error['title']}: {error['detail']} ({error['type'].rpartition('/')[2]})"
