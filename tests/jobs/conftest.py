from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from service.jobs.store import JobStore
from service.settings import Settings
from tests.support import fake_segmenter
from tests.support.jobs import REPOSITORY, JobSystem
from tests.support.servers import RedisServer


@pytest.fixture(params=["embedded", "servers"])
def backends(request: pytest.FixtureRequest) -> dict[str, str]:
    """Settings of the queue and the table: the folder and SQLite, then Redis and PostgreSQL."""
    if request.param == "embedded":
        return {}
    redis: RedisServer = request.getfixturevalue("redis_server")
    redis.clear()
    return {"broker_url": redis.url, "database_url": request.getfixturevalue("postgres_url")}


@pytest.fixture
def make_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backends: dict[str, str]) -> Callable[..., Settings]:
    """Settings of a service in a temporary folder that notices everything within a second or two."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))

    def make(**changes: Any) -> Settings:
        values = {
            "data_dir": tmp_path / "data",
            "segmenter": fake_segmenter.SPEC,
            "lease_seconds": 6.0,
            "sweep_seconds": 0.2,
            "shutdown_grace_seconds": 20.0,
            "log_level": "info",
            **backends,
        }
        return Settings(**(values | changes))

    return make


@pytest.fixture
def make_system(make_settings: Callable[..., Settings]) -> Iterator[Callable[..., JobSystem]]:
    """Opens job systems over the same folder, and stops all their processes."""
    opened: list[JobSystem] = []

    def make(**changes: Any) -> JobSystem:
        opened.append(JobSystem(make_settings(**changes)))
        return opened[-1]

    yield make
    for system in opened:
        system.close()


@pytest.fixture
def system(make_system: Callable[..., JobSystem]) -> JobSystem:
    return make_system()


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each database in turn."""
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path / 'new' / 'jobs.sqlite3'}"


@pytest.fixture
def store(database_url: str) -> Iterator[JobStore]:
    with closing(JobStore(database_url)) as opened:
        yield opened
