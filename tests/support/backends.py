"""Fixtures of Redis and PostgreSQL; a test that asks for one is skipped where it is not installed."""

import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.servers import PostgresServer, RedisServer, postgres_program, redis_program

POSTGRES_URL = "postgresql://postgres@127.0.0.1:5432/test"


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis to kill and wipe."""
    yield from _running_redis(tmp_path / "redis")


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL to stop and start."""
    if postgres_program("initdb") is None:
        pytest.skip("no PostgreSQL; install it: apt-get install postgresql")
    with closing(PostgresServer()) as server:
        server.start()
        yield server


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis of our own for the whole run."""
    yield from _running_redis(tmp_path_factory.mktemp("redis"))


def _running_redis(folder: Path) -> Iterator[RedisServer]:
    if redis_program() is None:
        pytest.skip("no redis-server; install it: apt-get install redis-server")
    server = RedisServer(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """A PostgreSQL schema of our own, dropped afterwards."""
    psycopg = pytest.importorskip("psycopg", reason="no psycopg; install it: pip install 'viscera[postgres]'")
    try:
        server = psycopg.connect(POSTGRES_URL, connect_timeout=2, autocommit=True)
    except psycopg.OperationalError:
        pytest.skip(
            "no PostgreSQL at 127.0.0.1:5432; start one: docker run --rm -p 5432:5432 "
            "-e POSTGRES_HOST_AUTH_METHOD=trust -e POSTGRES_DB=test postgres:16"
        )
    schema = f"viscera_{uuid.uuid4().hex}"
    with server:
        server.execute(f"CREATE SCHEMA {schema}")
        try:
            yield f"{POSTGRES_URL}?options=-csearch_path%3D{schema}"
        finally:
            server.execute(f"DROP SCHEMA {schema} CASCADE")
