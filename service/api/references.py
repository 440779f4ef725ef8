"""A job by reference: a JSON body that names a study of a PACS instead of holding it."""

from fastapi import Request
from pydantic import Field, ValidationError

from service.api.submission import Handling
from service.callbacks import MAX_URL_LENGTH
from service.errors import RequestError
from service.exchange.plan import MAX_DESTINATIONS, PeerName, StudyReference
from service.request import SegmentationRequest

JSON = "application/json"
CALLBACK_DESCRIPTION = (
    "https address that is told when the job has ended, by a signed webhook (Standard Webhooks); see docs/api.md."
)


class ReferencedStudy(Handling, SegmentationRequest):
    """A study to fetch, and the same choices as in the form."""

    reference: StudyReference
    model: str | None = Field(
        default=None,
        max_length=200,
        description="Id or name of a model (`GET /v1/models`); the default model otherwise.",
        examples=["viscera-compact"],
    )
    push: tuple[PeerName, ...] = Field(
        default=(),
        max_length=MAX_DESTINATIONS,
        description="Names of peers in the setting `VISCERA_PEERS` that get the DICOM results.",
        examples=[["pacs"]],
    )

    callback_url: str | None = Field(default=None, max_length=MAX_URL_LENGTH, description=CALLBACK_DESCRIPTION)

    @property
    def choices(self) -> SegmentationRequest:
        """The choices about the segmentation alone."""
        return SegmentationRequest.model_validate(self.model_dump(include=set(SegmentationRequest.model_fields)))

    @property
    def handling(self) -> Handling:
        """How the job is to be handled."""
        return Handling.model_validate(self.model_dump(include=set(Handling.model_fields)))


def is_reference(request: Request) -> bool:
    """Whether the body is JSON, and so a reference."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == JSON


async def receive_reference(request: Request) -> ReferencedStudy:
    """The reference in the body of `request`.

    Raises:
        RequestError: the body is no JSON, or not of this form.
        BodyTooLarge, RequestTooSlow: see `service.api.body`.
    """
    try:
        return ReferencedStudy.model_validate_json(await request.body())
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "body"
        raise RequestError(f"{place}: {first['msg']}") from error
