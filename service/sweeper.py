"""Repairs what a crash left: jobs whose worker is gone, jobs without a message, files without a job.

Removes what is kept no longer, too. It runs inside `viscera serve`; elsewhere as `python -m service.sweeper`.
"""

import argparse
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import structlog

from service.errors import VisceraError
from service.jobs.job import Priority, Recovery
from service.jobs.owner import is_dead
from service.jobs.queue import JobQueue
from service.jobs.store import JobStore
from service.settings import Settings
from service.storage import LocalStorage, open_storage
from service.telemetry import configure_logging
from service.waiting import once_available

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
        self._expire(now)
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
        in_a_queue = timedelta(seconds=self._settings.redispatch_seconds)
        return min(in_a_queue, _MESSAGE_ON_ITS_WAY) if self._queue.waiting() == 0 else in_a_queue

    def _dispatch(self, waiting: Mapping[str, Priority]) -> tuple[str, ...]:
        """Send messages until the broker refuses one; returns the jobs sent."""
        sent: list[str] = []
        for job_id, priority in waiting.items():
            if not self._queue.dispatch(job_id, priority):
                break
            sent.append(job_id)
        if sent:
            log.info("jobs.dispatched", count=len(sent))
        return tuple(sent)

    def _expire(self, now: datetime) -> None:
        """Remove results and rows whose time is over; what a crash leaves of the files is an orphan."""
        expired = self._store.expire_results(now)
        for job_id in expired:
            self._storage.delete_result(job_id)
        forgotten = self._store.forget_ended(now - keep) if (keep := self._settings.keep_jobs_for) else 0
        if expired or forgotten:
            log.info("jobs.expired", results=len(expired), rows=forgotten)

    def _sweep_files_sometimes(self) -> int:
        if self._files_swept_at is not None and time.monotonic() - self._files_swept_at < _FILES_EVERY_SECONDS:
            return 0
        self._files_swept_at = time.monotonic()
        on_disk = self._storage.job_ids()
        removed = self._storage.sweep_orphans(
            self._store.files_needed(on_disk), min_age_seconds=self._settings.orphan_seconds
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of a sweeper in a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m service.sweeper", description="Sweep until SIGINT or SIGTERM.")
    parser.parse_args(arguments)
    settings = Settings()
    configure_logging(as_json=settings.log_json, level=settings.log_level)
    opened = once_available(lambda: JobStore(settings.database_url))
    storage = once_available(lambda: open_storage(settings.data_dir, settings.storage_url))
    with closing(opened) as store, closing(JobQueue(settings, store)) as queue:
        sweeper = Sweeper(settings, store, storage, queue)
        signals = {signal.SIGINT, signal.SIGTERM}
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # before the thread starts, so that it blocks them, too
        sweeper.start()
        log.info("sweeper.started", every_seconds=settings.sweep_seconds)
        signal.sigwait(signals)
        sweeper.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
