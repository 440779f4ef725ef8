"""A job knows the request that made it, so that one trace shows both."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; a process of the version before does not know it and need not."""
    op.add_column("jobs", sa.Column("traceparent", sa.String(64)))
