"""STOW-RS: a PACS stores studies here, and each becomes a job."""

from http import HTTPStatus
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from service.api.auth import AUTH_PROBLEMS, CallerDep, check_quota, needs
from service.api.body import allow_body
from service.api.dependencies import ServicesDep
from service.api.problems import merged, problems
from service.api.uploads import UploadLimits, check_declared_length, too_many_bytes
from service.errors import (
    BodyTooLarge,
    EmptyUpload,
    InternalError,
    ModelNotFound,
    QuotaExceeded,
    RateLimited,
    RequestError,
    RequestTooSlow,
    StorageUnavailable,
    UnknownLabel,
    UnknownPeer,
    UnreadableUpload,
    UploadTooLarge,
)
from service.exchange.instance import CT_CLASSES, Instance
from service.exchange.intake import Intake
from service.exchange.multipart import DICOM_TYPE, MultipartError, RelatedParts
from service.exchange.stow_door import ArrivingParts, StowOutcome
from service.jobs.keys import Scope

DICOM_JSON = "application/dicom+json"
SENDER = "stow-rs"


class DicomJson(JSONResponse):
    """A dataset as DICOM JSON (PS3.18 F)."""

    media_type = DICOM_JSON


router = APIRouter(
    prefix="/dicomweb",
    tags=["dicomweb"],
    responses=merged(AUTH_PROBLEMS, problems(InternalError, StorageUnavailable, ModelNotFound)),
)

STUDY_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        'multipart/related; type="application/dicom"': {
            "schema": {"type": "string", "format": "binary"},
        }
    },
}
_EXAMPLE = StowOutcome(stored=[Instance(CT_CLASSES[0], "1.2.840.113619.2.55.3.1", "1.2.840.113619.2.55.3")])
_DATASET = {DICOM_JSON: {"schema": {"type": "object"}, "example": _EXAMPLE.to_dataset()}}
_LINKS = {
    "Link": {
        "description": 'The job of each study, `</v1/jobs/<id>>; rel="related"`.',
        "schema": {"type": "string"},
    },
    "Location": {"description": "The job, when the request holds one study.", "schema": {"type": "string"}},
}


@router.post(
    "/studies",
    operation_id="storeStudies",
    summary="Store CT instances (STOW-RS)",
    response_class=DicomJson,
    responses={
        200: {"description": "Every instance was stored.", "headers": _LINKS, "content": _DATASET},
        202: {"description": "Some instances were stored.", "headers": _LINKS, "content": _DATASET},
        409: {"description": "No instance was stored.", "content": _DATASET},
        **problems(
            RequestError,
            RequestTooSlow,
            UploadTooLarge,
            UnreadableUpload,
            EmptyUpload,
            UnknownLabel,
            UnknownPeer,
            RateLimited,
            QuotaExceeded,
        ),
    },
    openapi_extra={"requestBody": STUDY_BODY},
    dependencies=[needs(Scope.SUBMIT)],
)
async def store_studies(request: Request, caller: CallerDep, services: ServicesDep) -> DicomJson:
    """A study may come in many requests: its job starts when nothing more of it has come for a while."""
    await to_thread.run_sync(check_quota, caller, services.keys)
    settings = services.settings
    limits = UploadLimits(settings.max_upload_bytes, settings.max_upload_files)
    check_declared_length(request, limits)
    allow_body(request, limits.bytes)
    intake = Intake(
        settings, services.store, services.storage, services.catalog, tenant=caller.tenant, key_id=caller.key_id
    )
    arriving = ArrivingParts(intake, services.identify, SENDER)
    try:
        parts = RelatedParts(request.headers.get("content-type"), arriving)
    except MultipartError as error:
        raise UnreadableUpload(f'Send DICOM files as multipart/related; type="{DICOM_TYPE}": {error}.') from error
    try:
        async for chunk in request.stream():
            services.metrics.upload_bytes.inc(len(chunk))
            await to_thread.run_sync(parts.feed, chunk)
        parts.finish()
    except BaseException as error:
        await to_thread.run_sync(arriving.abandon, error)
        if isinstance(error, BodyTooLarge):
            raise too_many_bytes(limits) from error
        if isinstance(error, MultipartError):
            raise RequestError(f"The multipart body cannot be read: {error}.") from error
        raise
    return _answer(arriving.outcome)


def _answer(outcome: StowOutcome) -> DicomJson:
    if not outcome.stored and not outcome.failed:
        raise EmptyUpload("The request holds no instance; send DICOM files as parts of type application/dicom.")
    status = HTTPStatus.OK if not outcome.failed else HTTPStatus.ACCEPTED if outcome.stored else HTTPStatus.CONFLICT
    addresses = [f"/v1/jobs/{job_id}" for job_id in outcome.job_ids]
    headers = {}
    if addresses:
        headers["Link"] = ", ".join(f'<{address}>; rel="related"' for address in addresses)
    if len(addresses) == 1:
        headers["Location"] = addresses[0]
    return DicomJson(outcome.to_dataset(), status_code=status, headers=headers)
