"""The task: claim one job, run it, publish its result, once.

A message may come twice, late or for a job that is gone; the claim decides. A worker that lost its lease while it
worked writes nothing more. Whatever kills the process in between, the sweeper gives the job to another.
"""

import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Protocol, TypeVar

import structlog
from celery import shared_task
from structlog.contextvars import bound_contextvars

from service.errors import (
    ArtifactNotFound,
    InternalError,
    JobCanceled,
    StorageUnavailable,
    UploadGone,
    VisceraError,
)
from service.exchange.plan import PUSH_NOTICES
from service.exchange.wado import fetch_study
from service.jobs.job import Job, JobError, JobStatus, Notice
from service.jobs.lease import Lease, LeaseLost
from service.jobs.queue import TASK_NAME
from service.jobs.store import JobStore
from service.metrics import observe_job
from service.progress import Progress
from service.request import SegmentationRequest
from service.settings import Settings
from service.stopwatch import Stopwatch
from service.storage import LocalStorage, is_disk_full, storage_error
from service.tracing import NO_TRACING, Span, StageSpans, Tracing

_PATIENCE_SECONDS = 300.0  # how long a job waits for a database that is away

_T = TypeVar("_T")

log = structlog.get_logger(__name__)


class Segmenter(Protocol):
    """Does the work of a job; `service.segmenter` has the real one."""

    def warm_up(self) -> None:
        """Load what every job needs, and prove that it works."""

    def segment(
        self, upload: Path, out_dir: Path, model: str, request: SegmentationRequest, progress: Progress
    ) -> Sequence[Notice]:
        """Write the artifacts of the upload (a file or a folder) to `out_dir`; returns remarks on the result."""


@dataclass(frozen=True)
class WorkContext:
    """What a worker process needs to run jobs."""

    store: JobStore
    storage: LocalStorage
    segmenter: Segmenter
    owner: str
    lease_seconds: float
    time_limit_seconds: float  #: of a job that states none
    keep_results_for: timedelta | None  #: None: for ever
    storage_pauses: Sequence[float]  #: seconds to wait before each new try while the disk is full or the storage away
    kill_process: Callable[[], None]  #: ends this process at once
    settings: Settings
    tracing: Tracing = NO_TRACING


_context: WorkContext | None = None


def install_context(context: WorkContext) -> None:
    """Give this process what its tasks run with."""
    global _context
    _context = context


@shared_task(name=TASK_NAME)  # type: ignore[untyped-decorator]  # Celery has no types
def segment_job(job_id: str) -> None:
    """Run the job if it waits for a worker."""
    assert _context is not None, "worker_process_init has not run"
    run_job(_context, job_id)


def run_job(context: WorkContext, job_id: str) -> None:
    """Claim the job and bring it to an end; returns at once when there is nothing to claim.

    A failure of the job is written to its row, not raised. Raises StorageUnavailable only when the table stays away;
    the job's lease then runs out and another worker takes it.
    """
    job = _patiently(lambda: context.store.claim(job_id, context.owner, context.lease_seconds))
    if job is None:
        log.info("job.skipped", job_id=job_id)
        return
    span = context.tracing.begin(
        "job",
        parent=job.traceparent,
        attributes={
            "viscera.job.id": job.id,
            "viscera.job.attempt": job.attempts,
            "viscera.job.priority": job.priority,
            "viscera.job.model": job.model,
        },
    )
    error: str | None = InternalError.code
    try:
        with bound_contextvars(job_id=job_id, attempt=job.attempts):
            error = _run(context, job, span)
    finally:
        span.end(error)


def _run(context: WorkContext, job: Job, span: Span) -> str | None:
    """Bring a claimed job to an end, and tell log, metrics and span of it; the code of its error, if it failed."""
    log.info("job.started")
    started = time.monotonic()
    with _lease(context, job) as lease:
        stages = StageSpans(context.tracing, span, lease.progress)
        ending = _bring_to_an_end(context, job, lease, stages)
        code = None if ending is None or ending.error is None else ending.error.code
        stages.end(code)
        written = ending is not None and _patiently(lambda: _write(context, job, ending))
    _clean_up(context.storage, job, ended=written)
    seconds = round(time.monotonic() - started, 3)
    if ending is None or not written:
        log.warning("job.lease_lost", seconds=seconds)
        span.note({"viscera.job.status": "lost"})
        return None
    log.info(f"job.{ending.status}", seconds=seconds, **({} if code is None else {"code": code}))
    observe_job(ending.status, code, ending.stage_seconds)
    span.note({"viscera.job.status": ending.status, "viscera.job.reused": int(ending.reused_from is not None)})
    return code


def _lease(context: WorkContext, job: Job) -> Lease:
    return Lease(
        context.store,
        job.id,
        context.owner,
        lease_seconds=context.lease_seconds,
        time_limit_seconds=job.time_limit_seconds or context.time_limit_seconds,
        kill_process=context.kill_process,
    )


@dataclass(frozen=True)
class _Ending:
    status: JobStatus
    error: JobError | None = None
    notices: Sequence[Notice] = ()
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    reused_from: str | None = None


def _bring_to_an_end(context: WorkContext, job: Job, lease: Lease, progress: Progress) -> _Ending | None:
    """Run the job and publish its result; None when it became another worker's meanwhile."""
    try:
        ending = _reuse(context, job) or _segment_persistently(context, job, lease, progress)
        return replace(ending, notices=(*ending.notices, *_push(context, job, progress)))
    except LeaseLost:
        return None
    except JobCanceled:
        return _Ending(JobStatus.CANCELED)
    except VisceraError as problem:
        return _Ending(JobStatus.FAILED, JobError.of(problem))
    except Exception as unexpected:  # noqa: BLE001 - whatever the work does, the worker lives on
        if isinstance(unexpected, OSError) and is_disk_full(unexpected):
            return _Ending(JobStatus.FAILED, JobError.of(storage_error(unexpected)))
        _log_crash(unexpected)
        error = InternalError(
            f"The job failed in an unexpected way. Tell the operator of the service its id, {job.id}."
        )
        return _Ending(JobStatus.FAILED, JobError.of(error))


def _reuse(context: WorkContext, job: Job) -> _Ending | None:
    """Publish an equal result that is stored already; None when there is none, it vanishes meanwhile, or nobody can
    tell: then the work is done again."""
    if not job.reuse or not job.result_key:
        return None
    source: Job | None = None
    try:
        source = _patiently(lambda: context.store.stored_result(job))
        if source is None:
            return None
        context.storage.copy_result(source.id, job.id, job.attempts)
    except (ArtifactNotFound, StorageUnavailable):
        log.warning("job.not_reused", source=None if source is None else source.id)
        return None
    notices = [notice for notice in source.notices if notice["code"] not in PUSH_NOTICES]
    return _Ending(JobStatus.SUCCEEDED, notices=notices, reused_from=source.reused_from or source.id)


def _segment_persistently(context: WorkContext, job: Job, lease: Lease, progress: Progress) -> _Ending:
    """Run the job; when the disk is full or the storage away, from its beginning again after each pause."""
    for pause in context.storage_pauses:
        try:
            return _segment(context, job, lease, progress)
        except (StorageUnavailable, OSError) as error:
            if isinstance(error, UploadGone) or (isinstance(error, OSError) and not is_disk_full(error)):
                raise
            log.warning("storage.away", error=type(error).__name__, retry_in_seconds=pause)
        _discard(context.storage, job)
        lease.pause(pause)
    return _segment(context, job, lease, progress)


def _segment(context: WorkContext, job: Job, lease: Lease, progress: Progress) -> _Ending:
    storage = context.storage
    out_dir = storage.begin_result(job.id, job.attempts)
    scratch = storage.temporary_dir(job.id, job.attempts)
    watch = Stopwatch(progress)
    with _temporary_files_in(scratch):
        source = job.exchange.source
        if source is None:
            storage.discard_unfinished(job.id)
            upload = storage.fetch_upload(job.id, job.attempts)
        else:
            upload = fetch_study(source, scratch / "fetched", context.settings, watch)
        notices = context.segmenter.segment(upload, out_dir, job.model, job.request, watch)
    stage_seconds = watch.seconds()
    _patiently(lease.confirm)
    storage.publish_result(job.id, job.attempts)
    return _Ending(JobStatus.SUCCEEDED, notices=notices, stage_seconds=stage_seconds)


def _push(context: WorkContext, job: Job, progress: Progress) -> Sequence[Notice]:
    """Send the published result where the job says; whatever goes wrong with it is a remark on the job."""
    if not job.exchange.push:
        return ()
    # Here, because it brings the DICOM libraries, and this module is imported before the fork.
    from service.exchange.push import push_result

    with context.storage.result_files(job.id) as folder:
        return push_result(folder, job.exchange.push, context.settings, progress)


def _write(context: WorkContext, job: Job, ending: _Ending) -> bool:
    """Write the job's end to the table; False when the job is no longer this worker's."""
    if ending.status is JobStatus.SUCCEEDED:
        return context.store.succeed(
            job.id,
            context.owner,
            ending.notices,
            stage_seconds=ending.stage_seconds,
            reused_from=ending.reused_from,
            keep_for=context.keep_results_for,
        )
    if ending.status is JobStatus.CANCELED:
        return context.store.finish_cancel(job.id, context.owner)
    assert ending.error is not None
    return context.store.fail(job.id, context.owner, ending.error)


def _log_crash(unexpected: Exception) -> None:
    """Log where it happened; what the exception says may quote the scan, so only someone who debugs sees that."""
    where = "".join(traceback.format_tb(unexpected.__traceback__))
    log.error("job.crashed", error=type(unexpected).__name__, traceback=where)
    log.debug("job.crash_message", message=str(unexpected))


def _discard(storage: LocalStorage, job: Job) -> None:
    """Give the space of a try back; what cannot be removed now, the next try removes."""
    with suppress(StorageUnavailable):
        storage.discard_attempt(job.id, job.attempts)


def _clean_up(storage: LocalStorage, job: Job, *, ended: bool) -> None:
    """Leave nothing of the attempt on the disk; the upload stays for another worker unless the job has ended."""
    try:
        storage.discard_attempt(job.id, job.attempts)
        if ended:
            storage.delete_upload(job.id)
    except StorageUnavailable:
        log.warning("job.not_cleaned_up")  # the sweeper will


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Temporary files of this process go there and so vanish with the attempt, even when the process is killed."""
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _patiently(write: Callable[[], _T]) -> _T:
    """What `write` returns, tried again while the database is away."""
    give_up_at = time.monotonic() + _PATIENCE_SECONDS
    pause = 0.2
    while True:
        try:
            return write()
        except StorageUnavailable:
            if time.monotonic() > give_up_at:
                raise
            log.warning("database.away", retry_in_seconds=pause)
        time.sleep(pause)
        pause = min(2 * pause, 5.0)
