"""Jobs over HTTP: submit, follow, list, cancel, delete."""

from dataclasses import dataclass
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import ValidationError

from service.api.dependencies import Services, ServicesDep
from service.api.problems import problems
from service.api.references import JSON, ReferencedStudy, is_reference, receive_reference
from service.api.schemas import EXAMPLE_JOB_ID, JobPage, JobView
from service.api.uploads import ReceivedUpload, UploadLimits, receive_upload
from service.errors import (
    EmptyUpload,
    IllegalTransition,
    InternalError,
    JobNotFound,
    ModelNotFound,
    ReferenceRefused,
    RequestError,
    StorageUnavailable,
    UnknownLabel,
    UnknownPeer,
    UnreadableUpload,
    UploadTooLarge,
)
from service.exchange.plan import Exchange
from service.exchange.reference import check_exchange
from service.jobs.job import Job, JobStatus, new_job_id
from service.request import Mode, Output, PostProcessing, SegmentationRequest, SegType

MAX_PAGE = 200
POLL_SECONDS_RUNNING = 1
MAX_POLL_SECONDS = 10

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=problems(InternalError, StorageUnavailable))

UPLOAD_FORM: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["files"],
                "additionalProperties": False,
                "properties": {
                    "files": {
                        "type": "array",
                        "minItems": 1,
                        "items": {"type": "string", "format": "binary"},
                        "description": "The study: one .nii or .nii.gz file, one zip, or all files of a DICOM study.",
                    },
                    "file": {
                        "type": "string",
                        "format": "binary",
                        "description": "The same, for clients that send a single file under this name.",
                    },
                    "model": {
                        "type": "string",
                        "description": "Id or name of a model (`GET /v1/models`); the default model otherwise.",
                        "example": "viscera-compact",
                    },
                    "targets": {
                        "type": "string",
                        "description": "What to segment: names of labels, groups (`organs`, `tumors`, `cysts`, "
                        "`lesions`, `all`) or SNOMED CT codes, comma separated or in repeated fields; all labels "
                        "otherwise.",
                        "example": "liver,tumors",
                    },
                    "mode": {
                        "type": "string",
                        "enum": [mode.value for mode in Mode],
                        "default": Mode.ACCURATE.value,
                        "description": "Speed against accuracy: how far neighbouring windows overlap.",
                    },
                    "overlap": {
                        "type": "number",
                        "minimum": 0,
                        "maximum": 0.9,
                        "description": "Overlap of neighbouring windows; that of the mode otherwise.",
                        "example": 0.5,
                    },
                    "postprocessing": {
                        "type": "string",
                        "enum": [choice.value for choice in PostProcessing],
                        "default": PostProcessing.VISCERA.value,
                        "description": "Rules that clean the masks: ours, the published implementation's, or none.",
                    },
                    "outputs": {
                        "type": "string",
                        "description": "Files to write beside findings.json, comma separated or in repeated fields: "
                        + ", ".join(f"`{output.value}`" for output in Output)
                        + ". All but `rtstruct` otherwise. `seg`, `sr` and `rtstruct` are DICOM objects and need "
                        "DICOM input: asked for by name with a NIfTI, they fail the job with `output-not-possible`.",
                        "example": "seg,sr,rtstruct",
                    },
                    "seg_type": {
                        "type": "string",
                        "enum": [kind.value for kind in SegType],
                        "default": SegType.BINARY.value,
                        "description": "Type of the DICOM SEG of organs; that of lesions is always binary.",
                    },
                    "deidentify": {
                        "type": "boolean",
                        "default": False,
                        "description": "Leave patient, study identifiers and dates out of the DICOM objects.",
                    },
                    "series": {
                        "type": "string",
                        "pattern": "^[0-9.]{1,64}$",
                        "description": "SeriesInstanceUID of the CT series to segment (DICOM only); chosen by rule "
                        "otherwise.",
                        "example": "1.2.840.113619.2.55.3.604688119.971.1",
                    },
                    "push": {
                        "type": "string",
                        "description": "Names of peers in the setting `VISCERA_PEERS` that get the DICOM results, "
                        "comma separated or in repeated fields.",
                        "example": "pacs",
                    },
                },
            },
            "encoding": {"files": {"contentType": "application/octet-stream"}},
        },
        JSON: {"schema": {"$ref": "#/components/schemas/ReferencedStudy"}},
    },
}

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
            UploadTooLarge,
            UnreadableUpload,
            EmptyUpload,
            UnknownLabel,
            ReferenceRefused,
            UnknownPeer,
        ),
    },
    openapi_extra={"requestBody": UPLOAD_FORM},
)
async def submit_job(request: Request, response: Response, services: ServicesDep) -> JobView:
    """Stores the upload, or notes the reference, and queues a job for it; the job itself finds out whether it is a
    usable CT."""
    job_id = new_job_id()
    if is_reference(request):
        submitted: ReferencedStudy | ReceivedUpload = await receive_reference(request)
    else:
        limits = UploadLimits(services.settings.max_upload_bytes, services.settings.max_upload_files)
        submitted = await receive_upload(request, services.storage, job_id, limits)
    view = await to_thread.run_sync(_accept, services, job_id, submitted)
    response.headers["Location"] = view.links.self
    response.headers["Retry-After"] = str(_poll_seconds(view))
    return view


@router.get("", operation_id="listJobs", summary="List jobs, newest first", responses=problems(RequestError))
def list_jobs(
    services: ServicesDep,
    status: Annotated[JobStatus | None, Query(description="Only jobs of this status.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Jobs per page.")] = 50,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.", max_length=200)] = None,
) -> JobPage:
    """Jobs that were not deleted, a page at a time."""
    try:
        jobs = services.store.list(status=status, limit=limit + 1, before=cursor)
    except JobNotFound as error:
        raise RequestError("The cursor is none, or its job was deleted; start again without it.") from error
    page = jobs[:limit]
    return JobPage(
        jobs=[_view(services, job) for job in page],
        next_cursor=page[-1].id if len(jobs) > limit else None,
    )


@router.get(
    "/{job_id}",
    operation_id="getJob",
    summary="Follow a job",
    responses={
        200: {
            "headers": {
                "Retry-After": {
                    "description": "Seconds until the next poll; absent once the job has ended.",
                    "schema": {"type": "integer"},
                }
            }
        },
        **problems(JobNotFound),
    },
)
def get_job(job_id: JobId, response: Response, services: ServicesDep) -> JobView:
    """The job as it stands; poll it as often as `Retry-After` asks."""
    view = _view(services, services.store.get(job_id))
    if not view.status.terminal:
        response.headers["Retry-After"] = str(_poll_seconds(view))
    return view


@router.post(
    "/{job_id}/cancel",
    operation_id="cancelJob",
    summary="Cancel a job",
    responses=problems(JobNotFound, IllegalTransition),
)
def cancel_job(job_id: JobId, services: ServicesDep) -> JobView:
    """Cancels a queued job at once; a running one stops within seconds. A canceled job may be canceled again."""
    return _view(services, services.store.cancel(job_id))


@router.delete(
    "/{job_id}",
    status_code=204,
    operation_id="deleteJob",
    summary="Delete a job and its files",
    responses=problems(JobNotFound, IllegalTransition),
)
def delete_job(job_id: JobId, services: ServicesDep) -> None:
    """Removes the job, its upload and its result for good. A running job must be canceled first."""
    services.store.delete(job_id)
    services.storage.delete_job(job_id)


@dataclass(frozen=True)
class _Submission:
    """What a request asks for, whichever form it has."""

    model: str | None
    request: SegmentationRequest
    exchange: Exchange
    bytes: int = 0
    files: int = 0


def _accept(services: Services, job_id: str, submitted: ReferencedStudy | ReceivedUpload) -> JobView:
    """The queued job for a stored upload or a reference; an upload that asks for something impossible is removed."""
    try:
        submission = _submission(submitted)
        model = services.catalog.find(submission.model)
        model.require_targets(submission.request.targets)
        check_exchange(submission.exchange, services.settings)
        job = services.store.create(
            job_id=job_id,
            model=model.id,
            request=submission.request,
            upload_bytes=submission.bytes,
            upload_files=submission.files,
            exchange=submission.exchange,
        )
    except BaseException:
        services.storage.delete_upload(job_id)
        raise
    services.dispatch(job_id)
    return _view(services, job)


def _submission(submitted: ReferencedStudy | ReceivedUpload) -> _Submission:
    if isinstance(submitted, ReferencedStudy):
        exchange = Exchange(source=submitted.reference, push=submitted.push)
        return _Submission(submitted.model, submitted.choices, exchange)
    try:
        exchange = Exchange(push=tuple(_several(submitted, "push")))
    except ValidationError as error:
        raise _invalid(error) from error
    request = _segmentation_request(submitted)
    return _Submission(_single(submitted, "model"), request, exchange, submitted.bytes, submitted.files)


def _invalid(error: ValidationError) -> RequestError:
    first = error.errors()[0]
    return RequestError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}")


def _segmentation_request(upload: ReceivedUpload) -> SegmentationRequest:
    """The choices that the form states; one that it leaves out or empty is the request's own default."""
    single = {
        name: _single(upload, name)
        for name in ("mode", "overlap", "postprocessing", "series", "seg_type", "deidentify")
    }
    several = {name: _several(upload, name) or None for name in ("targets", "outputs")}
    choices: dict[str, object] = {**several, **single}
    try:
        return SegmentationRequest.model_validate({k: v for k, v in choices.items() if v is not None})
    except ValidationError as error:
        raise _invalid(error) from error


def _single(upload: ReceivedUpload, name: str) -> str | None:
    values = [value.strip() for value in upload.fields.get(name, []) if value.strip()]
    if len(values) > 1:
        raise RequestError(f"The field {name!r} is given {len(values)} times; give it once.")
    return values[0] if values else None


def _several(upload: ReceivedUpload, field: str) -> list[str]:
    """The names that a field lists, each once, in the order they were named."""
    names = (name.strip() for value in upload.fields.get(field, []) for name in value.split(","))
    return list(dict.fromkeys(name for name in names if name))


def _view(services: Services, job: Job) -> JobView:
    position = services.store.queue_position(job.id) if job.status is JobStatus.QUEUED else None
    return JobView.of(job, position)


def _poll_seconds(view: JobView) -> int:
    """Short while the job runs or is next, longer the further back it waits."""
    return min(MAX_POLL_SECONDS, max(POLL_SECONDS_RUNNING, view.queue_position or 0))
