"""Webhooks still to be delivered, in the database of the job table: a restart forgets none, and none is sent twice.

Rows are made from the job table itself, so whichever way a job ended, its callback hears of it.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine, delete, exists, insert, select, update
from sqlalchemy.exc import IntegrityError

from service.jobs.database import transaction
from service.jobs.job import TRANSITIONS, JobStatus
from service.jobs.table import DELIVERIES, JOBS

_MOST_AT_ONCE = 100
_ENDED = tuple(status for status in JobStatus if status not in TRANSITIONS)


@dataclass(frozen=True)
class Delivery:
    """One webhook: what happened to which job, and whom to tell."""

    id: str
    job_id: str
    tenant: str
    event: str  #: `job.succeeded`, `job.failed` or `job.canceled`
    url: str
    error_code: str | None  #: of a failed job
    created_at: datetime
    attempts: int  #: this one included


class DeliveryStore:
    """The deliveries. Safe for threads, not across a fork."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def enroll(self, ended_since: datetime) -> int:
        """Make a delivery for each job that has ended since, has a callback and has none yet; returns how many."""
        told = exists().where(DELIVERIES.c.job_id == JOBS.c.id)
        statement = (
            select(JOBS.c.id, JOBS.c.status, JOBS.c.callback_url)
            .where(
                JOBS.c.callback_url.is_not(None),
                JOBS.c.finished_at >= ended_since,
                JOBS.c.status.in_(_ENDED),
                ~told,
            )
            .limit(_MOST_AT_ONCE)
        )
        with transaction(self._engine) as connection:
            ended = connection.execute(statement).all()
        return sum(self._add(job_id, f"job.{status}", url) for job_id, status, url in ended)

    def claim(self, now: datetime, hold: timedelta, limit: int) -> Sequence[Delivery]:
        """Deliveries that are due, now this process's for `hold`; whoever dies meanwhile leaves them to another."""
        due = (
            select(DELIVERIES.c.id)
            .where(DELIVERIES.c.next_attempt_at <= now)
            .order_by(DELIVERIES.c.next_attempt_at)
            .limit(limit)
            .with_for_update(skip_locked=True)  # PostgreSQL: leave to others what they are about to claim
        )
        # The condition stands outside once more: PostgreSQL looks at it again after waiting for another's update.
        claimed = (
            update(DELIVERIES)
            .where(DELIVERIES.c.id.in_(due), DELIVERIES.c.next_attempt_at <= now)
            .values(next_attempt_at=now + hold, attempts=DELIVERIES.c.attempts + 1)
            .returning(DELIVERIES)
        )
        with transaction(self._engine) as connection:
            rows = connection.execute(claimed).mappings().all()
            jobs = select(JOBS.c.id, JOBS.c.tenant, JOBS.c.error_code).where(
                JOBS.c.id.in_([row["job_id"] for row in rows])
            )
            of = {job.id: job for job in connection.execute(jobs)}
        return [
            Delivery(
                id=row["id"],
                job_id=row["job_id"],
                tenant=of[row["job_id"]].tenant,
                event=row["event"],
                url=row["url"],
                error_code=of[row["job_id"]].error_code,
                created_at=row["created_at"],
                attempts=row["attempts"],
            )
            for row in rows
            if row["job_id"] in of
        ]

    def succeeded(self, delivery_id: str) -> None:
        """The receiver has taken it."""
        self._change(delivery_id, delivered_at=datetime.now(UTC), next_attempt_at=None, last_error=None)

    def failed(self, delivery_id: str, error: str, retry_at: datetime | None) -> None:
        """It was not taken; `retry_at` None gives it up."""
        self._change(delivery_id, next_attempt_at=retry_at, last_error=error)

    def forget_deleted_jobs(self) -> None:
        """Drop what belongs to jobs that were deleted, sent or not."""
        gone = ~exists().where(JOBS.c.id == DELIVERIES.c.job_id)
        with transaction(self._engine) as connection:
            connection.execute(delete(DELIVERIES).where(gone))

    def _add(self, job_id: str, event: str, url: str) -> bool:
        now = datetime.now(UTC)
        row = {
            "id": str(uuid.uuid4()),
            "job_id": job_id,
            "event": event,
            "url": url,
            "created_at": now,
            "next_attempt_at": now,
        }
        try:
            with transaction(self._engine) as connection:
                connection.execute(insert(DELIVERIES).values(row))
        except IntegrityError:
            return False  # another process was quicker
        return True

    def _change(self, delivery_id: str, **values: object) -> None:
        with transaction(self._engine) as connection:
            connection.execute(update(DELIVERIES).where(DELIVERIES.c.id == delivery_id).values(values))
