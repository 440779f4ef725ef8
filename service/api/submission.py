"""What a caller may say about the handling of a job, beside what to segment: form fields and the idempotency key."""

from typing import Annotated

from fastapi import Header
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from service.jobs.job import Priority

BATCH_ID_PATTERN = r"^[A-Za-z0-9._\-]{1,64}$"
BatchId = Annotated[str, StringConstraints(pattern=BATCH_ID_PATTERN)]

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Chosen by the caller for this request, such as a UUID. A request that comes again with the same "
        "key and the same content is answered with the first one's job; with other content it is refused.",
        examples=["7d3f9a52-58c1-4a36-9f0e-0b8a4f7d9d11"],
    ),
]


class Handling(BaseModel):
    """How a job is to be handled; nothing of this changes its result."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    priority: Priority = Field(
        default=Priority.ROUTINE,
        description="Which job a free worker takes first: `stat`, then `routine`, then `batch`; the oldest of equals.",
    )
    reuse: bool = Field(
        default=True,
        description="Take a stored result of the same files, model and choices instead of a run; the job then says "
        "`reused_from`.",
    )
    batch_id: BatchId | None = Field(
        default=None,
        description="A name of your choice that the jobs of one batch share: `GET /v1/jobs?batch_id=` lists them.",
        examples=["trial-7"],
    )
    time_limit_seconds: float | None = Field(
        default=None,
        gt=0,
        description="The job fails with `time-limit-exceeded` when it runs longer; at most, and by default, the limit "
        "of the service.",
        examples=[600],
    )


HANDLING_FIELDS = tuple(Handling.model_fields)
