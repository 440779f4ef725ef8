"""A job system in a temporary folder: table, storage, queue, sweeper, and real workers that run the fake segmenter."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from service.jobs.job import Job, NewJob, new_job_id
from service.jobs.queue import JobQueue
from service.jobs.store import JobStore
from service.request import SegmentationRequest
from service.settings import Settings
from service.storage import LocalStorage
from service.supervisor import EmbeddedWorker
from service.sweeper import Sweeper
from tests.support import fake_segmenter
from tests.support.stored import stored_files

REPOSITORY = Path(__file__).parents[2]

embedded_only = pytest.mark.parametrize("backends", ["embedded"], indirect=True)
"""Of a test about the embedded queue itself; others run on Redis and PostgreSQL, too."""
servers_only = pytest.mark.parametrize("backends", ["servers"], indirect=True)


def wait_until(condition: Callable[[], bool], seconds: float = 60.0, what: str = "the condition") -> None:
    """Return as soon as the condition holds; fail the test when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not hold within {seconds} s"
        time.sleep(0.02)


def submit(store: JobStore, storage: LocalStorage, model: str = "quick", **fields: Any) -> Job:
    """A stored upload and its queued job, as the API makes them; not yet dispatched."""
    job_id = new_job_id()
    with storage.open_upload(job_id, "00000.nii.gz") as file:
        file.write(b"voxels")
    return store.create(NewJob(job_id, model, SegmentationRequest(), upload_bytes=6, upload_files=1, **fields))


@dataclass
class JobSystem:
    """Everything `viscera serve` starts, without the API."""

    settings: Settings
    store: JobStore = field(init=False)
    storage: LocalStorage = field(init=False)
    queue: JobQueue = field(init=False)
    sweeper: Sweeper = field(init=False)
    workers: list[EmbeddedWorker] = field(default_factory=list)
    sweeping: bool = False

    def __post_init__(self) -> None:
        self.store = JobStore(self.settings.database_url)
        self.storage = LocalStorage(self.settings.data_dir)
        self.queue = JobQueue(self.settings, self.store)
        self.sweeper = Sweeper(self.settings, self.store, self.storage, self.queue)

    def start_worker(self) -> EmbeddedWorker:
        """Start a worker process and its supervisor."""
        worker = EmbeddedWorker(self.settings)
        worker.start()
        self.workers.append(worker)
        return worker

    def start_sweeping(self) -> None:
        """Sweep in a thread, as the server does."""
        self.sweeping = True
        self.sweeper.start()

    def submit(self, model: str = "quick", **fields: Any) -> str:
        """Submit and dispatch a job; returns its id."""
        job = submit(self.store, self.storage, model, **fields)
        self.queue.dispatch(job.id, job.priority)
        return job.id

    def wait_for_end(self, job_id: str, seconds: float = 60.0) -> Job:
        """The job once it has ended."""
        wait_until(lambda: self.store.get(job_id).status.terminal, seconds, "the job's end")
        return self.store.get(job_id)

    def wait_for_progress(self, job_id: str) -> Job:
        """The job once a worker is in the middle of it."""
        wait_until(lambda: self.store.get(job_id).percent > 10.0, what="progress")
        return self.store.get(job_id)

    def starts(self, job_id: str) -> list[int]:
        """Process ids of the processes that began the job, in order."""
        journal = fake_segmenter.journal_of(self.settings)
        lines = journal.read_text().splitlines() if journal.exists() else []
        return [int(pid) for name, pid in (line.split() for line in lines) if name == job_id]

    def files(self) -> list[str]:
        """Every file of the storage, relative to it."""
        return stored_files(self.settings.data_dir)

    def close(self) -> None:
        """Stop what was started."""
        if self.sweeping:
            self.sweeper.stop()
        if self.workers:
            with ThreadPoolExecutor(len(self.workers)) as stopping:
                list(stopping.map(EmbeddedWorker.stop, self.workers))
        self.queue.close()
        self.store.close()


def kill(pid: int | None) -> None:
    """SIGKILL, as the kernel does when memory is short."""
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
