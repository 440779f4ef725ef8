"""The JSON documents of `openapi.yaml` that the client answers with, as typed dictionaries."""

from typing import Literal, TypedDict


class ProblemDocument(TypedDict):
    """Why a job failed."""

    type: str  #: `/problems/<code>`
    title: str
    detail: str


class WarningDocument(TypedDict):
    """What to know before trusting a result."""

    code: str
    message: str
    subject: str | None


class JobLinksDocument(TypedDict):
    """Addresses that belong to a job; None while there is nothing there."""

    self: str
    cancel: str | None
    findings: str | None
    artifacts: str | None


class JobDocument(TypedDict):
    """A job as the service tells it; a newer service may tell more."""

    id: str
    status: Literal["queued", "running", "succeeded", "failed", "canceled"]
    stage: str | None
    percent: float
    queue_position: int | None
    eta_seconds: int | None
    priority: Literal["stat", "routine", "batch"]
    batch_id: str | None
    cancel_requested: bool
    attempts: int
    model: str
    targets: list[str] | None
    upload_bytes: int
    upload_files: int
    created_at: str
    started_at: str | None
    finished_at: str | None
    time_limit_seconds: float | None
    stage_seconds: dict[str, float]
    reused_from: str | None
    expires_at: str | None
    expired: bool
    error: ProblemDocument | None
    warnings: list[WarningDocument]
    links: JobLinksDocument


class JobPageDocument(TypedDict):
    """Some jobs, newest first."""

    jobs: list[JobDocument]
    next_cursor: str | None


class ArtifactDocument(TypedDict):
    """One file of a result."""

    name: str
    media_type: str
    bytes: int
    sha256: str
    href: str
