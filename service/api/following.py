"""Following a job: by polling with ETags, by requests that wait for a change, or by a stream of events."""

import hashlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from service.api.auth import AUTH_PROBLEMS, CallerDep, needs
from service.api.caller import Caller
from service.api.dependencies import Services, ServicesDep
from service.api.examples import EXAMPLE_JOB
from service.api.jobs import JobId, poll_seconds, view_of
from service.api.problems import NothingNewError, merged, problems
from service.api.schemas import JobView
from service.errors import InternalError, JobNotFound, RequestError, StorageUnavailable
from service.jobs.job import Glimpse, JobStatus
from service.jobs.keys import Scope

MAX_WAIT_SECONDS = 60
# Then the stream ends and the client takes it up again, with a key that is looked at again.
STREAM_SECONDS = 15 * 60.0
PROGRESS_EVENT = "job"
FINAL_EVENT = "end"

EXAMPLE_EVENTS = f"""\
event: {PROGRESS_EVENT}
data: {json.dumps(EXAMPLE_JOB)}
id: 7e1c2f0a9b3d4c587e1c2f0a9b3d4c58

"""

EVENTS_SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["event", "data", "id"],
        "properties": {
            "event": {"enum": [PROGRESS_EVENT, FINAL_EVENT]},
            "data": {"type": "string", "contentMediaType": "application/json", "description": "The job (`JobView`)."},
            "id": {"type": "string", "description": "For `Last-Event-ID`."},
        },
    },
}

router = APIRouter(
    prefix="/v1/jobs/{job_id}",
    tags=["jobs"],
    responses=merged(AUTH_PROBLEMS, problems(JobNotFound, InternalError, StorageUnavailable)),
    dependencies=[needs(Scope.READ)],
)


@dataclass(frozen=True)
class Sight:
    """A job as it was at one moment, ready to be sent."""

    view: JobView
    glimpse: Glimpse
    body: bytes
    digest: str  #: of the body without what passes with time alone

    @property
    def etag(self) -> str:
        """The entity tag of the job: a weak one, since the estimate of its end moves without a change."""
        return f'W/"{self.digest}"'


def see(services: Services, caller: Caller, job_id: str) -> Sight:
    """The job as it is now.

    Raises:
        JobNotFound: the caller's tenant has no such job.
    """
    job = services.store.get(job_id, tenant=caller.tenant)
    view = view_of(services, job)
    while job.status is JobStatus.QUEUED and view.queue_position is None:  # it left the queue between two looks
        job = services.store.get(job_id, tenant=caller.tenant)
        view = view_of(services, job)
    body = view.model_dump_json().encode()
    lasting = (
        body if view.eta_seconds is None else view.model_copy(update={"eta_seconds": None}).model_dump_json().encode()
    )
    digest = hashlib.sha256(lasting).hexdigest()[:32]
    return Sight(view, Glimpse(job.revision, view.queue_position), body, digest)


async def see_change(services: Services, caller: Caller, known: Sight, until: float) -> Sight:
    """The job once it differs from `known`, or as it is at `until` (monotonic)."""
    seen = known
    while seen.digest == known.digest and not seen.view.status.terminal and not services.watch.closed:
        left = until - time.monotonic()
        if left <= 0:
            break
        await services.watch.change(seen.view.id, seen.glimpse, left)
        seen = await to_thread.run_sync(see, services, caller, known.view.id)
    return seen


@router.get(
    "",
    operation_id="getJob",
    summary="Follow a job",
    response_model=JobView,
    responses={
        200: {
            "headers": {
                "ETag": {"description": "Of the job as it stands.", "schema": {"type": "string"}},
                "Retry-After": {
                    "description": "Seconds until the next poll; absent once the job has ended.",
                    "schema": {"type": "integer"},
                },
            }
        },
        304: {"description": "The job is still the one that If-None-Match names."},
        **problems(RequestError),
    },
)
async def get_job(
    job_id: JobId,
    caller: CallerDep,
    services: ServicesDep,
    wait: Annotated[
        int,
        Query(ge=0, le=MAX_WAIT_SECONDS, description="Answer when the job changes, or after so many seconds."),
    ] = 0,
    if_none_match: Annotated[str | None, Header(description="ETag of the job that the caller knows.")] = None,
) -> Response:
    """The job as it stands.

    Poll it as often as `Retry-After` asks, with `If-None-Match`; or let each request wait for a change with `wait`: a
    job that differs from `If-None-Match`, or has ended, is answered at once.
    """
    seen = await to_thread.run_sync(see, services, caller, job_id)
    tags = [tag.strip().removeprefix("W/").strip('"') for tag in (if_none_match or "").split(",")]
    is_known = seen.digest in tags or "*" in tags
    if wait and (is_known or if_none_match is None):
        seen = await see_change(services, caller, seen, time.monotonic() + wait)
        is_known = seen.digest in tags or "*" in tags
    headers = {"ETag": seen.etag}
    if not seen.view.status.terminal:
        headers["Retry-After"] = str(poll_seconds(seen.view))
    if is_known:
        return Response(status_code=304, headers=headers)
    return Response(seen.body, headers=headers, media_type="application/json")


async def first_sight(
    job_id: JobId,
    caller: CallerDep,
    services: ServicesDep,
    last_event_id: Annotated[
        str | None, Header(description="Id of the last event that the caller has, to go on after it.", max_length=64)
    ] = None,
) -> Sight:
    """The job when the stream begins: what is wrong with the request must be known before that."""
    seen = await to_thread.run_sync(see, services, caller, job_id)
    if seen.view.status.terminal and last_event_id == seen.digest:
        raise NothingNewError
    return seen


@router.get(
    "/events",
    operation_id="getJobEvents",
    summary="Follow a job by server-sent events",
    response_class=EventSourceResponse,
    responses={
        200: {
            "description": f"Events `{PROGRESS_EVENT}` and, at last, `{FINAL_EVENT}`; the data of each is the job.",
            "content": {"text/event-stream": {"schema": EVENTS_SCHEMA, "example": EXAMPLE_EVENTS}},
        },
        204: {"description": "The caller has the last event already."},
        **problems(RequestError),
    },
)
async def get_job_events(
    first: Annotated[Sight, Depends(first_sight)],
    caller: CallerDep,
    services: ServicesDep,
    last_event_id: Annotated[str | None, Header(max_length=64)] = None,
) -> AsyncIterator[ServerSentEvent]:
    """An event with the whole job at first and after each change; the stream ends when the job has.

    A stream that breaks is resumed with `Last-Event-ID`. Events in between are not replayed, since each tells
    everything.
    """
    until = time.monotonic() + STREAM_SECONDS
    seen, sent = first, last_event_id
    while True:
        if seen.digest != sent:
            name = FINAL_EVENT if seen.view.status.terminal else PROGRESS_EVENT
            yield ServerSentEvent(raw_data=seen.body.decode(), event=name, id=seen.digest)
            sent = seen.digest
        if seen.view.status.terminal or services.watch.closed or time.monotonic() >= until:
            return
        try:
            seen = await see_change(services, caller, seen, until)
        except (JobNotFound, StorageUnavailable):
            return  # deleted, or out of sight: the client asks again and gets the reason
