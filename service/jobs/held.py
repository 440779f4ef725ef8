"""Jobs whose study still arrives, instance by instance and perhaps in many requests.

Such a job is queued and held: `held_until` is a moment that each instance moves on, and until it has passed the job is
not dispatched. Its `intake` is the key under which the next instance finds it. The table alone knows all that, so
several processes may receive one study, and a crash loses nothing that was acknowledged: what is there becomes a job.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, Update, and_, not_, update
from sqlalchemy.exc import IntegrityError

from service.exchange.plan import NO_EXCHANGE, Exchange
from service.jobs.job import DEFAULT_TENANT, Job, JobStatus, NewJob, new_job_id
from service.jobs.store import JobStore, insert_job
from service.jobs.table import JOBS, job_of
from service.request import SegmentationRequest

_TRIES = 5  # as often another process may open or close the same study just then


@dataclass(frozen=True)
class HeldJob:
    """What to make of a study that begins to arrive."""

    model: str
    request: SegmentationRequest
    exchange: Exchange = NO_EXCHANGE
    tenant: str = DEFAULT_TENANT
    key_id: str | None = None


class HeldJobs:
    """The held jobs of a table. Every method raises `StorageUnavailable` while it cannot be reached."""

    def __init__(self, store: JobStore, quiet_seconds: float) -> None:
        self._store = store
        self._quiet = timedelta(seconds=quiet_seconds)

    def open(self, intake: str, new: Callable[[], HeldJob]) -> Job:
        """The job that holds this intake, held anew for the quiet time; a fresh one when there is none (any more).

        Args:
            intake: what the instances of one study from one sender have in common; at most 64 characters.
            new: what to make of the study if it only begins; what it raises comes through.
        """
        for _ in range(_TRIES):
            job = self._prolong(intake) or self._begin(intake, new())
            if job is not None:
                return job
        raise AssertionError("the intake changes hands faster than it can be read")

    def hold_on(self, job_id: str, *, files: int = 0, size: int = 0) -> bool:
        """Hold the job for the quiet time from now, and count what was stored; False when it is no longer held.

        Args:
            files, size: instances stored since the last call, and their bytes.
        """
        statement = (
            self._held()
            .where(JOBS.c.id == job_id)
            .values(
                held_until=self._until(),
                upload_bytes=JOBS.c.upload_bytes + size,
                upload_files=JOBS.c.upload_files + files,
            )
        )
        with self._store._transaction() as connection:
            return bool(connection.execute(statement).rowcount)

    def _prolong(self, intake: str) -> Job | None:
        statement = self._held().where(JOBS.c.intake == intake).values(held_until=self._until()).returning(JOBS)
        with self._store._transaction() as connection:
            row = connection.execute(statement).mappings().one_or_none()
        return None if row is None else job_of(row)

    def _begin(self, intake: str, new: HeldJob) -> Job | None:
        """A new job under the key, which an earlier one gives up; None when another process was faster."""
        given_up = update(JOBS).where(JOBS.c.intake == intake, not_(self._is_held())).values(intake=None)
        begun = NewJob(
            new_job_id(),
            new.model,
            new.request,
            upload_bytes=0,
            upload_files=0,
            tenant=new.tenant,
            key_id=new.key_id,
            exchange=new.exchange,
            held_until=self._until(),
            intake=intake,
        )
        try:
            with self._store._transaction() as connection:
                connection.execute(given_up)
                return job_of(connection.execute(insert_job(begun)).mappings().one())
        except IntegrityError:
            return None

    def _held(self) -> Update:
        return update(JOBS).where(self._is_held())

    def _is_held(self) -> ColumnElement[bool]:
        return and_(JOBS.c.status == JobStatus.QUEUED, JOBS.c.held_until > datetime.now(UTC))

    def _until(self) -> datetime:
        return datetime.now(UTC) + self._quiet
