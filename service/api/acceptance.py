"""From what came over HTTP to a queued job: a form or a JSON body is checked, and its job put into the table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from service.api.caller import Caller
from service.api.dependencies import Services
from service.api.references import ReferencedStudy
from service.api.submission import HANDLING_FIELDS, Handling
from service.api.uploads import ReceivedUpload
from service.callbacks import CallbackPolicy
from service.errors import CallbackRefused, RequestError, StorageUnavailable
from service.exchange.plan import Exchange
from service.exchange.reference import check_exchange
from service.fingerprint import request_hash, result_key
from service.jobs.job import Job, NewJob
from service.request import SegmentationRequest
from service.settings import Settings

_Choices = TypeVar("_Choices", bound=BaseModel)


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


def accept(
    services: Services,
    caller: Caller,
    job_id: str,
    submitted: ReferencedStudy | ReceivedUpload,
    idempotency_key: str | None,
    traceparent: str | None = None,
) -> Job:
    """The queued job for a stored upload or a reference; an upload that asks for something impossible, or came before,
    is removed.

    Raises:
        VisceraError: what it asks for cannot be, or the job table is away.
    """
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
            traceparent=traceparent,
        )
        job = services.store.create(new)
    except StorageUnavailable:
        raise  # the row may have been written all the same; if not, the upload is an orphan and will be swept
    except BaseException:
        services.storage.delete_upload(job_id)
        raise
    if job.id != job_id:  # the same request came before
        services.storage.delete_upload(job_id)
        return job
    services.dispatch(job.id, job.priority)
    return job


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
