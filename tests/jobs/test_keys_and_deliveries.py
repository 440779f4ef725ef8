"""Keys and deliveries in either database, with several processes at once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from service.errors import Unauthenticated
from service.jobs.deliveries import Delivery, DeliveryStore
from service.jobs.job import JobStatus, NewJob, new_job_id
from service.jobs.keys import ALL_SCOPES, KeyStore, Scope
from service.jobs.store import JobStore
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
