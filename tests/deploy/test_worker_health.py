"""The health check of a worker's container."""

import subprocess
import sys
from pathlib import Path

import pytest

from service import worker_health
from service.jobs.job import WorkerState
from service.jobs.owner import current_owner, is_here
from service.jobs.store import JobStore
from service.settings import PREFIX


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobStore:
    url = f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
    monkeypatch.setenv(f"{PREFIX}DATABASE_URL", url)
    return JobStore(url)


def test_healthy_when_the_worker_here_is_ready(store: JobStore) -> None:
    store.report_worker(current_owner(), WorkerState.STARTING, "")
    assert worker_health.main() == 1
    store.report_worker(current_owner(), WorkerState.READY, "")
    assert worker_health.main() == 0


def test_says_why_a_worker_is_not_ready(store: JobStore, capfd: pytest.CaptureFixture[str]) -> None:
    store.report_worker(current_owner(), WorkerState.UNHEALTHY, "The sample is off.")
    assert worker_health.main() == 1
    assert "The sample is off." in capfd.readouterr().err


def test_a_worker_elsewhere_does_not_count(store: JobStore) -> None:
    machine, pid, start = current_owner().rsplit(":", 2)
    store.report_worker(f"{machine}9:{pid}:{start}", WorkerState.READY, "")
    assert worker_health.main() == 1


def test_a_worker_that_has_died_does_not_count(store: JobStore) -> None:
    code = "from service.jobs.owner import current_owner; print(current_owner())"
    dead = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert not is_here(dead)
    store.report_worker(dead, WorkerState.READY, "")
    assert worker_health.main() == 1


def test_unhealthy_while_the_database_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    assert worker_health.main() == 1
