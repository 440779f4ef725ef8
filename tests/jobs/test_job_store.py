"""The job table, on SQLite and on PostgreSQL."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service.errors import IdempotencyConflict, IllegalTransition, JobNotFound, StorageUnavailable
from service.jobs.job import (
    TRANSITIONS,
    FilesNeeded,
    Job,
    JobError,
    JobStatus,
    NewJob,
    Priority,
    Recovery,
    WorkerState,
    new_job_id,
)
from service.jobs.store import JobStore
from service.request import SegmentationRequest

ERROR = JobError("too-few-slices", "Too few slices", "The series has 4 slices; at least 10 are needed.")
REQUEST = SegmentationRequest(targets=("liver", "spleen"), overlap=0.25)


def new_job(**changes: Any) -> NewJob:
    return replace(NewJob(new_job_id(), "compact", REQUEST, upload_bytes=2**40, upload_files=7), **changes)


def create(store: JobStore, **changes: Any) -> Job:
    return store.create(new_job(**changes))


def bring_to(store: JobStore, status: JobStatus) -> str:
    """A job of that status, by the legal way; while it runs its owner is `ann`."""
    job_id = create(store).id
    if status is JobStatus.CANCELED:
        store.cancel(job_id)
    elif status is not JobStatus.QUEUED:
        assert store.claim(job_id, "ann", 30) is not None
        if status is JobStatus.SUCCEEDED:
            assert store.succeed(job_id, "ann")
        elif status is JobStatus.FAILED:
            assert store.fail(job_id, "ann", ERROR)
    return job_id


def test_created_job_reads_back_as_it_was(store: JobStore) -> None:
    created = create(store)
    job = store.get(created.id)
    assert job == created
    assert (job.status, job.request, job.upload_bytes, job.upload_files) == (JobStatus.QUEUED, REQUEST, 2**40, 7)
    assert (job.attempts, job.percent, job.error, job.notices) == (0, 0.0, None, ())
    assert abs(datetime.now(UTC) - job.created_at) < timedelta(seconds=5)


def test_job_walks_from_queued_to_succeeded(store: JobStore) -> None:
    job_id = create(store).id
    claimed = store.claim(job_id, "ann", 30)
    assert claimed is not None
    assert (claimed.status, claimed.attempts) == (JobStatus.RUNNING, 1)
    assert claimed.started_at is not None

    renewal = store.renew(job_id, "ann", stage="inference", percent=42.0, lease_seconds=30)
    assert (renewal.ok, renewal.cancel_requested) == (True, False)
    assert (store.get(job_id).stage, store.get(job_id).percent) == ("inference", 42.0)

    assert store.succeed(job_id, "ann", [{"code": "cut", "message": "The liver is cut."}])
    job = store.get(job_id)
    assert (job.status, job.stage, job.percent) == (JobStatus.SUCCEEDED, None, 100.0)
    assert job.notices == ({"code": "cut", "message": "The liver is cut."},)
    assert job.finished_at is not None
    assert job.finished_at >= claimed.started_at


def test_failed_job_tells_why(store: JobStore) -> None:
    assert store.get(bring_to(store, JobStatus.FAILED)).error == ERROR


@pytest.mark.parametrize("status", list(JobStatus))
def test_every_change_that_is_not_in_the_table_of_transitions_is_refused(store: JobStore, status: JobStatus) -> None:
    changes: dict[JobStatus, Callable[[str], bool]] = {
        JobStatus.RUNNING: lambda job_id: store.claim(job_id, "bob", 30) is not None,
        JobStatus.SUCCEEDED: lambda job_id: store.succeed(job_id, "ann"),
        JobStatus.FAILED: lambda job_id: store.fail(job_id, "ann", ERROR),
        JobStatus.CANCELED: lambda job_id: store.finish_cancel(job_id, "ann"),
    }
    # A worker cancels what it runs; a queued job is canceled by `cancel`, which has its own tests.
    allowed = TRANSITIONS.get(status, frozenset()) - ({JobStatus.CANCELED} if status is JobStatus.QUEUED else set())
    for target, change in changes.items():
        job_id = bring_to(store, status)
        assert change(job_id) is (target in allowed), f"{status} -> {target}"
        assert store.get(job_id).status is (target if target in allowed else status)


def test_only_the_owner_can_change_a_running_job(store: JobStore) -> None:
    job_id = bring_to(store, JobStatus.RUNNING)
    before = store.get(job_id)
    assert not store.renew(job_id, "bob", stage="x", percent=1, lease_seconds=30).ok
    assert not store.succeed(job_id, "bob")
    assert not store.fail(job_id, "bob", ERROR)
    assert not store.finish_cancel(job_id, "bob")
    assert store.get(job_id) == before


def test_one_of_many_claims_wins(store: JobStore) -> None:
    job_ids = [create(store).id for _ in range(10)]
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda n: store.claim(job_ids[n % 10], f"worker-{n}", 30), range(80)))
    assert sorted(job.id for job in claims if job is not None) == sorted(job_ids)
    assert {store.get(job_id).attempts for job_id in job_ids} == {1}


def test_cancel_of_a_queued_job_is_at_once_and_of_a_running_job_a_request(store: JobStore) -> None:
    queued, running = bring_to(store, JobStatus.QUEUED), bring_to(store, JobStatus.RUNNING)
    assert store.cancel(queued).status is JobStatus.CANCELED
    asked = store.cancel(running)
    assert (asked.status, asked.cancel_requested) == (JobStatus.RUNNING, True)
    assert store.renew(running, "ann", stage=None, percent=0, lease_seconds=30).cancel_requested
    assert store.finish_cancel(running, "ann")
    assert store.get(running).status is JobStatus.CANCELED
    assert store.cancel(running).status is JobStatus.CANCELED


@pytest.mark.parametrize("status", [JobStatus.SUCCEEDED, JobStatus.FAILED])
def test_cancel_of_an_ended_job_is_refused(store: JobStore, status: JobStatus) -> None:
    with pytest.raises(IllegalTransition, match=f"has already {status}"):
        store.cancel(bring_to(store, status))


def test_unknown_job(store: JobStore) -> None:
    for ask in (store.get, store.cancel, store.delete, lambda job_id: store.list(before=job_id)):
        with pytest.raises(JobNotFound):
            ask("nobody")
    assert store.claim("nobody", "ann", 30) is None
    assert store.queue_position("nobody") is None


def test_running_job_is_not_deleted(store: JobStore) -> None:
    running, ended = bring_to(store, JobStatus.RUNNING), bring_to(store, JobStatus.FAILED)
    with pytest.raises(IllegalTransition):
        store.delete(running)
    store.delete(ended)
    with pytest.raises(JobNotFound):
        store.get(ended)


def test_list_pages_from_the_newest(store: JobStore) -> None:
    newest_first = [create(store).id for _ in range(5)][::-1]
    page = store.list(limit=2)
    assert [job.id for job in page] == newest_first[:2]
    assert [job.id for job in store.list(limit=50, before=page[-1].id)] == newest_first[2:]
    store.cancel(newest_first[3])
    assert [job.id for job in store.list(status=JobStatus.CANCELED)] == [newest_first[3]]


def test_queue_position_counts_only_those_who_wait(store: JobStore) -> None:
    first, second, third = (create(store).id for _ in range(3))
    assert [store.queue_position(job_id) for job_id in (first, second, third)] == [1, 2, 3]
    store.claim(first, "ann", 30)
    assert [store.queue_position(job_id) for job_id in (first, second, third)] == [None, 1, 2]
    assert store.counts() == {
        JobStatus.QUEUED: 2,
        JobStatus.RUNNING: 1,
        JobStatus.SUCCEEDED: 0,
        JobStatus.FAILED: 0,
        JobStatus.CANCELED: 0,
    }


def test_expired_lease_gives_the_job_back_and_the_old_owner_nothing(store: JobStore) -> None:
    job_id = create(store).id
    store.mark_dispatched(job_id)
    store.claim(job_id, "ann", 30)
    now = datetime.now(UTC)
    assert store.requeue_expired(now, 3) == Recovery()
    assert store.requeue_expired(now + timedelta(seconds=31), 3) == Recovery(requeued=(job_id,))
    assert [*store.undispatched()] == [job_id]
    assert not store.succeed(job_id, "ann")
    again = store.claim(job_id, "bob", 30)
    assert again is not None
    assert again.attempts == 2


def test_renewed_lease_lasts(store: JobStore) -> None:
    job_id = bring_to(store, JobStatus.RUNNING)
    store.renew(job_id, "ann", stage=None, percent=0, lease_seconds=120)
    assert store.requeue_expired(datetime.now(UTC) + timedelta(seconds=60), 3) == Recovery()


def test_dead_owner_loses_its_job_at_once_and_others_keep_theirs(store: JobStore) -> None:
    lost = bring_to(store, JobStatus.RUNNING)
    kept = create(store).id
    store.claim(kept, "bob", 30)
    assert store.owners() == {"ann", "bob"}
    assert store.requeue_expired(datetime.now(UTC), 3, {"ann"}) == Recovery(requeued=(lost,))
    assert store.get(kept).status is JobStatus.RUNNING


def test_third_lost_worker_fails_the_job(store: JobStore) -> None:
    job_id = create(store).id
    for attempt in (1, 2, 3):
        claimed = store.claim(job_id, f"worker-{attempt}", 30)
        assert claimed is not None
        assert claimed.attempts == attempt
        recovery = store.requeue_expired(datetime.now(UTC), 3, {f"worker-{attempt}"})
    assert recovery == Recovery(failed=(job_id,))
    job = store.get(job_id)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error.code == "worker-lost"
    assert "3 times" in job.error.detail


def test_lost_job_that_was_to_be_canceled_is_canceled(store: JobStore) -> None:
    job_id = bring_to(store, JobStatus.RUNNING)
    store.cancel(job_id)
    assert store.requeue_expired(datetime.now(UTC), 3, {"ann"}) == Recovery(canceled=(job_id,))
    assert store.get(job_id).status is JobStatus.CANCELED


def test_job_handed_back_keeps_its_count(store: JobStore) -> None:
    job_id = bring_to(store, JobStatus.RUNNING)
    assert store.hand_back({"bob"}) == ()
    assert store.hand_back({"ann"}) == (job_id,)
    assert (store.get(job_id).status, store.get(job_id).attempts) == (JobStatus.QUEUED, 0)


def test_undispatched_jobs_are_found_oldest_first(store: JobStore) -> None:
    first, second, third = (create(store).id for _ in range(3))
    store.mark_dispatched(second)
    assert [*store.undispatched()] == [first, third]
    assert [*store.undispatched(older_than=datetime.now(UTC) - timedelta(seconds=60))] == [first, third]
    assert [*store.undispatched(older_than=datetime.now(UTC) + timedelta(seconds=60))] == [first, second, third]


def test_files_that_many_jobs_need(store: JobStore) -> None:
    known = create(store).id
    ids = [new_job_id() for _ in range(1200)]
    assert store.files_needed([*ids, known]) == {known: FilesNeeded.ALL}


def test_workers_report_and_are_forgotten(store: JobStore) -> None:
    store.report_worker("ann", WorkerState.STARTING)
    store.report_worker("ann", WorkerState.READY)
    store.report_worker("bob", WorkerState.UNHEALTHY, "The bundle was refused.")
    assert [(w.owner, w.state, w.detail) for w in store.workers()] == [
        ("ann", WorkerState.READY, ""),
        ("bob", WorkerState.UNHEALTHY, "The bundle was refused."),
    ]
    assert store.workers(seen_within_seconds=-1) == []
    store.forget_worker("ann")
    assert [worker.owner for worker in store.workers()] == ["bob"]
    store.forget_silent_workers(datetime.now(UTC) + timedelta(seconds=1))
    assert store.workers() == []


def test_job_of_another_tenant_is_not_found(store: JobStore) -> None:
    mine, theirs = create(store, tenant="radiology"), create(store, tenant="oncology")
    assert store.get(mine.id, tenant="radiology") == mine
    assert [job.id for job in store.list(tenant="radiology")] == [mine.id]
    for ask in (
        lambda: store.get(theirs.id, tenant="radiology"),
        lambda: store.cancel(theirs.id, tenant="radiology"),
        lambda: store.delete(theirs.id, tenant="radiology"),
        lambda: store.list(before=theirs.id, tenant="radiology"),
    ):
        with pytest.raises(JobNotFound):
            ask()
    assert store.get(theirs.id) == theirs


def test_same_idempotency_key_and_request_is_the_same_job(store: JobStore) -> None:
    first = create(store, idempotency_key="order-7", request_hash="a" * 64)
    assert create(store, idempotency_key="order-7", request_hash="a" * 64) == first
    with pytest.raises(IdempotencyConflict):
        create(store, idempotency_key="order-7", request_hash="b" * 64)
    assert create(store, idempotency_key="order-7", request_hash="b" * 64, tenant="oncology").id != first.id
    assert store.counts()[JobStatus.QUEUED] == 2


def test_of_many_simultaneous_submissions_with_one_key_one_makes_the_job(store: JobStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda _: create(store, idempotency_key="k", request_hash="a" * 64), range(24)))
    assert len({job.id for job in jobs}) == 1


def test_queue_is_ordered_by_priority_and_then_by_age(store: JobStore) -> None:
    jobs = [create(store, priority=Priority(name)).id for name in ("batch", "routine", "stat", "routine", "stat")]
    batch, routine, stat, later_routine, later_stat = jobs
    in_line = [stat, later_stat, routine, later_routine, batch]
    assert [store.queue_position(job_id) for job_id in in_line] == [1, 2, 3, 4, 5]
    assert [*store.undispatched()] == in_line


def test_revision_is_raised_by_what_a_caller_can_see(store: JobStore) -> None:
    job_id = create(store).id

    def revision() -> int:
        return store.get(job_id).revision

    seen = [revision()]
    for change in (
        lambda: store.claim(job_id, "ann", 30),
        lambda: store.renew(job_id, "ann", stage="inference", percent=10, lease_seconds=30),
        lambda: store.renew(job_id, "ann", stage="inference", percent=11, lease_seconds=30),
        lambda: store.cancel(job_id),
        lambda: store.finish_cancel(job_id, "ann"),
    ):
        change()
        seen.append(revision())
    assert seen == sorted(set(seen))
    store.mark_dispatched(job_id)
    store.renew(job_id, "ann", stage="inference", percent=11, lease_seconds=60)
    store.cancel(job_id)
    assert revision() == seen[-1]


def test_batch_is_listed_by_itself(store: JobStore) -> None:
    create(store)
    together = [create(store, batch_id="trial-3").id for _ in range(2)]
    assert [job.id for job in store.list(batch_id="trial-3")] == together[::-1]


def test_second_store_finds_the_jobs_of_the_first(store: JobStore, database_url: str) -> None:
    job = create(store)
    with closing(JobStore(database_url)) as second:
        assert second.get(job.id) == job


def _open_store(url: str) -> None:
    JobStore(url).close()


def test_processes_that_start_together_make_the_tables_once(database_url: str) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pool.map(_open_store, [database_url] * 6)


def test_database_that_is_away_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(StorageUnavailable):
        JobStore("postgresql://postgres@127.0.0.1:1/test")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageUnavailable):
        JobStore(f"sqlite:///{tmp_path / 'folder'}")
    (tmp_path / "file").touch()
    with pytest.raises(StorageUnavailable):
        JobStore(f"sqlite:///{tmp_path / 'file' / 'jobs.sqlite3'}")
