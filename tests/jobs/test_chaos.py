"""The short form of `make chaos`, on every machine that has a Redis; with PostgreSQL where that is installed, too."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.chaos import Plan, run_chaos
from tests.support.servers import PostgresServer, RedisServer, postgres_program, redis_program


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    if redis_program() is None:
        pytest.skip("no redis-server; install it: apt-get install redis-server")
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    if postgres_program("initdb") is None:
        pytest.skip("no PostgreSQL; install it: apt-get install postgresql")
    with closing(PostgresServer()) as server:
        server.start()
        yield server


def test_twenty_jobs_survive_a_kill_a_wiped_redis_and_a_restarted_database(
    redis: RedisServer, postgres: PostgresServer
) -> None:
    plan = Plan(
        jobs=20,
        clients=5,
        job_seconds=0.1,
        kills=1,
        redis_restarts=0,
        redis_wipes=1,
        postgres_away_seconds=1.0,
        disk_full_seconds=0.0,
    )
    tally = run_chaos(plan, redis, postgres)
    assert tally.problems == []
    assert tally.outcomes == {"succeeded": 20}
    assert set(tally.answers) <= {"202", "503"}
    assert len(tally.events) == 3
