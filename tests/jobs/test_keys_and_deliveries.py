"""Keys and deliveries in either database, with several processes at once."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, update

from service.errors import RateLimited, Unauthenticated
from service.jobs.deliveries import Delivery, DeliveryStore
from service.jobs.job import JobStatus, NewJob, new_job_id
from service.jobs.keys import ALL_SCOPES, KeyStore, Scope
from service.jobs.store import JobStore
from service.jobs.table import API_KEYS
from service.request import SegmentationRequest

URL = "https://pacs.example.org/hook"
MINUTE = timedelta(minutes=1)


@pytest.fixture
def store(database_url: str) -> Iterator[JobStore]:
    with closing(JobStore(database_url)) as store:
        yield store


def ended_job(store: JobStore, callback_url: str | None = URL) -> str:
    job_id = new_job_id()
    request = SegmentationRequest()
    store.create(NewJob(job_id, "m-1.0.0", request, upload_bytes=1, upload_files=1, callback_url=callback_url))
    store.claim(job_id, "ann", 30)
    store.succeed(job_id, "ann")
    return job_id


def test_a_key_has_what_it_was_made_with(store: JobStore) -> None:
    keys = KeyStore(store.engine)
    made, text = keys.create(name="pacs", tenant="t", scopes=[Scope.READ], rate_limit=5, quota=2)
    found = keys.authenticate(text)
    assert (found.id, found.tenant, found.scopes) == (made.id, "t", {Scope.READ})
    assert (found.rate_limit, found.quota, found.revoked_at) == (5, 2, None)
    keys.revoke(made.id)
    with pytest.raises(Unauthenticated, match="revoked"):
        keys.authenticate(text)
    assert [key.revoked_at is not None for key in keys.list()] == [True]


def test_requests_are_counted_once_by_all_processes_and_anew_each_minute(database_url: str, store: JobStore) -> None:
    keys = KeyStore(store.engine)
    limited, other = (keys.create(name=name)[0].id for name in ("limited", "other"))

    waits: list[int] = []

    def taken(requests: int) -> int:
        def one(_: int) -> bool:
            try:
                keys.count_request(limited, 5)
            except RateLimited as refused:
                waits.append(refused.retry_after_seconds)
                return False
            return True

        with ThreadPoolExecutor(4) as callers:
            return sum(callers.map(one, range(requests)))

    assert taken(24) in (5, 10)  # a minute may end in between
    assert all(1 <= seconds <= 60 for seconds in waits)
    keys.count_request(other, 1)
    with store.engine.begin() as connection:
        connection.execute(update(API_KEYS).values(counted_minute=API_KEYS.c.counted_minute - 1))
    assert taken(24) in (5, 10)


def test_the_minute_is_that_of_the_clock(database_url: str, store: JobStore) -> None:
    keys = KeyStore(store.engine)
    key = keys.create(name="trial")[0]
    before = int(time.time() // 60)
    keys.count_request(key.id, 1)
    with store.engine.connect() as connection:
        minute, requests = connection.execute(select(API_KEYS.c.counted_minute, API_KEYS.c.counted_requests)).one()
    assert before <= minute <= int(time.time() // 60)
    assert requests == 1


def test_of_processes_that_start_at_once_one_makes_the_first_key(database_url: str, store: JobStore) -> None:
    def start(_: int) -> str | None:
        with closing(KeyStore.open(database_url)) as keys:
            return keys.create_first()

    with ThreadPoolExecutor(4) as pool:
        made = [text for text in pool.map(start, range(4)) if text is not None]
    assert len(made) == 1
    assert KeyStore(store.engine).authenticate(made[0]).scopes == ALL_SCOPES


def test_unfinished_jobs_of_a_key_are_counted(store: JobStore) -> None:
    keys = KeyStore(store.engine)
    for key_id in ("a", "a", "b", None):
        new = NewJob(new_job_id(), "m-1.0.0", SegmentationRequest(), upload_bytes=1, upload_files=1, key_id=key_id)
        store.create(new)
    running = store.list(limit=1)[0].id
    store.claim(running, "ann", 30)
    assert (keys.unfinished_jobs("a"), keys.unfinished_jobs("b"), keys.unfinished_jobs("c")) == (2, 1, 0)


def test_each_ended_job_with_a_callback_gets_one_delivery(store: JobStore) -> None:
    told = ended_job(store)
    ended_job(store, callback_url=None)
    waiting = NewJob(new_job_id(), "m-1.0.0", SegmentationRequest(), upload_bytes=1, upload_files=1, callback_url=URL)
    store.create(waiting)
    deliveries = DeliveryStore(store.engine)
    now = datetime.now(UTC)
    with ThreadPoolExecutor(4) as pool:
        enrolled = list(pool.map(lambda _: deliveries.enroll(now - MINUTE), range(4)))
    (due,) = deliveries.claim(datetime.now(UTC), MINUTE, 10)
    assert sum(enrolled) == 1
    assert (due.job_id, due.event, due.url, due.attempts) == (told, f"job.{JobStatus.SUCCEEDED}", URL, 1)


def test_jobs_that_ended_long_ago_are_not_told(store: JobStore) -> None:
    ended_job(store)
    assert DeliveryStore(store.engine).enroll(datetime.now(UTC) + MINUTE) == 0


def test_each_delivery_is_claimed_by_one(store: JobStore) -> None:
    jobs = {ended_job(store) for _ in range(30)}
    deliveries = DeliveryStore(store.engine)
    deliveries.enroll(datetime.now(UTC) - MINUTE)
    now = datetime.now(UTC)

    def claim_all(_: int) -> list[Delivery]:
        claimed: list[Delivery] = []
        while more := deliveries.claim(now, MINUTE, 4):
            claimed += more
        return claimed

    with ThreadPoolExecutor(4) as pool:
        claims = [due for share in pool.map(claim_all, range(4)) for due in share]
    claims += claim_all(0)  # what each left to the others
    assert sorted(due.job_id for due in claims) == sorted(jobs)
    assert deliveries.claim(now, MINUTE, 20) == []
    assert len(deliveries.claim(now + 2 * MINUTE, MINUTE, 50)) == 30


def test_what_was_delivered_or_given_up_is_not_due_again(store: JobStore) -> None:
    for _ in range(2):
        ended_job(store)
    deliveries = DeliveryStore(store.engine)
    deliveries.enroll(datetime.now(UTC) - MINUTE)
    one, two = deliveries.claim(datetime.now(UTC), MINUTE, 10)
    deliveries.succeeded(one.id)
    deliveries.failed(two.id, "HTTP status 500", None)
    later = datetime.now(UTC) + timedelta(days=2)
    assert deliveries.claim(later, MINUTE, 10) == []
    assert deliveries.enroll(datetime.now(UTC) - MINUTE) == 0
