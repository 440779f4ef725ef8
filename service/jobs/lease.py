"""A worker's hold on the job it runs: renewed by a thread, told of progress, and asked whether to go on."""

import threading
import time
from types import TracebackType
from typing import Self

import structlog

from service.errors import JobCanceled, StorageUnavailable
from service.jobs.store import JobStore
from service.progress import Stage, overall_percent

PROGRESS_INTERVAL_SECONDS = 0.25  # at most four writes a second
_RENEWALS_PER_LEASE = 3

log = structlog.get_logger(__name__)


class LeaseLost(Exception):
    """The job is no longer this worker's: it must stop and write nothing."""


class Lease:
    """Use as a context manager around the work; `progress` is the work's callback."""

    def __init__(self, store: JobStore, job_id: str, owner: str, lease_seconds: float) -> None:
        self._store = store
        self._job_id = job_id
        self._owner = owner
        self._seconds = lease_seconds
        self._stage: Stage | None = None
        self._percent = 0.0
        self._renewed_at = time.monotonic()
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
            LeaseLost: another worker has the job.
        """
        changed = stage is not self._stage
        self._stage, self._percent = stage, overall_percent(stage, fraction)
        if changed or time.monotonic() - self._renewed_at >= PROGRESS_INTERVAL_SECONDS:
            self._try_to_renew()
        self.check()

    def confirm(self) -> None:
        """Make sure, from the table, that the job is still this worker's and wanted; to be asked before publishing.

        Raises:
            StorageUnavailable: the table cannot tell now.
            JobCanceled, LeaseLost: as in `progress`.
        """
        self._renew()
        self.check()

    def check(self) -> None:
        """Raise JobCanceled or LeaseLost when the work must stop."""
        if self._lost:
            raise LeaseLost(self._job_id)
        if self._cancel_requested:
            raise JobCanceled("The job was canceled while it ran.")

    def _keep(self) -> None:
        while not self._ended.wait(self._seconds / _RENEWALS_PER_LEASE):
            self._try_to_renew()

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
