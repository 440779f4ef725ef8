"""The job table: the only truth about jobs. Each change is one statement whose WHERE names where it may start.

Whoever loses a race changes no row and is told so; nobody reads a row, decides and writes it back.
Every method raises `StorageUnavailable` while the database cannot be reached.
"""

from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.sql.dml import ReturningInsert

from service.errors import IdempotencyConflict, IllegalTransition
from service.exchange.plan import NO_EXCHANGE
from service.jobs.claims import JobClaims
from service.jobs.connected import NEXT_REVISION, of_tenant, utc_now
from service.jobs.job import Job, JobStatus, NewJob
from service.jobs.queries import JobQueries
from service.jobs.table import JOBS, job_of


class JobStore(JobQueries, JobClaims):
    """Jobs and workers in SQLite (WAL) or PostgreSQL; made or upgraded when opened. Not safe across a fork.

    A `tenant` narrows a method to the jobs of that tenant: those of another are not found.

    Raises:
        SchemaTooNew: on opening, when a newer version of the service has upgraded the tables.
    """

    def create(self, new: NewJob) -> Job:
        """The queued job, not yet dispatched; or the job that its idempotency key made before, when the id differs.

        Raises:
            IdempotencyConflict: the key came before with another request.
        """
        try:
            with self._transaction() as connection:
                return job_of(connection.execute(insert_job(new)).mappings().one())
        except IntegrityError:
            earlier = self._by_idempotency_key(new)
            if earlier is None:
                raise
            return earlier

    def cancel(self, job_id: str, *, tenant: str | None = None) -> Job:
        """Cancel a queued job at once; ask a running one to stop. Canceling again changes nothing.

        Raises:
            JobNotFound: no job has this id.
            IllegalTransition: the job has already succeeded or failed.
        """
        queued = self._change(job_id, from_=JobStatus.QUEUED, to=JobStatus.CANCELED).values(finished_at=utc_now())
        running = update(JOBS).where(JOBS.c.id == job_id, JOBS.c.status == JobStatus.RUNNING)
        asked = running.values(cancel_requested=True, revision=NEXT_REVISION)
        # A job may move between the two statements, so once more before it is called ended.
        for statement in (queued, asked, queued, asked):
            with self._transaction() as connection:
                changed = statement.where(*of_tenant(tenant)).returning(JOBS)
                row = connection.execute(changed).mappings().one_or_none()
            if row is not None:
                return job_of(row)
        job = self.get(job_id, tenant=tenant)
        if job.status in (JobStatus.SUCCEEDED, JobStatus.FAILED):
            raise IllegalTransition(f"Job {job_id} has already {job.status}; it cannot be canceled.")
        return job

    def delete(self, job_id: str, *, tenant: str | None = None) -> None:
        """Forget a job that is not running.

        Raises:
            JobNotFound: no job has this id.
            IllegalTransition: the job is running; cancel it first.
        """
        statement = delete(JOBS).where(JOBS.c.id == job_id, JOBS.c.status != JobStatus.RUNNING, *of_tenant(tenant))
        if not self._touches_a_row(statement):
            self.get(job_id, tenant=tenant)
            raise IllegalTransition(f"Job {job_id} is running; cancel it before it is deleted.")

    def mark_dispatched(self, job_id: str) -> None:
        """Note that a message about the job was accepted by the broker."""
        self._touches_a_row(
            update(JOBS).where(JOBS.c.id == job_id, JOBS.c.status == JobStatus.QUEUED).values(dispatched_at=utc_now())
        )

    def expire_results(self, now: datetime) -> tuple[str, ...]:
        """Note that the results whose time is over are gone; their files may be removed then. Returns the jobs."""
        statement = (
            update(JOBS)
            .where(JOBS.c.expires_at <= now, JOBS.c.expired_at.is_(None))
            .values(expired_at=now, revision=NEXT_REVISION)
        )
        return self._changed_ids(statement)

    def forget_ended(self, before: datetime) -> int:
        """Delete the rows of jobs that ended before that time and have no stored result; returns how many."""
        without_result = or_(JOBS.c.status != JobStatus.SUCCEEDED, JOBS.c.expired_at.is_not(None))
        with self._transaction() as connection:
            return connection.execute(delete(JOBS).where(JOBS.c.finished_at < before, without_result)).rowcount

    def _by_idempotency_key(self, new: NewJob) -> Job | None:
        statement = select(JOBS).where(JOBS.c.tenant == new.tenant, JOBS.c.idempotency_key == new.idempotency_key)
        with self._transaction() as connection:
            row = connection.execute(statement).mappings().one_or_none()
        if row is not None and row["request_hash"] != new.request_hash:
            raise IdempotencyConflict(
                "This Idempotency-Key came before with another request; choose a new key for each new request."
            )
        return None if row is None else job_of(row)


def insert_job(new: NewJob) -> ReturningInsert[Any]:
    """The INSERT of a new job, which returns its row."""
    values = asdict(new) | {
        "request": new.request.model_dump(mode="json"),
        "exchange": None if new.exchange == NO_EXCHANGE else new.exchange.model_dump(mode="json"),
        "status": JobStatus.QUEUED,
        "created_at": utc_now(),
        "notices": [],
    }
    return insert(JOBS).values(values).returning(JOBS)
