"""What the job table can be asked; nothing here changes a row."""

import builtins
from collections.abc import Collection, Mapping
from datetime import datetime

from sqlalchemy import ColumnElement, and_, bindparam, func, or_, select

from service.errors import JobNotFound
from service.jobs.connected import MAX_PARAMETERS, RANK, Connected, of_tenant, utc_now
from service.jobs.job import FilesNeeded, Glimpse, Job, JobStatus, Priority
from service.jobs.table import JOBS, job_of

_JOB = select(JOBS).where(JOBS.c.id == bindparam("job_id"))  # made once: every poll asks this


class JobQueries(Connected):
    """The reading part of `service.jobs.store.JobStore`."""

    def get(self, job_id: str, *, tenant: str | None = None) -> Job:
        """The job as it is now.

        Raises:
            JobNotFound: no job has this id.
        """
        with self._transaction() as connection:
            row = connection.execute(_JOB, {"job_id": job_id}).mappings().one_or_none()
        if row is None or tenant not in (None, row["tenant"]):
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
        statement = newest_first.where(*of_tenant(tenant)).limit(limit)
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
            func.row_number().over(order_by=(RANK, JOBS.c.created_at, JOBS.c.id)).label("position"),
        ).where(JOBS.c.status == JobStatus.QUEUED)
        with self._transaction() as connection:
            for start in range(0, len(ids), MAX_PARAMETERS):
                some = ids[start : start + MAX_PARAMETERS]
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
        mine = select(RANK.label("rank"), JOBS.c.created_at, JOBS.c.id).where(
            JOBS.c.id == job_id, JOBS.c.status == JobStatus.QUEUED
        )
        me = mine.subquery()
        same_rank_not_after_me = or_(
            JOBS.c.created_at < me.c.created_at,
            and_(JOBS.c.created_at == me.c.created_at, JOBS.c.id <= me.c.id),
        )
        not_after_me = or_(me.c.rank > RANK, and_(me.c.rank == RANK, same_rank_not_after_me))
        statement = (
            select(func.count()).select_from(JOBS.join(me, not_after_me)).where(JOBS.c.status == JobStatus.QUEUED)
        )
        with self._transaction() as connection:
            return connection.execute(statement).scalar_one() or None

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

    def undispatched(self, older_than: datetime | None = None) -> dict[str, Priority]:
        """Queued jobs without a message, or whose message was sent before `older_than`; the next job first.

        A job whose study still arrives (`service.jobs.held`) is none of them.
        """
        stale: ColumnElement[bool] = JOBS.c.dispatched_at.is_(None)
        if older_than is not None:
            stale = or_(stale, JOBS.c.dispatched_at < older_than)
        not_held = or_(JOBS.c.held_until.is_(None), JOBS.c.held_until <= utc_now())
        statement = (
            select(JOBS.c.id, JOBS.c.priority)
            .where(JOBS.c.status == JobStatus.QUEUED, stale, not_held)
            .order_by(RANK, JOBS.c.created_at, JOBS.c.id)
        )
        with self._transaction() as connection:
            return {job_id: Priority(priority) for job_id, priority in connection.execute(statement)}

    def files_needed(self, job_ids: Collection[str]) -> Mapping[str, FilesNeeded]:
        """What those of the given jobs that exist need of their files."""
        ids = [*job_ids]
        found: dict[str, FilesNeeded] = {}
        with self._transaction() as connection:
            for start in range(0, len(ids), MAX_PARAMETERS):
                some = ids[start : start + MAX_PARAMETERS]
                statement = select(JOBS.c.id, JOBS.c.status, JOBS.c.expired_at).where(JOBS.c.id.in_(some))
                for job_id, status, expired_at in connection.execute(statement):
                    found[job_id] = _files_needed(JobStatus(status), expired=expired_at is not None)
        return found


def _files_needed(status: JobStatus, *, expired: bool) -> FilesNeeded:
    if not status.terminal:
        return FilesNeeded.ALL
    return FilesNeeded.RESULT if status is JobStatus.SUCCEEDED and not expired else FilesNeeded.NONE


def _not_found(job_id: str) -> JobNotFound:
    return JobNotFound(f"There is no job {job_id[:80]!r}.")
