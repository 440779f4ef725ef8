"""Jobs with a callback are found when they have ended."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_HAS_CALLBACK = sa.text("callback_url IS NOT NULL")


def upgrade() -> None:
    """An index of the few jobs that somebody is to be told of."""
    op.create_index(
        "jobs_by_callback", "jobs", ["finished_at"], sqlite_where=_HAS_CALLBACK, postgresql_where=_HAS_CALLBACK
    )
