"""The connection to one service: a method for each operation of the API."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any, Self
from uuid import uuid4

import httpx

from service.client.documents import ArtifactDocument, JobDocument, JobPageDocument
from service.client.events import Event, events_of
from service.client.problems import (
    ProblemError,
    UnreachableError,
    is_away,
    problem_of,
    retry_after_seconds,
    unreachable,
)
from service.client.upload import CHUNK_BYTES, UploadForm

TERMINAL_STATUSES = frozenset({"succeeded", "failed", "canceled"})
API_KEY_VARIABLE = "VISCERA_API_KEY"
DEFAULT_POLL_SECONDS = 1.0
LONG_POLL_SECONDS = 20
REPEAT_AFTER_SECONDS = (1.0, 5.0, 15.0)  # a submission whose answer was lost
FINAL_EVENT = "end"
_QUOTA_EXCEEDED = "quota-exceeded"  # not over before a job has ended: the caller's to wait for


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
        push: Sequence[str] = (),
        idempotency_key: str | None = None,
        on_sent: Callable[[int], None] | None = None,
    ) -> JobDocument:
        """The new job for one study: one NIfTI file, one zip, or all files of a DICOM study.

        Where the connection breaks, or the service cannot tell whether it has taken the job, the submission is repeated
        under its idempotency key: it never makes a second job.

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
            push: names of the service's peers that get the DICOM results.
            idempotency_key: when the same request comes again with this key, its job is the first one's; a fresh key
                otherwise.
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
        fields += [("push", peer) for peer in push]
        form = UploadForm(fields, files, on_sent)
        headers = {"Content-Type": form.content_type, "Content-Length": str(form.length)}
        return self._create(idempotency_key, headers, lambda: {"content": iter(form)})

    def submit_reference(
        self,
        study_url: str,
        *,
        credentials: str | None = None,
        push: Sequence[str] = (),
        idempotency_key: str | None = None,
        **choices: Any,  # noqa: ANN401 - as the form has them
    ) -> JobDocument:
        """The new job for a study that the service fetches from a PACS by itself.

        Args:
            study_url: WADO-RS address of a study or series, on a host that the service allows.
            credentials: name of the service's peer whose credentials to use.
            push: names of the service's peers that get the DICOM results.
            idempotency_key: as in `submit`.
            choices: `model`, `targets`, `mode` and so on, as in the JSON body of `POST /v1/jobs`.

        Raises:
            ProblemError: the service refused the reference.
            UnreachableError: nothing answers.
        """
        reference = {"url": study_url, "credentials": credentials}
        body = {"reference": reference, "push": [*push], **choices}
        return self._create(idempotency_key, {}, lambda: {"json": body})

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
                if not is_away(error) or time.monotonic() - answered_at > patience_seconds:
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
                asked_for = retry_after_seconds(response)
                time.sleep(DEFAULT_POLL_SECONDS if asked_for is None else asked_for)

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
                if not is_away(error) or time.monotonic() - heard_at > patience_seconds:
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
                    raise problem_of(response)
                for chunk in response.iter_bytes(CHUNK_BYTES):
                    file.write(chunk)
            part.replace(target)
        except httpx.TransportError as error:
            raise unreachable(self._http.base_url, error) from error
        finally:
            part.unlink(missing_ok=True)
        return target

    def models(self) -> list[dict[str, Any]]:
        """The models the service can run."""
        models: list[dict[str, Any]] = _document(self._request("GET", "/v1/models"))["models"]
        return models

    def _create(
        self, idempotency_key: str | None, headers: Mapping[str, str], content: Callable[[], dict[str, Any]]
    ) -> JobDocument:
        """The job of one submission, which is repeated while it may be lost; `content` gives its body anew."""
        headers = {**headers, "Idempotency-Key": idempotency_key or str(uuid4())}
        may_have_arrived = False
        for pause_seconds in (*REPEAT_AFTER_SECONDS, None):
            try:
                job: JobDocument = self._request("POST", "/v1/jobs", headers=headers, **content()).json()
            except (UnreachableError, ProblemError) as error:
                may_have_arrived |= error.may_have_arrived if isinstance(error, UnreachableError) else is_away(error)
                if pause_seconds is None or not may_have_arrived or not _worth_repeating(error):
                    raise
                asked_for = error.retry_after_seconds if isinstance(error, ProblemError) else None
                time.sleep(max(pause_seconds, asked_for or 0.0))
            else:
                return job
        raise AssertionError("the last try returns or raises")

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

    def _stream(self, job_id: str, last_id: str | None) -> Iterator[Event]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
        try:
            with self._http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
                if response.is_error:
                    response.read()
                    raise problem_of(response)
                yield from events_of(response.iter_lines())
        except httpx.TransportError as error:
            raise unreachable(self._http.base_url, error) from error

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:  # noqa: ANN401 - httpx's own options
        try:
            response = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise unreachable(self._http.base_url, error) from error
        if response.is_error:
            raise problem_of(response)
        return response


def _document(response: httpx.Response) -> dict[str, Any]:
    document: dict[str, Any] = response.json()
    return document


def _worth_repeating(error: UnreachableError | ProblemError) -> bool:
    return is_away(error) and not (isinstance(error, ProblemError) and error.code == _QUOTA_EXCEEDED)
