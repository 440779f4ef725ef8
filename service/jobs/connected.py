"""What every part of the job table's store stands on: the database, and the changes that a job may undergo."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Update, case, update

from service.jobs.database import open_engine, transaction, translated_errors
from service.jobs.job import TRANSITIONS, JobStatus, Priority
from service.jobs.schema import upgrade_schema
from service.jobs.table import JOBS

MAX_PARAMETERS = 500  # per statement; SQLite allows 32766, older builds 999

#: 0 for the jobs that come first.
RANK = case({priority.value: rank for rank, priority in enumerate(Priority)}, value=JOBS.c.priority)
NEXT_REVISION = JOBS.c.revision + 1


class Connected:
    """The database of the job table, made or upgraded when opened. Not safe across a fork.

    Raises:
        SchemaTooNew: on opening, when a newer version of the service has upgraded the tables.
    """

    def __init__(self, url: str) -> None:
        self._engine = open_engine(url)
        try:
            with translated_errors():
                upgrade_schema(self._engine)
        except BaseException:
            self.close()
            raise

    @property
    def engine(self) -> Engine:
        """The database, for the stores that lie in it too."""
        return self._engine

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def _change(self, job_id: str, *, from_: JobStatus, to: JobStatus) -> Update:
        assert to in TRANSITIONS[from_], f"{from_} -> {to}"
        changed = update(JOBS).where(JOBS.c.id == job_id, JOBS.c.status == from_)
        return changed.values(status=to, revision=NEXT_REVISION)

    def _change_running(self, to: JobStatus) -> Update:
        assert to in TRANSITIONS[JobStatus.RUNNING], to
        return update(JOBS).where(JOBS.c.status == JobStatus.RUNNING).values(status=to, revision=NEXT_REVISION)

    def _touches_a_row(self, statement: Any) -> bool:  # noqa: ANN401 - UPDATE or DELETE
        with self._transaction() as connection:
            return bool(connection.execute(statement).rowcount)

    def _changed_ids(self, statement: Update) -> tuple[str, ...]:
        with self._transaction() as connection:
            return tuple(connection.execute(statement.returning(JOBS.c.id)).scalars())

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with transaction(self._engine) as connection:
            yield connection


def of_tenant(tenant: str | None) -> list[ColumnElement[bool]]:
    """The condition that a job is the tenant's; none at all when it does not matter."""
    return [] if tenant is None else [JOBS.c.tenant == tenant]


def utc_now() -> datetime:
    """This moment, with its zone."""
    return datetime.now(UTC)
