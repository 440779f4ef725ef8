"""Uploads that are refused: each with its problem, and with nothing left on disk."""

import errno
import socket
import threading
import time

import pytest

from service.storage import LocalStorage
from tests.support.api import Api, running_api

MULTIPART = {"Content-Type": "multipart/form-data; boundary=frontier"}
PART = '--frontier\r\nContent-Disposition: form-data; name="{}"{}\r\n\r\n{}\r\n'


def part(name: str, value: str, filename: str | None = None) -> str:
    return PART.format(name, "" if filename is None else f'; filename="{filename}"', value)


def refused(api: Api, response, status: int, code: str) -> str:
    """The problem's detail, once it was checked that the refusal is right and left nothing behind."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.json()["type"] == f"/problems/{code}"
    assert response.json()["status"] == status
    assert api.stored_files() == []
    assert api.dispatched == []
    assert api.store.list() == []
    assert api.client.get("/health/live").status_code == 200
    return response.json()["detail"]


def test_no_file_is_an_empty_upload(api: Api):
    refused(api, api.client.post("/v1/jobs", content="--frontier--\r\n", headers=MULTIPART), 422, "empty-upload")
    response = api.client.post("/v1/jobs", content=part("model", "viscera-compact") + "--frontier--", headers=MULTIPART)
    refused(api, response, 422, "empty-upload")


def test_a_file_of_no_bytes_is_an_empty_upload(api: Api):
    refused(api, api.client.post("/v1/jobs", files={"files": ("ct.nii.gz", b"")}), 422, "empty-upload")


def test_an_empty_file_input_of_a_browser_form_is_an_empty_upload(api: Api):
    body = part("files", "", filename="") + "--frontier--\r\n"
    refused(api, api.client.post("/v1/jobs", content=body, headers=MULTIPART), 422, "empty-upload")


@pytest.mark.parametrize("content_type", ["application/xml", "text/plain", "application/x-www-form-urlencoded", ""])
def test_another_media_type_is_refused(api: Api, content_type):
    response = api.client.post("/v1/jobs", content="{}", headers={"Content-Type": content_type})
    assert "multipart/form-data" in refused(api, response, 415, "unreadable-upload")


@pytest.mark.parametrize(
    "body",
    [
        "no boundary at all",
        part("files", "scan", "a.nii"),  # no closing boundary
        part("files", "scan", "a.nii")[:-20],  # cut in the middle of the file
        part("patient", "Doe") + "--frontier--\r\n",
        "--frontier\r\nbroken header\r\n\r\nscan\r\n--frontier--\r\n",
        part("files", "scan", "a.nii") + part("overlap", "much") + "--frontier--\r\n",
        part("files", "scan", "a.nii") + part("series", "Doe^Jane") + "--frontier--\r\n",
        part("files", "scan", "a.nii") + part("model", "a") + part("model", "b") + "--frontier--\r\n",
        part("files", "scan", "a.nii") + part("targets", "x" * 5000) + "--frontier--\r\n",
        part("files", "scan", "a.nii") + 100 * part("targets", "liver") + "--frontier--\r\n",
    ],
)
def test_a_malformed_form_is_an_invalid_request(api: Api, body):
    refused(api, api.client.post("/v1/jobs", content=body, headers=MULTIPART), 400, "invalid-request")


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary=" + "x" * 300])
def test_a_form_without_a_usable_boundary_is_an_invalid_request(api: Api, content_type):
    response = api.client.post("/v1/jobs", content="x", headers={"Content-Type": content_type})
    refused(api, response, 400, "invalid-request")


def test_an_unknown_model_is_not_found(api: Api):
    response = api.client.post("/v1/jobs", files={"files": b"scan"}, data={"model": "vista"})
    assert "viscera-compact-9.0.0" in refused(api, response, 404, "model-not-found")


def test_an_unknown_label_is_refused_with_the_labels_there_are(api: Api):
    response = api.client.post("/v1/jobs", files={"files": b"scan"}, data={"targets": "liver,Brain!"})
    detail = refused(api, response, 422, "unknown-label")
    assert "'Brain!'" in detail
    assert "liver, liver_tumor" in detail


def test_too_many_bytes_are_refused_from_the_declared_length_alone(tmp_path):
    with running_api(tmp_path, max_upload_bytes=1000) as api:
        response = api.client.post("/v1/jobs", files={"files": b"x" * 1000})
        assert "1000 bytes" in refused(api, response, 413, "upload-too-large")


def test_too_many_bytes_are_refused_while_they_arrive_when_no_length_is_declared(tmp_path):
    def body():
        yield part("files", "", "a.nii").removesuffix("\r\n").encode()
        for _ in range(100):
            yield b"x" * 100

    with running_api(tmp_path, max_upload_bytes=1000) as api:
        response = api.client.post("/v1/jobs", content=body(), headers=MULTIPART)
        refused(api, response, 413, "upload-too-large")


def test_too_many_files_are_refused(tmp_path):
    with running_api(tmp_path, max_upload_files=3) as api:
        assert api.client.post("/v1/jobs", files=[("files", b"x")] * 3).status_code == 202
    with running_api(tmp_path / "again", max_upload_files=3) as api:
        response = api.client.post("/v1/jobs", files=[("files", b"x")] * 4)
        assert "zip" in refused(api, response, 413, "upload-too-large")


def test_a_full_disk_is_said_so_and_may_be_tried_again(api: Api, monkeypatch):
    class FullDisk:
        def __enter__(self):
            raise OSError(errno.ENOSPC, "No space left on device")

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(LocalStorage, "open_upload", lambda *_: FullDisk())

    response = api.client.post("/v1/jobs", files={"files": b"scan"})

    assert "full" in refused(api, response, 503, "storage-unavailable")
    assert int(response.headers["Retry-After"]) > 0


def test_a_client_that_hangs_up_leaves_nothing(api: Api):
    head = part("files", "", "a.nii").removesuffix("\r\n").encode()
    url = api.client.base_url
    with socket.create_connection((url.host, url.port)) as connection:
        request = f"POST /v1/jobs HTTP/1.1\r\nHost: {url.host}\r\nContent-Length: 1000000\r\n"
        content_type = f"Authorization: Bearer {api.key}\r\nContent-Type: {MULTIPART['Content-Type']}\r\n\r\n"
        connection.sendall(request.encode() + content_type.encode() + head + b"x" * 10_000)
        _wait_until(lambda: any(path.suffix == ".part" for path in api.stored_files()))
    _wait_until(lambda: api.stored_files() == [])
    assert api.store.list() == []


def test_an_upload_under_way_does_not_hold_up_other_requests(api: Api):
    release = threading.Event()

    def slow_body():
        yield part("files", "", "a.nii").removesuffix("\r\n").encode()
        release.wait(10)
        yield b"scan\r\n--frontier--\r\n"

    answers = []
    sending = threading.Thread(
        target=lambda: answers.append(api.client.post("/v1/jobs", content=slow_body(), headers=MULTIPART))
    )
    sending.start()
    _wait_until(lambda: any(path.suffix == ".part" for path in api.stored_files()))
    assert api.client.get("/v1/jobs").json()["jobs"] == []
    release.set()
    sending.join(10)
    assert answers[0].status_code == 202


def _wait_until(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
