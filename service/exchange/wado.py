"""WADO-RS: a referenced study comes from its PACS, file by file, within limits of size, number and time."""

import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO, Final

import httpx
import structlog

from service.errors import ReferenceNotFound, ReferenceUnreachable, UploadTooLarge
from service.exchange.http import describe_failure, open_client
from service.exchange.multipart import MultipartError, RelatedParts
from service.exchange.plan import StudyReference
from service.exchange.reference import check_reference
from service.progress import Progress, Stage
from service.settings import Settings

#: `*`: as the PACS stores them; by default it would decompress.
ACCEPT: Final = 'multipart/related; type="application/dicom"; transfer-syntax=*'
PAUSES_SECONDS: Final = (1.0, 4.0)  # before the second and the third try
_BUSY: Final = {
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class FetchLimits:
    """How much one reference may bring."""

    bytes: int
    files: int
    seconds: float


class _Transient(Exception):
    """It may go better next time; the text says what happened."""


def fetch_study(reference: StudyReference, into: Path, settings: Settings, progress: Progress) -> Path:
    """The files of the study, in a folder `into` that this makes; a try that fails leaves nothing for the next.

    Raises:
        ReferenceRefused, UnknownPeer: the settings do not allow it.
        ReferenceNotFound: the PACS has no such study, or nothing in it.
        ReferenceUnreachable: the PACS did not deliver it, even when asked again.
        UploadTooLarge: more bytes or files than an upload may have.
        JobCanceled: comes through from `progress`.
    """
    peer = check_reference(reference, settings)
    limits = FetchLimits(settings.max_upload_bytes, settings.max_upload_files, settings.fetch_seconds)
    deadline = time.monotonic() + limits.seconds
    with open_client(peer) as client:
        for pause in (*PAUSES_SECONDS, None):
            try:
                with closing(_Files(into, limits)) as sink:
                    _fetch(client, reference.url, sink, deadline, progress)
            except _Transient as trouble:
                shutil.rmtree(into)
                if pause is None or time.monotonic() + pause > deadline:
                    raise _unreachable(str(trouble)) from trouble
                log.warning("reference.retried", reason=str(trouble), pause_seconds=pause)
                time.sleep(pause)
            else:
                log.info("reference.fetched", files=sink.files, bytes=sink.bytes)
                return into
    raise AssertionError


def _fetch(client: httpx.Client, url: str, sink: "_Files", deadline: float, progress: Progress) -> None:
    progress(Stage.FETCHING, 0.0)
    with _translated(), client.stream("GET", url, headers={"Accept": ACCEPT}) as response:
        _check_status(response)
        try:
            parts = RelatedParts(response.headers.get("Content-Type"), sink)
            expected = int(response.headers.get("Content-Length") or 0)
            received = 0
            for chunk in response.iter_raw():
                parts.feed(chunk)
                received += len(chunk)
                progress(Stage.FETCHING, received / expected if expected else 0.5)
                if time.monotonic() > deadline:
                    raise _unreachable("it took longer than the setting VISCERA_FETCH_SECONDS allows")
            parts.finish()
        except MultipartError as error:
            raise _unreachable(f"its answer is no study: {error}") from error
    if not sink.bytes:
        raise ReferenceNotFound("The PACS answered with an empty study. Check the study's UID.")
    progress(Stage.FETCHING, 1.0)


def _check_status(response: httpx.Response) -> None:
    status = response.status_code
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE, HTTPStatus.NO_CONTENT):
        raise ReferenceNotFound(f"The PACS has no such study or series (it answered {status}). Check the UIDs.")
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise _unreachable(
            f"it answered {status}: name `credentials` that it accepts, or have the operator correct those of the peer"
        )
    if status in _BUSY:
        raise _Transient(f"it answered {status}")
    if response.is_redirect:
        raise _unreachable("it redirects, which is not followed; send the final address")
    if status != HTTPStatus.OK:
        raise _unreachable(f"it answered {status}")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise _unreachable("it compresses its answers although it was asked not to")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except httpx.UnsupportedProtocol as error:
        raise _unreachable("its address cannot be used") from error
    except httpx.TransportError as error:
        raise _Transient(describe_failure(error)) from error


def _unreachable(reason: str) -> ReferenceUnreachable:
    return ReferenceUnreachable(f"The PACS did not deliver the study: {reason}. Then submit the reference again.")


class _Files:
    """Writes each part to a file of its own."""

    def __init__(self, folder: Path, limits: FetchLimits) -> None:
        self._folder = folder
        self._limits = limits
        self._file: BinaryIO | None = None
        self.files = 0
        self.bytes = 0
        folder.mkdir(mode=0o700)

    def begin(self) -> None:
        self.files += 1
        if self.files > self._limits.files:
            raise UploadTooLarge(
                f"The referenced study has more than {self._limits.files} files. Refer to its CT series only."
            )
        self._file = (self._folder / f"{self.files:05d}.dcm").open("xb")

    def data(self, piece: bytes) -> None:
        assert self._file is not None
        self.bytes += len(piece)
        if self.bytes > self._limits.bytes:
            raise UploadTooLarge(
                f"The referenced study exceeds the limit of {self._limits.bytes} bytes. Refer to its CT series only."
            )
        self._file.write(piece)

    def end(self) -> None:
        assert self._file is not None
        self._file.close()
        self._file = None

    def close(self) -> None:
        """Let go of a file that was cut short."""
        if self._file is not None:
            self._file.close()
