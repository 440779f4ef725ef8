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
class Job:
    """A snapshot of one row of the job table."""

    id: str
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
    exchange: Exchange = NO_EXCHANGE  #: where the study comes from and the results go


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
