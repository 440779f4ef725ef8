"""The job table: the only truth about jobs. Each change is one statement whose WHERE names where it may start.

Whoever loses a race changes no row and is told so; nobody reads a row, decides and writes it back.
Every method raises `StorageUnavailable` while the database cannot be reached.
"""

import builtins
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Update,
    and_,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from service.errors import IllegalTransition, JobNotFound, StorageUnavailable, WorkerLost
from service.exchange.plan import NO_EXCHANGE, Exchange
from service.jobs.database import create_tables, open_engine
from service.jobs.job import (
    TRANSITIONS,
    Job,
    JobError,
    JobStatus,
    Notice,
    Recovery,
    Renewal,
    WorkerReport,
    WorkerState,
)
from service.jobs.table import JOBS, WORKERS, job_of, worker_of
from service.request import SegmentationRequest

_MAX_PARAMETERS = 500  # per statement; SQLite allows 32766, older builds 999


def _now() -> datetime:
    return datetime.now(UTC)


class JobStore:
    """Jobs and workers in SQLite (WAL) or PostgreSQL; made on first use. Safe for threads, not across a fork."""

    def __init__(self, url: str) -> None:
        self._engine = open_engine(url)
        with self._transaction() as connection:
            create_tables(connection)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    # For callers of the API

    def create(
        self,
        *,
        job_id: str,
        model: str,
        request: SegmentationRequest,
        upload_bytes: int,
        upload_files: int,
        exchange: Exchange = NO_EXCHANGE,
    ) -> Job:
        """A new queued job whose upload is already stored under `job_id`, or will be fetched; not yet dispatched."""
        statement = (
            insert(JOBS)
            .values(
                id=job_id,
                status=JobStatus.QUEUED,
                model=model,
                request=request.model_dump(mode="json"),
                created_at=_now(),
                notices=[],
                upload_bytes=upload_bytes,
                upload_files=upload_files,
                exchange=None if exchange == NO_EXCHANGE else exchange.model_dump(mode="json"),
            )
            .returning(JOBS)
        )
        with self._transaction() as connection:
            return job_of(connection.execute(statement).mappings().one())

    def get(self, job_id: str) -> Job:
        """The job as it is now.

        Raises:
            JobNotFound: no job has this id.
        """
        with self._transaction() as connection:
            row = connection.execute(select(JOBS).where(JOBS.c.id == job_id)).mappings().one_or_none()
        if row is None:
            raise _not_found(job_id)
        return job_of(row)

    def list(
        self, *, status: JobStatus | None = None, limit: int = 50, before: str | None = None
    ) -> builtins.list[Job]:
        """Jobs, the newest first.

        Args:
            status: only jobs of this status.
            limit: at most so many.
            before: id of a job; the list goes on after it, with older ones.

        Raises:
            JobNotFound: there is no job `before`.
        """
        statement = select(JOBS).order_by(JOBS.c.created_at.desc(), JOBS.c.id.desc()).limit(limit)
        if status is not None:
            statement = statement.where(JOBS.c.status == status)
        if before is not None:
            last = self.get(before)
            statement = statement.where(
                or_(
                    JOBS.c.created_at < last.created_at,
                    and_(JOBS.c.created_at == last.created_at, JOBS.c.id < last.id),
                )
            )
        with self._transaction() as connection:
            return [job_of(row) for row in connection.execute(statement).mappings()]

    def counts(self) -> Mapping[JobStatus, int]:
        """How many jobs have each status."""
        statement = select(JOBS.c.status, func.count()).group_by(JOBS.c.status)
        with self._transaction() as connection:
            found = {JobStatus(status): count for status, count in connection.execute(statement)}
        return {status: found.get(status, 0) for status in JobStatus}

    def queue_position(self, job_id: str) -> int | None:
        """1 for the job that is next, 2 for the one after it...; None when the job does not wait (or is unknown)."""
        mine = select(JOBS.c.created_at, JOBS.c.id).where(JOBS.c.id == job_id, JOBS.c.status == JobStatus.QUEUED)
        me = mine.subquery()
        not_after_me = or_(
            JOBS.c.created_at < me.c.created_at,
            and_(JOBS.c.created_at == me.c.created_at, JOBS.c.id <= me.c.id),
        )
        statement = (
            select(func.count()).select_from(JOBS.join(me, not_after_me)).where(JOBS.c.status == JobStatus.QUEUED)
        )
        with self._transaction() as connection:
            return connection.execute(statement).scalar_one() or None

    def cancel(self, job_id: str) -> Job:
        """Cancel a queued job at once; ask a running one to stop. Canceling again changes nothing.

        Raises:
            JobNotFound: no job has this id.
            IllegalTransition: the job has already succeeded or failed.
        """
        queued = self._change(job_id, from_=JobStatus.QUEUED, to=JobStatus.CANCELED).values(finished_at=_now())
        running = (
            update(JOBS).where(JOBS.c.id == job_id, JOBS.c.status == JobStatus.RUNNING).values(cancel_requested=True)
        )
        # A job may move between the two statements, so once more before it is called ended.
        for statement in (queued, running, queued, running):
            with self._transaction() as connection:
                row = connection.execute(statement.returning(JOBS)).mappings().one_or_none()
            if row is not None:
                return job_of(row)
        job = self.get(job_id)
        if job.status in (JobStatus.SUCCEEDED, JobStatus.FAILED):
            raise IllegalTransition(f"Job {job_id} has already {job.status}; it cannot be canceled.")
        return job

    def delete(self, job_id: str) -> None:
        """Forget a job that is not running.

        Raises:
            JobNotFound: no job has this id.
            IllegalTransition: the job is running; cancel it first.
        """
        statement = delete(JOBS).where(JOBS.c.id == job_id, JOBS.c.status != JobStatus.RUNNING)
        if not self._touches_a_row(statement):
            self.get(job_id)
            raise IllegalTransition(f"Job {job_id} is running; cancel it before it is deleted.")

    # For workers

    def claim(self, job_id: str, owner: str, lease_seconds: float) -> Job | None:
        """Make a queued job this worker's, and count the attempt; None when it is not there to be claimed."""
        now = _now()
        statement = (
            self._change(job_id, from_=JobStatus.QUEUED, to=JobStatus.RUNNING)
            .values(
                owner=owner,
                lease_expires_at=now + timedelta(seconds=lease_seconds),
                attempts=JOBS.c.attempts + 1,
                started_at=now,
                stage=None,
                percent=0.0,
            )
            .returning(JOBS)
        )
        with self._transaction() as connection:
            row = connection.execute(statement).mappings().one_or_none()
        return None if row is None else job_of(row)

    def renew(self, job_id: str, owner: str, *, stage: str | None, percent: float, lease_seconds: float) -> Renewal:
        """Show progress and keep the lease, if the job is still this worker's."""
        statement = (
            _owned(job_id, owner)
            .values(stage=stage, percent=percent, lease_expires_at=_now() + timedelta(seconds=lease_seconds))
            .returning(JOBS.c.cancel_requested)
        )
        with self._transaction() as connection:
            cancel_requested = connection.execute(statement).scalar_one_or_none()
        return Renewal(ok=cancel_requested is not None, cancel_requested=bool(cancel_requested))

    def succeed(self, job_id: str, owner: str, notices: Collection[Notice] = ()) -> bool:
        """The published result counts; False when the job is no longer this worker's."""
        return self._end(
            job_id, owner, JobStatus.SUCCEEDED, percent=100.0, stage=None, notices=[*notices], cancel_requested=False
        )

    def fail(self, job_id: str, owner: str, error: JobError) -> bool:
        """The job ends without a result; False when it is no longer this worker's."""
        return self._end(job_id, owner, JobStatus.FAILED, **_error_columns(error))

    def finish_cancel(self, job_id: str, owner: str) -> bool:
        """The work has stopped as asked; False when the job is no longer this worker's."""
        return self._end(job_id, owner, JobStatus.CANCELED)

    def report_worker(self, owner: str, state: WorkerState, detail: str = "") -> None:
        """Note a sign of life of a worker process."""
        values = {"state": state, "detail": detail, "seen_at": _now()}
        if not self._touches_a_row(update(WORKERS).where(WORKERS.c.owner == owner).values(values)):
            with self._transaction() as connection:  # only the worker itself writes its row: no race
                connection.execute(insert(WORKERS).values(owner=owner, **values))

    def forget_worker(self, owner: str) -> None:
        """Drop the row of a worker that has ended."""
        self._touches_a_row(delete(WORKERS).where(WORKERS.c.owner == owner))

    def forget_silent_workers(self, before: datetime) -> None:
        """Drop the rows of workers that gave no sign of life since `before`."""
        self._touches_a_row(delete(WORKERS).where(WORKERS.c.seen_at < before))

    def workers(self, *, seen_within_seconds: float = 30.0) -> builtins.list[WorkerReport]:
        """The workers that gave a sign of life lately."""
        since = _now() - timedelta(seconds=seen_within_seconds)
        statement = select(WORKERS).where(WORKERS.c.seen_at >= since).order_by(WORKERS.c.owner)
        with self._transaction() as connection:
            return [worker_of(row) for row in connection.execute(statement).mappings()]

    # For the sweeper

    def owners(self) -> set[str]:
        """Every worker that holds a job or has a row."""
        held = select(JOBS.c.owner).where(JOBS.c.status == JobStatus.RUNNING)
        with self._transaction() as connection:
            return {*connection.execute(held).scalars(), *connection.execute(select(WORKERS.c.owner)).scalars()}

    def requeue_expired(self, now: datetime, max_attempts: int, dead_owners: Collection[str] = ()) -> Recovery:
        """Take jobs from workers whose lease ran out, or that are known to be dead.

        A job goes back to the queue, undispatched; one that was to be canceled is canceled; one that already lost
        `max_attempts` workers fails with `worker-lost`.
        """
        lost: ColumnElement[bool] = or_(JOBS.c.lease_expires_at < now, JOBS.c.owner.in_([*dead_owners]))
        error = JobError.of(
            WorkerLost(
                f"The worker died {max_attempts} times while it ran this job, so the job was given up. The scan may "
                "need more memory than the server has; the log of the worker says more."
            )
        )
        abandoned = {"owner": None, "lease_expires_at": None, "stage": None}
        canceled = (
            self._change_running(JobStatus.CANCELED)
            .where(lost, JOBS.c.cancel_requested.is_(True))
            .values(**abandoned, finished_at=now)
        )
        failed = (
            self._change_running(JobStatus.FAILED)
            .where(lost, JOBS.c.attempts >= max_attempts)
            .values(**abandoned, finished_at=now, **_error_columns(error))
        )
        requeued = (
            self._change_running(JobStatus.QUEUED).where(lost).values(**abandoned, percent=0.0, dispatched_at=None)
        )
        return Recovery(
            canceled=self._changed_ids(canceled),
            failed=self._changed_ids(failed),
            requeued=self._changed_ids(requeued),
        )

    def hand_back(self, owners: Collection[str]) -> tuple[str, ...]:
        """Requeue the jobs of workers that were stopped on purpose; the attempt does not count. Returns their ids."""
        statement = (
            self._change_running(JobStatus.QUEUED)
            .where(JOBS.c.owner.in_([*owners]))
            .values(
                owner=None,
                lease_expires_at=None,
                stage=None,
                percent=0.0,
                dispatched_at=None,
                attempts=JOBS.c.attempts - 1,
            )
        )
        return self._changed_ids(statement)

    def undispatched(self, older_than: datetime | None = None) -> builtins.list[str]:
        """Queued jobs without a message, or whose message was sent before `older_than`; the oldest job first.

        A job whose study still arrives (`service.jobs.held`) is none of them.
        """
        stale: ColumnElement[bool] = JOBS.c.dispatched_at.is_(None)
        if older_than is not None:
            stale = or_(stale, JOBS.c.dispatched_at < older_than)
        not_held = or_(JOBS.c.held_until.is_(None), JOBS.c.held_until <= _now())
        statement = (
            select(JOBS.c.id)
            .where(JOBS.c.status == JobStatus.QUEUED, stale, not_held)
            .order_by(JOBS.c.created_at, JOBS.c.id)
        )
        with self._transaction() as connection:
            return [*connection.execute(statement).scalars()]

    def mark_dispatched(self, job_id: str) -> None:
        """Note that a message about the job was accepted by the broker."""
        self._touches_a_row(
            update(JOBS).where(JOBS.c.id == job_id, JOBS.c.status == JobStatus.QUEUED).values(dispatched_at=_now())
        )

    def states(self, job_ids: Collection[str]) -> Mapping[str, JobStatus]:
        """Status of those of the given jobs that exist."""
        ids = [*job_ids]
        found: dict[str, JobStatus] = {}
        with self._transaction() as connection:
            for start in range(0, len(ids), _MAX_PARAMETERS):
                some = ids[start : start + _MAX_PARAMETERS]
                statement = select(JOBS.c.id, JOBS.c.status).where(JOBS.c.id.in_(some))
                for job_id, status in connection.execute(statement):
                    found[job_id] = JobStatus(status)
        return found

    # Inside

    def _change(self, job_id: str, *, from_: JobStatus, to: JobStatus) -> Update:
        assert to in TRANSITIONS[from_], f"{from_} -> {to}"
        return update(JOBS).where(JOBS.c.id == job_id, JOBS.c.status == from_).values(status=to)

    def _change_running(self, to: JobStatus) -> Update:
        assert to in TRANSITIONS[JobStatus.RUNNING], to
        return update(JOBS).where(JOBS.c.status == JobStatus.RUNNING).values(status=to)

    def _end(self, job_id: str, owner: str, to: JobStatus, **values: object) -> bool:
        assert to in TRANSITIONS[JobStatus.RUNNING], to
        ended = {"status": to, "finished_at": _now(), "owner": None, "lease_expires_at": None}
        return self._touches_a_row(_owned(job_id, owner).values({**ended, **values}))

    def _touches_a_row(self, statement: Any) -> bool:  # noqa: ANN401 - UPDATE or DELETE
        with self._transaction() as connection:
            return bool(connection.execute(statement).rowcount)

    def _changed_ids(self, statement: Update) -> tuple[str, ...]:
        with self._transaction() as connection:
            return tuple(connection.execute(statement.returning(JOBS.c.id)).scalars())

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except (OperationalError, InterfaceError, PoolTimeout) as error:
            raise StorageUnavailable("The job table cannot be reached at the moment; try again shortly.") from error


def _owned(job_id: str, owner: str) -> Update:
    """An UPDATE of a job that only its present owner can make."""
    return update(JOBS).where(JOBS.c.id == job_id, JOBS.c.owner == owner, JOBS.c.status == JobStatus.RUNNING)


def _error_columns(error: JobError) -> dict[str, str]:
    return {"error_code": error.code, "error_title": error.title, "error_detail": error.detail}


def _not_found(job_id: str) -> JobNotFound:
    return JobNotFound(f"There is no job {job_id[:80]!r}.")
