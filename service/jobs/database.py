"""How the database of the job table is opened: SQLite in a file, or PostgreSQL by URL."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from service.errors import StorageUnavailable

_SQLITE_BUSY_SECONDS = 10.0
_POSTGRES_CONNECT_SECONDS = 5
_KEPT_CONNECTIONS = 40
"""As many as the API has threads: opening an SQLite file and setting it up costs more than a poll's query."""


def open_engine(url: str) -> Engine:
    """The engine of a database URL; it connects on first use. `postgresql://` means psycopg.

    Raises:
        StorageUnavailable: the folder of an SQLite file cannot be made.
    """
    parsed = make_url(url)
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() != "sqlite":
        return create_engine(parsed, pool_pre_ping=True, connect_args={"connect_timeout": _POSTGRES_CONNECT_SECONDS})
    if parsed.database:
        _make_folder(Path(parsed.database).parent)
    kept = {"pool_size": _KEPT_CONNECTIONS} if parsed.database else {}
    engine = create_engine(parsed, connect_args={"timeout": _SQLITE_BUSY_SECONDS}, **kept)
    event.listen(engine, "connect", _tune_sqlite)
    return engine


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction that is committed at the end of the block.

    Raises:
        StorageUnavailable: the database cannot be reached.
    """
    with translated_errors(), engine.begin() as connection:
        yield connection


@contextmanager
def translated_errors() -> Iterator[None]:
    """Whatever the driver calls a database that is away becomes StorageUnavailable."""
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        raise StorageUnavailable("The job table cannot be reached at the moment; try again shortly.") from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StorageUnavailable(f"The folder of the job table cannot be made: {error.strerror}.") from error


def _tune_sqlite(connection: Any, _record: object) -> None:  # noqa: ANN401 - the driver's own connection
    """WAL: the API reads while a worker writes. NORMAL: a power cut may lose the last commits, never the file."""
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
