"""How the database of the job table is opened: SQLite in a file, or PostgreSQL by URL."""

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.engine import make_url
from sqlalchemy.schema import CreateIndex, CreateTable

from service.errors import StorageUnavailable
from service.jobs.table import METADATA

_SQLITE_BUSY_SECONDS = 10.0
_POSTGRES_CONNECT_SECONDS = 5
_SCHEMA_LOCK = 0x56495343  # PostgreSQL advisory lock: two processes may start at once


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
    engine = create_engine(parsed, connect_args={"timeout": _SQLITE_BUSY_SECONDS})
    event.listen(engine, "connect", _tune_sqlite)
    return engine


def create_tables(connection: Connection) -> None:
    """Create what is missing; several processes may do so at once."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_SCHEMA_LOCK)))
    for table in METADATA.sorted_tables:
        connection.execute(CreateTable(table, if_not_exists=True))
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            connection.execute(CreateIndex(index, if_not_exists=True))


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
