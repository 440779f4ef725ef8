"""The tables as they are now, and how a row becomes a value; `service.jobs.migrations` says how they came to be so."""

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
    text,
)

from service.exchange.plan import NO_EXCHANGE, Exchange
from service.jobs.job import DEFAULT_TENANT, Job, JobError, JobStatus, Priority, WorkerReport, WorkerState
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
_HAS_CALLBACK = text("callback_url IS NOT NULL")

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
    Column("tenant", String(64), nullable=False, default=DEFAULT_TENANT),
    Column("key_id", String(36)),
    Column("priority", String(8), nullable=False, default=Priority.ROUTINE),
    Column("idempotency_key", String(255)),
    Column("request_hash", String(64)),
    Column("batch_id", String(64)),
    Column("input_hash", String(64)),
    Column("result_key", String(64)),
    Column("reuse", Boolean, nullable=False, default=True),
    Column("reused_from", String(36)),
    Column("time_limit_seconds", Float),
    Column("callback_url", Text),
    Column("stage_seconds", Json, nullable=False, default=dict),
    Column("expires_at", UtcDateTime),
    Column("expired_at", UtcDateTime),
    Column("revision", Integer, nullable=False, default=0),
    Column("exchange", Json),
    Column("held_until", UtcDateTime),
    Column("intake", String(64)),
    Column("traceparent", String(64)),
    CheckConstraint(f"status IN ({', '.join(repr(str(status)) for status in JobStatus)})", name="jobs_status"),
    CheckConstraint("(status = 'running') = (owner IS NOT NULL)", name="jobs_owner"),
    Index("jobs_by_status", "status", "created_at", "id"),
    Index("jobs_by_age", "created_at", "id"),
    Index("jobs_by_tenant", "tenant", "created_at", "id"),
    Index("jobs_by_key", "key_id", "created_at"),
    Index("jobs_by_batch", "tenant", "batch_id", "created_at"),
    Index("jobs_by_result_key", "tenant", "result_key"),
    Index("jobs_by_expiry", "expires_at"),
    Index("jobs_by_callback", "finished_at", sqlite_where=_HAS_CALLBACK, postgresql_where=_HAS_CALLBACK),
    Index("jobs_idempotency", "tenant", "idempotency_key", unique=True),
    Index("jobs_by_intake", "intake", unique=True),
)

WORKERS = Table(
    "workers",
    METADATA,
    Column("owner", String(200), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("detail", Text, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False),
)

#: Webhooks: one row for each event of a job that its callback URL is to hear of.
DELIVERIES = Table(
    "deliveries",
    METADATA,
    Column("id", String(36), primary_key=True),
    Column("job_id", String(36), nullable=False),
    Column("event", String(32), nullable=False),
    Column("url", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("next_attempt_at", UtcDateTime),  # null once delivered or given up
    Column("delivered_at", UtcDateTime),
    Column("last_error", Text),
    Index("deliveries_by_event", "job_id", "event", unique=True),
    Index("deliveries_by_due", "next_attempt_at"),
)

API_KEYS = Table(
    "api_keys",
    METADATA,
    Column("id", String(36), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("name", String(200), nullable=False),
    Column("hash", String(128), nullable=False),
    Column("scopes", Json, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("revoked_at", UtcDateTime),
    Column("last_used_at", UtcDateTime),
    Column("rate_limit", Integer),
    Column("quota", Integer),
    Column("counted_minute", BigInteger),  # since 1970, by the database's clock
    Column("counted_requests", Integer),  # in that minute
    Index("api_keys_by_hash", "hash", unique=True),
)


def job_of(row: RowMapping) -> Job:
    """The job that a row of `JOBS` describes."""
    error = (
        JobError(row["error_code"], row["error_title"], row["error_detail"]) if row["error_code"] is not None else None
    )
    return Job(
        id=row["id"],
        tenant=row["tenant"],
        key_id=row["key_id"],
        priority=Priority(row["priority"]),
        idempotency_key=row["idempotency_key"],
        batch_id=row["batch_id"],
        input_hash=row["input_hash"],
        result_key=row["result_key"],
        reuse=row["reuse"],
        reused_from=row["reused_from"],
        time_limit_seconds=row["time_limit_seconds"],
        callback_url=row["callback_url"],
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
        stage_seconds=row["stage_seconds"],
        expires_at=row["expires_at"],
        expired_at=row["expired_at"],
        revision=row["revision"],
        traceparent=row["traceparent"],
    )


def worker_of(row: RowMapping) -> WorkerReport:
    """The report that a row of `WORKERS` holds."""
    return WorkerReport(row["owner"], WorkerState(row["state"]), row["detail"], row["seen_at"])
