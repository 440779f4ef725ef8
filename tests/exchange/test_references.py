"""Jobs by reference: what is allowed, what a hostile or broken PACS meets, and how such a job ends."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.errors import (
    JobCanceled,
    ReferenceNotFound,
    ReferenceRefused,
    ReferenceUnreachable,
    UnknownPeer,
    UploadTooLarge,
    VisceraError,
)
from service.exchange import wado
from service.exchange.plan import StudyReference
from service.exchange.reference import check_reference
from service.exchange.wado import fetch_study
from service.progress import Stage, no_progress
from service.settings import Settings
from tests.support.api import Api, running_api
from tests.support.http_server import Answer, http_server

STUDY = "/dicom-web/studies/1.2.3"
RELATED = 'multipart/related; type="application/dicom"; boundary="frontier"'
PART = b"--frontier\r\nContent-Type: application/dicom\r\n\r\n" + b"pixels" * 100 + b"\r\n"
WHOLE = PART + PART + b"--frontier--\r\n"


def settings_for(*hosts: str, **changes: object) -> Settings:
    return Settings.model_validate({"reference_hosts": hosts, **changes})


# What may be referred to


@pytest.mark.parametrize(
    "url",
    [
        "https://pacs.example/studies/1.2.3",
        "https://PACS.example:443/dicom-web/studies/1.2.3/",
        "https://pacs.example./a/b-c/studies/1.2.3/series/1.2.3.4",
        "http://pacs.example:8042/dicom-web/studies/1.2.3",
    ],
)
def test_allowed_host_and_port_are_followed(url: str):
    settings = settings_for("pacs.example", "pacs.example:8042")
    assert check_reference(StudyReference(url=url), settings) is None


@pytest.mark.parametrize(
    "url",
    [
        "https://other.example/studies/1.2.3",
        "https://pacs.example:8443/studies/1.2.3",
        "https://pacs.example.evil.example/studies/1.2.3",
        "https://pacs.example@evil.example/studies/1.2.3",
        "https://user:pw@pacs.example/studies/1.2.3",
        "https://@pacs.example/studies/1.2.3",
        "https://evil.example\\@pacs.example/studies/1.2.3",
        "https://evil.example#pacs.example/studies/1.2.3",
        "https://evil.example?pacs.example/studies/1.2.3",
        "https://pacs.example/studies/1.2.3?x=https://evil.example",
        "https://pacs.example/studies/1.2.3#fragment",
        "https://pacs.example /studies/1.2.3",
        "https://pacs.example/studies/1.2.3\r\nHost: evil.example",
        "ftp://pacs.example/studies/1.2.3",
        "file:///studies/1.2.3",
        "//pacs.example/studies/1.2.3",
        "/studies/1.2.3",
        "https:///studies/1.2.3",
        "https://pacs.example/",
        "https://pacs.example/studies",
        "https://pacs.example/studies/abc",
        "https://pacs.example/admin/../studies/1.2.3/../../admin",
        "https://pacs.example/studies/1.2.3/series",
        "https://pacs.example/studies/1.2.3/instances",
        "http://127.0.0.1/studies/1.2.3",
        "http://[::1]/studies/1.2.3",
        "http://2130706433/studies/1.2.3",
        "http://[::ffff:127.0.0.1]:80/studies/1.2.3",
        "https://pacs.example:99999/studies/1.2.3",
        "nonsense",
        "",
    ],
)
def test_everything_else_is_refused(url: str):
    with pytest.raises(ReferenceRefused):
        check_reference(StudyReference(url=url), settings_for("pacs.example"))


def test_nothing_is_allowed_unless_the_operator_says_so():
    with pytest.raises(ReferenceRefused, match="VISCERA_REFERENCE_HOSTS"):
        check_reference(StudyReference(url="https://pacs.example/studies/1.2.3"), settings_for())


def test_credentials_go_only_where_they_belong():
    peers = {
        "pacs": {"url": "https://pacs.example/dicom-web", "username": "u", "password": "p"},
        "node": {"ae_title": "PACS", "host": "pacs.example", "port": 104},
    }
    settings = settings_for("pacs.example", "pacs.example:80", "other.example", peers=peers)

    def check(url: str, name: str) -> object:
        return check_reference(StudyReference(url=url, credentials=name), settings)

    assert check("https://pacs.example/dicom-web/studies/1.2.3", "pacs") is settings.peers["pacs"]
    for url, name in (
        ("https://other.example/studies/1.2.3", "pacs"),
        ("http://pacs.example/studies/1.2.3", "pacs"),
        ("https://pacs.example/studies/1.2.3", "node"),
    ):
        with pytest.raises(ReferenceRefused, match="another address"):
            check(url, name)
    with pytest.raises(UnknownPeer, match="known are: node, pacs"):
        check("https://pacs.example/studies/1.2.3", "archive")


@pytest.mark.parametrize(
    "broken",
    [
        {"reference_hosts": ["https://pacs.example"]},
        {"reference_hosts": ["pacs.example/path"]},
        {"reference_hosts": ["user@pacs.example"]},
        {"peers": {"pacs": {"url": "ftp://pacs.example"}}},
        {"peers": {"pacs": {"url": "https://u:p@pacs.example"}}},
        {"peers": {"pacs": {"url": "https://pacs.example", "username": "u"}}},
        {"peers": {"pacs": {"url": "https://pacs.example", "username": "u", "password": "p", "token": "t"}}},
        {"peers": {"a name": {"url": "https://pacs.example"}}},
        {"peers": {"node": {"ae_title": "SEVENTEEN LETTERS", "host": "h", "port": 104}}},
        {"peers": {"node": {"ae_title": "BACK\\SLASH", "host": "h", "port": 104}}},
    ],
)
def test_settings_that_make_no_sense_are_refused_at_the_start(broken: dict[str, object]):
    with pytest.raises(ValidationError) as refused:
        Settings.model_validate(broken)
    assert "'p'" not in str(refused.value), "an error shows no password"


def test_secrets_reach_the_worker_and_nobody_else(monkeypatch: pytest.MonkeyPatch):
    peer = {"url": "https://pacs.example", "username": "u", "password": "hunter2"}
    settings = settings_for(peers={"pacs": peer, "other": {"url": "https://o.example", "token": "tok3n"}})
    assert "hunter2" not in repr(settings) + str(settings)
    assert "tok3n" not in repr(settings) + str(settings)
    for name, value in settings.to_environment().items():
        monkeypatch.setenv(name, value)
    assert Settings().peers == settings.peers


# Over HTTP


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    peers = {"pacs": {"url": "https://pacs.example"}}
    with running_api(tmp_path, reference_hosts=["pacs.example"], peers=peers) as api:
        yield api


def reference(**changes: object) -> dict[str, object]:
    return {"reference": {"url": f"https://pacs.example{STUDY}", "credentials": "pacs"}, **changes}


def test_a_reference_is_a_job_with_the_choices_of_the_form(api: Api):
    choices = {"targets": ["liver"], "mode": "fast", "outputs": ["seg"], "push": ["pacs"], "model": "viscera-compact"}

    response = api.client.post("/v1/jobs", json=reference(**choices))

    assert response.status_code == 202, response.text
    job = api.store.get(response.json()["id"])
    assert (job.request.targets, job.request.mode, job.request.outputs) == (("liver",), "fast", ("seg",))
    assert job.exchange.source == StudyReference(url=f"https://pacs.example{STUDY}", credentials="pacs")
    assert job.exchange.push == ("pacs",)
    assert job.model == "viscera-compact-9.0.0"
    assert api.dispatched == [job.id]
    assert api.stored_files() == []


def test_a_reference_is_handled_as_an_upload_is(api: Api):
    body = reference(priority="stat", batch_id="trial-7", time_limit_seconds=60)

    first, again = (api.client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "one"}) for _ in range(2))
    other = api.client.post("/v1/jobs", json=reference(), headers={"Idempotency-Key": "one"})
    long = api.client.post("/v1/jobs", json=reference(time_limit_seconds=1e9))

    [job] = api.store.list()
    assert first.json()["id"] == again.json()["id"] == job.id
    assert (job.priority, job.batch_id, job.time_limit_seconds, job.result_key) == ("stat", "trial-7", 60.0, None)
    assert other.json()["type"] == "/problems/idempotency-conflict"
    assert long.json()["type"] == "/problems/invalid-request"


def test_an_upload_may_name_where_its_results_go(api: Api):
    assert api.store.get(api.submit(push="pacs")["id"]).exchange.push == ("pacs",)
    response = api.client.post("/v1/jobs", files={"files": ("a", b"x")}, data={"push": "elsewhere"})
    assert response.json()["type"] == "/problems/unknown-peer"
    assert len(api.stored_files()) == 2  # the first upload and its folder


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "invalid-request"),
        ([], "invalid-request"),
        (reference(colour="red"), "invalid-request"),
        (reference(targets=["brain"]), "unknown-label"),
        (reference(model="none"), "model-not-found"),
        (reference(push=["elsewhere"]), "unknown-peer"),
        (reference(push=["https://evil.example"]), "invalid-request"),
        ({"reference": {"url": "https://pacs.example/studies/1", "password": "p"}}, "invalid-request"),
        ({"reference": {"url": "http://169.254.169.254/studies/1.2"}}, "reference-refused"),
    ],
)
def test_a_reference_that_cannot_be_is_a_typed_problem(api: Api, body: object, code: str):
    response = api.client.post("/v1/jobs", json=body)
    assert response.json()["type"] == f"/problems/{code}"
    assert api.store.list() == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"a":' + b" " * 70_000 + b"1}"])
def test_a_body_that_is_no_json_is_a_typed_problem(api: Api, content: bytes):
    response = api.client.post("/v1/jobs", content=content, headers={"Content-Type": "application/json"})
    assert response.json()["type"] == "/problems/invalid-request"


# Fetching


@contextmanager
def pacs(answer: Answer) -> Iterator[tuple[str, list[BaseHTTPRequestHandler]]]:
    """The `host:port` of a server that answers each request so, and the requests it got."""
    asked: list[BaseHTTPRequestHandler] = []

    def note_and_answer(request: BaseHTTPRequestHandler) -> None:
        asked.append(request)
        answer(request)

    with http_server(note_and_answer) as host:
        yield host, asked


def answer_with(body: bytes = WHOLE, status: int = 200, **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in ({"Content-Type": RELATED} | {k.replace("_", "-"): v for k, v in headers.items()}).items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)

    return answer


def fetch(host: str, into: Path, **changes: object) -> Path:
    return fetch_study(StudyReference(url=f"http://{host}{STUDY}"), into, settings_for(host, **changes), no_progress)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wado, "PAUSES_SECONDS", (0.01, 0.01))


def test_the_study_is_asked_for_as_it_is_stored(tmp_path: Path):
    with pacs(answer_with()) as (host, asked):
        folder = fetch(host, tmp_path / "study")
    assert [path.read_bytes() for path in sorted(folder.iterdir())] == [b"pixels" * 100] * 2
    assert asked[0].headers["Accept"] == 'multipart/related; type="application/dicom"; transfer-syntax=*'
    assert "Authorization" not in asked[0].headers


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (answer_with(status=404), ReferenceNotFound, "Check the UIDs"),
        (answer_with(status=204), ReferenceNotFound, "Check the UIDs"),
        (answer_with(b"--frontier--\r\n"), ReferenceNotFound, "empty"),
        (answer_with(status=401), ReferenceUnreachable, "credentials"),
        (answer_with(status=500), ReferenceUnreachable, "500"),
        (answer_with(status=302, Location="http://evil.example/studies/1.2.3"), ReferenceUnreachable, "redirects"),
        (answer_with(b"<html>", Content_Type="text/html"), ReferenceUnreachable, "no study"),
        (answer_with(WHOLE[:-5]), ReferenceUnreachable, "ends before"),
        (answer_with(b"nothing of the kind"), ReferenceUnreachable, "malformed"),
        (answer_with(Content_Encoding="gzip"), ReferenceUnreachable, "compresses"),
    ],
)
def test_a_pacs_that_does_not_deliver_is_a_typed_failure(
    tmp_path: Path, answer: Answer, error: type[VisceraError], words: str
):
    with pacs(answer) as (host, asked), pytest.raises(error, match=words) as failed:
        fetch(host, tmp_path / "study")
    assert len(asked) == 1
    assert "1.2.3" not in failed.value.detail


def test_a_busy_pacs_is_asked_again(tmp_path: Path):
    statuses = iter([503, 429, 200])
    with pacs(lambda request: answer_with(status=next(statuses))(request)) as (host, asked):
        assert len(list(fetch(host, tmp_path / "study").iterdir())) == 2
    assert len(asked) == 3


def test_a_connection_that_breaks_is_tried_anew_from_the_start(tmp_path: Path):
    lengths = iter([len(WHOLE) + 1000, len(WHOLE)])

    def answer(request: BaseHTTPRequestHandler) -> None:
        answer_with(Content_Length=str(next(lengths)))(request)

    with pacs(answer) as (host, asked):
        assert len(list(fetch(host, tmp_path / "study").iterdir())) == 2
    assert len(asked) == 2


def test_nobody_there_is_a_typed_failure(tmp_path: Path):
    with pacs(answer_with()) as (host, _):
        pass
    with pytest.raises(ReferenceUnreachable, match="nothing answers"):
        fetch(host, tmp_path / "study")


@pytest.mark.parametrize("limit", [{"max_upload_bytes": 700}, {"max_upload_files": 1}])
def test_limits_of_uploads_hold_for_what_is_fetched(tmp_path: Path, limit: dict[str, object]):
    with pacs(answer_with()) as (host, _), pytest.raises(UploadTooLarge):
        fetch(host, tmp_path / "study", **limit)


def test_a_pacs_that_never_ends_is_left(tmp_path: Path):
    def drip(request: BaseHTTPRequestHandler) -> None:
        answer_with(PART)(request)
        while True:
            try:
                request.wfile.write(PART)
            except OSError:
                return
            time.sleep(0.01)

    with pacs(drip) as (host, _), pytest.raises(ReferenceUnreachable, match="VISCERA_FETCH_SECONDS"):
        fetch(host, tmp_path / "study", fetch_seconds=0.2)


def test_a_cancel_ends_the_fetching(tmp_path: Path):
    def cancel(stage: Stage, fraction: float) -> None:
        if fraction > 0:
            raise JobCanceled("canceled")

    with pacs(answer_with()) as (host, _):
        reference = StudyReference(url=f"http://{host}{STUDY}")
        with pytest.raises(JobCanceled):
            fetch_study(reference, tmp_path / "study", settings_for(host), cancel)
