"""A Viscera service seen from the caller's side: submit a study, follow the job, fetch what it found.

    with Viscera("http://127.0.0.1:8000", api_key=key) as viscera:
        job = viscera.submit([Path("ct.nii.gz")])
        job = viscera.wait(job["id"])
        findings = viscera.findings(job["id"])

Answers are the JSON documents of `openapi.yaml` as typed dictionaries. Uploads and downloads are streamed. The names of
local files, which may carry a patient's name, are not sent.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self, TypedDict
from uuid import uuid4

import httpx

TERMINAL_STATUSES = frozenset({"succeeded", "failed", "canceled"})
API_KEY_VARIABLE = "VISCERA_API_KEY"
CHUNK_BYTES = 256 * 1024
KEPT_SUFFIXES = (".nii.gz", ".nii", ".zip")
DEFAULT_POLL_SECONDS = 1.0
LONG_POLL_SECONDS = 20
FINAL_EVENT = "end"


class ProblemDocument(TypedDict):
    """Why a job failed."""

    type: str  #: `/problems/<code>`
    title: str
    detail: str


class WarningDocument(TypedDict):
    """What to know before trusting a result."""

    code: str
    message: str
    subject: str | None


class JobLinksDocument(TypedDict):
    """Addresses that belong to a job; None while there is nothing there."""

    self: str
    cancel: str | None
    findings: str | None
    artifacts: str | None


class JobDocument(TypedDict):
    """A job as the service tells it; a newer service may tell more."""

    id: str
    status: Literal["queued", "running", "succeeded", "failed", "canceled"]
    stage: str | None
    percent: float
    queue_position: int | None
    eta_seconds: int | None
    priority: Literal["stat", "routine", "batch"]
    batch_id: str | None
    cancel_requested: bool
    attempts: int
    model: str
    targets: list[str] | None
    upload_bytes: int
    upload_files: int
    created_at: str
    started_at: str | None
    finished_at: str | None
    time_limit_seconds: float | None
    stage_seconds: dict[str, float]
    reused_from: str | None
    expires_at: str | None
    expired: bool
    error: ProblemDocument | None
    warnings: list[WarningDocument]
    links: JobLinksDocument


class JobPageDocument(TypedDict):
    """Some jobs, newest first."""

    jobs: list[JobDocument]
    next_cursor: str | None


class ArtifactDocument(TypedDict):
    """One file of a result."""

    name: str
    media_type: str
    bytes: int
    sha256: str
    href: str


class UnreachableError(Exception):
    """No Viscera service answers at the address."""


class ProblemError(Exception):
    """The service answered with an RFC 9457 problem.

    Attributes:
        status: the HTTP status.
        code: the stable kind of problem, such as `not-hu`.
        title: the kind in a few words.
        detail: what is wrong and what to do.
    """

    def __init__(self, status: int, code: str, title: str, detail: str) -> None:
        super().__init__(f"{title} ({code}): {detail}")
        self.status = status
        self.code = code
        self.title = title
        self.detail = detail


class Viscera:
    """A connection to one service; use it as a context manager, or call `close`."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        transport: httpx.BaseTransport | None = None,
        timeout_seconds: float = 60.0,
    ) -> None:
        """A client of the service at `url`.

        Args:
            url: its address.
            api_key: an API key or token; that of the variable VISCERA_API_KEY otherwise.
            transport: in place of the network.
            timeout_seconds: for each step of an exchange.
        """
        key = api_key or os.environ.get(API_KEY_VARIABLE)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url, headers=headers, transport=transport, timeout=timeout_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Address of the service."""
        return str(self._http.base_url).rstrip("/")

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def submit(
        self,
        files: Sequence[Path],
        *,
        model: str | None = None,
        targets: Sequence[str] = (),
        mode: str | None = None,
        overlap: float | None = None,
        postprocessing: str | None = None,
        series: str | None = None,
        outputs: Sequence[str] = (),
        seg_type: str | None = None,
        deidentify: bool = False,
        priority: str | None = None,
        reuse: bool = True,
        batch_id: str | None = None,
        time_limit_seconds: float | None = None,
        callback_url: str | None = None,
        idempotency_key: str | None = None,
        on_sent: Callable[[int], None] | None = None,
    ) -> JobDocument:
        """The new job for one study: one NIfTI file, one zip, or all files of a DICOM study.

        Args:
            files: the study's files; they are read while they are sent.
            model: id or name of a model of the service; its default otherwise.
            targets: labels, groups or codes to segment; all labels of the model otherwise.
            mode: `accurate`, `balanced` or `fast`; the service's default otherwise.
            overlap: of neighbouring windows, 0 to 0.9; that of the mode otherwise.
            postprocessing: `viscera`, `reference` or `none`; the service's default otherwise.
            series: SeriesInstanceUID of the CT series to segment (DICOM only); chosen by rule otherwise.
            outputs: files to write, such as `seg`, `sr`, `rtstruct`; the service's default otherwise.
            seg_type: `binary` or `labelmap`, for the DICOM SEG of organs; the service's default otherwise.
            deidentify: leave patient and study out of the DICOM objects.
            priority: `stat`, `routine` or `batch`; the service's default otherwise.
            reuse: take a stored result of the same files, model and choices instead of a run.
            batch_id: a name that the jobs of one batch share.
            time_limit_seconds: fail the job when it runs longer; the service's limit otherwise.
            callback_url: https address that is told, signed, when the job has ended.
            idempotency_key: when the same request comes again with this key, its job is the first one's.
            on_sent: called with the number of bytes read for sending so far.

        Raises:
            ProblemError: the service refused the upload.
            UnreachableError: nothing answers.
        """
        choices = {
            "model": model,
            "mode": mode,
            "overlap": overlap,
            "postprocessing": postprocessing,
            "series": series,
            "seg_type": seg_type,
            "deidentify": "true" if deidentify else None,
            "priority": priority,
            "reuse": None if reuse else "false",
            "batch_id": batch_id,
            "time_limit_seconds": time_limit_seconds,
            "callback_url": callback_url,
        }
        fields = [(name, str(value)) for name, value in choices.items() if value is not None]
        fields += [("targets", target) for target in targets]
        fields += [("outputs", output) for output in outputs]
        form = _Form(fields, files, on_sent)
        headers = {"Content-Type": form.content_type, "Content-Length": str(form.length)}
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        job: JobDocument = self._request("POST", "/v1/jobs", content=iter(form), headers=headers).json()
        return job

    def submit_reference(
        self,
        study_url: str,
        *,
        credentials: str | None = None,
        push: Sequence[str] = (),
        **choices: Any,  # noqa: ANN401
    ) -> JobDocument:
        """The new job for a study that the service fetches from a PACS by itself.

        Args:
            study_url: WADO-RS address of a study or series, on a host that the service allows.
            credentials: name of the service's peer whose credentials to use.
            push: names of the service's peers that get the DICOM results.
            choices: `model`, `targets`, `mode` and so on, as in the JSON body of `POST /v1/jobs`.

        Raises:
            ProblemError: the service refused the reference.
            UnreachableError: nothing answers.
        """
        reference = {"url": study_url, "credentials": credentials}
        body = {"reference": reference, "push": [*push], **choices}
        job: JobDocument = self._request("POST", "/v1/jobs", json=body).json()
        return job

    def job(self, job_id: str) -> JobDocument:
        """The job as it stands."""
        job: JobDocument = self._request("GET", f"/v1/jobs/{job_id}").json()
        return job

    def jobs(self, *, status: str | None = None, limit: int = 50, cursor: str | None = None) -> JobPageDocument:
        """A page of the caller's jobs, newest first; `cursor` is `next_cursor` of the page before."""
        given = {"status": status, "limit": limit, "cursor": cursor}
        query = {name: value for name, value in given.items() if value is not None}
        page: JobPageDocument = self._request("GET", "/v1/jobs", params=query).json()
        return page

    def wait(
        self,
        job_id: str,
        on_change: Callable[[JobDocument], None] | None = None,
        *,
        patience_seconds: float = 60.0,
    ) -> JobDocument:
        """The job once it is succeeded, failed or canceled.

        Each request waits at the service for a change. Where something on the way answers at once instead, this polls
        as often as Retry-After asks.

        Args:
            job_id: the job.
            on_change: called with the job at first and after each change.
            patience_seconds: how long the service may be away, as when it is restarted, before this raises.
        """
        answered_at = time.monotonic()
        etag: str | None = None
        while True:
            asked_at = time.monotonic()
            try:
                response = self._poll(job_id, etag)
            except (UnreachableError, ProblemError) as error:
                if not _is_away(error) or time.monotonic() - answered_at > patience_seconds:
                    raise
                time.sleep(DEFAULT_POLL_SECONDS)
                continue
            answered_at = time.monotonic()
            if response.status_code != HTTPStatus.NOT_MODIFIED:
                job: JobDocument = response.json()
                if on_change:
                    on_change(job)
                if job["status"] in TERMINAL_STATUSES:
                    return job
            waited = etag is not None and answered_at - asked_at >= DEFAULT_POLL_SECONDS
            changed = response.headers.get("ETag") != etag
            etag = response.headers.get("ETag")
            if etag is None or not (waited or changed):
                time.sleep(_retry_after_seconds(response))

    def events(self, job_id: str, *, patience_seconds: float = 60.0) -> Iterator[JobDocument]:
        """The job at first and after each change, until it has ended, as the service sends it.

        A stream that breaks is taken up where it broke.

        Args:
            job_id: the job.
            patience_seconds: how long the service may be away before this raises.
        """
        heard_at = time.monotonic()
        last_id: str | None = None
        while True:
            try:
                for event in self._stream(job_id, last_id):
                    heard_at, last_id = time.monotonic(), event.id or last_id
                    job: JobDocument = json.loads(event.data)
                    yield job
                    if event.name == FINAL_EVENT:
                        return
            except (UnreachableError, ProblemError) as error:
                if not _is_away(error) or time.monotonic() - heard_at > patience_seconds:
                    raise
            time.sleep(DEFAULT_POLL_SECONDS)

    def cancel(self, job_id: str) -> JobDocument:
        """The job after asking for its cancellation."""
        job: JobDocument = self._request("POST", f"/v1/jobs/{job_id}/cancel").json()
        return job

    def delete(self, job_id: str) -> None:
        """Remove a job that is not running, with its upload and result."""
        self._request("DELETE", f"/v1/jobs/{job_id}")

    def findings(self, job_id: str) -> dict[str, Any]:
        """The findings of a succeeded job."""
        return _document(self._request("GET", f"/v1/jobs/{job_id}/findings"))

    def artifacts(self, job_id: str) -> list[ArtifactDocument]:
        """The files a succeeded job has written: name, media type, bytes, SHA-256."""
        artifacts: list[ArtifactDocument] = _document(self._request("GET", f"/v1/jobs/{job_id}/artifacts"))["artifacts"]
        return artifacts

    def download(self, job_id: str, name: str, into: Path) -> Path:
        """Path of the artifact `name`, written below the folder `into` under that name.

        Raises:
            ValueError: the service gave a name that would leave `into`.
        """
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts:
            raise ValueError(f"The artifact name {name!r} points outside the folder.")
        target = into.joinpath(*relative.parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        try:
            with self._http.stream("GET", f"/v1/jobs/{job_id}/artifacts/{name}") as response, part.open("wb") as file:
                if response.is_error:
                    response.read()
                    raise _problem(response)
                for chunk in response.iter_bytes(CHUNK_BYTES):
                    file.write(chunk)
            part.replace(target)
        except httpx.TransportError as error:
            raise _unreachable(self._http.base_url, error) from error
        finally:
            part.unlink(missing_ok=True)
        return target

    def models(self) -> list[dict[str, Any]]:
        """The models the service can run."""
        models: list[dict[str, Any]] = _document(self._request("GET", "/v1/models"))["models"]
        return models

    def _poll(self, job_id: str, etag: str | None) -> httpx.Response:
        """The job when it has changed; at once when nothing is known of it yet."""
        if etag is None:
            return self._request("GET", f"/v1/jobs/{job_id}")
        patient = httpx.Timeout(self._http.timeout.connect, read=LONG_POLL_SECONDS + (self._http.timeout.read or 60.0))
        return self._request(
            "GET",
            f"/v1/jobs/{job_id}",
            params={"wait": LONG_POLL_SECONDS},
            headers={"If-None-Match": etag},
            timeout=patient,
        )

    def _stream(self, job_id: str, last_id: str | None) -> Iterator["_Event"]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
        try:
            with self._http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
                if response.is_error:
                    response.read()
                    raise _problem(response)
                yield from _events(response.iter_lines())
        except httpx.TransportError as error:
            raise _unreachable(self._http.base_url, error) from error

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:  # noqa: ANN401 - httpx's own options
        try:
            response = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise _unreachable(self._http.base_url, error) from error
        if response.is_error:
            raise _problem(response)
        return response


def study_files(path: Path) -> list[Path]:
    """The files to send for a study at `path`: the file itself, or every file below the folder that is not hidden."""
    if path.is_file():
        return [path]
    files = (file for file in path.rglob("*") if file.is_file())
    return sorted(file for file in files if not any(p.startswith(".") for p in file.relative_to(path).parts))


class _Form:
    """A multipart/form-data body that opens each file only while it is sent."""

    def __init__(
        self, fields: Sequence[tuple[str, str | None]], files: Sequence[Path], on_sent: Callable[[int], None] | None
    ) -> None:
        self._boundary = uuid4().hex
        self._on_sent = on_sent
        self._fields = b"".join(self._head(name) + str(value).encode() + b"\r\n" for name, value in fields)
        self._files = [
            (self._head("files", filename=_neutral_name(file, number)), file, file.stat().st_size)
            for number, file in enumerate(files, start=1)
        ]
        self._tail = f"--{self._boundary}--\r\n".encode()

    @property
    def content_type(self) -> str:
        return f"multipart/form-data; boundary={self._boundary}"

    @property
    def length(self) -> int:
        files = sum(len(head) + size + len(b"\r\n") for head, _, size in self._files)
        return len(self._fields) + files + len(self._tail)

    def __iter__(self) -> Iterator[bytes]:
        sent = 0
        yield self._fields
        for head, path, _ in self._files:
            yield head
            with path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk
                    sent += len(chunk)
                    if self._on_sent:
                        self._on_sent(sent)
            yield b"\r\n"
        yield self._tail

    def _head(self, name: str, filename: str | None = None) -> bytes:
        disposition = f'form-data; name="{name}"'
        content_type = ""
        if filename:
            disposition += f'; filename="{filename}"'
            content_type = "Content-Type: application/octet-stream\r\n"
        return f"--{self._boundary}\r\nContent-Disposition: {disposition}\r\n{content_type}\r\n".encode()


def _neutral_name(path: Path, number: int) -> str:
    suffix = next((suffix for suffix in KEPT_SUFFIXES if path.name.lower().endswith(suffix)), ".dcm")
    return f"{number:05d}{suffix}"


@dataclass(frozen=True)
class _Event:
    """One server-sent event."""

    name: str
    data: str
    id: str | None


def _events(lines: Iterator[str]) -> Iterator[_Event]:
    """The events in the lines of a stream."""
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            continue  # a sign of life
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
            continue
        if "data" in fields:
            yield _Event(fields.get("event", "message"), fields["data"], fields.get("id"))
        fields = {}


def _is_away(error: UnreachableError | ProblemError) -> bool:
    if isinstance(error, UnreachableError):
        return True
    return error.status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS)


def _document(response: httpx.Response) -> dict[str, Any]:
    document: dict[str, Any] = response.json()
    return document


def _problem(response: httpx.Response) -> ProblemError:
    try:
        body = response.json()
        code = str(body["type"]).rpartition("/")[2]
        cause = body.get("cause")
        detail = f"{body['detail']} {cause['detail']}" if cause else str(body["detail"])
        return ProblemError(response.status_code, code, str(body["title"]), detail)
    except (ValueError, KeyError, TypeError):
        return ProblemError(response.status_code, "http-error", response.reason_phrase, response.text[:200])


def _unreachable(url: httpx.URL, error: httpx.TransportError) -> UnreachableError:
    reason = str(error) or type(error).__name__
    return UnreachableError(f"No Viscera service answers at {url} ({reason}). Start one with `viscera serve`.")


def _retry_after_seconds(response: httpx.Response) -> float:
    try:
        return max(0.0, float(response.headers["Retry-After"]))
    except (KeyError, ValueError):
        return DEFAULT_POLL_SECONDS
