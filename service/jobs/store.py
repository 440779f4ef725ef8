"""The job table: the only truth about jobs. Each change is one statement whose WHERE names where it may start.

Whoever loses a race changes no row and is told so; nobody reads a row, decides and writes it back.
Every method raises `StorageUnavailable` while the database cannot be reached.
"""

import builtins
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Update,
    and_,
    case,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.sql.dml import ReturningInsert

from service.errors import IdempotencyConflict, IllegalTransition, JobNotFound, WorkerLost
from service.exchange.plan import NO_EXCHANGE
from service.jobs.database import open_engine, transaction, translated_errors
from service.jobs.job import (
    TRANSITIONS,
    FilesNeeded,
    Glimpse,
    Job,
    JobError,
    JobStatus,
    NewJob,
    Notice,
    Priority,
    Recovery,
    Renewal,
    WorkerReport,
    WorkerState,
)
from service.jobs.schema import upgrade_schema
from service.jobs.table import JOBS, WORKERS, job_of, worker_of

_MAX_PARAMETERS = 500  # per statement; SQLite allows 32766, older builds 999

#: 0 for the jobs that come first.
_RANK = case({priority.value: rank for rank, priority in enumerate(Priority)}, value=JOBS.c.priority)
_NEXT_REVISION = JOBS.c.revision + 1


def _now() -> datetime:
    return datetime.now(UTC)


class JobStore:
    """Jobs and workers in SQLite (WAL) or PostgreSQL; made or upgraded when opened. Not safe across a fork.

    A `tenant` narrows a method to the jobs of that tenant: those of another are not found.

    Raises:
        SchemaTooNew: on opening, when a newer version of the service has upgraded the tables.
    """

    def __init__(self, url: str) -> None:
        self._engine = open_engine(url)
        try:
            with translated_errors():
                upgrade_schema(self._engine)
        except BaseException:
            self.close()
            raise

    @property
    def engine(self) -> Engine:
        """The database, for the stores that lie in it too."""
        return self._engine

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    # For callers of the API

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

    def get(self, job_id: str, *, tenant: str | None = None) -> Job:
        """The job as it is now.

        Raises:
            JobNotFound: no job has this id.
        """
        statement = select(JOBS).where(JOBS.c.id == job_id, *_of_tenant(tenant))
        with self._transaction() as connection:
            row = connection.execute(statement).mappings().one_or_none()
        if row is None:
            raise _not_found(job_id)
        return job_of(row)

    def list(
        self,
        *,
        tenant: str | None = None,
        status: JobStatus | None = None,
        batch_id: str | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> builtins.list[Job]:
        """Jobs, the newest first.

        Args:
            tenant, status, batch_id: only jobs with these.
            limit: at most so many.
            before: id of a job; the list goes on after it, with older ones.

        Raises:
            JobNotFound: there is no job `before`.
        """
        newest_first = select(JOBS).order_by(JOBS.c.created_at.desc(), JOBS.c.id.desc())
        statement = newest_first.where(*_of_tenant(tenant)).limit(limit)
        if status is not None:
            statement = statement.where(JOBS.c.status == status)
        if batch_id is not None:
            statement = statement.where(JOBS.c.batch_id == batch_id)
        if before is not None:
            last = self.get(before, tenant=tenant)
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

    def queue_depth(self) -> Mapping[Priority, int]:
        """How many jobs of each priority wait."""
        statement = select(JOBS.c.priority, func.count()).where(JOBS.c.status == JobStatus.QUEUED)
        with self._transaction() as connection:
            found = {Priority(name): count for name, count in connection.execute(statement.group_by(JOBS.c.priority))}
        return {priority: found.get(priority, 0) for priority in Priority}

    def failures(self) -> Mapping[str, int]:
        """How many of the jobs that are there have failed, by the code of the error."""
        statement = select(JOBS.c.error_code, func.count()).where(JOBS.c.status == JobStatus.FAILED)
        with self._transaction() as connection:
            return {str(code): count for code, count in connection.execute(statement.group_by(JOBS.c.error_code))}

    def glimpses(self, job_ids: Collection[str]) -> Mapping[str, Glimpse]:
        """What changes about those of the given jobs that exist, told by two statements at most."""
        ids = [*job_ids]
        revisions: dict[str, int] = {}
        positions: dict[str, int] = {}
        ranked = select(
            JOBS.c.id,
            func.row_number().over(order_by=(_RANK, JOBS.c.created_at, JOBS.c.id)).label("position"),
        ).where(JOBS.c.status == JobStatus.QUEUED)
        with self._transaction() as connection:
            for start in range(0, len(ids), _MAX_PARAMETERS):
                some = ids[start : start + _MAX_PARAMETERS]
                found = connection.execute(
                    select(JOBS.c.id, JOBS.c.revision, JOBS.c.status).where(JOBS.c.id.in_(some))
                ).all()
                revisions |= {row.id: row.revision for row in found}
                waiting = [row.id for row in found if row.status == JobStatus.QUEUED]
                if waiting:
                    queue = ranked.subquery()
                    placed = select(queue.c.id, queue.c.position).where(queue.c.id.in_(waiting))
                    positions |= {row.id: row.position for row in connection.execute(placed)}
        return {job_id: Glimpse(revision, positions.get(job_id)) for job_id, revision in revisions.items()}

    def queue_position(self, job_id: str) -> int | None:
        """1 for the job that is next, 2 for the one after it...; None when the job does not wait (or is unknown)."""
        mine = select(_RANK.label("rank"), JOBS.c.created_at, JOBS.c.id).where(
            JOBS.c.id == job_id, JOBS.c.status == JobStatus.QUEUED
        )
        me = mine.subquery()
        same_rank_not_after_me = or_(
            JOBS.c.created_at < me.c.created_at,
            and_(JOBS.c.created_at == me.c.created_at, JOBS.c.id <= me.c.id),
        )
        not_after_me = or_(me.c.rank > _RANK, and_(me.c.rank == _RANK, same_rank_not_after_me))
        statement = (
            select(func.count()).select_from(JOBS.join(me, not_after_me)).where(JOBS.c.status == JobStatus.QUEUED)
        )
        with self._transaction() as connection:
            return connection.execute(statement).scalar_one() or None

    def cancel(self, job_id: str, *, tenant: str | None = None) -> Job:
        """Cancel a queued job at once; ask a running one to stop. Canceling again changes nothing.

        Raises:
            JobNotFound: no job has this id.
            IllegalTransition: the job has already succeeded or failed.
        """
        queued = self._change(job_id, from_=JobStatus.QUEUED, to=JobStatus.CANCELED).values(finished_at=_now())
        running = update(JOBS).where(JOBS.c.id == job_id, JOBS.c.status == JobStatus.RUNNING)
        asked = running.values(cancel_requested=True, revision=_NEXT_REVISION)
        # A job may move between the two statements, so once more before it is called ended.
        for statement in (queued, asked, queued, asked):
            with self._transaction() as connection:
                changed = statement.where(*_of_tenant(tenant)).returning(JOBS)
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
        statement = delete(JOBS).where(JOBS.c.id == job_id, JOBS.c.status != JobStatus.RUNNING, *_of_tenant(tenant))
        if not self._touches_a_row(statement):
            self.get(job_id, tenant=tenant)
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
        moved = or_(JOBS.c.stage.is_distinct_from(stage), JOBS.c.percent != percent)
        statement = (
            _owned(job_id, owner)
            .values(
                stage=stage,
                percent=percent,
                lease_expires_at=_now() + timedelta(seconds=lease_seconds),
                revision=case((moved, _NEXT_REVISION), else_=JOBS.c.revision),
            )
            .returning(JOBS.c.cancel_requested)
        )
        with self._transaction() as connection:
            cancel_requested = connection.execute(statement).scalar_one_or_none()
        return Renewal(ok=cancel_requested is not None, cancel_requested=bool(cancel_requested))

    def succeed(
        self,
        job_id: str,
        owner: str,
        notices: Collection[Notice] = (),
        *,
        stage_seconds: Mapping[str, float] | None = None,
        reused_from: str | None = None,
        keep_for: timedelta | None = None,
    ) -> bool:
        """The published result counts; False when the job is no longer this worker's.

        Args:
            notices: remarks on the result.
            stage_seconds: how long each stage took.
            reused_from: the job that the result was taken from.
            keep_for: the result expires after so long; never when None.
        """
        return self._end(
            job_id,
            owner,
            JobStatus.SUCCEEDED,
            percent=100.0,
            stage=None,
            notices=[*notices],
            cancel_requested=False,
            stage_seconds={**(stage_seconds or {})},
            reused_from=reused_from,
            expires_at=None if keep_for is None else _now() + keep_for,
        )

    def stored_result(self, job: Job) -> Job | None:
        """The latest job of the same tenant whose stored result equals the one that `job` would have."""
        same_result = (JOBS.c.tenant == job.tenant, JOBS.c.result_key == job.result_key, JOBS.c.id != job.id)
        statement = (
            select(JOBS)
            .where(*same_result, JOBS.c.status == JobStatus.SUCCEEDED, JOBS.c.expired_at.is_(None))
            .order_by(JOBS.c.finished_at.desc())
            .limit(1)
        )
        with self._transaction() as connection:
            row = connection.execute(statement).mappings().one_or_none()
        return None if row is None else job_of(row)

    def stage_seconds(self, model: str, *, latest: int = 20) -> builtins.list[Mapping[str, float]]:
        """How long the stages of the latest runs of a model took; results that were reused tell nothing."""
        statement = (
            select(JOBS.c.stage_seconds)
            .where(JOBS.c.status == JobStatus.SUCCEEDED, JOBS.c.model == model, JOBS.c.reused_from.is_(None))
            .order_by(JOBS.c.created_at.desc())
            .limit(latest)
        )
        with self._transaction() as connection:
            return [seconds for seconds in connection.execute(statement).scalars() if seconds]

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

    def undispatched(self, older_than: datetime | None = None) -> dict[str, Priority]:
        """Queued jobs without a message, or whose message was sent before `older_than`; the next job first.

        A job whose study still arrives (`service.jobs.held`) is none of them.
        """
        stale: ColumnElement[bool] = JOBS.c.dispatched_at.is_(None)
        if older_than is not None:
            stale = or_(stale, JOBS.c.dispatched_at < older_than)
        not_held = or_(JOBS.c.held_until.is_(None), JOBS.c.held_until <= _now())
        statement = (
            select(JOBS.c.id, JOBS.c.priority)
            .where(JOBS.c.status == JobStatus.QUEUED, stale, not_held)
            .order_by(_RANK, JOBS.c.created_at, JOBS.c.id)
        )
        with self._transaction() as connection:
            return {job_id: Priority(priority) for job_id, priority in connection.execute(statement)}

    def mark_dispatched(self, job_id: str) -> None:
        """Note that a message about the job was accepted by the broker."""
        self._touches_a_row(
            update(JOBS).where(JOBS.c.id == job_id, JOBS.c.status == JobStatus.QUEUED).values(dispatched_at=_now())
        )

    def files_needed(self, job_ids: Collection[str]) -> Mapping[str, FilesNeeded]:
        """What those of the given jobs that exist need of their files."""
        ids = [*job_ids]
        found: dict[str, FilesNeeded] = {}
        with self._transaction() as connection:
            for start in range(0, len(ids), _MAX_PARAMETERS):
                some = ids[start : start + _MAX_PARAMETERS]
                statement = select(JOBS.c.id, JOBS.c.status, JOBS.c.expired_at).where(JOBS.c.id.in_(some))
                for job_id, status, expired_at in connection.execute(statement):
                    found[job_id] = _files_needed(JobStatus(status), expired=expired_at is not None)
        return found

    def expire_results(self, now: datetime) -> tuple[str, ...]:
        """Note that the results whose time is over are gone; their files may be removed then. Returns the jobs."""
        statement = (
            update(JOBS)
            .where(JOBS.c.expires_at <= now, JOBS.c.expired_at.is_(None))
            .values(expired_at=now, revision=_NEXT_REVISION)
        )
        return self._changed_ids(statement)

    def forget_ended(self, before: datetime) -> int:
        """Delete the rows of jobs that ended before that time and have no stored result; returns how many."""
        without_result = or_(JOBS.c.status != JobStatus.SUCCEEDED, JOBS.c.expired_at.is_not(None))
        with self._transaction() as connection:
            return connection.execute(delete(JOBS).where(JOBS.c.finished_at < before, without_result)).rowcount

    # Inside

    def _change(self, job_id: str, *, from_: JobStatus, to: JobStatus) -> Update:
        assert to in TRANSITIONS[from_], f"{from_} -> {to}"
        changed = update(JOBS).where(JOBS.c.id == job_id, JOBS.c.status == from_)
        return changed.values(status=to, revision=_NEXT_REVISION)

    def _change_running(self, to: JobStatus) -> Update:
        assert to in TRANSITIONS[JobStatus.RUNNING], to
        return update(JOBS).where(JOBS.c.status == JobStatus.RUNNING).values(status=to, revision=_NEXT_REVISION)

    def _end(self, job_id: str, owner: str, to: JobStatus, **values: object) -> bool:
        assert to in TRANSITIONS[JobStatus.RUNNING], to
        ended = {
            "status": to,
            "finished_at": _now(),
            "owner": None,
            "lease_expires_at": None,
            "revision": _NEXT_REVISION,
        }
        return self._touches_a_row(_owned(job_id, owner).values({**ended, **values}))

    def _touches_a_row(self, statement: Any) -> bool:  # noqa: ANN401 - UPDATE or DELETE
        with self._transaction() as connection:
            return bool(connection.execute(statement).rowcount)

    def _changed_ids(self, statement: Update) -> tuple[str, ...]:
        with self._transaction() as connection:
            return tuple(connection.execute(statement.returning(JOBS.c.id)).scalars())

    def _by_idempotency_key(self, new: NewJob) -> Job | None:
        statement = select(JOBS).where(JOBS.c.tenant == new.tenant, JOBS.c.idempotency_key == new.idempotency_key)
        with self._transaction() as connection:
            row = connection.execute(statement).mappings().one_or_none()
        if row is not None and row["request_hash"] != new.request_hash:
            raise IdempotencyConflict(
                "This Idempotency-Key came before with another request; choose a new key for each new request."
            )
        return None if row is None else job_of(row)

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with transaction(self._engine) as connection:
            yield connection


def insert_job(new: NewJob) -> ReturningInsert[Any]:
    """The INSERT of a new job, which returns its row."""
    values = asdict(new) | {
        "request": new.request.model_dump(mode="json"),
        "exchange": None if new.exchange == NO_EXCHANGE else new.exchange.model_dump(mode="json"),
        "status": JobStatus.QUEUED,
        "created_at": _now(),
        "notices": [],
    }
    return insert(JOBS).values(values).returning(JOBS)


def _of_tenant(tenant: str | None) -> builtins.list[ColumnElement[bool]]:
    return [] if tenant is None else [JOBS.c.tenant == tenant]


def _owned(job_id: str, owner: str) -> Update:
    """An UPDATE of a job that only its present owner can make."""
    return update(JOBS).where(JOBS.c.id == job_id, JOBS.c.owner == owner, JOBS.c.status == JobStatus.RUNNING)


def _files_needed(status: JobStatus, *, expired: bool) -> FilesNeeded:
    if not status.terminal:
        return FilesNeeded.ALL
    return FilesNeeded.RESULT if status is JobStatus.SUCCEEDED and not expired else FilesNeeded.NONE


def _error_columns(error: JobError) -> dict[str, str]:
    return {"error_code": error.code, "error_title": error.title, "error_detail": error.detail}


def _not_found(job_id: str) -> JobNotFound:
    return JobNotFound(f"There is no job {job_id[:80]!r}.")
