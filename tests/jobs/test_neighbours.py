"""What jobs side by side in one worker owe each other: turns at the network, and no memory promised twice.

Each neighbour is a process forked from the one that made the file, as the children of a worker are.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest

from service import admission
from service.admission import admit, predicted_bytes
from service.errors import InsufficientMemory, JobCanceled
from service.imaging.geometry import Geometry
from service.inference.bundle import default_bundle_path, open_bundle
from service.neighbours import NO_NEIGHBOURS, WorkerNeighbours, neighbours, share
from service.progress import Stage, no_progress
from tests.support.jobs import wait_until

MIB = 1024**2
SCAN = Geometry((64, 64, 64), np.eye(4))


@pytest.fixture
def fork() -> Iterator[Callable[..., BaseProcess]]:
    """Starts a function in a forked process, killed at the end of the test."""
    started: list[BaseProcess] = []

    def start(function: Callable[..., None], *arguments: object) -> BaseProcess:
        process = get_context("fork").Process(target=function, args=arguments)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


@pytest.fixture
def worker() -> Iterator[WorkerNeighbours]:
    with closing(WorkerNeighbours(2)) as worker:
        yield worker


def take_turns(worker: WorkerNeighbours, journal: Path, turns: int) -> None:
    for _ in range(turns):
        with worker.network(no_progress), journal.open("a") as lines:
            lines.write(f"{os.getpid()} in\n")
            lines.flush()
            time.sleep(0.005)
            lines.write(f"{os.getpid()} out\n")


def test_one_process_at_a_time_has_the_network(
    worker: WorkerNeighbours, tmp_path: Path, fork: Callable[..., BaseProcess]
) -> None:
    journal = tmp_path / "journal"
    for process in [fork(take_turns, worker, journal, 20) for _ in range(3)]:
        process.join()
    lines = [line.split() for line in journal.read_text().splitlines()]
    assert len(lines) == 120
    assert len({pid for pid, _ in lines}) == 3
    for (who, came), (left, went) in zip(lines[::2], lines[1::2], strict=True):
        assert (who, came, went) == (left, "in", "out")


def hold_network(worker: WorkerNeighbours, sign: Path) -> None:
    with worker.network(no_progress):
        sign.touch()
        time.sleep(60)


def test_who_waits_says_so_may_stop_and_gets_the_network_of_one_that_was_killed(
    worker: WorkerNeighbours, tmp_path: Path, fork: Callable[..., BaseProcess]
) -> None:
    sign = tmp_path / "held"
    holder = fork(hold_network, worker, sign)
    wait_until(sign.exists, what="the turn of the other")

    def canceled(stage: Stage, _: float) -> None:
        assert stage is Stage.WAITING
        raise JobCanceled("Stop.")

    with pytest.raises(JobCanceled), worker.network(canceled):
        pytest.fail("the network is another's")
    assert holder.pid is not None

    def kill_it(*_: object) -> None:
        os.kill(holder.pid or 0, signal.SIGKILL)

    with worker.network(kill_it):
        pass


@contextmanager
def promised(fork: Callable[..., BaseProcess], worker: WorkerNeighbours, folder: Path) -> Iterator[BaseProcess]:
    """A neighbour with the promise of 400 MiB, who takes 150 MiB of them when the file `take` is there."""
    process = fork(keep_promise, worker, folder)
    wait_until((folder / "promised").exists, what="the promise")
    yield process


def keep_promise(worker: WorkerNeighbours, folder: Path) -> None:
    with worker.accounts() as accounts:
        accounts.promise(400 * MIB)
    (folder / "promised").touch()
    wait_until((folder / "take").exists, what="the sign")
    taken = np.ones(150 * MIB, np.uint8)
    (folder / "taken").touch()
    time.sleep(60 + taken[0])


def test_what_a_neighbour_was_promised_and_has_not_taken_is_owed(
    worker: WorkerNeighbours, tmp_path: Path, fork: Callable[..., BaseProcess]
) -> None:
    with promised(fork, worker, tmp_path) as neighbour:
        with worker.accounts() as accounts:
            assert accounts.owed_bytes == pytest.approx(400 * MIB, abs=20 * MIB)
            assert not accounts.alone
        (tmp_path / "take").touch()
        wait_until((tmp_path / "taken").exists, what="the memory")
        with worker.accounts() as accounts:
            assert accounts.owed_bytes == pytest.approx(250 * MIB, abs=20 * MIB)
        neighbour.kill()
        neighbour.join()
    with worker.accounts() as accounts:
        assert accounts.owed_bytes == 0
        assert accounts.alone


def test_own_promise_is_not_owed_to_others_and_ends_with_the_job(
    worker: WorkerNeighbours, tmp_path: Path, fork: Callable[..., BaseProcess]
) -> None:
    with worker.accounts() as accounts:
        accounts.promise(100 * MIB)
        assert (accounts.owed_bytes, accounts.alone) == (0, True)
    seen = tmp_path / "seen"
    look_at(worker, fork, seen)
    assert float(seen.read_text()) == pytest.approx(100 * MIB, abs=20 * MIB)
    worker.settle()
    look_at(worker, fork, seen)
    assert float(seen.read_text()) == 0


def look_at(worker: WorkerNeighbours, fork: Callable[..., BaseProcess], seen: Path) -> None:
    def look() -> None:
        with worker.accounts() as accounts:
            seen.write_text(str(accounts.owed_bytes))

    fork(look).join()


def test_records_of_the_dead_are_used_again(worker: WorkerNeighbours, fork: Callable[..., BaseProcess]) -> None:
    def promise() -> None:
        with worker.accounts() as accounts:
            accounts.promise(MIB)

    for _ in range(5):
        process = fork(promise)
        process.join()
        assert process.exitcode == 0


def test_a_job_that_would_fit_alone_waits_until_it_is(
    worker: WorkerNeighbours,
    tmp_path: Path,
    fork: Callable[..., BaseProcess],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest = open_bundle(default_bundle_path()).manifest
    needed = predicted_bytes(SCAN, manifest, 3)
    monkeypatch.setattr(admission, "available_bytes", lambda: needed + 100 * MIB)
    told: list[Stage] = []
    with promised(fork, worker, tmp_path) as neighbour:

        def watch(stage: Stage, _: float) -> None:
            told.append(stage)
            neighbour.kill()
            neighbour.join()

        assert admit(SCAN, manifest, 3, neighbours=worker, progress=watch) is False
    assert told == [Stage.WAITING]
    monkeypatch.setattr(admission, "available_bytes", lambda: 1000)
    with pytest.raises(InsufficientMemory):  # alone, so that no waiting would help
        admit(SCAN, manifest, 3, neighbours=worker)


def test_a_worker_of_one_process_has_no_neighbours() -> None:
    share(1)
    assert neighbours() is NO_NEIGHBOURS
    share(2)
    shared = neighbours()
    assert isinstance(shared, WorkerNeighbours)
    shared.close()
    share(1)
