"""The tables are brought to this version's schema before they are used; revisions are in `service.jobs.migrations`."""

from pathlib import Path

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, func, inspect, select

from service.errors import SchemaTooNew

_MIGRATIONS = Path(__file__).with_name("migrations")
_BASELINE = "0001"  # what a database without a version holds
_LOCK = 0x56495343  # PostgreSQL advisory lock: several processes may start at once

log = structlog.get_logger(__name__)


def upgrade_schema(engine: Engine) -> None:
    """Make or upgrade the tables; nothing happens where they are up to date. Several processes may do so at once.

    Raises:
        SchemaTooNew: a newer version of the service has upgraded the database.
        sqlalchemy.exc.OperationalError: the database cannot be reached.
    """
    with engine.connect() as connection:
        current = _revision(connection)
    if current == newest_revision():
        return
    with engine.connect() as connection:
        _lock(connection)
        _upgrade(connection)
        connection.commit()


def newest_revision() -> str:
    """The revision that this version of the service works with."""
    head = _scripts().get_current_head()
    assert head is not None
    return head


def _upgrade(connection: Connection) -> None:
    current = _revision(connection)
    if current == newest_revision():
        return
    config = _config(connection)
    if current is None and inspect(connection).has_table("jobs"):
        command.stamp(config, _BASELINE)
    elif current is not None and current not in {script.revision for script in _scripts().walk_revisions()}:
        raise SchemaTooNew(
            f"The job table has the schema {current} of a newer version; start that version, or restore a backup "
            "from before the upgrade."
        )
    command.upgrade(config, "head")
    log.info("schema.upgraded", before=current, now=newest_revision())


def _lock(connection: Connection) -> None:
    """Begin a transaction that others wait for before they look at the schema."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    else:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(_MIGRATIONS))


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
