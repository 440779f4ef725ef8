"""What Prometheus is told, by a worker and by the API."""

import socket
from collections.abc import Callable
from urllib.error import URLError
from urllib.request import urlopen

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.errors import StorageUnavailable
from service.jobs.job import JobError, NewJob, Priority, WorkerState, new_job_id
from service.jobs.store import JobStore
from service.request import SegmentationRequest
from service.settings import Settings
from tests.support.api import OWNER, Api, running_api
from tests.support.jobs import JobSystem, wait_until


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Value of each sample by its name and the values of its labels, which are sorted by name."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@pytest.mark.parametrize("backends", ["embedded"], indirect=True)
def test_a_worker_tells_how_its_jobs_ended(make_settings: Callable[..., Settings]) -> None:
    port = free_port()
    system = JobSystem(make_settings(worker_metrics_port=port))
    try:
        system.start_worker()
        assert system.wait_for_end(system.submit("quick")).status == "succeeded"
        assert system.wait_for_end(system.submit("broken")).status == "failed"

        def told() -> dict[tuple[str, ...], float]:
            try:
                with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                    return samples(answer.read().decode())
            except (URLError, ConnectionError):
                return {}

        wait_until(lambda: ("viscera_jobs_ended_total", "", "succeeded") in told(), what="the first count")
        wait_until(lambda: ("viscera_jobs_ended_total", "internal", "failed") in told(), what="the second")
        found = told()
    finally:
        system.close()
    assert found["viscera_jobs_ended_total", "", "succeeded"] == 1
    assert found["viscera_job_stage_seconds_count", "reading"] == 1
    assert found["viscera_windows_total",] == 0  # the stand-in has no network


def metrics_of(api: Api) -> dict[tuple[str, ...], float]:
    answer = api.client.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    return samples(answer.text)


def queue(store: JobStore, priority: Priority) -> str:
    job_id = new_job_id()
    store.create(NewJob(job_id, "m-1.0.0", SegmentationRequest(), upload_bytes=1, upload_files=1, priority=priority))
    return job_id


@pytest.fixture
def api(tmp_path):
    with running_api(tmp_path) as api:
        yield api


def test_the_api_tells_the_job_table_as_it_is(api: Api) -> None:
    for priority in (Priority.STAT, Priority.BATCH, Priority.BATCH):
        queue(api.store, priority)
    failed = queue(api.store, Priority.ROUTINE)
    api.store.claim(failed, OWNER, 30.0)
    api.store.fail(failed, OWNER, JobError("not-hu", "Not HU", "Send HU."))
    api.store.report_worker("one", WorkerState.READY)
    api.submit(b"x" * 1000)

    found = metrics_of(api)

    assert [found["viscera_queue_depth", priority] for priority in Priority] == [1, 1, 2]
    assert found["viscera_jobs", "queued"] == 4
    assert found["viscera_jobs", "failed"] == 1
    assert found["viscera_jobs", "canceled"] == 0
    assert found["viscera_jobs_failed", "not-hu"] == 1
    assert found["viscera_workers", "ready"] == 1
    assert found["viscera_upload_bytes_total",] == 1000


def test_metrics_name_no_tenant_key_or_file(api: Api) -> None:
    with api.client_of("secret-tenant") as client:
        client.post("/v1/jobs", files={"files": ("Doe^Jane.nii", b"scan")})
    text = api.client.get("/metrics").text
    assert not [word for word in ("secret-tenant", "Doe", "vsc_") if word in text]


def test_a_scrape_while_the_table_is_away_is_503(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def away():
        raise StorageUnavailable("The job table cannot be reached at the moment; try again shortly.")

    monkeypatch.setattr(api.store, "counts", away)
    answer: httpx.Response = api.client.get("/metrics")
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/storage-unavailable")
