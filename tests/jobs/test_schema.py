"""The schema: databases of every age are brought to the tables that the code expects."""

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, inspect, text

from service.errors import SchemaTooNew
from service.jobs import schema
from service.jobs.database import open_engine
from service.jobs.job import JobStatus, Priority
from service.jobs.store import JobStore
from service.jobs.table import METADATA

JOB_ID = "3b241101-e2bb-4255-8caf-4136c566a962"


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    opened = open_engine(database_url)
    yield opened
    opened.dispose()


def make_first_tables(engine: Engine, *, versioned: bool) -> None:
    """A database as version 0.1.0 left it, with one job that waits."""
    with engine.begin() as connection:
        command.upgrade(schema._config(connection), "0001")
        connection.execute(
            text(
                "INSERT INTO jobs (id, status, percent, model, request, created_at, attempts, cancel_requested, "
                "notices, upload_bytes, upload_files) VALUES (:id, 'queued', 0, 'compact-1.0.0', '{}', :now, 0, "
                "false, '[]', 6, 1)"
            ),
            {"id": JOB_ID, "now": datetime.now(UTC).replace(tzinfo=None)},
        )
        if not versioned:
            connection.execute(text("DROP TABLE alembic_version"))


def test_revisions_make_the_tables_that_the_code_uses(engine: Engine) -> None:
    schema.upgrade_schema(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []
        assert context.get_current_revision() == schema.newest_revision()


@pytest.mark.parametrize("versioned", [True, False])
def test_database_of_the_version_before_keeps_its_jobs(engine: Engine, database_url: str, versioned: bool) -> None:
    make_first_tables(engine, versioned=versioned)
    with closing(JobStore(database_url)) as store:
        job = store.get(JOB_ID)
        assert (job.status, job.tenant, job.priority) == (JobStatus.QUEUED, "default", Priority.ROUTINE)
        assert (job.reuse, job.stage_seconds, job.revision) == (True, {}, 0)
        assert store.claim(JOB_ID, "ann", 30) is not None


def test_database_of_a_newer_version_is_refused_and_left_alone(engine: Engine, database_url: str) -> None:
    schema.upgrade_schema(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaTooNew, match="9999"):
        JobStore(database_url)
    with engine.connect() as connection:
        assert MigrationContext.configure(connection).get_current_revision() == "9999"


def test_upgrade_that_fails_changes_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    make_first_tables(engine, versioned=True)
    with engine.begin() as connection:  # in the way of the last table that the next revision makes
        connection.execute(text("CREATE TABLE api_keys (id INTEGER)"))
    with pytest.raises(Exception, match="api_keys"):
        schema.upgrade_schema(engine)
    columns = {column["name"] for column in inspect(engine).get_columns("jobs")}
    assert "tenant" not in columns
    assert not inspect(engine).has_table("deliveries")
