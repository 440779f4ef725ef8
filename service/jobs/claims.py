"""Which worker has which job: claims, leases, ends, and the jobs that are taken from workers that are gone.

A worker writes to a job only while it is the owner: each statement says so in its WHERE.
"""

import builtins
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Update, case, delete, insert, or_, select, update

from service.errors import WorkerLost
from service.jobs.connected import NEXT_REVISION, Connected, utc_now
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


class JobClaims(Connected):
    """The part of `service.jobs.store.JobStore` that workers and sweepers use."""

    def claim(self, job_id: str, owner: str, lease_seconds: float) -> Job | None:
        """Make a queued job this worker's, and count the attempt; None when it is not there to be claimed."""
        now = utc_now()
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
                lease_expires_at=utc_now() + timedelta(seconds=lease_seconds),
                revision=case((moved, NEXT_REVISION), else_=JOBS.c.revision),
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
            expires_at=None if keep_for is None else utc_now() + keep_for,
        )

    def fail(self, job_id: str, owner: str, error: JobError) -> bool:
        """The job ends without a result; False when it is no longer this worker's."""
        return self._end(job_id, owner, JobStatus.FAILED, **_error_columns(error))

    def finish_cancel(self, job_id: str, owner: str) -> bool:
        """The work has stopped as asked; False when the job is no longer this worker's."""
        return self._end(job_id, owner, JobStatus.CANCELED)

    def _end(self, job_id: str, owner: str, to: JobStatus, **values: object) -> bool:
        assert to in TRANSITIONS[JobStatus.RUNNING], to
        ended = {
            "status": to,
            "finished_at": utc_now(),
            "owner": None,
            "lease_expires_at": None,
            "revision": NEXT_REVISION,
        }
        return self._touches_a_row(_owned(job_id, owner).values({**ended, **values}))

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

    def report_worker(self, owner: str, state: WorkerState, detail: str = "") -> None:
        """Note a sign of life of a worker process."""
        values = {"state": state, "detail": detail, "seen_at": utc_now()}
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
        since = utc_now() - timedelta(seconds=seen_within_seconds)
        statement = select(WORKERS).where(WORKERS.c.seen_at >= since).order_by(WORKERS.c.owner)
        with self._transaction() as connection:
            return [worker_of(row) for row in connection.execute(statement).mappings()]


def _owned(job_id: str, owner: str) -> Update:
    """An UPDATE of a job that only its present owner can make."""
    return update(JOBS).where(JOBS.c.id == job_id, JOBS.c.owner == owner, JOBS.c.status == JobStatus.RUNNING)


def _error_columns(error: JobError) -> dict[str, str]:
    return {"error_code": error.code, "error_title": error.title, "error_detail": error.detail}
