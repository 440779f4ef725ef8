"""Results over HTTP: the findings and the files of a job that has succeeded."""

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Header, Path, Request, Response
from fastapi.responses import FileResponse
from pydantic import TypeAdapter

from service.api.auth import AUTH_PROBLEMS, CallerDep, needs
from service.api.caller import Caller
from service.api.dependencies import Services, ServicesDep
from service.api.files import file_response
from service.api.jobs import JobId
from service.api.problems import ResultMissingError, job_problem, merged, problems
from service.api.schemas import ArtifactList, ArtifactView
from service.errors import (
    ArtifactNotFound,
    InternalError,
    JobNotFound,
    ResultExpired,
    ResultNotReady,
    StorageUnavailable,
)
from service.jobs.job import Job, JobStatus
from service.jobs.keys import Scope
from service.reporting.schema import Artifact, Findings

FINDINGS_FILE = "findings.json"
LISTING_FILE = "artifacts.json"
# Shown by a browser; everything else is offered for saving, a page above all: here it would run as ours.
INLINE_MEDIA_TYPES = frozenset({"application/json", "image/png"})
MEDIA_TYPES = (
    "application/dicom",
    "application/gzip",
    "application/json",
    "application/pdf",
    "image/png",
    "text/csv",
    "text/html",
)

router = APIRouter(
    prefix="/v1/jobs/{job_id}",
    tags=["results"],
    responses=merged(
        AUTH_PROBLEMS, problems(JobNotFound, ResultNotReady, ResultExpired, InternalError, StorageUnavailable)
    ),
    dependencies=[needs(Scope.READ)],
)

_Listing = TypeAdapter(tuple[Artifact, ...])


@router.get("/findings", operation_id="getFindings", summary="What was found", response_model=Findings)
def get_findings(job_id: JobId, request: Request, caller: CallerDep, services: ServicesDep) -> Response:
    """Volumes, lesions, diameters, warnings and provenance, as written by the job."""
    _require_result(services, caller, job_id)
    return file_response(request, services.storage.artifact(job_id, FINDINGS_FILE), media_type="application/json")


@router.get("/artifacts", operation_id="listArtifacts", summary="The files of the result")
def list_artifacts(job_id: JobId, caller: CallerDep, services: ServicesDep) -> ArtifactList:
    """Masks, findings and overview, each with its size, hash and address."""
    _require_result(services, caller, job_id)
    return ArtifactList(
        artifacts=[
            ArtifactView(**artifact.model_dump(), href=f"/v1/jobs/{job_id}/artifacts/{quote(artifact.name)}")
            for artifact in _listing(services, job_id)
        ]
    )


@router.get(
    "/artifacts/{name:path}",
    operation_id="getArtifact",
    summary="One file of the result",
    response_class=FileResponse,
    responses={
        200: {
            "description": "The file, with the media type of the listing and its SHA-256 as ETag.",
            "content": {media_type: {"schema": {"format": "binary"}} for media_type in MEDIA_TYPES},
        },
        206: {"description": "The part of the file that the Range header asks for."},
        304: {"description": "The file is the one that If-None-Match names."},
        416: {"description": "The Range lies outside the file."},
        **problems(JobNotFound, ArtifactNotFound),
    },
)
def get_artifact(
    job_id: JobId,
    name: Annotated[str, Path(description="Name from the listing.", examples=["masks/liver.nii.gz"])],
    request: Request,
    caller: CallerDep,
    services: ServicesDep,
    if_none_match: Annotated[str | None, Header(description="ETags the caller already has.")] = None,
) -> Response:
    """Serves whole files, ranges (`Range`) and nothing at all when the caller has the file (`If-None-Match`)."""
    _require_result(services, caller, job_id)
    artifact = next((artifact for artifact in _listing(services, job_id) if artifact.name == name), None)
    if artifact is None:
        raise ArtifactNotFound(f"This job has no artifact {name[:80]!r}.")
    etag = f'"{artifact.sha256}"'
    if if_none_match and etag in (tag.strip().removeprefix("W/") for tag in if_none_match.split(",")):
        return Response(status_code=304, headers={"ETag": etag})
    return file_response(
        request,
        services.storage.artifact(job_id, name),
        media_type=artifact.media_type,
        headers={"ETag": etag},
        filename=name.rpartition("/")[2],
        inline=artifact.media_type in INLINE_MEDIA_TYPES,
    )


def _listing(services: Services, job_id: str) -> tuple[Artifact, ...]:
    return _Listing.validate_json(services.storage.artifact(job_id, LISTING_FILE).read())


def _require_result(services: Services, caller: Caller, job_id: str) -> None:
    """Raise ResultMissingError unless the job has succeeded; a failed job's problem goes along as its `cause`."""
    job = services.store.get(job_id, tenant=caller.tenant)
    if job.expired_at is not None:
        raise ResultExpired(f"The result was removed at {job.expired_at:%Y-%m-%dT%H:%M:%SZ}; submit the study again.")
    if job.status is JobStatus.SUCCEEDED:
        return
    cause = job_problem(job.error.code, job.error.title, job.error.detail) if job.error else None
    raise ResultMissingError(ResultNotReady(_reason(job)), cause)


def _reason(job: Job) -> str:
    if job.status is JobStatus.FAILED:
        return "The job failed; `cause` says why."
    if job.status is JobStatus.CANCELED:
        return "The job was canceled; submit the study again."
    return f"The job is {job.status.value}; poll it until it has succeeded."
