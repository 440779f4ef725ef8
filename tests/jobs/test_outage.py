"""Redis and PostgreSQL go away while a real worker is at work, and come back."""

import time
from collections.abc import Callable

import pytest

from service.errors import StorageUnavailable
from service.jobs.job import JobStatus
from service.settings import Settings
from tests.support.jobs import JobSystem, embedded_only, wait_until
from tests.support.servers import PostgresServer, RedisServer


@embedded_only
def test_worker_whose_job_ends_while_redis_is_away_goes_on_when_it_is_back_without_its_data(
    make_system: Callable[..., JobSystem], redis: RedisServer
) -> None:
    system = make_system(broker_url=redis.url)
    system.start_worker()
    system.start_sweeping()
    running = system.submit("slow:2")
    system.wait_for_progress(running)
    waiting = system.submit()
    redis.kill()
    redis.wipe()
    assert system.wait_for_end(running).status is JobStatus.SUCCEEDED
    submitted_meanwhile = system.submit()
    time.sleep(1.0)  # the worker looks for the next message
    redis.start()

    for job_id in (submitted_meanwhile, waiting):
        job = system.wait_for_end(job_id)
        assert (job.status, job.attempts) == (JobStatus.SUCCEEDED, 1)


@embedded_only
def test_running_job_does_not_notice_a_database_that_goes_away_and_comes_back(
    make_system: Callable[..., JobSystem], postgres: PostgresServer
) -> None:
    system = make_system(database_url=postgres.url)
    system.start_worker()
    job_id = system.submit("slow:3")
    system.wait_for_progress(job_id)
    postgres.stop()
    with pytest.raises(StorageUnavailable):
        system.store.get(job_id)
    postgres.start()
    job = system.wait_for_end(job_id)
    assert (job.status, job.attempts) == (JobStatus.SUCCEEDED, 1)


@embedded_only
def test_worker_that_starts_before_the_database_waits_for_it(
    make_settings: Callable[..., Settings], make_system: Callable[..., JobSystem], postgres: PostgresServer
) -> None:
    system = make_system(database_url=postgres.url)
    postgres.stop()
    worker = system.start_worker()
    time.sleep(2.0)  # long enough for its child to ask
    assert worker.alive
    postgres.start()
    wait_until(lambda: len(system.store.workers()) == 2, what="a sign of life of both processes")
    job_id = system.submit()
    assert system.wait_for_end(job_id).status is JobStatus.SUCCEEDED
