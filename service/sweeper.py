"""Repairs what a crash left: jobs whose worker is gone, jobs without a message, files without a job."""

import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import structlog

from service.errors import VisceraError
from service.jobs.job import Recovery
from service.jobs.owner import is_dead
from service.jobs.queue import JobQueue
from service.jobs.store import JobStore
from service.settings import Settings
from service.storage import LocalStorage

# A message may be in a worker's hands and not yet claimed: an empty queue alone does not mean that it was lost.
_MESSAGE_ON_ITS_WAY = timedelta(seconds=15)
_FORGET_WORKERS_AFTER = timedelta(days=1)
_FILES_EVERY_SECONDS = 60.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class SweepReport:
    """What one sweep did."""

    recovery: Recovery = field(default_factory=Recovery)
    dispatched: tuple[str, ...] = ()
    files_removed: int = 0


class Sweeper:
    """Sweeps now and then in a thread. Several may run at once, in several processes: each change is made once."""

    def __init__(self, settings: Settings, store: JobStore, storage: LocalStorage, queue: JobQueue) -> None:
        self._settings = settings
        self._store = store
        self._storage = storage
        self._queue = queue
        self._files_swept_at: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        """Sweep in a thread until `stop`; the first sweep is at once."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the sweep at hand."""
        self._ended.set()
        self._thread.join()

    def rebuild_queue(self) -> SweepReport:
        """Bring the embedded queue in line with the job table, before the first worker starts.

        Jobs of dead workers go back to the queue and every queued job gets one message, the oldest first; messages from
        before are dropped. With a broker that others share this is an ordinary sweep.
        """
        if not self._settings.embedded_broker:
            return self.sweep_once()
        recovery = self._recover(datetime.now(UTC))
        self._queue.purge()
        return SweepReport(recovery, self._dispatch(self._store.undispatched(older_than=datetime.now(UTC))))

    def sweep_once(self) -> SweepReport:
        """Look for everything that is lost and put it right."""
        now = datetime.now(UTC)
        recovery = self._recover(now)
        dispatched = self._dispatch(self._store.undispatched(older_than=now - self._message_lifetime()))
        return SweepReport(recovery, dispatched, self._sweep_files_sometimes())

    def _recover(self, now: datetime) -> Recovery:
        dead = {owner for owner in self._store.owners() if is_dead(owner)}
        recovery = self._store.requeue_expired(now, self._settings.max_attempts, dead)
        for owner in dead:
            self._store.forget_worker(owner)
        self._store.forget_silent_workers(now - _FORGET_WORKERS_AFTER)
        if recovery != Recovery():
            log.warning(
                "jobs.recovered",
                requeued=recovery.requeued,
                failed=recovery.failed,
                canceled=recovery.canceled,
            )
        return recovery

    def _message_lifetime(self) -> timedelta:
        """After how long a message must be lost: soon when the queue is empty, else it may wait in it."""
        if self._queue.waiting() == 0:
            return _MESSAGE_ON_ITS_WAY
        return timedelta(seconds=self._settings.redispatch_seconds)

    def _dispatch(self, job_ids: list[str]) -> tuple[str, ...]:
        """Send messages until the broker refuses one; returns the jobs sent."""
        sent: list[str] = []
        for job_id in job_ids:
            if not self._queue.dispatch(job_id):
                break
            sent.append(job_id)
        if sent:
            log.info("jobs.dispatched", count=len(sent))
        return tuple(sent)

    def _sweep_files_sometimes(self) -> int:
        if self._files_swept_at is not None and time.monotonic() - self._files_swept_at < _FILES_EVERY_SECONDS:
            return 0
        self._files_swept_at = time.monotonic()
        on_disk = self._storage.job_ids()
        removed = self._storage.sweep_orphans(
            self._store.states(on_disk), min_age_seconds=self._settings.orphan_seconds
        )
        if removed:
            log.info("files.swept", removed=removed)
        return removed

    def _run(self) -> None:
        while True:
            try:
                self.sweep_once()
            except VisceraError as problem:
                log.warning("sweep.failed", code=problem.code)
            except Exception:
                log.exception("sweep.failed")
            if self._ended.wait(self._settings.sweep_seconds):
                return
