"""A worker's hold on the job it runs: renewed by a thread, told of progress, and asked whether to go on.

Work that is to stop (canceled, too long, or another worker's) hears of it at its next progress report. Work that gives
none soon is stopped with its process, which a warm one replaces: nothing else ends a call into native code.
"""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import structlog

from service.errors import JobCanceled, StorageUnavailable, TimeLimitExceeded
from service.jobs.job import JobError
from service.jobs.store import JobStore
from service.progress import Stage, overall_percent

PROGRESS_INTERVAL_SECONDS = 0.25  # at most four writes a second
_LOOK_SECONDS = 0.25  # at least so often the table is asked whether to stop
_DEAF_SECONDS = 1.0  # with the look above under two seconds from the wish to the end
_RENEWALS_PER_LEASE = 3

log = structlog.get_logger(__name__)


class LeaseLost(Exception):
    """The job is no longer this worker's: it must stop and write nothing."""


class Lease:
    """Use as a context manager around the work; `progress` is the work's callback.

    Args:
        time_limit_seconds: the work may take so long from now, waiting for other jobs of the worker not counted.
        kill_process: ends this process at once; called when the work is to stop and does not hear of it.
    """

    def __init__(
        self,
        store: JobStore,
        job_id: str,
        owner: str,
        *,
        lease_seconds: float,
        time_limit_seconds: float,
        kill_process: Callable[[], None],
    ) -> None:
        self._store = store
        self._job_id = job_id
        self._owner = owner
        self._seconds = lease_seconds
        self._time_limit_seconds = time_limit_seconds
        self._kill_process = kill_process
        self._stage: Stage | None = None
        self._percent = 0.0
        self._began_at = self._renewed_at = self._told_at = time.monotonic()
        self._to_stop_since: float | None = None
        self._lost = False
        self._cancel_requested = False
        self._renewing = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def progress(self, stage: Stage, fraction: float) -> None:
        """Note how far the work is; written to the table at most four times a second.

        Raises:
            JobCanceled: the caller asked to stop.
            TimeLimitExceeded: the job has run for as long as it may.
            LeaseLost: another worker has the job.
        """
        changed = stage is not self._stage
        now = time.monotonic()
        if self._stage is Stage.WAITING:
            self._began_at += now - self._told_at
        if stage is not Stage.WAITING:  # wherever the job is, waiting takes it no further
            self._percent = overall_percent(stage, fraction)
        self._stage, self._told_at = stage, now
        if changed or time.monotonic() - self._renewed_at >= PROGRESS_INTERVAL_SECONDS:
            self._try_to_renew()
        self.check()

    def confirm(self) -> None:
        """Make sure, from the table, that the job is still this worker's and wanted; to be asked before publishing.

        Raises:
            StorageUnavailable: the table cannot tell now.
            JobCanceled, TimeLimitExceeded, LeaseLost: as in `progress`.
        """
        self._renew()
        self.check()

    def check(self) -> None:
        """Raise JobCanceled, TimeLimitExceeded or LeaseLost when the work must stop."""
        if self._lost:
            raise LeaseLost(self._job_id)
        if self._cancel_requested:
            raise JobCanceled("The job was canceled while it ran.")
        if self._overdue:
            raise self._too_long()

    def pause(self, seconds: float) -> None:
        """Keep the job and do nothing for a while.

        Raises:
            JobCanceled, TimeLimitExceeded, LeaseLost: as in `progress`, as soon as it is known.
        """
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, PROGRESS_INTERVAL_SECONDS))
            self.check()

    @property
    def _overdue(self) -> bool:
        return time.monotonic() - self._began_at > self._time_limit_seconds

    def _too_long(self) -> TimeLimitExceeded:
        return TimeLimitExceeded(
            f"The job ran longer than its time limit of {self._time_limit_seconds:g} s; choose fewer targets, a faster "
            "mode or a longer limit."
        )

    def _keep(self) -> None:
        look_seconds = min(_LOOK_SECONDS, self._seconds / _RENEWALS_PER_LEASE)
        while not self._ended.wait(look_seconds):
            if time.monotonic() - self._renewed_at >= look_seconds:
                self._try_to_renew()
            self._stop_deaf_work()

    def _stop_deaf_work(self) -> None:
        """End the job and this process when the work was to stop a while ago and is still there."""
        now = time.monotonic()
        if not (self._lost or self._cancel_requested or self._overdue):
            return
        if self._to_stop_since is None:
            self._to_stop_since = now
        if now - self._to_stop_since < _DEAF_SECONDS:
            return
        try:
            self._end_job()
        except StorageUnavailable:
            log.warning("job.end_not_written")
            return
        log.warning("worker.stopped_with_its_job", job_id=self._job_id)
        self._kill_process()

    def _end_job(self) -> None:
        if self._cancel_requested:
            self._store.finish_cancel(self._job_id, self._owner)
        elif not self._lost:
            self._store.fail(self._job_id, self._owner, JobError.of(self._too_long()))

    def _try_to_renew(self) -> None:
        try:
            self._renew()
        except StorageUnavailable:
            # Nobody else can take the job either while the table is away; the next renewal tells.
            log.warning("lease.not_renewed")

    def _renew(self) -> None:
        with self._renewing:
            self._renewed_at = time.monotonic()
            renewal = self._store.renew(
                self._job_id,
                self._owner,
                stage=self._stage,
                percent=self._percent,
                lease_seconds=self._seconds,
            )
            self._lost = self._lost or not renewal.ok
            self._cancel_requested = renewal.cancel_requested
