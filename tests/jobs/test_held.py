"""Jobs whose study still arrives, in either database."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.exchange.plan import Exchange
from service.jobs.held import HeldJob, HeldJobs
from service.jobs.job import JobStatus
from service.jobs.store import JobStore
from service.request import Mode, SegmentationRequest
from tests.support.jobs import wait_until

NEW = HeldJob("viscera-compact-9.0.0", SegmentationRequest(mode=Mode.FAST), Exchange(push=("pacs",)))


def make() -> HeldJob:
    return NEW


def test_a_held_job_is_found_by_its_key_and_not_dispatched(store: JobStore) -> None:
    held = HeldJobs(store, quiet_seconds=60.0)
    job = held.open("key", make)
    assert (job.status, job.model, job.request, job.exchange) == (
        JobStatus.QUEUED,
        NEW.model,
        NEW.request,
        NEW.exchange,
    )
    assert held.open("key", lambda: pytest.fail("there is one")).id == job.id
    assert held.open("other", make).id != job.id
    assert held.hold_on(job.id, files=2, size=700)
    assert held.hold_on(job.id)
    counted = store.get(job.id)
    assert (counted.upload_files, counted.upload_bytes) == (2, 700)
    assert store.undispatched() == {}


def test_the_hold_ends_by_itself_and_the_key_begins_anew(store: JobStore) -> None:
    held = HeldJobs(store, quiet_seconds=0.2)
    job = held.open("key", make)
    wait_until(lambda: list(store.undispatched()) == [job.id])
    assert not held.hold_on(job.id)
    again = held.open("key", make)
    assert again.id != job.id
    assert store.get(job.id).status is JobStatus.QUEUED


def test_each_instance_prolongs_the_hold(store: JobStore) -> None:
    held = HeldJobs(store, quiet_seconds=2.0)
    job = held.open("key", make)
    first = time.monotonic()
    while time.monotonic() - first < 3.0:
        assert held.hold_on(job.id, files=1)
        time.sleep(0.2)
    assert store.undispatched() == {}


@pytest.mark.parametrize("end", ["cancel", "delete"])
def test_a_job_that_is_gone_holds_no_longer(store: JobStore, end: str) -> None:
    held = HeldJobs(store, quiet_seconds=60.0)
    job = held.open("key", make)
    getattr(store, end)(job.id)
    assert not held.hold_on(job.id, files=1)
    assert held.open("key", make).id != job.id


def test_many_receivers_of_one_study_open_one_job(store: JobStore) -> None:
    held = HeldJobs(store, quiet_seconds=60.0)
    with ThreadPoolExecutor(8) as pool:
        jobs = [*pool.map(lambda _: held.open("key", make).id, range(24))]
    assert len(set(jobs)) == 1
    assert len(store.list()) == 1
