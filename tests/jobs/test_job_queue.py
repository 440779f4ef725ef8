"""The embedded queue: messages are whole, ordered and taken once; jobs wait where the broker is away."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from kombu import Connection
from kombu.exceptions import OperationalError

from service.jobs import transport
from service.jobs.job import JobStatus, Priority
from service.jobs.queue import QUEUE_NAME, JobQueue
from service.settings import Settings
from tests.support.jobs import JobSystem, embedded_only, submit


@contextmanager
def channel(folder: Path) -> Iterator[Any]:
    transport.register()
    with Connection("atomicfs://localhost//", transport_options={"folder": str(folder)}) as connection:
        yield connection.default_channel


def message(number: int, priority: int = 0) -> dict[str, Any]:
    return {"body": str(number), "properties": {"priority": priority, "padding": "x" * 10_000}}


def test_messages_come_in_order_and_by_priority(tmp_path: Path) -> None:
    with channel(tmp_path / "queue") as queue:
        for number, priority in enumerate([5, 0, 5, 0, 9]):
            queue._put("q", message(number, priority))
        assert queue._size("q") == 5
        assert [queue._get("q")["body"] for _ in range(5)] == ["1", "3", "0", "2", "4"]
        with pytest.raises(Empty):
            queue._get("q")
    assert [path.name for path in (tmp_path / "queue").rglob("*")] == ["taken"]


def test_queues_in_one_folder_do_not_mix(tmp_path: Path) -> None:
    with channel(tmp_path) as queue:
        queue._put("a", message(1))
        queue._put("a.b", message(2))
        assert (queue._size("a"), queue._size("b"), queue._size("a.b")) == (1, 0, 1)
        assert queue._purge("a") == 1
        assert queue._get("a.b")["body"] == "2"


def test_message_is_never_seen_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that looks at any moment finds nothing or all: here while the file is being flushed."""
    seen: list[int] = []
    with channel(tmp_path) as queue:
        monkeypatch.setattr(os, "fsync", lambda _: seen.append(queue._size("q")))
        queue._put("q", message(1))
        assert seen == [0]
        assert queue._size("q") == 1


def test_many_writers_and_readers_lose_and_double_nothing(tmp_path: Path) -> None:
    total, taken, done = 300, [], threading.Event()

    def write(numbers: range) -> None:
        with channel(tmp_path) as queue:
            for number in numbers:
                queue._put("q", message(number))

    def read() -> None:
        with channel(tmp_path) as queue:
            while not done.is_set():
                try:
                    taken.append(int(queue._get("q")["body"]))
                except Empty:
                    time.sleep(0.001)
                if len(taken) >= total:
                    done.set()

    with ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(write, range(start, total, 3)) for start in range(3)]
        jobs += [pool.submit(read) for _ in range(3)]
        assert done.wait(20), f"{len(taken)} of {total}"
        for job in jobs:
            job.result()
    assert sorted(taken) == list(range(total))


def test_folder_that_cannot_be_written_is_an_operational_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with channel(tmp_path / "file") as queue:
        with pytest.raises(OperationalError):
            queue._put("q", message(1))
        assert queue._size("q") == 0
        with pytest.raises(Empty):
            queue._get("q")


@embedded_only
def test_dispatched_message_names_the_job_and_nothing_else(system: JobSystem) -> None:
    job_id = system.submit()
    [path] = system.settings.broker_dir.glob("*.msg")
    envelope = json.loads(path.read_text())
    assert envelope["headers"]["task"] == "viscera.segment_job"
    assert envelope["headers"]["argsrepr"] == f"('{job_id}',)"
    assert system.queue.waiting() == 1
    assert [*system.store.undispatched()] == []


@embedded_only
def test_job_waits_while_the_broker_is_away_and_is_dispatched_when_it_is_back(system: JobSystem) -> None:
    broker = system.settings.broker_dir
    broker.touch()  # a file in the folder's place: not even root can write into it
    job_id = submit(system.store, system.storage).id
    assert system.queue.dispatch(job_id, Priority.ROUTINE) is False
    assert system.sweeper.sweep_once().dispatched == ()
    assert system.store.get(job_id).status is JobStatus.QUEUED
    broker.unlink()
    assert system.sweeper.sweep_once().dispatched == (job_id,)
    assert system.queue.waiting() == 1


@embedded_only
def test_queue_folder_that_vanishes_is_made_again(system: JobSystem) -> None:
    lost = system.submit()
    shutil.rmtree(system.settings.broker_dir)
    sent = system.submit()
    assert system.queue.waiting() == 1
    assert system.sweeper.rebuild_queue().dispatched == (lost, sent)
    assert system.queue.waiting() == 2


@embedded_only
def test_redis_that_is_away_is_not_waited_for(make_settings: Callable[..., Settings], system: JobSystem) -> None:
    queue = JobQueue(make_settings(broker_url="redis://127.0.0.1:1/0"), system.store)
    try:
        job_id = submit(system.store, system.storage).id
        begin = time.monotonic()
        assert queue.dispatch(job_id, Priority.ROUTINE) is False
        assert queue.waiting() is None
        assert time.monotonic() - begin < 3.0
        assert [*system.store.undispatched()] == [job_id]
    finally:
        queue.close()


def test_queue_name_is_safe_as_a_file_name() -> None:
    assert "." not in QUEUE_NAME
    assert "/" not in QUEUE_NAME
