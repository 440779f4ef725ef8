"""Jobs over HTTP: submit, follow, list, cancel, delete."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from anyio import to_thread
from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ValidationError

from service.api.auth import AUTH_PROBLEMS, CallerDep, check_quota, needs
from service.api.caller import Caller
from service.api.dependencies import Services, ServicesDep
from service.api.problems import merged, problems
from service.api.references import CALLBACK_DESCRIPTION, JSON, ReferencedStudy, is_reference, receive_reference
from service.api.schemas import EXAMPLE_JOB_ID, JobPage, JobView
from service.api.submission import BATCH_ID_PATTERN, HANDLING_FIELDS, Handling, IdempotencyKey
from service.api.uploads import ReceivedUpload, UploadLimits, receive_upload
from service.callbacks import MAX_URL_LENGTH, CallbackPolicy
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
from service.exchange.plan import Exchange
from service.exchange.reference import check_exchange
from service.fingerprint import request_hash, result_key
from service.jobs.job import Job, JobStatus, NewJob, Priority, new_job_id
from service.jobs.keys import Scope
from service.request import Mode, Output, PostProcessing, SegmentationRequest, SegType
from service.settings import Settings

MAX_PAGE = 200
POLL_SECONDS_RUNNING = 1
MAX_POLL_SECONDS = 10

_Choices = TypeVar("_Choices", bound=BaseModel)

router = APIRouter(
    prefix="/v1/jobs",
    tags=["jobs"],
    responses=merged(AUTH_PROBLEMS, problems(InternalError, StorageUnavailable)),
)

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
                    "callback_url": {
                        "type": "string",
                        "maxLength": MAX_URL_LENGTH,
                        "description": CALLBACK_DESCRIPTION,
                        "example": "https://pacs.example.org/hooks/viscera",
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
                    "priority": {
                        "type": "string",
                        "enum": [priority.value for priority in Priority],
                        "default": Priority.ROUTINE.value,
                        "description": Handling.model_fields["priority"].description,
                    },
                    "reuse": {
                        "type": "boolean",
                        "default": True,
                        "description": Handling.model_fields["reuse"].description,
                    },
                    "batch_id": {
                        "type": "string",
                        "pattern": BATCH_ID_PATTERN,
                        "description": Handling.model_fields["batch_id"].description,
                        "example": "trial-7",
                    },
                    "time_limit_seconds": {
                        "type": "number",
                        "exclusiveMinimum": 0,
                        "description": Handling.model_fields["time_limit_seconds"].description,
                        "example": 600,
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
    view = await to_thread.run_sync(_accept, services, caller, job_id, submitted, idempotency_key)
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


@dataclass(frozen=True)
class _Submission:
    """What a request asks for, whichever form it has."""

    model: str | None
    request: SegmentationRequest
    exchange: Exchange
    handling: Handling
    callback_url: str | None
    hash: str  #: of all of it
    upload_sha256: str | None = None  #: None: the study is yet to be fetched
    bytes: int = 0
    files: int = 0


def _accept(
    services: Services,
    caller: Caller,
    job_id: str,
    submitted: ReferencedStudy | ReceivedUpload,
    idempotency_key: str | None,
) -> JobView:
    """The queued job for a stored upload or a reference; an upload that asks for something impossible, or came before,
    is removed."""
    try:
        submission = _submission(submitted, services.settings.job_time_limit_seconds)
        request, handling, sha256 = submission.request, submission.handling, submission.upload_sha256
        model = services.catalog.find(submission.model)
        model.require_targets(request.targets)
        check_exchange(submission.exchange, services.settings)
        new = NewJob(
            job_id,
            model.id,
            request,
            upload_bytes=submission.bytes,
            upload_files=submission.files,
            tenant=caller.tenant,
            key_id=caller.key_id,
            callback_url=_allowed_callback(services.settings, caller, submission.callback_url),
            priority=handling.priority,
            idempotency_key=idempotency_key,
            request_hash=submission.hash if idempotency_key else None,
            batch_id=handling.batch_id,
            input_hash=sha256,
            result_key=sha256 and result_key(sha256, model.sha256, services.settings.precision, request),
            reuse=handling.reuse,
            time_limit_seconds=handling.time_limit_seconds,
            exchange=submission.exchange,
        )
        job = services.store.create(new)
    except StorageUnavailable:
        raise  # the row may have been written all the same; if not, the upload is an orphan and will be swept
    except BaseException:
        services.storage.delete_upload(job_id)
        raise
    if job.id != job_id:  # the same request came before
        services.storage.delete_upload(job_id)
        return view_of(services, job)
    services.dispatch(job.id, job.priority)
    return view_of(services, job)


def _submission(submitted: ReferencedStudy | ReceivedUpload, longest_seconds: float) -> _Submission:
    if isinstance(submitted, ReferencedStudy):
        return _Submission(
            submitted.model,
            submitted.choices,
            Exchange(source=submitted.reference, push=submitted.push),
            _within(submitted.handling, longest_seconds),
            submitted.callback_url,
            request_hash("", {"reference": [submitted.model_dump_json()]}),
        )
    return _Submission(
        _single(submitted, "model"),
        _segmentation_request(submitted),
        _validated(Exchange, {"push": _several(submitted, "push")}),
        _within(_validated(Handling, {name: _single(submitted, name) for name in HANDLING_FIELDS}), longest_seconds),
        _single(submitted, "callback_url"),
        request_hash(submitted.sha256, submitted.fields),
        submitted.sha256,
        submitted.bytes,
        submitted.files,
    )


def _segmentation_request(upload: ReceivedUpload) -> SegmentationRequest:
    """The choices that the form states; one that it leaves out or empty is the request's own default."""
    single = {
        name: _single(upload, name)
        for name in ("mode", "overlap", "postprocessing", "series", "seg_type", "deidentify")
    }
    several = {name: _several(upload, name) or None for name in ("targets", "outputs")}
    return _validated(SegmentationRequest, {**several, **single})


def _within(handling: Handling, longest_seconds: float) -> Handling:
    if (handling.time_limit_seconds or 0.0) > longest_seconds:
        raise RequestError(f"time_limit_seconds: the limit of this service is {longest_seconds:g} s; state no more.")
    return handling


def _validated(kind: type[_Choices], values: Mapping[str, object]) -> _Choices:
    """The choices that a form states; one that it leaves out or empty keeps its default."""
    try:
        return kind.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        raise RequestError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _allowed_callback(settings: Settings, caller: Caller, url: str | None) -> str | None:
    if url is None:
        return None
    if settings.webhook_secret_of(caller.tenant) is None:
        raise CallbackRefused("This service sends no webhooks; its operator has not set a secret to sign them with.")
    CallbackPolicy(settings.webhook_allowed_networks).check_url(url)
    return url


def _single(upload: ReceivedUpload, name: str) -> str | None:
    values = [value.strip() for value in upload.fields.get(name, []) if value.strip()]
    if len(values) > 1:
        raise RequestError(f"The field {name!r} is given {len(values)} times; give it once.")
    return values[0] if values else None


def _several(upload: ReceivedUpload, field: str) -> list[str]:
    """The names that a field lists, each once, in the order they were named."""
    names = (name.strip() for value in upload.fields.get(field, []) for name in value.split(","))
    return list(dict.fromkeys(name for name in names if name))


def view_of(services: Services, job: Job) -> JobView:
    """The job as its owner sees it now."""
    position = services.store.queue_position(job.id) if job.status is JobStatus.QUEUED else None
    return JobView.of(job, position, services.estimator.eta_seconds(job, position))


def poll_seconds(view: JobView) -> int:
    """Short while the job runs or is next, longer the further back it waits."""
    return min(MAX_POLL_SECONDS, max(POLL_SECONDS_RUNNING, view.queue_position or 0))
