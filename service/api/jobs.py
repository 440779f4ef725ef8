"""Jobs over HTTP: submit, follow, list, cancel, delete."""

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Path, Query, Request, Response

from service.api.acceptance import accept
from service.api.auth import AUTH_PROBLEMS, CallerDep, check_quota, needs
from service.api.dependencies import Services, ServicesDep
from service.api.problems import merged, problems
from service.api.references import ReferencedStudy, is_reference, receive_reference
from service.api.schemas import EXAMPLE_JOB_ID, JobPage, JobView
from service.api.submission import BATCH_ID_PATTERN, IdempotencyKey
from service.api.traces import traceparent_of
from service.api.upload_form import UPLOAD_FORM
from service.api.uploads import ReceivedUpload, UploadLimits, receive_upload
from service.errors import (
    BodyTooLarge,
    CallbackRefused,
    EmptyUpload,
    IdempotencyConflict,
    IllegalTransition,
    InternalError,
    JobNotFound,
    ModelNotFound,
    QuotaExceeded,
    RateLimited,
    ReferenceRefused,
    RequestError,
    RequestTooSlow,
    StorageUnavailable,
    UnknownLabel,
    UnknownPeer,
    UnreadableUpload,
    UploadTooLarge,
)
from service.jobs.job import Job, JobStatus, new_job_id
from service.jobs.keys import Scope

MAX_PAGE = 200
POLL_SECONDS_RUNNING = 1
MAX_POLL_SECONDS = 10

router = APIRouter(
    prefix="/v1/jobs",
    tags=["jobs"],
    responses=merged(AUTH_PROBLEMS, problems(InternalError, StorageUnavailable)),
)

JobId = Annotated[str, Path(description="Id of the job.", examples=[EXAMPLE_JOB_ID])]


@router.post(
    "",
    status_code=202,
    operation_id="submitJob",
    summary="Submit a CT study",
    responses={
        202: {
            "description": "The job was accepted.",
            "headers": {
                "Location": {"description": "Address of the job.", "schema": {"type": "string"}},
                "Retry-After": {"description": "Seconds until the first poll.", "schema": {"type": "integer"}},
            },
        },
        **problems(
            RequestError,
            ModelNotFound,
            RequestTooSlow,
            UploadTooLarge,
            UnreadableUpload,
            EmptyUpload,
            UnknownLabel,
            BodyTooLarge,
            ReferenceRefused,
            UnknownPeer,
            CallbackRefused,
            RateLimited,
            QuotaExceeded,
            IdempotencyConflict,
        ),
    },
    openapi_extra={"requestBody": UPLOAD_FORM},
    dependencies=[needs(Scope.SUBMIT)],
)
async def submit_job(
    request: Request,
    response: Response,
    caller: CallerDep,
    services: ServicesDep,
    idempotency_key: IdempotencyKey = None,
) -> JobView:
    """Stores the upload, or notes the reference, and queues a job for it; the job itself finds out whether it is a
    usable CT."""
    await to_thread.run_sync(check_quota, caller, services.keys)
    job_id = new_job_id()
    if is_reference(request):
        submitted: ReferencedStudy | ReceivedUpload = await receive_reference(request)
    else:
        limits = UploadLimits(services.settings.max_upload_bytes, services.settings.max_upload_files)
        submitted = await receive_upload(request, services.storage, job_id, limits)
        services.metrics.upload_bytes.inc(submitted.bytes)
    job = await to_thread.run_sync(
        accept, services, caller, job_id, submitted, idempotency_key, traceparent_of(request.scope)
    )
    view = await to_thread.run_sync(view_of, services, job)
    response.headers["Location"] = view.links.self
    response.headers["Retry-After"] = str(poll_seconds(view))
    return view


@router.get(
    "",
    operation_id="listJobs",
    summary="List jobs, newest first",
    responses=problems(RequestError),
    dependencies=[needs(Scope.READ)],
)
def list_jobs(
    caller: CallerDep,
    services: ServicesDep,
    status: Annotated[JobStatus | None, Query(description="Only jobs of this status.")] = None,
    batch_id: Annotated[
        str | None, Query(description="Only jobs of this batch.", pattern=BATCH_ID_PATTERN, examples=["trial-7"])
    ] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Jobs per page.")] = 50,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.", max_length=200)] = None,
) -> JobPage:
    """The tenant's jobs that were not deleted, a page at a time."""
    try:
        jobs = services.store.list(
            tenant=caller.tenant, status=status, batch_id=batch_id, limit=limit + 1, before=cursor
        )
    except JobNotFound as error:
        raise RequestError("The cursor is none, or its job was deleted; start again without it.") from error
    page = jobs[:limit]
    return JobPage(
        jobs=[view_of(services, job) for job in page],
        next_cursor=page[-1].id if len(jobs) > limit else None,
    )


@router.post(
    "/{job_id}/cancel",
    operation_id="cancelJob",
    summary="Cancel a job",
    responses=problems(JobNotFound, IllegalTransition),
    dependencies=[needs(Scope.SUBMIT)],
)
def cancel_job(job_id: JobId, caller: CallerDep, services: ServicesDep) -> JobView:
    """Cancels a queued job at once; a running one stops within seconds. A canceled job may be canceled again."""
    return view_of(services, services.store.cancel(job_id, tenant=caller.tenant))


@router.delete(
    "/{job_id}",
    status_code=204,
    operation_id="deleteJob",
    summary="Delete a job and its files",
    responses=problems(JobNotFound, IllegalTransition),
    dependencies=[needs(Scope.SUBMIT)],
)
def delete_job(job_id: JobId, caller: CallerDep, services: ServicesDep) -> None:
    """Removes the job, its upload and its result for good. A running job must be canceled first."""
    services.store.delete(job_id, tenant=caller.tenant)
    services.storage.delete_job(job_id)


def view_of(services: Services, job: Job) -> JobView:
    """The job as its owner sees it now."""
    position = services.store.queue_position(job.id) if job.status is JobStatus.QUEUED else None
    return JobView.of(job, position, services.estimator.eta_seconds(job, position))


def poll_seconds(view: JobView) -> int:
    """Short while the job runs or is next, longer the further back it waits."""
    return min(MAX_POLL_SECONDS, max(POLL_SECONDS_RUNNING, view.queue_position or 0))
