"""One run of the segmentation task, as a value: what the table holds and what the API shows.

    queued ──claim──> running ──succeed──> succeeded
      ^  └──cancel──┐    ├──fail──────────> failed
      │             │    ├──finish_cancel─> canceled
      └─────────────┼────┘ (lease expired or handed back)
                    └────────────────────> canceled

Pure data: no database, no queue, no web.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from service.errors import VisceraError
from service.exchange.plan import NO_EXCHANGE, Exchange
from service.request import SegmentationRequest


class JobStatus(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"  #: accepted and stored; waits for a worker
    RUNNING = "running"  #: claimed by a worker that renews its lease
    SUCCEEDED = "succeeded"  #: the result is published
    FAILED = "failed"  #: `error` says why; there is no result
    CANCELED = "canceled"  #: stopped at the caller's request

    @property
    def terminal(self) -> bool:
        """True when the job will never change again."""
        return self not in TRANSITIONS


#: The only legal changes; the store puts the sources of each into the WHERE clause of its UPDATE.
TRANSITIONS: Mapping[JobStatus, frozenset[JobStatus]] = MappingProxyType(
    {
        JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.CANCELED}),
        JobStatus.RUNNING: frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED, JobStatus.QUEUED}),
    }
)


class Priority(StrEnum):
    """Which job a free worker takes first; among equals the oldest."""

    STAT = "stat"  #: somebody waits for it
    ROUTINE = "routine"  #: the usual
    BATCH = "batch"  #: when nothing else waits


DEFAULT_TENANT = "default"
"""Whose the jobs are where nobody is asked who he is."""

#: A row-independent remark on a result ("The scan is cut below the liver."), as JSON.
Notice = dict[str, Any]


@dataclass(frozen=True)
class JobError:
    """Why a job failed, in the words of the problem+json that the API answers."""

    code: str
    title: str
    detail: str

    @classmethod
    def of(cls, error: VisceraError) -> "JobError":
        """The job error of a typed failure."""
        return cls(code=error.code, title=error.title, detail=error.detail)


@dataclass(frozen=True)
class NewJob:
    """A job about to be put into the table; its upload is already stored under `id`."""

    id: str
    model: str  #: bundle, `name-version`
    request: SegmentationRequest
    upload_bytes: int
    upload_files: int
    tenant: str = DEFAULT_TENANT
    key_id: str | None = None  #: the API key that it came with
    priority: Priority = Priority.ROUTINE
    idempotency_key: str | None = None  #: chosen by the caller, unique within the tenant
    request_hash: str | None = None  #: SHA-256 of everything that came with the idempotency key
    batch_id: str | None = None  #: shared by the jobs of one batch
    input_hash: str | None = None  #: SHA-256 of the upload's contents
    result_key: str | None = None  #: SHA-256 of input, bundle and settings: equal keys have equal results
    reuse: bool = True  #: a stored result with the same key may be taken instead of a run
    time_limit_seconds: float | None = None  #: of one attempt; that of the settings when None
    callback_url: str | None = None  #: told of the job's end
    exchange: Exchange = NO_EXCHANGE
    held_until: datetime | None = None  #: not dispatched before; see `service.jobs.held`
    intake: str | None = None  #: under which the next instance of its study finds it
    traceparent: str | None = None  #: the span that its own belong to; see `service.tracing`


@dataclass(frozen=True)
class Job:
    """A snapshot of one row of the job table."""

    id: str
    tenant: str
    key_id: str | None
    priority: Priority
    idempotency_key: str | None
    batch_id: str | None
    input_hash: str | None
    result_key: str | None
    reuse: bool
    reused_from: str | None  #: the job whose result was taken
    time_limit_seconds: float | None
    callback_url: str | None
    status: JobStatus
    stage: str | None  #: a `service.progress.Stage` value while running
    percent: float  #: 0..100 of the whole job
    model: str  #: bundle name, or `name-version`
    request: SegmentationRequest
    created_at: datetime  #: UTC, like every time here
    started_at: datetime | None  #: of the latest attempt
    finished_at: datetime | None
    attempts: int  #: counted when a worker claims the job
    cancel_requested: bool
    error: JobError | None
    notices: tuple[Notice, ...]
    upload_bytes: int
    upload_files: int
    stage_seconds: Mapping[str, float]  #: wall clock of each stage of the attempt that ended
    expires_at: datetime | None  #: when the result will be removed
    expired_at: datetime | None  #: when it was
    revision: int  #: raised at each change that a caller can see
    exchange: Exchange = NO_EXCHANGE  #: where the study comes from and the results go
    traceparent: str | None = None  #: the span of the request that made it


@dataclass(frozen=True)
class Glimpse:
    """What there is to see of a job without reading it: another one means that a caller would see a change."""

    revision: int
    queue_position: int | None  #: from 1, while it waits


@dataclass(frozen=True)
class Renewal:
    """What a worker learns when it renews its lease."""

    ok: bool  #: False: the job is no longer this worker's; it must write nothing more
    cancel_requested: bool


@dataclass(frozen=True)
class Recovery:
    """What became of the jobs whose worker is gone, by job id."""

    requeued: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()  #: too many worker deaths: `worker-lost`
    canceled: tuple[str, ...] = ()  #: a cancel was already asked for


class FilesNeeded(StrEnum):
    """Which files of a job must stay."""

    ALL = "all"  #: it waits or runs
    RESULT = "result"  #: it has succeeded
    NONE = "none"  #: it ended without a result, or the result has expired


class WorkerState(StrEnum):
    """What a worker process says of itself."""

    STARTING = "starting"  #: loads the default bundle and runs its self-test
    READY = "ready"  #: the model is warm
    UNHEALTHY = "unhealthy"  #: the default bundle was refused; `detail` says why


@dataclass(frozen=True)
class WorkerReport:
    """The latest sign of life of one worker process."""

    owner: str
    state: WorkerState
    detail: str  #: empty unless unhealthy
    seen_at: datetime


def new_job_id() -> str:
    """A fresh job id: a random UUID, which nobody can guess."""
    return str(uuid.uuid4())


def is_job_id(text: str) -> bool:
    """True when the text has the exact form that `new_job_id` gives, and so is safe as a folder name."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
