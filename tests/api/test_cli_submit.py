"""`viscera submit` and the client, against a live service whose worker is a thread of the test."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from typer.testing import CliRunner

from service.cli import app
from service.client import ProblemError, UnreachableError, Viscera, study_files
from service.errors import StorageUnavailable
from tests.support.api import Api, running_api

run = CliRunner().invoke


@contextmanager
def worker(api: Api, end) -> Iterator[None]:
    """Ends each dispatched job with `end`."""
    stopping = threading.Event()

    def work():
        done = 0
        while not stopping.wait(0.02):
            while len(api.dispatched) > done:
                end(api.dispatched[done])
                done += 1

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "Doe^Jane.nii.gz"
    path.write_bytes(b"scan" * 100_000)
    return path


@pytest.fixture
def url(api: Api, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of a service whose key is in the environment."""
    monkeypatch.setenv("VISCERA_API_KEY", api.key)
    return str(api.client.base_url)


def test_submit_waits_prints_the_findings_and_fetches_the_files(api: Api, url: str, study: Path, tmp_path: Path):
    out = tmp_path / "out"
    with worker(api, api.succeed):
        result = run(
            app,
            [
                "submit",
                str(study),
                "--url",
                url,
                "--out",
                str(out),
                "--targets",
                "liver, liver_tumor",
                "--postprocessing",
                "none",
                "--mode",
                "fast",
                "--overlap",
                "0.25",
                "--outputs",
                "seg, rtstruct",
                "--seg-type",
                "labelmap",
                "--deidentify",
                "--series",
                "1.2.840.1",
            ],
        )

    assert result.exit_code == 0, result.output
    assert "liver_tumor-1" in result.output
    assert "27.4" in result.output
    assert "1512.2" in result.output
    assert "Not found: Spleen" in result.output
    assert "Research use only" in result.output
    assert (out / "masks" / "liver.nii.gz").read_bytes() == b"0123456789"
    assert sorted(path.name for path in out.rglob("*") if path.is_file()) == [
        "findings.json",
        "liver.nii.gz",
        "overview.png",
    ]
    job = api.store.get(api.dispatched[0])
    assert job.request.targets == ("liver", "liver_tumor")
    assert (job.request.postprocessing, job.request.mode, job.request.overlap) == ("none", "fast", 0.25)
    assert (job.request.outputs, job.request.seg_type) == (("seg", "rtstruct"), "labelmap")
    assert job.request.deidentify
    assert job.request.series == "1.2.840.1"
    assert job.upload_bytes == 400_000


def test_json_is_all_that_is_on_stdout(api: Api, url: str, study: Path, tmp_path: Path):
    with worker(api, api.succeed):
        result = run(app, ["submit", str(study), "--url", url, "--out", str(tmp_path / "out"), "--json"])

    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["job"]["id"], document["job"]["status"]) == (api.dispatched[0], "succeeded")
    assert document["findings"]["lesions"][0]["id"] == "liver_tumor-1"
    assert sorted(document["files"]) == ["findings.json", "masks/liver.nii.gz", "overview.png"]
    assert api.dispatched[0] in result.stderr


def test_json_of_a_job_that_is_not_waited_for_and_of_one_that_failed(api: Api, url: str, study: Path):
    queued = run(app, ["submit", str(study), "--url", url, "--json"])
    assert json.loads(queued.stdout)["job"]["status"] == "queued"
    with worker(api, lambda job_id: api.fail(job_id) if job_id != api.dispatched[0] else None):
        failed = run(app, ["submit", str(study), "--url", url, "--wait", "--json"])
    assert failed.exit_code == 2
    document = json.loads(failed.stdout)
    assert document["job"]["error"]["type"] == "/problems/not-hu"
    assert "findings" not in document
    assert "(not-hu)" in failed.stderr


def test_json_of_a_refused_upload_is_its_problem(url: str, study: Path):
    result = run(app, ["submit", str(study), "--url", url, "--targets", "brain", "--json"])
    assert result.exit_code == 2
    document = json.loads(result.stdout)
    assert (document["study"], document["problem"]["code"]) == (str(study), "unknown-label")
    assert "(unknown-label)" in result.stderr


def test_submit_without_wait_returns_at_once(api: Api, url: str, study: Path):
    result = run(app, ["submit", str(study), "--url", url])

    assert result.exit_code == 0
    assert f"{url}/v1/jobs/{api.dispatched[0]}" in result.output


def test_a_folder_is_sent_file_by_file_without_its_names(api: Api, url: str, tmp_path: Path):
    folder = tmp_path / "Doe^Jane"
    (folder / "series 1").mkdir(parents=True)
    for number in range(1, 4):
        (folder / "series 1" / f"Doe^Jane {number}.IMA").write_bytes(bytes([number]))
    (folder / ".DS_Store").write_bytes(b"junk")

    result = run(app, ["submit", str(folder), "--url", url])

    assert result.exit_code == 0, result.output
    stored = sorted(api.storage.upload_dir(api.dispatched[0]).iterdir())
    assert [(path.name, path.read_bytes()) for path in stored] == [
        (f"{number:05d}.dcm", bytes([number])) for number in range(1, 4)
    ]


def test_choices_of_handling_reach_the_job(api: Api, url: str, study: Path):
    options = ["--priority", "stat", "--no-reuse", "--batch-id", "trial-7", "--time-limit", "60"]
    first = run(app, ["submit", str(study), "--url", url, *options, "--idempotency-key", "one"])
    again = run(app, ["submit", str(study), "--url", url, *options, "--idempotency-key", "one"])

    assert (first.exit_code, again.exit_code) == (0, 0), first.output + again.output
    (job_id,) = api.dispatched
    job = api.store.get(job_id)
    assert (job.priority, job.reuse, job.batch_id, job.time_limit_seconds) == ("stat", False, "trial-7", 60)
    assert job.idempotency_key == "one"
    refused = run(app, ["submit", str(study), "--url", url, "--callback-url", "https://hooks.example/x"])
    assert (refused.exit_code, "(callback-refused)" in refused.output) == (2, True)
    unknown = run(app, ["submit", str(study), "--url", url, "--push", "nowhere"])
    assert (unknown.exit_code, "(unknown-peer)" in unknown.output) == (2, True)


def test_several_studies_are_one_batch_and_a_bad_one_fails_alone(api: Api, url: str, study: Path, tmp_path: Path):
    second = tmp_path / "more" / study.name
    bad = tmp_path / "bad.nii"
    second.parent.mkdir()
    second.write_bytes(b"another scan")
    bad.write_bytes(b"")
    out = tmp_path / "out"

    with worker(api, api.succeed):
        result = run(app, ["submit", str(study), str(bad), str(second), "--url", url, "--out", str(out)])

    assert result.exit_code == 2, result.output
    assert "(empty-upload)" in result.output
    assert "2 of 3 studies" in result.output
    assert len({api.store.get(job_id).batch_id for job_id in api.dispatched}) == 1
    assert len(api.dispatched) == 2
    assert [(folder / "overview.png").is_file() for folder in (out / "Doe^Jane", out / "Doe^Jane-2")] == [True, True]


def test_an_idempotency_key_is_for_one_study(api: Api, url: str, study: Path):
    result = run(app, ["submit", str(study), str(study), "--url", url, "--idempotency-key", "one"])

    assert result.exit_code == 2
    assert api.dispatched == []


def test_a_failed_job_is_one_line_and_status_2(api: Api, url: str, study: Path):
    with worker(api, api.fail):
        result = run(app, ["submit", str(study), "--wait", "--url", url])

    assert result.exit_code == 2
    assert (
        "error The intensities are not in Hounsfield units: The values span 0 to 1; send HU. (not-hu)" in result.output
    )


def test_a_canceled_job_is_said_so(api: Api, url: str, study: Path):
    with worker(api, api.store.cancel):
        result = run(app, ["submit", str(study), "--wait", "--url", url])

    assert result.exit_code == 2
    assert "canceled" in result.output


def test_a_refused_upload_is_one_line_and_status_2(url: str, study: Path):
    result = run(app, ["submit", str(study), "--url", url, "--targets", "brain"])

    assert result.exit_code == 2
    assert "(unknown-label)" in result.output
    assert "Traceback" not in result.output


def test_an_upload_far_beyond_the_limit_is_told_so_and_not_cut_off(tmp_path: Path, study: Path):
    study.write_bytes(bytes(30_000_000))
    with running_api(tmp_path, max_upload_bytes=1_000_000) as api:
        result = run(app, ["submit", str(study), "--url", str(api.client.base_url), "--api-key", api.key])
        assert result.exit_code == 2
        assert "(upload-too-large)" in result.output
        assert api.stored_files() == []


def test_an_empty_folder_is_refused_before_anything_is_sent(api: Api, url: str, tmp_path: Path):
    (tmp_path / "empty").mkdir()

    result = run(app, ["submit", str(tmp_path / "empty"), "--url", url])

    assert result.exit_code == 2
    assert api.dispatched == []


def test_no_service_is_one_line_and_status_2(study: Path):
    result = run(app, ["submit", str(study), "--url", "http://127.0.0.1:9"])

    assert result.exit_code == 2
    assert "viscera serve" in result.output


def test_models_of_a_service_are_listed(url: str):
    result = run(app, ["models", "list", "--url", url])

    assert result.exit_code == 0
    assert "viscera-compact-9.0.0" in result.output


def test_the_client_raises_typed_errors(api: Api, url: str, tmp_path: Path):
    job_id = api.submit()["id"]
    api.fail(job_id)
    with Viscera(url) as viscera:
        with pytest.raises(ProblemError) as refused:
            viscera.findings(job_id)
        assert (refused.value.status, refused.value.code) == (409, "result-not-ready")
        assert "send HU" in refused.value.detail
        with pytest.raises(ProblemError, match="result-not-ready"):
            viscera.download(job_id, "overview.png", tmp_path / "out")
        assert list((tmp_path / "out").iterdir()) == []
        with pytest.raises(ValueError, match="outside"):
            viscera.download(job_id, "../escape", tmp_path)
    with Viscera("http://127.0.0.1:9") as nowhere, pytest.raises(UnreachableError):
        nowhere.models()


def test_the_client_waits_through_a_restart_of_the_service_but_not_for_ever(api: Api, url: str, monkeypatch):
    job_id = api.submit()["id"]
    api.fail(job_id)
    answers = iter([StorageUnavailable("away"), StorageUnavailable("away"), api.store.get(job_id)])

    def get(_id, **_):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(api.store, "get", get)
    monkeypatch.setattr("service.client.connection.DEFAULT_POLL_SECONDS", 0.01)
    with Viscera(url) as viscera:
        assert viscera.wait(job_id)["status"] == "failed"
    with Viscera("http://127.0.0.1:9") as nowhere, pytest.raises(UnreachableError):
        nowhere.wait(job_id, patience_seconds=0.05)


class Lossy(httpx.BaseTransport):
    """Loses the answers to the first requests, each in its own way."""

    def __init__(self, *losses: type[httpx.TransportError] | httpx.Response) -> None:
        self.network = httpx.HTTPTransport()
        self.losses = [*losses]

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        loss = self.losses.pop(0) if self.losses else None
        if loss is httpx.ConnectError:
            raise httpx.ConnectError("refused", request=request)
        response = self.network.handle_request(request)
        if loss is None:
            return response
        response.read()
        response.close()
        if isinstance(loss, httpx.Response):
            return loss
        raise loss("lost", request=request)

    def close(self) -> None:
        self.network.close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that the client would make."""
    made: list[float] = []
    monkeypatch.setattr("service.client.connection.time", SimpleNamespace(sleep=made.append))
    return made


def test_a_lost_answer_makes_no_second_job(api: Api, url: str, study: Path, pauses: list[float]):
    away = httpx.Response(503, headers={"Retry-After": "7"}, json={"type": "/x/y", "title": "Away", "detail": "Away."})
    with Viscera(url, transport=Lossy(httpx.ReadError, httpx.ConnectError, away)) as viscera:
        job = viscera.submit([study])
        other = viscera.submit([study])

    assert api.dispatched == [job["id"], other["id"]]
    assert pauses == [1.0, 5.0, 15.0]


def test_what_cannot_have_arrived_or_may_not_be_repeated_is_told_at_once(
    api: Api, url: str, study: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch
):
    with Viscera(url, transport=Lossy(httpx.ConnectError)) as viscera, pytest.raises(UnreachableError):
        viscera.submit([study])
    monkeypatch.setenv("VISCERA_API_KEY", api.keys.create(name="small", quota=1)[1])
    with Viscera(url) as viscera:
        viscera.submit([study])
        with pytest.raises(ProblemError, match="quota-exceeded"):
            viscera.submit([study])
    assert pauses == []


def test_the_client_gives_up_on_a_service_that_stays_away(api: Api, url: str, study: Path, pauses: list[float]):
    with (
        Viscera(url, transport=Lossy(httpx.ReadError, *[httpx.ConnectError] * 3)) as viscera,
        pytest.raises(UnreachableError),
    ):
        viscera.submit([study])
    assert len(pauses) == 3
    assert len(api.dispatched) == 1


def test_the_client_cancels(api: Api, url: str):
    job_id = api.submit()["id"]
    with Viscera(url) as viscera:
        assert viscera.cancel(job_id)["status"] == "canceled"


def test_hidden_files_are_no_part_of_a_study(tmp_path: Path):
    for name in ("1.dcm", ".hidden", "sub/2.dcm", ".git/3.dcm"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()

    assert study_files(tmp_path) == [tmp_path / "1.dcm", tmp_path / "sub" / "2.dcm"]


def test_the_client_lists_submits_once_and_deletes(api: Api, url: str, study: Path):
    with Viscera(url) as viscera:
        first = viscera.submit([study], priority="stat", batch_id="trial-7", reuse=False, idempotency_key="one")
        again = viscera.submit([study], priority="stat", batch_id="trial-7", reuse=False, idempotency_key="one")
        other = viscera.submit([study], time_limit_seconds=60)
        page = viscera.jobs(limit=1)
        older = viscera.jobs(status="queued", cursor=page["next_cursor"])
        viscera.delete(other["id"])
        left = viscera.jobs()

    assert again["id"] == first["id"]
    assert (first["priority"], first["batch_id"], other["time_limit_seconds"]) == ("stat", "trial-7", 60)
    assert [job["id"] for job in page["jobs"] + older["jobs"]] == [other["id"], first["id"]]
    assert [job["id"] for job in left["jobs"]] == [first["id"]]


def test_the_client_polls_where_something_on_the_way_answers_at_once(api: Api, url: str):
    """As behind a cache that takes the ETag off, and knows no waiting."""
    job_id = api.submit()["id"]
    asked: list[httpx.URL] = []

    class Between(httpx.BaseTransport):
        def __init__(self) -> None:
            self.network = httpx.HTTPTransport()

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            asked.append(request.url)
            if len(asked) == 3:
                api.store.cancel(job_id)
            response = self.network.handle_request(request)
            response.headers["Retry-After"] = "0.01"
            response.headers.pop("ETag", None)
            return response

        def close(self) -> None:
            self.network.close()

    with Viscera(url, transport=Between()) as viscera:
        assert viscera.wait(job_id)["status"] == "canceled"
    assert len(asked) == 3
    assert not any("wait" in address.params for address in asked)


def test_the_client_asks_for_changes_and_not_again_and_again(api: Api, url: str):
    job_id = api.submit()["id"]
    asked: list[httpx.URL] = []
    api.once_waited_for(lambda: api.store.cancel(job_id))
    transport = httpx.HTTPTransport()

    class Counting(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            asked.append(request.url)
            return transport.handle_request(request)

        def close(self) -> None:
            transport.close()

    with Viscera(url, transport=Counting()) as viscera:
        assert viscera.wait(job_id)["status"] == "canceled"
    assert [address.params.get("wait") for address in asked] == [None, "20"]
