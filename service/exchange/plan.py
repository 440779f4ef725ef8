"""Where a job's study comes from and where its results go, as the job table keeps it."""

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from service.errors import PushFailed

PeerName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]

MAX_DESTINATIONS = 8

NOTHING_TO_PUSH: Final = "nothing-to-push"
PUSH_NOTICES: Final = frozenset({PushFailed.code, NOTHING_TO_PUSH})
"""Codes of remarks on the sending, which are about a job and not about its result."""


class StudyReference(BaseModel):
    """A study or series of a DICOMweb service (WADO-RS), and the name of the peer whose credentials open it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(
        max_length=2048,
        description="WADO-RS address of a study, `https://.../studies/<uid>`, or of a series, `.../series/<uid>`. Its "
        "host must be in the setting `VISCERA_REFERENCE_HOSTS`.",
        examples=["https://pacs.example.org/dicom-web/studies/1.2.840.113619.2.55.3.604688119.971"],
    )
    credentials: PeerName | None = Field(
        default=None,
        description="Name of the peer in the setting `VISCERA_PEERS` whose credentials to use; none otherwise.",
        examples=["pacs"],
    )


class Exchange(BaseModel):
    """What of a job comes from elsewhere or goes there; by default nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: StudyReference | None = None  #: None: the study was uploaded
    push: tuple[PeerName, ...] = Field(default=(), max_length=MAX_DESTINATIONS)  #: peers that get the DICOM results


NO_EXCHANGE = Exchange()
