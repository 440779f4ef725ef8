"""STOW-RS: a PACS stores studies here, and each becomes a job."""

from http import HTTPStatus
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from service.api.dependencies import ServicesDep
from service.api.problems import problems
from service.api.uploads import UploadLimits, check_declared_length, too_many_bytes
from service.errors import (
    EmptyUpload,
    InternalError,
    ModelNotFound,
    RequestError,
    StorageUnavailable,
    UnknownLabel,
    UnknownPeer,
    UnreadableUpload,
    UploadTooLarge,
)
from service.exchange.intake import Intake
from service.exchange.multipart import DICOM_TYPE, MultipartError, RelatedParts
from service.exchange.stow_door import ArrivingParts, StowOutcome

DICOM_JSON = "application/dicom+json"
SENDER = "stow-rs"

router = APIRouter(
    prefix="/dicomweb", tags=["dicomweb"], responses=problems(InternalError, StorageUnavailable, ModelNotFound)
)

STUDY_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        'multipart/related; type="application/dicom"': {
            "schema": {"type": "string", "format": "binary"},
        }
    },
}
_DATASET = {DICOM_JSON: {"schema": {"type": "object"}}}
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
    response_class=JSONResponse,
    responses={
        200: {"description": "Every instance was stored.", "headers": _LINKS, "content": _DATASET},
        202: {"description": "Some instances were stored.", "headers": _LINKS, "content": _DATASET},
        409: {"description": "No instance was stored.", "content": _DATASET},
        **problems(RequestError, UploadTooLarge, UnreadableUpload, EmptyUpload, UnknownLabel, UnknownPeer),
    },
    openapi_extra={"requestBody": STUDY_BODY},
)
async def store_studies(request: Request, services: ServicesDep) -> JSONResponse:
    """A study may come in many requests: its job starts when nothing more of it has come for a while."""
    settings = services.settings
    limits = UploadLimits(settings.max_upload_bytes, settings.max_upload_files)
    check_declared_length(request, limits)
    intake = Intake(settings, services.store, services.storage, services.catalog)
    arriving = ArrivingParts(intake, services.identify, SENDER)
    try:
        parts = RelatedParts(request.headers.get("content-type"), arriving)
    except MultipartError as error:
        raise UnreadableUpload(f'Send DICOM files as multipart/related; type="{DICOM_TYPE}": {error}.') from error
    received = 0
    try:
        async for chunk in request.stream():
            received += len(chunk)
            if received > limits.bytes:
                raise too_many_bytes(limits)
            await to_thread.run_sync(parts.feed, chunk)
        parts.finish()
    except BaseException as error:
        await to_thread.run_sync(arriving.abandon, error)
        if isinstance(error, MultipartError):
            raise RequestError(f"The multipart body cannot be read: {error}.") from error
        raise
    return _answer(arriving.outcome)


def _answer(outcome: StowOutcome) -> JSONResponse:
    if not outcome.stored and not outcome.failed:
        raise EmptyUpload("The request holds no instance; send DICOM files as parts of type application/dicom.")
    status = HTTPStatus.OK if not outcome.failed else HTTPStatus.ACCEPTED if outcome.stored else HTTPStatus.CONFLICT
    addresses = [f"/v1/jobs/{job_id}" for job_id in outcome.job_ids]
    headers = {}
    if addresses:
        headers["Link"] = ", ".join(f'<{address}>; rel="related"' for address in addresses)
    if len(addresses) == 1:
        headers["Location"] = addresses[0]
    return JSONResponse(outcome.to_dataset(), status_code=status, headers=headers, media_type=DICOM_JSON)
