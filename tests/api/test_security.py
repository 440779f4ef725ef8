"""Hostile requests: too large, too slow, with lines of their own for headers and logs; and other web pages.

Uploads that are hostile inside (zip and pixel bombs, paths) are in tests/e2e and tests/imaging, keys in test_auth.py,
callback addresses in test_webhooks.py.
"""

import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import structlog
from fastapi import FastAPI, Request

from service.api.body import BodyPace, allow_body
from service.api.boundary import RequestBoundary
from service.api.problems import install_problem_handlers
from service.telemetry import configure_logging
from tests.support.api import Api, running_api
from tests.support.live import live_server

LIMIT = 10_000


@pytest.fixture
def reader() -> Iterator[str]:
    """The address of an application that reads bodies into memory, and one that streams them, behind our boundary."""
    app = FastAPI()

    @app.post("/json")
    async def read(request: Request) -> int:
        return len(await request.body())

    @app.post("/stream")
    async def stream(request: Request) -> int:
        allow_body(request, 10 * LIMIT)
        return sum([len(chunk) async for chunk in request.stream()])

    install_problem_handlers(app)
    app.add_middleware(RequestBoundary, max_body_bytes=LIMIT, pace=BodyPace(idle_seconds=1.5, bytes_per_second=1000))
    with live_server(app) as url:
        yield url


def chunks(count: int, size: int, pause: float = 0.0) -> Iterator[bytes]:
    for _ in range(count):
        yield b"x" * size
        time.sleep(pause)


@pytest.mark.parametrize("body", [b"x" * (LIMIT + 1), chunks(LIMIT, 2)], ids=["declared", "chunked"])
def test_a_body_that_is_no_upload_is_small(reader: str, body):
    response = httpx.post(f"{reader}/json", content=body)
    assert (response.status_code, response.json()["type"]) == (413, "/problems/body-too-large")


def test_a_route_that_streams_may_have_more_but_not_everything(reader: str):
    assert httpx.post(f"{reader}/json", content=b"x" * LIMIT).json() == LIMIT
    assert httpx.post(f"{reader}/stream", content=b"x" * (10 * LIMIT)).json() == 10 * LIMIT
    assert httpx.post(f"{reader}/stream", content=b"x" * (10 * LIMIT + 1)).status_code == 413


@pytest.mark.parametrize("path", ["/json", "/stream"])
def test_a_body_that_stops_arriving_is_not_waited_for(reader: str, path):
    response = httpx.post(f"{reader}{path}", content=chunks(2, 10, pause=4.0), timeout=20)
    assert (response.status_code, response.json()["type"]) == (408, "/problems/request-too-slow")


def test_a_body_that_drips_is_not_waited_for(reader: str):
    response = httpx.post(f"{reader}/json", content=chunks(100, 1, pause=0.1), timeout=20)
    assert (response.status_code, response.json()["type"]) == (408, "/problems/request-too-slow")


def test_a_body_that_takes_its_time_but_moves_is_read(reader: str):
    assert httpx.post(f"{reader}/json", content=chunks(8, 1000, pause=0.1), timeout=20).json() == 8000


def test_a_slow_upload_is_refused_and_leaves_nothing(tmp_path: Path):
    with running_api(tmp_path, request_idle_seconds=0.5) as api:
        head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.nii"\r\n\r\n'
        headers = {"Content-Type": "multipart/form-data; boundary=b"}

        def stalls() -> Iterator[bytes]:
            yield head + b"x" * 10_000
            time.sleep(3)
            yield b"y"

        response = api.client.post("/v1/jobs", content=stalls(), headers=headers)
        assert (response.status_code, response.json()["type"]) == (408, "/problems/request-too-slow")
        assert api.stored_files() == []
        assert api.store.list() == []


def test_oversized_json_for_jobs_is_refused(api: Api):
    body = json.dumps({"a": "x" * 2_000_000})
    response = api.client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (413, 415)
    assert api.stored_files() == []


# Lines of their own


@pytest.mark.parametrize("sent", ["trace-7.A_b", "x" * 64])
def test_a_callers_request_id_is_taken_when_it_is_a_word(api: Api, sent):
    assert api.client.get("/v1/models", headers={"X-Request-ID": sent}).headers["X-Request-ID"] == sent


@pytest.mark.parametrize("sent", ["", "x" * 65, "a b", "a;b", 'a"b', "<b>", "\u00e4".encode(), b"a\tb"])
def test_any_other_request_id_is_replaced(api: Api, sent):
    answer = api.client.get("/v1/nowhere", headers={"X-Request-ID": sent})
    assert len(answer.headers["X-Request-ID"]) == 16
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"]


def test_line_feeds_in_addresses_and_fields_make_no_headers(api: Api):
    evil = "a\r\nX-Evil: 1\r\n\r\n"
    answers = [
        api.client.get(f"/v1/jobs/{httpx.QueryParams({'a': evil})}"),
        api.client.get("/v1/jobs/%0d%0aX-Evil:%201"),
        api.client.get("/v1/models/%0d%0aX-Evil:%201"),
        api.client.get("/v1/jobs", params={"cursor": evil}),
        api.client.post("/v1/jobs", files={"files": (evil, b"scan")}, data={"model": evil}),
        api.client.post("/v1/jobs", files={"files": ("a.nii", b"scan")}, data={evil: "1"}),
    ]
    for answer in answers:
        assert 400 <= answer.status_code < 500
        assert "x-evil" not in answer.headers
        assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("line", [b"X-Evil: a\x00b", b"X Evil: 1", b"Content-Length: 1, 2", b"Transfer-Encoding: what"])
def test_headers_that_are_none_are_refused(api: Api, line):
    url = api.client.base_url
    with socket.create_connection((url.host, url.port), timeout=10) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n" + line + b"\r\n\r\n")
        assert connection.recv(4096).split(b" ")[1] in (b"400", b"501")


@pytest.mark.usefixtures("restored_logging")
@pytest.mark.parametrize("as_json", [True, False])
def test_a_log_line_cannot_be_forged(capsys: pytest.CaptureFixture[str], as_json: bool):
    configure_logging(as_json=as_json)
    forged = "x\n2026-01-01T00:00:00Z [info     ] job.succeeded\x1b[2J\r\u2028"
    structlog.get_logger("ours").info("request.refused", detail=forged, **{"job_id": forged})
    logging.getLogger("theirs").warning("refused %s", forged)
    try:
        raise ValueError(forged)
    except ValueError:
        structlog.get_logger("ours").exception("request.failed")

    written = capsys.readouterr().err

    assert not {"\x1b", "\r", "\u2028"} & set(written)
    lines = written.splitlines()
    beginnings = [line for line in lines if not line.startswith("  | ")]
    assert len(beginnings) == 3
    assert not any(line.startswith("2026-01-01") for line in lines)


@pytest.mark.usefixtures("restored_logging")
def test_the_request_id_is_in_the_log_of_the_request(api: Api, monkeypatch, capsys):
    configure_logging(as_json=True)

    def broken(_id, **_):
        raise RuntimeError("broken")

    monkeypatch.setattr(api.store, "get", broken)
    answer = api.client.get("/v1/jobs/00000000-0000-4000-8000-000000000000", headers={"X-Request-ID": "trace-7"})
    assert answer.status_code == 500
    failed = [json.loads(line) for line in capsys.readouterr().err.splitlines() if "request.failed" in line]
    assert [line["request_id"] for line in failed] == ["trace-7"]


# Other web pages

ORIGIN = {"Origin": "https://viewer.example"}
PREFLIGHT = {**ORIGIN, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


def test_other_pages_may_not_call_the_api(api: Api):
    for answer in (api.client.get("/v1/models", headers=ORIGIN), api.client.options("/v1/jobs", headers=PREFLIGHT)):
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_pages_of_the_settings_may(tmp_path: Path):
    with running_api(tmp_path, cors_origins=[ORIGIN["Origin"]]) as api, api.client_with(None) as browser:
        allowed = browser.options("/v1/jobs", headers=PREFLIGHT)
        other = browser.options("/v1/jobs", headers={**PREFLIGHT, "Origin": "https://evil.example"})
        answered = api.client.get("/v1/models", headers=ORIGIN)
    assert allowed.headers["Access-Control-Allow-Origin"] == ORIGIN["Origin"]
    assert "authorization" in allowed.headers["Access-Control-Allow-Headers"].lower()
    assert "Access-Control-Allow-Origin" not in other.headers
    assert "ETag" in answered.headers["Access-Control-Expose-Headers"]


def test_the_page_is_in_no_frame_and_keeps_to_itself(api: Api):
    headers = api.client.get("/").headers
    assert headers["X-Frame-Options"] == "DENY"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
