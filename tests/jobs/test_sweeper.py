"""The sweeper, with a table, a storage and a queue folder but no worker."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from service.errors import StorageUnavailable
from service.jobs.job import JobStatus, Priority, Recovery, WorkerState, new_job_id
from service.jobs.owner import current_owner, is_dead
from service.jobs.store import JobStore
from tests.support.jobs import JobSystem, embedded_only, submit, wait_until


def dead_owner() -> str:
    """The name of a process of this machine that has ended."""
    code = "from service.jobs.owner import current_owner; print(current_owner())"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_owner_is_dead_only_when_that_is_certain() -> None:
    mine = current_owner()
    assert current_owner() == mine
    assert not is_dead(mine)
    assert is_dead(dead_owner())
    machine, pid, start = mine.rsplit(":", 2)
    assert is_dead(f"{machine}:{pid}:{int(start) - 1}")  # the pid was used before
    assert not is_dead(f"another-boot:1:{pid}:{start}")  # nobody here can know


def test_job_of_a_dead_local_worker_is_requeued_and_dispatched_at_once(system: JobSystem) -> None:
    job_id = system.submit()
    system.queue.purge()
    owner = dead_owner()
    system.store.report_worker(owner, WorkerState.READY)
    system.store.claim(job_id, owner, lease_seconds=3600)
    report = system.sweeper.sweep_once()
    assert report.recovery == Recovery(requeued=(job_id,))
    assert report.dispatched == (job_id,)
    assert system.queue.waiting() == 1
    assert system.store.workers() == []


def test_job_of_a_distant_worker_waits_for_its_lease(system: JobSystem) -> None:
    job_id = system.submit()
    system.queue.purge()
    system.store.claim(job_id, "another-boot:1:2:3", lease_seconds=2.0)
    assert system.sweeper.sweep_once().recovery == Recovery()
    time.sleep(2.1)
    assert system.sweeper.sweep_once().recovery == Recovery(requeued=(job_id,))


def test_waiting_job_gets_no_second_message(system: JobSystem) -> None:
    system.submit()
    for _ in range(3):
        assert system.sweeper.sweep_once().dispatched == ()
    assert system.queue.waiting() == 1


def test_lost_message_is_sent_again_once_the_queue_is_empty(system: JobSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = system.submit()
    system.queue.purge()  # as if a worker took the message and died before it claimed the job
    assert system.sweeper.sweep_once().dispatched == ()  # it may be on its way
    monkeypatch.setattr("service.sweeper._MESSAGE_ON_ITS_WAY", timedelta(0))
    assert system.sweeper.sweep_once().dispatched == (job_id,)


def test_lost_message_is_sent_again_after_a_while_even_when_the_queue_is_busy(
    make_system: Callable[..., JobSystem],
) -> None:
    system = make_system(redispatch_seconds=2.0)
    lost = system.submit()
    system.queue.purge()
    time.sleep(2.1)
    system.submit()
    assert system.sweeper.sweep_once().dispatched == (lost,)


@embedded_only
def test_rebuilt_queue_has_one_message_for_each_queued_job_the_oldest_first(system: JobSystem) -> None:
    jobs = [system.submit() for _ in range(3)]
    system.queue.dispatch(jobs[2], Priority.ROUTINE)
    system.store.cancel(jobs[1])
    running = submit(system.store, system.storage).id
    system.store.claim(running, current_owner(), 30)
    assert system.sweeper.rebuild_queue().dispatched == (jobs[0], jobs[2])
    assert system.queue.waiting() == 2


def test_files_nobody_needs_are_swept(system: JobSystem) -> None:
    canceled, queued = system.submit(), system.submit()
    system.store.cancel(canceled)
    abandoned = new_job_id()
    with system.storage.open_upload(abandoned, "00000.zip") as file:
        file.write(b"the client died before the job was made")
    hours_ago = time.time() - 7200
    os.utime(system.storage.upload_dir(abandoned), (hours_ago, hours_ago))
    assert system.sweeper.sweep_once().files_removed == 2
    assert system.files() == [f"uploads/{queued}/00000.nii.gz"]
    assert system.sweeper.sweep_once().files_removed == 0


def test_result_expires_with_its_files_and_the_row_tells(make_system: Callable[..., JobSystem]) -> None:
    system = make_system(job_retention_seconds=0.0)
    for keep_for in (timedelta(0), timedelta(hours=1), None):
        job_id = system.submit()
        assert system.store.claim(job_id, "ann", 30) is not None
        (system.storage.begin_result(job_id, 1) / "findings.json").touch()
        system.storage.publish_result(job_id, 1)
        assert system.store.succeed(job_id, "ann", keep_for=keep_for)
    endless, kept, expired = (job.id for job in system.store.list())
    system.sweeper.sweep_once()
    assert system.files() == sorted(f"results/{job_id}/findings.json" for job_id in (endless, kept))
    assert system.store.get(expired).expired_at is not None
    assert system.store.get(expired).status is JobStatus.SUCCEEDED
    assert system.store.get(kept).expired_at is None


def test_files_of_an_expired_result_that_a_crash_left_are_swept(system: JobSystem) -> None:
    job_id = system.submit()
    assert system.store.claim(job_id, "ann", 30) is not None
    (system.storage.begin_result(job_id, 1) / "findings.json").touch()
    system.storage.publish_result(job_id, 1)
    system.storage.delete_upload(job_id)
    assert system.store.succeed(job_id, "ann", keep_for=timedelta(0))
    assert system.store.expire_results(datetime.now(UTC)) == (job_id,)
    system.sweeper.sweep_once()
    assert system.files() == []


def test_row_of_an_ended_job_without_a_result_is_forgotten_in_time(make_system: Callable[..., JobSystem]) -> None:
    system = make_system(job_retention_seconds=0.001)
    canceled, queued = system.submit(), system.submit()
    system.store.cancel(canceled)
    time.sleep(0.01)
    system.sweeper.sweep_once()
    assert [job.id for job in system.store.list()] == [queued]


def test_sweeper_in_a_process_of_its_own_dispatches_and_ends_on_sigterm(system: JobSystem) -> None:
    job_id = submit(system.store, system.storage).id
    environment = {**os.environ, **system.settings.to_environment()}
    with subprocess.Popen([sys.executable, "-m", "service.sweeper"], env=environment) as process:
        wait_until(lambda: not system.store.undispatched(), what="the dispatch")
        process.terminate()
        assert process.wait(20) == 0
    assert system.queue.waiting() == 1
    assert system.store.get(job_id).status is JobStatus.QUEUED


def test_thread_survives_a_table_that_is_away(system: JobSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    owners = JobStore.owners

    def away_at_first(store: JobStore) -> set[str]:
        calls.append(True)
        if len(calls) == 1:
            raise StorageUnavailable("away")
        if len(calls) == 2:
            raise RuntimeError("nobody expected this")
        return owners(store)

    monkeypatch.setattr(JobStore, "owners", away_at_first)
    job_id = submit(system.store, system.storage).id
    system.start_sweeping()
    wait_until(lambda: not system.store.undispatched(), 5.0, "the dispatch")
    assert system.store.get(job_id).status is JobStatus.QUEUED
