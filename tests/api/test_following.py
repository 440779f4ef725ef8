"""Following a job without asking again and again: ETags, requests that wait, and a stream of events."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from service.api.watch import JobWatch
from service.client import Viscera
from service.errors import StorageUnavailable
from service.jobs.job import Glimpse
from tests.support.api import OWNER, Api, running_api

MANY = 60  # more than there are threads for blocking work in the server


@pytest.fixture
def viscera(api: Api) -> Iterator[Viscera]:
    with Viscera(str(api.client.base_url), api_key=api.key) as viscera:
        yield viscera


def show_progress(api: Api, job_id: str, percent: float) -> None:
    assert api.store.renew(job_id, OWNER, stage="inference", percent=percent, lease_seconds=30.0).ok


# ETags


def test_an_unchanged_job_is_304_and_a_changed_one_is_not(api: Api):
    job_id = api.submit()["id"]
    first = api.client.get(f"/v1/jobs/{job_id}")
    known = {"If-None-Match": first.headers["ETag"]}

    same = api.client.get(f"/v1/jobs/{job_id}", headers=known)
    api.store.claim(job_id, OWNER, 30.0)
    changed = api.client.get(f"/v1/jobs/{job_id}", headers=known)

    assert (same.status_code, same.content) == (304, b"")
    assert same.headers["ETag"] == first.headers["ETag"]
    assert "Retry-After" in same.headers
    assert changed.status_code == 200
    assert changed.headers["ETag"] != first.headers["ETag"]


def test_a_place_further_ahead_in_the_queue_is_a_change(api: Api):
    first, second = api.submit()["id"], api.submit()["id"]
    known = {"If-None-Match": api.client.get(f"/v1/jobs/{second}").headers["ETag"]}
    api.store.claim(first, OWNER, 30.0)
    assert api.client.get(f"/v1/jobs/{second}", headers=known).json()["queue_position"] == 1


def test_weak_and_listed_tags_are_understood(api: Api):
    job_id = api.submit()["id"]
    etag = api.client.get(f"/v1/jobs/{job_id}").headers["ETag"]
    for tags in (f'"other", {etag}', etag.removeprefix("W/"), "*"):
        assert api.client.get(f"/v1/jobs/{job_id}", headers={"If-None-Match": tags}).status_code == 304


# Requests that wait


def test_a_waiting_request_is_answered_when_the_job_changes(api: Api):
    job_id = api.submit()["id"]
    etag = api.client.get(f"/v1/jobs/{job_id}").headers["ETag"]
    api.once_waited_for(lambda: api.store.claim(job_id, OWNER, 30.0))

    answer = api.client.get(f"/v1/jobs/{job_id}", params={"wait": 20}, headers={"If-None-Match": etag})

    assert answer.json()["status"] == "running"


def test_a_waiting_request_without_a_tag_waits_for_the_next_change(api: Api):
    job_id = api.submit()["id"]
    api.store.claim(job_id, OWNER, 30.0)
    api.once_waited_for(lambda: show_progress(api, job_id, 50.0))
    assert api.client.get(f"/v1/jobs/{job_id}", params={"wait": 20}).json()["percent"] == 50.0


def test_a_waiting_request_ends_with_304_when_nothing_happens(api: Api):
    job_id = api.submit()["id"]
    etag = api.client.get(f"/v1/jobs/{job_id}").headers["ETag"]
    answer = api.client.get(f"/v1/jobs/{job_id}", params={"wait": 1}, headers={"If-None-Match": etag})
    assert answer.status_code == 304


def test_what_the_caller_does_not_know_yet_is_answered_at_once(api: Api):
    job_id = api.submit()["id"]
    stale = api.client.get(f"/v1/jobs/{job_id}", params={"wait": 60}, headers={"If-None-Match": '"old"'}, timeout=15)
    api.succeed(job_id)
    ended = api.client.get(f"/v1/jobs/{job_id}", params={"wait": 60}, timeout=15)
    known = {"If-None-Match": ended.headers["ETag"]}
    assert (stale.status_code, ended.json()["status"]) == (200, "succeeded")
    assert api.client.get(f"/v1/jobs/{job_id}", params={"wait": 60}, headers=known, timeout=15).status_code == 304


@pytest.mark.parametrize("wait", ["-1", "61", "soon"])
def test_a_wait_that_makes_no_sense_is_an_invalid_request(api: Api, wait):
    answer = api.client.get(f"/v1/jobs/{api.submit()['id']}", params={"wait": wait})
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/invalid-request")


def test_waiting_requests_hold_neither_threads_nor_connections(api: Api):
    job_id = api.submit()["id"]
    etag = api.client.get(f"/v1/jobs/{job_id}").headers["ETag"]

    def wait() -> int:
        with api.client_with(api.key) as client:
            known = {"If-None-Match": etag}
            return client.get(f"/v1/jobs/{job_id}", params={"wait": 30}, headers=known, timeout=60).status_code

    with ThreadPoolExecutor(MANY) as pool:
        waiting = [pool.submit(wait) for _ in range(MANY)]
        api.until_waiting(MANY)
        assert api.store.engine.pool.checkedout() <= 1
        assert api.client.get("/v1/jobs").status_code == 200  # needs a thread and a connection
        api.store.claim(job_id, OWNER, 30.0)
        assert {answer.result(30) for answer in waiting} == {200}


def test_a_request_that_waits_bears_a_database_that_is_away(api: Api, monkeypatch):
    job_id = api.submit()["id"]
    watch = api.app.state.services.watch
    glimpses, away = watch._glimpses, threading.Event()

    def look(ids):
        if not away.is_set():
            away.set()
            raise StorageUnavailable("away")
        return glimpses(ids)

    monkeypatch.setattr(watch, "_glimpses", look)
    api.once_waited_for(lambda: away.wait(10) and api.store.claim(job_id, OWNER, 30.0))
    assert api.client.get(f"/v1/jobs/{job_id}", params={"wait": 20}).json()["status"] == "running"


async def _wait_twice(watch: JobWatch) -> list[str]:
    done: list[str] = []

    async def wait(job_id: str) -> None:
        await watch.change(job_id, Glimpse(1, None), 5.0)
        done.append(job_id)

    waiting = [asyncio.create_task(wait(job_id)) for job_id in ("changed", "same")]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    first = list(done)
    watch.close()
    await asyncio.gather(*waiting)
    return first


def test_only_those_whose_job_changed_are_woken_and_all_when_the_service_stops():
    watch = JobWatch(lambda ids: {"changed": Glimpse(2, None), "same": Glimpse(1, None)}, interval_seconds=0.01)
    assert asyncio.run(_wait_twice(watch)) == ["changed"]
    assert not watch._waiters


# Events


def events_of(response: httpx.Response) -> Iterator[dict[str, str]]:
    for block in response.read().decode().split("\n\n"):
        lines = [line.partition(": ") for line in block.splitlines() if line and not line.startswith(":")]
        if lines:
            yield {name: value for name, _, value in lines}


def test_the_stream_tells_each_change_and_ends_with_the_job(api: Api, viscera: Viscera):
    job_id = api.submit()["id"]
    told = []
    for job in viscera.events(job_id):
        told.append((job["status"], job["percent"]))
        if job["status"] == "queued":
            api.store.claim(job_id, OWNER, 30.0)
        elif job["percent"] == 0:
            show_progress(api, job_id, 40.0)
        elif job["status"] == "running":
            api.store.succeed(job_id, OWNER)
    assert told == [("queued", 0), ("running", 0), ("running", 40.0), ("succeeded", 100.0)]


def test_events_have_ids_and_the_last_one_its_own_name(api: Api):
    job_id = api.submit()["id"]
    api.fail(job_id)

    response = api.client.get(f"/v1/jobs/{job_id}/events")
    (event,) = events_of(response)

    assert response.headers["Content-Type"].startswith("text/event-stream")
    assert event["event"] == "end"
    assert json.loads(event["data"])["error"]["type"] == "/problems/not-hu"
    assert api.client.get(f"/v1/jobs/{job_id}").headers["ETag"] == f'W/"{event["id"]}"'


def test_a_stream_is_resumed_after_the_last_event(api: Api):
    job_id = api.submit()["id"]
    known = {"Last-Event-ID": api.client.get(f"/v1/jobs/{job_id}").headers["ETag"].removeprefix("W/").strip('"')}
    api.once_waited_for(lambda: api.fail(job_id))

    resumed = list(events_of(api.client.get(f"/v1/jobs/{job_id}/events", headers=known)))
    last = {"Last-Event-ID": resumed[-1]["id"]}
    over = api.client.get(f"/v1/jobs/{job_id}/events", headers=last)

    assert {json.loads(event["data"])["status"] for event in resumed} <= {"running", "failed"}  # not `queued` again
    assert resumed[-1]["event"] == "end"
    assert over.status_code == 204  # which tells a browser to stop


def test_an_unknown_job_has_no_stream(api: Api):
    answer = api.client.get("/v1/jobs/00000000-0000-4000-8000-000000000000/events")
    assert (answer.status_code, answer.headers["Content-Type"]) == (404, "application/problem+json")


def test_the_stream_of_a_deleted_job_ends(api: Api):
    job_id = api.submit()["id"]
    api.once_waited_for(lambda: api.store.delete(job_id))
    assert [event["event"] for event in events_of(api.client.get(f"/v1/jobs/{job_id}/events"))] == ["job"]


def test_the_client_resumes_a_stream_that_breaks(api: Api, viscera: Viscera, monkeypatch):
    monkeypatch.setattr("service.api.following.STREAM_SECONDS", 0.2)
    monkeypatch.setattr("service.client.connection.DEFAULT_POLL_SECONDS", 0.05)
    job_id = api.submit()["id"]
    api.once_waited_for(lambda: (time.sleep(0.5), api.store.cancel(job_id)))  # meanwhile the stream breaks
    told = list(viscera.events(job_id))
    assert [job["status"] for job in told] == ["queued", "canceled"], told


def test_streams_and_waiting_requests_end_when_the_service_stops(tmp_path: Path):
    with running_api(tmp_path) as api, ThreadPoolExecutor(1) as pool:
        job_id = api.submit()["id"]
        watch = api.app.state.services.watch
        stream = pool.submit(
            lambda: [event["event"] for event in events_of(api.client.get(f"/v1/jobs/{job_id}/events"))]
        )
        api.until_waiting()
        watch._looking.get_loop().call_soon_threadsafe(watch.close)
        assert stream.result(20) == ["job"]
