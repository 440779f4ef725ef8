"""Exchange with a PACS: where a study comes from and its results go, and jobs whose study still arrives."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; a process of the version before does not know them and need not."""
    op.add_column("jobs", sa.Column("exchange", sa.Text))
    op.add_column("jobs", sa.Column("held_until", sa.DateTime(timezone=True)))
    op.add_column("jobs", sa.Column("intake", sa.String(64)))
    op.create_index("jobs_by_intake", "jobs", ["intake"], unique=True)
