"""One job in this process: what is written, what is left, and what a worker that lost its lease must not do."""

import contextlib
import errno
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog

from service import tasks
from service.errors import StorageUnavailable
from service.jobs.job import Job, JobStatus, Notice, WorkerState
from service.jobs.store import JobStore
from service.progress import Progress, Stage, overall_percent
from service.request import SegmentationRequest
from service.storage import LocalStorage
from service.tasks import WorkContext, install_context, run_job, segment_job
from tests.support.fake_segmenter import NOTICE, FakeSegmenter
from tests.support.jobs import JobSystem, submit, wait_until


@pytest.fixture
def context(system: JobSystem) -> WorkContext:
    return WorkContext(
        store=system.store,
        storage=system.storage,
        segmenter=FakeSegmenter(system.settings.data_dir / "journal.txt"),
        owner="ann",
        lease_seconds=30.0,
        settings=system.settings,
        time_limit_seconds=3600.0,
        keep_results_for=timedelta(days=1),
        storage_pauses=(),
        kill_process=lambda: pytest.fail("the work did not hear that it was to stop"),
    )


@pytest.fixture
def events() -> Iterator[list[structlog.typing.EventDict]]:
    with structlog.testing.capture_logs() as captured:
        yield captured


class FakeClock:
    """Stands in for the module `time`: moves when a test says so, however busy the machine is."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Scripted:
    """A segmenter that does what a test says in the middle of the work."""

    def __init__(self, act: Callable[[Progress], None]) -> None:
        self.act = act

    def warm_up(self) -> None: ...

    def segment(
        self, upload: Path, out_dir: Path, model: str, request: SegmentationRequest, progress: Progress
    ) -> Sequence[Notice]:
        (out_dir / "findings.json").write_text("{}")
        self.act(progress)
        return []


def run(context: WorkContext, act: Callable[[Progress], None]) -> Job:
    job_id = submit(context.store, context.storage).id
    run_job(replace(context, segmenter=Scripted(act)), job_id)
    return context.store.get(job_id)


def expire(store: JobStore) -> None:
    store.requeue_expired(datetime.now(UTC) + timedelta(hours=1), max_attempts=3)


def test_job_succeeds_with_its_result_and_notices_and_without_its_upload(
    context: WorkContext, system: JobSystem
) -> None:
    job_id = submit(context.store, context.storage).id
    run_job(context, job_id)
    job = context.store.get(job_id)
    assert (job.status, job.attempts, job.notices) == (JobStatus.SUCCEEDED, 1, (NOTICE,))
    assert system.files() == [f"results/{job_id}/half.nii.gz", f"results/{job_id}/masks/liver.nii.gz"]


@pytest.mark.parametrize(
    ("model", "code", "words"),
    [
        ("bad-input", "too-few-slices", "at least 10 are needed"),
        ("broken", "internal", "Tell the operator"),
        ("disk-full", "storage-unavailable", "disk of the server is full"),
    ],
)
def test_job_fails_with_the_reason_and_leaves_nothing(
    context: WorkContext, system: JobSystem, model: str, code: str, words: str
) -> None:
    job_id = submit(context.store, context.storage, model).id
    run_job(context, job_id)
    job = context.store.get(job_id)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert (job.error.code, words in job.error.detail) == (code, True)
    assert "secret" not in job.error.detail
    assert "Doe" not in job.error.detail
    assert system.files() == []


def test_crash_is_logged_with_its_place_and_without_its_words(
    context: WorkContext, events: list[structlog.typing.EventDict]
) -> None:
    job_id = submit(context.store, context.storage, "broken").id
    run_job(context, job_id)
    [crash] = [event for event in events if event["event"] == "job.crashed"]
    assert crash["error"] == "ZeroDivisionError"
    assert "fake_segmenter.py" in crash["traceback"]
    assert "Doe^Jane" not in str([event for event in events if event["log_level"] != "debug"]).replace(
        'raise ZeroDivisionError("patient Doe^Jane")', ""
    )
    assert [event["code"] for event in events if event["event"] == "job.failed"] == ["internal"]


def test_temporary_files_vanish_with_the_attempt(context: WorkContext, system: JobSystem) -> None:
    before = tempfile.gettempdir()
    inside = []

    def work(_: Progress) -> None:
        inside.append(tempfile.mkdtemp())
        (Path(inside[0]) / "left").touch()

    job = run(context, work)
    assert inside[0].startswith(f"{system.settings.data_dir}/scratch/{job.id}/1/tmp/")
    assert system.files() == [f"results/{job.id}/findings.json"]
    assert tempfile.gettempdir() == before


def test_job_without_its_upload_fails(context: WorkContext) -> None:
    job_id = submit(context.store, context.storage).id
    context.storage.delete_upload(job_id)
    run_job(context, job_id)
    error = context.store.get(job_id).error
    assert error is not None
    assert error.code == "upload-gone"


def test_message_that_comes_twice_runs_once(context: WorkContext, system: JobSystem) -> None:
    job_id = submit(context.store, context.storage).id
    install_context(context)
    segment_job(job_id)
    done = context.store.get(job_id)
    segment_job(job_id)
    assert len(system.starts(job_id)) == 1
    assert context.store.get(job_id) == done


def test_message_about_a_canceled_or_unknown_job_does_nothing(context: WorkContext, system: JobSystem) -> None:
    job_id = submit(context.store, context.storage).id
    context.store.cancel(job_id)
    run_job(context, job_id)
    run_job(context, "nobody")
    assert system.starts(job_id) == []
    assert context.store.get(job_id).status is JobStatus.CANCELED


def test_progress_is_shown_and_throttled(context: WorkContext, monkeypatch: pytest.MonkeyPatch) -> None:
    renewals: list[tuple[str | None, float]] = []
    renew = JobStore.renew

    def counted(self: JobStore, *args: object, stage: str | None, percent: float, lease_seconds: float) -> object:
        renewals.append((stage, percent))
        return renew(self, *args, stage=stage, percent=percent, lease_seconds=lease_seconds)  # type: ignore[arg-type]

    monkeypatch.setattr(JobStore, "renew", counted)

    clock = FakeClock()
    monkeypatch.setattr("service.jobs.lease.time", clock)

    def work(progress: Progress) -> None:
        for _ in range(60):
            progress(Stage.INFERENCE, 0.5)
            clock.now += 0.01
        progress(Stage.WRITING, 1.0)

    run(context, work)
    # At the start, every 0.25 s, at the change of stage, and before the result is published.
    assert renewals == [("inference", 40.0)] * 3 + [("writing", 99.0)] * 2


def test_waiting_for_a_neighbour_is_shown_moves_no_percent_and_counts_towards_no_limit(
    context: WorkContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    monkeypatch.setattr("service.jobs.lease.time", clock)
    seen: list[tuple[str | None, float]] = []

    def step(progress: Progress, stage: Stage, seconds: float) -> None:
        progress(stage, 0.5)
        job = context.store.list()[0]
        seen.append((job.stage, job.percent))
        clock.now += seconds

    def work(progress: Progress, *, seconds_of_network: float) -> None:
        step(progress, Stage.READING, 4.0)
        step(progress, Stage.WAITING, 500.0)
        step(progress, Stage.WAITING, 500.0)
        step(progress, Stage.INFERENCE, seconds_of_network)
        step(progress, Stage.WRITING, 0.0)

    limited = replace(context, time_limit_seconds=10.0)
    assert run(limited, partial(work, seconds_of_network=5.5)).status is JobStatus.SUCCEEDED
    reading = overall_percent(Stage.READING, 0.5)
    assert seen[:4] == [("reading", reading), ("waiting", reading), ("waiting", reading), ("inference", 40.0)]
    late = run(limited, partial(work, seconds_of_network=6.5))
    assert (late.status, late.error and late.error.code) == (JobStatus.FAILED, "time-limit-exceeded")


def test_running_job_stops_when_it_is_canceled(context: WorkContext, system: JobSystem) -> None:
    def work(progress: Progress) -> None:
        [job] = context.store.list()
        context.store.cancel(job.id)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            progress(Stage.INFERENCE, 0.5)
        pytest.fail("was not stopped")

    job = run(context, work)
    assert (job.status, job.error) == (JobStatus.CANCELED, None)
    assert system.files() == []


def test_cancel_just_before_the_end_still_counts(context: WorkContext, system: JobSystem) -> None:
    job = run(context, lambda _: (context.store.cancel(context.store.list()[0].id), None)[1])
    assert job.status is JobStatus.CANCELED
    assert system.files() == []


def test_worker_that_lost_its_lease_publishes_nothing_and_leaves_the_upload(
    context: WorkContext, system: JobSystem
) -> None:
    job = run(context, lambda _: expire(context.store))
    assert (job.status, job.attempts) == (JobStatus.QUEUED, 1)
    assert system.files() == [f"uploads/{job.id}/00000.nii.gz"]


def test_worker_that_lost_its_lease_is_stopped_by_its_next_progress(context: WorkContext) -> None:
    went_on = []

    def work(progress: Progress) -> None:
        expire(context.store)
        progress(Stage.READING, 0.5)
        went_on.append(True)

    assert run(context, work).status is JobStatus.QUEUED
    assert not went_on


@pytest.mark.parametrize("failure", [None, ValueError("late")])
def test_zombie_does_not_touch_what_its_successor_did(
    context: WorkContext, system: JobSystem, failure: Exception | None
) -> None:
    successor = replace(context, owner="bob")

    def work(_: Progress) -> None:
        [job] = context.store.list()
        expire(context.store)
        run_job(successor, job.id)
        if failure is not None:
            raise failure

    job = run(context, work)
    assert (job.status, job.attempts, job.notices) == (JobStatus.SUCCEEDED, 2, (NOTICE,))
    assert system.files() == [f"results/{job.id}/half.nii.gz", f"results/{job.id}/masks/liver.nii.gz"]


def test_lease_is_renewed_while_the_work_says_nothing(context: WorkContext) -> None:
    impatient = replace(context, lease_seconds=1.5)
    job = run(impatient, lambda _: time.sleep(2.0) or _sweep(context.store))
    assert (job.status, job.attempts) == (JobStatus.SUCCEEDED, 1)


def _sweep(store: JobStore) -> None:
    assert store.requeue_expired(datetime.now(UTC), 3).requeued == ()


def test_database_that_is_away_for_a_moment_costs_nothing(
    context: WorkContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claim, progress, confirmation and the end each meet it once."""
    away: set[str] = set()
    for name in ("claim", "renew", "succeed"):
        monkeypatch.setattr(JobStore, name, _away_once(getattr(JobStore, name), name, away))
    job = run(context, lambda progress: progress(Stage.READING, 0.5))
    assert away == {"claim", "renew", "succeed"}
    assert (job.status, job.attempts) == (JobStatus.SUCCEEDED, 1)


def test_a_database_that_is_away_when_a_stored_result_is_looked_for_costs_nothing(
    context: WorkContext, system: JobSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = finished(context, result_key="k")
    away: set[str] = set()
    monkeypatch.setattr(JobStore, "stored_result", _away_once(JobStore.stored_result, "stored_result", away))
    second = finished(context, result_key="k")
    assert away == {"stored_result"}
    assert (second.status, second.reused_from, system.starts(second.id)) == (JobStatus.SUCCEEDED, first.id, [])


def test_where_nobody_can_tell_of_a_stored_result_the_work_is_done(
    context: WorkContext, system: JobSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise StorageUnavailable("away")

    finished(context, result_key="k")
    monkeypatch.setattr(tasks, "_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(JobStore, "stored_result", away)
    second = finished(context, result_key="k")
    assert (second.status, second.reused_from, len(system.starts(second.id))) == (JobStatus.SUCCEEDED, None, 1)


def _away_once(method: Callable[..., object], name: str, away: set[str]) -> Callable[..., object]:
    def call(*args: object, **kwargs: object) -> object:
        if name not in away:
            away.add(name)
            raise StorageUnavailable("away")
        return method(*args, **kwargs)

    return call


def test_disk_that_fails_in_the_clean_up_does_not_fail_the_job(
    context: WorkContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StorageUnavailable("read-only")

    monkeypatch.setattr(LocalStorage, "delete_upload", fail)
    assert run(context, lambda _: None).status is JobStatus.SUCCEEDED


def test_job_says_how_long_each_stage_took_and_when_its_result_expires(context: WorkContext) -> None:
    job = run(context, lambda progress: (progress(Stage.READING, 0.0), time.sleep(0.02), progress(Stage.WRITING, 1.0)))
    assert list(job.stage_seconds) == ["reading", "writing"]
    assert job.stage_seconds["reading"] >= 0.02
    assert job.finished_at is not None
    assert job.expires_at is not None
    assert abs(job.expires_at - job.finished_at - timedelta(days=1)) < timedelta(seconds=5)


def finished(context: WorkContext, **fields: Any) -> Job:
    job_id = submit(context.store, context.storage, **fields).id
    run_job(context, job_id)
    return context.store.get(job_id)


def test_equal_job_takes_the_stored_result_which_outlives_the_first(context: WorkContext, system: JobSystem) -> None:
    first = finished(context, result_key="k")
    second = finished(context, result_key="k")
    third = finished(context, result_key="k")
    assert system.starts(second.id) == system.starts(third.id) == []
    assert (second.status, second.notices) == (JobStatus.SUCCEEDED, first.notices)
    assert second.reused_from == third.reused_from == first.id
    context.store.delete(first.id)
    context.storage.delete_job(first.id)
    assert context.storage.artifact_path(second.id, "masks/liver.nii.gz").read_bytes().startswith(b"by ")
    assert system.files() == sorted(
        f"results/{job.id}/{name}" for job in (second, third) for name in ("half.nii.gz", "masks/liver.nii.gz")
    )


def test_result_is_not_reused_across_tenants_or_settings_or_against_the_callers_wish(
    context: WorkContext, system: JobSystem
) -> None:
    finished(context, result_key="k")
    others: list[dict[str, Any]] = [{"result_key": "k", "tenant": "oncology"}, {"result_key": "other"}]
    others += [{"result_key": "k", "reuse": False}, {}]
    for fields in others:
        job = finished(context, **fields)
        assert (job.status, job.reused_from, len(system.starts(job.id))) == (JobStatus.SUCCEEDED, None, 1)


def test_expired_or_vanished_result_is_not_reused(context: WorkContext, system: JobSystem) -> None:
    first = finished(context, result_key="k")
    context.storage.delete_result(first.id)
    second = finished(context, result_key="k")
    assert (second.reused_from, len(system.starts(second.id))) == (None, 1)
    context.store.expire_results(datetime.now(UTC) + timedelta(days=2))
    third = finished(context, result_key="k")
    assert (third.reused_from, len(system.starts(third.id))) == (None, 1)


def test_full_disk_is_waited_for_and_the_job_begins_again(context: WorkContext) -> None:
    tries = []

    def work(_: Progress) -> None:
        tries.append(True)
        if len(tries) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    job = run(replace(context, storage_pauses=(0.0, 0.0)), work)
    assert (job.status, job.attempts, len(tries)) == (JobStatus.SUCCEEDED, 1, 3)


def test_cancel_is_heard_while_a_full_disk_is_waited_for(context: WorkContext) -> None:
    def work(_: Progress) -> None:
        context.store.cancel(context.store.list()[0].id)
        raise OSError(errno.ENOSPC, "No space left on device")

    assert run(replace(context, storage_pauses=(60.0,)), work).status is JobStatus.CANCELED


def test_worker_says_what_state_it_is_in(system: JobSystem) -> None:
    worker = system.start_worker()
    with contextlib.closing(system.store):
        wait_until(
            lambda: any(report.state is WorkerState.READY for report in system.store.workers()), what="the self-test"
        )
        assert worker.alive
        worker.stop()
        assert not worker.alive
        assert system.store.workers() == []
