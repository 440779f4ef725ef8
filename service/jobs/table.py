"""The tables, and how a row becomes a value."""

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Float,
    Index,
    Integer,
    MetaData,
    RowMapping,
    String,
    Table,
    Text,
    TypeDecorator,
)

from service.exchange.plan import NO_EXCHANGE, Exchange
from service.jobs.job import Job, JobError, JobStatus, WorkerReport, WorkerState
from service.request import SegmentationRequest


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime: timestamptz in PostgreSQL, sortable text in SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse a naive time; SQLite keeps no zone, so it gets UTC without one."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("A time without a zone cannot be stored.")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """The stored instant, in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Json(TypeDecorator[Any]):
    """A JSON value as text, the same in every database."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ANN401 - any JSON value
        """Compact JSON."""
        return None if value is None else json.dumps(value, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ANN401 - any JSON value
        """The parsed value."""
        return None if value is None else json.loads(value)


METADATA = MetaData()

JOBS = Table(
    "jobs",
    METADATA,
    Column("id", String(36), primary_key=True),
    Column("status", String(16), nullable=False),
    Column("stage", String(32)),
    Column("percent", Float, nullable=False, default=0.0),
    Column("model", String(200), nullable=False),
    Column("request", Json, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("attempts", Integer, nullable=False, default=0),
    Column("cancel_requested", Boolean, nullable=False, default=False),
    Column("error_code", String(64)),
    Column("error_title", Text),
    Column("error_detail", Text),
    Column("notices", Json, nullable=False),
    Column("upload_bytes", BigInteger, nullable=False),
    Column("upload_files", Integer, nullable=False),
    Column("owner", String(200)),
    Column("lease_expires_at", UtcDateTime),
    Column("dispatched_at", UtcDateTime),
    Column("exchange", Json),
    Column("held_until", UtcDateTime),
    Column("intake", String(64), unique=True),
    CheckConstraint(f"status IN ({', '.join(repr(str(status)) for status in JobStatus)})", name="jobs_status"),
    CheckConstraint("(status = 'running') = (owner IS NOT NULL)", name="jobs_owner"),
    Index("jobs_by_status", "status", "created_at", "id"),
    Index("jobs_by_age", "created_at", "id"),
)

WORKERS = Table(
    "workers",
    METADATA,
    Column("owner", String(200), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("detail", Text, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False),
)


def job_of(row: RowMapping) -> Job:
    """The job that a row of `JOBS` describes."""
    error = (
        JobError(row["error_code"], row["error_title"], row["error_detail"]) if row["error_code"] is not None else None
    )
    return Job(
        id=row["id"],
        status=JobStatus(row["status"]),
        stage=row["stage"],
        percent=row["percent"],
        model=row["model"],
        request=SegmentationRequest.model_validate(row["request"]),
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        attempts=row["attempts"],
        cancel_requested=row["cancel_requested"],
        error=error,
        notices=tuple(row["notices"]),
        upload_bytes=row["upload_bytes"],
        upload_files=row["upload_files"],
        exchange=NO_EXCHANGE if row["exchange"] is None else Exchange.model_validate(row["exchange"]),
    )


def worker_of(row: RowMapping) -> WorkerReport:
    """The report that a row of `WORKERS` holds."""
    return WorkerReport(row["owner"], WorkerState(row["state"]), row["detail"], row["seen_at"])
