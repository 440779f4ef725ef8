"""What is promised when processes die: real workers, real SIGKILLs, a fake segmenter."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from service.jobs.job import JobStatus, Priority
from service.settings import Settings
from tests.support.jobs import JobSystem, embedded_only, kill, wait_until


def process_fields(pid: int) -> list[str]:
    """State, parent and so on of a process; empty when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def gone(pid: int) -> bool:
    return process_fields(pid)[:1] in ([], ["Z"])


@contextmanager
def server(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """A process that keeps an embedded worker, as `viscera serve` does; killed at the end, if not before."""
    code = (
        "import time; from service.settings import Settings; from service.worker import start_embedded_worker\n"
        "start_embedded_worker(Settings()); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **settings.to_environment()})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_job_is_done_once_after_sigkill_of_everything_and_a_restart(
    make_system: Callable[..., JobSystem],
) -> None:
    before = make_system()
    with server(before.settings) as dying:
        job_id = before.submit("slow:2")
        before.wait_for_progress(job_id)
        [child] = before.starts(job_id)
        parent = int(process_fields(child)[1])
        for pid in (dying.pid, parent, child):
            kill(pid)
    wait_until(lambda: gone(parent) and gone(child), what="the worker's end")
    assert before.store.get(job_id).status is JobStatus.RUNNING

    after = make_system()
    assert after.sweeper.rebuild_queue().recovery.requeued == (job_id,)
    after.start_worker()
    after.start_sweeping()
    job = after.wait_for_end(job_id)

    assert (job.status, job.attempts, job.percent, job.stage) == (JobStatus.SUCCEEDED, 2, 100.0, None)
    first, second = after.starts(job_id)
    assert first == child != second
    assert after.storage.artifact_path(job_id, "masks/liver.nii.gz").read_text() == f"by {second}"
    result = [f"results/{job_id}/half.nii.gz", f"results/{job_id}/masks/liver.nii.gz"]
    wait_until(lambda: after.files() == result, what="a clean disk")
    time.sleep(0.6)  # a few sweeps more change nothing
    assert after.starts(job_id) == [first, second]
    assert after.store.get(job_id) == job


def test_death_of_the_child_alone_is_survived_without_a_restart(system: JobSystem) -> None:
    worker = system.start_worker()
    system.start_sweeping()
    job_id = system.submit("slow:1")
    system.wait_for_progress(job_id)
    parent = worker.pid
    kill(system.starts(job_id)[0])

    job = system.wait_for_end(job_id)

    assert (job.status, job.attempts) == (JobStatus.SUCCEEDED, 2)
    assert worker.pid == parent


def test_worker_that_dies_is_started_again(system: JobSystem) -> None:
    worker = system.start_worker()
    system.start_sweeping()
    job_id = system.submit("slow:1")
    system.wait_for_progress(job_id)
    first = worker.pid
    kill(first)

    job = system.wait_for_end(job_id)

    assert (job.status, job.attempts) == (JobStatus.SUCCEEDED, 2)
    assert worker.pid != first


def test_job_that_kills_its_worker_three_times_fails_and_the_next_job_runs(system: JobSystem) -> None:
    system.start_worker()
    system.start_sweeping()
    poison = system.submit("poison")
    innocent = system.submit("quick")

    job = system.wait_for_end(poison)

    assert (job.status, job.attempts) == (JobStatus.FAILED, 3)
    assert job.error is not None
    assert job.error.code == "worker-lost"
    assert len(set(system.starts(poison))) == 3
    assert system.wait_for_end(innocent).status is JobStatus.SUCCEEDED


def test_no_worker_outlives_a_killed_server(system: JobSystem) -> None:
    with server(system.settings):
        job_id = system.submit("slow:60")
        system.wait_for_progress(job_id)
        [child] = system.starts(job_id)
        parent = int(process_fields(child)[1])
    wait_until(lambda: gone(child) and gone(parent), 10.0, "the worker's end")


def test_stopped_service_hands_its_job_back_without_counting_the_attempt(
    make_system: Callable[..., JobSystem],
) -> None:
    system = make_system(shutdown_grace_seconds=0.2)
    worker = system.start_worker()
    job_id = system.submit("slow:30")
    system.wait_for_progress(job_id)
    worker.stop()

    job = system.store.get(job_id)
    assert (job.status, job.attempts, job.stage) == (JobStatus.QUEUED, 0, None)
    assert [*system.store.undispatched()] == [job_id]


def test_stopped_service_lets_a_job_finish_within_the_grace_period(system: JobSystem) -> None:
    worker = system.start_worker()
    job_id = system.submit("slow:1")
    system.wait_for_progress(job_id)
    worker.stop()

    assert system.store.get(job_id).status is JobStatus.SUCCEEDED
    assert system.store.workers() == []


def test_job_in_a_replaced_child_may_finish_within_the_grace_period_too(system: JobSystem) -> None:
    worker = system.start_worker()
    system.start_sweeping()
    job_id = system.submit("slow:1.5")
    system.wait_for_progress(job_id)
    kill(system.starts(job_id)[0])
    wait_until(lambda: len(system.starts(job_id)) == 2, what="the second start")
    worker.stop()

    job = system.store.get(job_id)
    assert (job.status, job.attempts) == (JobStatus.SUCCEEDED, 2)


@embedded_only
def test_message_that_died_with_its_worker_is_sent_again(system: JobSystem) -> None:
    job_id = system.submit()
    system.queue.purge()  # as if a worker took the message and died before it claimed the job
    assert system.sweeper.sweep_once().dispatched == ()  # it may still be on its way
    assert system.sweeper.rebuild_queue().dispatched == (job_id,)
    assert system.queue.waiting() == 1


def test_burst_of_100_jobs_with_three_workers_loses_none_and_runs_none_twice(system: JobSystem) -> None:
    for _ in range(3):
        system.start_worker()
    jobs = [system.submit() for _ in range(100)]

    wait_until(lambda: system.store.counts()[JobStatus.SUCCEEDED] == len(jobs), what="the end of all jobs")

    assert [len(system.starts(job_id)) for job_id in jobs] == [1] * len(jobs)
    assert {system.store.get(job_id).attempts for job_id in jobs} == {1}
    assert len({pid for job_id in jobs for pid in system.starts(job_id)}) == 3 * system.settings.jobs_at_once
    assert system.queue.waiting() == 0


@pytest.mark.parametrize("model", ["slow:60", "deaf:60"])
def test_canceled_job_stops_for_good_and_a_warm_worker_takes_the_next(system: JobSystem, model: str) -> None:
    system.start_worker()
    job_id = system.submit(model)
    system.wait_for_progress(job_id)
    [child] = system.starts(job_id)
    system.store.cancel(job_id)
    job = system.wait_for_end(job_id)

    assert (job.status, job.attempts) == (JobStatus.CANCELED, 1)
    if model.startswith("deaf"):
        wait_until(lambda: gone(child), what="the end of work that does not listen")
    following = system.submit()
    system.start_sweeping()
    assert system.wait_for_end(following).status is JobStatus.SUCCEEDED
    assert system.starts(job_id) == [child]
    wait_until(lambda: all(following in name for name in system.files()), what="a clean disk")


@pytest.mark.parametrize("model", ["slow:60", "deaf:60"])
def test_job_that_runs_too_long_fails_at_once_and_is_not_tried_again(system: JobSystem, model: str) -> None:
    system.start_worker()
    job_id = system.submit(model, time_limit_seconds=1.0)
    job = system.wait_for_end(job_id)

    assert (job.status, job.attempts) == (JobStatus.FAILED, 1)
    assert job.error is not None
    assert (job.error.code, "limit of 1 s" in job.error.detail) == ("time-limit-exceeded", True)


def test_free_worker_takes_the_most_urgent_job_first(make_system: Callable[..., JobSystem]) -> None:
    system = make_system(jobs_at_once=1)
    jobs = [system.submit(priority=priority) for priority in (Priority.BATCH, Priority.ROUTINE, Priority.STAT)]
    jobs.append(system.submit(priority=Priority.STAT))
    batch, routine, stat, later_stat = jobs
    system.start_worker()
    wait_until(lambda: system.store.counts()[JobStatus.SUCCEEDED] == len(jobs), what="the end of all jobs")

    begun = sorted(jobs, key=lambda job_id: system.store.get(job_id).started_at or datetime.max)
    assert begun == [stat, later_stat, routine, batch]
