"""The task: claim one job, run it, publish its result, once.

A message may come twice, late or for a job that is gone; the claim decides. A worker that lost its lease while it
worked writes nothing more. Whatever kills the process in between, the sweeper gives the job to another.
"""

import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import structlog
from celery import shared_task
from structlog.contextvars import bound_contextvars

from service.errors import InternalError, JobCanceled, StorageUnavailable, VisceraError
from service.exchange.wado import fetch_study
from service.jobs.job import Job, JobError, JobStatus, Notice
from service.jobs.lease import Lease, LeaseLost
from service.jobs.queue import TASK_NAME
from service.jobs.store import JobStore
from service.progress import Progress
from service.request import SegmentationRequest
from service.settings import Settings
from service.storage import LocalStorage, is_disk_full, storage_error

_PATIENCE_SECONDS = 300.0  # how long the end of a job waits for a database that is away

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
    settings: Settings


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
    with bound_contextvars(job_id=job_id, attempt=job.attempts):
        log.info("job.started")
        started = time.monotonic()
        with Lease(context.store, job_id, context.owner, context.lease_seconds) as lease:
            ending = _bring_to_an_end(context, job, lease)
            written = ending is not None and _patiently(lambda: _write(context, job, ending))
        _clean_up(context.storage, job, ended=written)
        seconds = round(time.monotonic() - started, 3)
        if ending is None or not written:
            log.warning("job.lease_lost", seconds=seconds)
        else:
            reason = {} if ending.error is None else {"code": ending.error.code}
            log.info(f"job.{ending.status}", seconds=seconds, **reason)


@dataclass(frozen=True)
class _Ending:
    status: JobStatus
    error: JobError | None = None
    notices: Sequence[Notice] = ()


def _bring_to_an_end(context: WorkContext, job: Job, lease: Lease) -> _Ending | None:
    """Run the job and publish its result; None when it became another worker's meanwhile."""
    try:
        return _Ending(JobStatus.SUCCEEDED, notices=_segment(context, job, lease))
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


def _segment(context: WorkContext, job: Job, lease: Lease) -> Sequence[Notice]:
    storage = context.storage
    out_dir = storage.begin_result(job.id, job.attempts)
    scratch = storage.temporary_dir(job.id, job.attempts)
    with _temporary_files_in(scratch):
        source = job.exchange.source
        if source is None:
            storage.discard_unfinished(job.id)
            upload = storage.upload_path(job.id)
        else:
            upload = fetch_study(source, scratch / "fetched", context.settings, lease.progress)
        notices = context.segmenter.segment(upload, out_dir, job.model, job.request, lease.progress)
    _patiently(lease.confirm)
    storage.publish_result(job.id, job.attempts)
    return [*notices, *_push(context, job, lease)]


def _push(context: WorkContext, job: Job, lease: Lease) -> Sequence[Notice]:
    """Send the published result where the job says; whatever goes wrong with it is a remark on the job."""
    if not job.exchange.push:
        return ()
    # Here, because it brings the DICOM libraries, and this module is imported before the fork.
    from service.exchange.push import push_result

    return push_result(context.storage.result_dir(job.id), job.exchange.push, context.settings, lease.progress)


def _write(context: WorkContext, job: Job, ending: _Ending) -> bool:
    """Write the job's end to the table; False when the job is no longer this worker's."""
    if ending.status is JobStatus.SUCCEEDED:
        return context.store.succeed(job.id, context.owner, ending.notices)
    if ending.status is JobStatus.CANCELED:
        return context.store.finish_cancel(job.id, context.owner)
    assert ending.error is not None
    return context.store.fail(job.id, context.owner, ending.error)


def _log_crash(unexpected: Exception) -> None:
    """Log where it happened; what the exception says may quote the scan, so only someone who debugs sees that."""
    where = "".join(traceback.format_tb(unexpected.__traceback__))
    log.error("job.crashed", error=type(unexpected).__name__, traceback=where)
    log.debug("job.crash_message", message=str(unexpected))


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
