"""Waiting for a job to change, for any number of requests at the price of one small query every half second.

A waiting request holds neither a thread nor a database connection. One task of the process looks at the revisions of
all the jobs that are waited for, and wakes those whose job has changed.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import structlog
from anyio import to_thread

from service.errors import StorageUnavailable
from service.jobs.job import Glimpse

INTERVAL_SECONDS = 0.5

Glimpses = Callable[[Collection[str]], Mapping[str, Glimpse]]
"""What there is to see of those of the given jobs that exist."""

log = structlog.get_logger(__name__)


@dataclass(eq=False)
class _Waiter:
    job_id: str
    seen: Glimpse
    woken: asyncio.Event = field(default_factory=asyncio.Event)


class JobWatch:
    """The waiting requests of one process; lives in its event loop."""

    def __init__(self, glimpses: Glimpses, interval_seconds: float = INTERVAL_SECONDS) -> None:
        self._glimpses = glimpses
        self._interval_seconds = interval_seconds
        self._waiters: set[_Waiter] = set()
        self._looking: asyncio.Task[None] | None = None
        self.closed = False

    async def change(self, job_id: str, seen: Glimpse, seconds: float) -> None:
        """Return when the job is no longer what was seen of it, when the time is over, or when the service stops.

        Args:
            job_id: the job.
            seen: what the caller knows of it.
            seconds: how long to wait at most.
        """
        if self.closed:
            return
        waiter = _Waiter(job_id, seen)
        self._waiters.add(waiter)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await waiter.woken.wait()
        finally:
            self._waiters.discard(waiter)

    def close(self) -> None:
        """Send everyone home: the service stops. Call it in the event loop."""
        self.closed = True
        for waiter in self._waiters:
            waiter.woken.set()

    async def _look(self) -> None:
        """Look again and again, as long as somebody waits."""
        while self._waiters and not self.closed:
            await asyncio.sleep(self._interval_seconds)
            ids = {waiter.job_id for waiter in self._waiters}
            try:
                found = await to_thread.run_sync(self._glimpses, ids)
            except StorageUnavailable:
                log.warning("watch.database_away")
                continue
            for waiter in self._waiters:
                if waiter.job_id in ids and found.get(waiter.job_id) != waiter.seen:
                    waiter.woken.set()
