"""STOW-RS, receiving: the parts of a request become instances of held jobs, or a reason why not.

A part waits in memory only until its head names its study; the rest goes straight to storage.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

from service.errors import StudyClosed, UploadTooLarge
from service.exchange.instance import CT_CLASSES, LONGEST_HEAD_BYTES, Identify, Instance, NotAnInstance
from service.exchange.intake import InstanceFile, Intake

#: Failure reasons of PS3.18 10.5.3 and PS3.7 C.
NOT_UNDERSTOOD: Final = 0xC000
CLASS_NOT_SUPPORTED: Final = 0x0122
OUT_OF_RESOURCES: Final = 0xA700

_FIRST_LOOK_BYTES: Final = 8192


@dataclass(frozen=True)
class Failure:
    """An instance that was not stored; which one, where its header could be read."""

    reason: int
    instance: Instance | None = None


@dataclass
class StowOutcome:
    """What became of the instances of one request."""

    stored: list[Instance] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    job_ids: list[str] = field(default_factory=list)  #: in the order of their first instance

    def to_dataset(self) -> dict[str, Any]:
        """The response of PS3.18 10.5.3 as DICOM JSON. RetrieveURL is empty: instances cannot be fetched from here."""
        dataset: dict[str, Any] = {"00081190": {"vr": "UR"}}
        if self.failed:
            dataset["00081198"] = {"vr": "SQ", "Value": [_failed_item(failure) for failure in self.failed]}
        if self.stored:
            items = [_reference(instance) | {"00081190": {"vr": "UR"}} for instance in self.stored]
            dataset["00081199"] = {"vr": "SQ", "Value": items}
        return dataset


class ArrivingParts:
    """A sink for the parts of a request (`service.exchange.multipart`); blocks on disk and database."""

    def __init__(self, intake: Intake, identify: Identify, sender: str) -> None:
        self._intake = intake
        self._identify = identify
        self._sender = sender
        self._opened = ExitStack()
        self._head = bytearray()
        self._look_at = _FIRST_LOOK_BYTES
        self._instance: Instance | None = None
        self._file: InstanceFile | None = None
        self._failed = False
        self.outcome = StowOutcome()

    def begin(self) -> None:
        """A part begins."""
        self._head.clear()
        self._look_at = _FIRST_LOOK_BYTES
        self._instance, self._file, self._failed = None, None, False

    def data(self, piece: bytes) -> None:
        """The next bytes of the part."""
        if self._failed:
            return
        if self._file is not None:
            self._write(piece)
            return
        self._head += piece
        if len(self._head) >= self._look_at:
            self._look(complete=False)
            self._look_at = 4 * len(self._head)

    def end(self) -> None:
        """The part is complete: an instance is stored, or has failed."""
        if self._file is None and not self._failed:
            self._look(complete=True)
        if self._failed:
            return
        assert self._instance is not None
        try:
            self._opened.close()
        except (StudyClosed, UploadTooLarge):
            self._fail(OUT_OF_RESOURCES)
        else:
            self.outcome.stored.append(self._instance)

    def abandon(self, error: BaseException) -> None:
        """The request ends here: drop the part that is under way."""
        self._opened.__exit__(type(error), error, error.__traceback__)

    def _look(self, *, complete: bool) -> None:
        try:
            self._instance = self._identify(bytes(self._head), complete)
        except NotAnInstance:
            self._fail(NOT_UNDERSTOOD)
            return
        if self._instance is None:
            if complete or len(self._head) > LONGEST_HEAD_BYTES:
                self._fail(NOT_UNDERSTOOD)
        elif self._instance.sop_class_uid not in CT_CLASSES:
            self._fail(CLASS_NOT_SUPPORTED)
        else:
            self._open(self._instance)

    def _open(self, instance: Instance) -> None:
        try:
            job = self._intake.open(self._sender, instance.study_uid)
        except UploadTooLarge:
            self._fail(OUT_OF_RESOURCES)
            return
        if job.id not in self.outcome.job_ids:
            self.outcome.job_ids.append(job.id)
        self._file = self._opened.enter_context(self._intake.instance(job))
        self._write(bytes(self._head))
        self._head.clear()

    def _write(self, piece: bytes) -> None:
        assert self._file is not None
        try:
            self._file.write(piece)
        except (StudyClosed, UploadTooLarge) as error:
            self.abandon(error)
            self._fail(OUT_OF_RESOURCES)

    def _fail(self, reason: int) -> None:
        self._failed = True
        self.outcome.failed.append(Failure(reason, self._instance))


def _reference(instance: Instance) -> dict[str, Any]:
    return {
        "00081150": {"vr": "UI", "Value": [instance.sop_class_uid]},
        "00081155": {"vr": "UI", "Value": [instance.sop_instance_uid]},
    }


def _failed_item(failure: Failure) -> dict[str, Any]:
    reference = {} if failure.instance is None else _reference(failure.instance)
    return reference | {"00081197": {"vr": "US", "Value": [failure.reason]}}
