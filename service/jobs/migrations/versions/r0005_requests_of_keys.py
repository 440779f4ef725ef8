"""Rate limits are counted with the key, so that they hold over all API processes."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; a process of the version before counts for itself meanwhile."""
    op.add_column("api_keys", sa.Column("counted_minute", sa.BigInteger))
    op.add_column("api_keys", sa.Column("counted_requests", sa.Integer))
