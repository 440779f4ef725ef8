"""What the API says and hears, as JSON: the wire form of jobs, artifacts, models and health."""

import math
from datetime import datetime

from pydantic import BaseModel, Field

from service.api.problems import ProblemSummary, job_problem
from service.catalog import CatalogEntry, ModelLabel
from service.jobs.job import Job, JobStatus, Priority
from service.reporting.schema import Artifact, FindingsWarning

EXAMPLE_JOB_ID = "3b241101-e2bb-4255-8caf-4136c566a962"


class JobLinks(BaseModel):
    """Addresses that belong to a job; a result's links appear when the job has succeeded."""

    self: str = Field(examples=[f"/v1/jobs/{EXAMPLE_JOB_ID}"])
    cancel: str | None = Field(default=None, description="POST here to stop the job; absent once it has ended.")
    findings: str | None = Field(default=None, description="What was found, as JSON.")
    artifacts: str | None = Field(default=None, description="The files that were written.")


class JobView(BaseModel):
    """One run of the segmentation task."""

    id: str = Field(description="Random UUID of the job.", examples=[EXAMPLE_JOB_ID])
    status: JobStatus = Field(
        description="`queued` waits for a worker, `running` is worked on; `succeeded`, `failed`, `canceled` are final."
    )
    stage: str | None = Field(description="What a running job is doing.", examples=["inference"])
    percent: float = Field(ge=0, le=100, description="Progress of the whole job.", examples=[41.5])
    queue_position: int | None = Field(description="Place in the queue from 1, while queued.")
    eta_seconds: int | None = Field(
        description="Seconds until the job has probably ended, by how long the model's latest jobs took; null when "
        "nothing is known yet.",
        examples=[95],
    )
    priority: Priority = Field(description="Free workers take `stat` first, then `routine`, then `batch`.")
    batch_id: str | None = Field(description="The batch that the job belongs to.", examples=["trial-7"])
    cancel_requested: bool = Field(description="A cancel was asked for and has not taken effect yet.")
    attempts: int = Field(description="How often a worker has started the job; above 1 after a worker's death.")
    model: str = Field(description="Model that runs, `<name>-<version>`.", examples=["viscera-compact-2.4.2"])
    targets: tuple[str, ...] | None = Field(
        description="Labels, groups and codes asked for; null means all labels of the model."
    )
    upload_bytes: int = Field(description="Size of the uploaded files together.")
    upload_files: int = Field(description="Number of uploaded files.")
    created_at: datetime = Field(description="UTC, as all times.")
    started_at: datetime | None = Field(description="Start of the latest attempt.")
    finished_at: datetime | None = Field(description="When the final status was reached.")
    time_limit_seconds: float | None = Field(description="Limit that the request stated; null: the service's.")
    stage_seconds: dict[str, float] = Field(
        description="Seconds of each stage of a job that has succeeded.", examples=[{"inference": 41.2}]
    )
    reused_from: str | None = Field(description="The job whose stored result this job took instead of a run.")
    expires_at: datetime | None = Field(description="When the result will be removed; null: never, or no result.")
    expired: bool = Field(description="The result was removed; its links are gone and its addresses answer 410.")
    error: ProblemSummary | None = Field(description="Why the job failed.")
    warnings: tuple[FindingsWarning, ...] = Field(description="What to know before trusting the result.")
    links: JobLinks

    @classmethod
    def of(cls, job: Job, queue_position: int | None, eta_seconds: float | None) -> "JobView":
        """The job as its owner sees it."""
        address = f"/v1/jobs/{job.id}"
        stored = job.status is JobStatus.SUCCEEDED and job.expired_at is None
        links = JobLinks(
            self=address,
            cancel=None if job.status.terminal else f"{address}/cancel",
            findings=f"{address}/findings" if stored else None,
            artifacts=f"{address}/artifacts" if stored else None,
        )
        return cls(
            id=job.id,
            status=job.status,
            stage=job.stage,
            percent=round(job.percent, 1),
            queue_position=queue_position,
            eta_seconds=None if eta_seconds is None else math.ceil(eta_seconds),
            priority=job.priority,
            batch_id=job.batch_id,
            cancel_requested=job.cancel_requested and not job.status.terminal,
            attempts=job.attempts,
            model=job.model,
            targets=job.request.targets,
            upload_bytes=job.upload_bytes,
            upload_files=job.upload_files,
            created_at=job.created_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            time_limit_seconds=job.time_limit_seconds,
            stage_seconds=dict(job.stage_seconds),
            reused_from=job.reused_from,
            expires_at=job.expires_at,
            expired=job.expired_at is not None,
            error=job_problem(job.error.code, job.error.title, job.error.detail) if job.error else None,
            warnings=tuple(FindingsWarning.model_validate(notice) for notice in job.notices),
            links=links,
        )


class JobPage(BaseModel):
    """Some jobs, newest first."""

    jobs: list[JobView]
    next_cursor: str | None = Field(description="Pass as `cursor` for the jobs before these; null at the end.")


class ArtifactView(Artifact):
    """One file of a result and its address."""

    href: str = Field(
        description="Where to get it; Range requests are answered.",
        examples=[f"/v1/jobs/{EXAMPLE_JOB_ID}/artifacts/masks/liver.nii.gz"],
    )


class ArtifactList(BaseModel):
    """The files of a result."""

    artifacts: list[ArtifactView]


class ModelView(BaseModel):
    """A model that jobs can ask for."""

    id: str = Field(description="`<name>-<version>`.", examples=["viscera-compact-2.4.2"])
    name: str = Field(examples=["viscera-compact"])
    version: str = Field(examples=["1.0.0"])
    description: str
    intended_use: str
    licence: str = Field(examples=["Apache-2.0"])
    sha256: str = Field(description="SHA-256 of the bundle's manifest, as in a result's provenance.")
    spacing_mm: tuple[float, float, float] = Field(description="Voxel spacing of the grid the model works on.")
    precisions: tuple[str, ...] = Field(description="Precisions that the model offers.", examples=[["fp32", "bf16"]])
    labels: tuple[ModelLabel, ...]
    default: bool = Field(description="Used when a request names no model.")

    @classmethod
    def of(cls, entry: CatalogEntry, default_id: str | None) -> "ModelView":
        """The bundle as callers see it."""
        manifest = entry.manifest
        return cls(
            id=entry.id,
            name=manifest.name,
            version=manifest.version,
            description=manifest.description,
            intended_use=manifest.intended_use,
            licence=manifest.licence,
            sha256=entry.sha256,
            spacing_mm=manifest.preprocessing.spacing_mm,
            precisions=tuple(precision.name for precision in manifest.precisions),
            labels=manifest.labels,
            default=entry.id == default_id,
        )


class ModelList(BaseModel):
    """The models of this service."""

    models: list[ModelView]


class Liveness(BaseModel):
    """The process answers."""

    status: str = Field(examples=["live"])


class ReadinessCheck(BaseModel):
    """One thing that the service needs in order to accept work."""

    name: str = Field(examples=["database"])
    ready: bool
    detail: str = Field(description="What is missing; empty when ready.")


class Readiness(BaseModel):
    """Whether jobs can be accepted and worked on, and why not."""

    status: str = Field(description="`ready` or `not-ready`.", examples=["ready"])
    checks: list[ReadinessCheck]
