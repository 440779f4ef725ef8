"""Tenants and keys, priorities, idempotency, reuse of results, retention, webhooks."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Add the columns with defaults, so that a process of the version before can go on inserting meanwhile."""
    for column in (
        sa.Column("tenant", sa.String(64), nullable=False, server_default="default"),
        sa.Column("key_id", sa.String(36)),
        sa.Column("priority", sa.String(8), nullable=False, server_default="routine"),
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("request_hash", sa.String(64)),
        sa.Column("batch_id", sa.String(64)),
        sa.Column("input_hash", sa.String(64)),
        sa.Column("result_key", sa.String(64)),
        sa.Column("reuse", sa.Boolean, nullable=False, server_default=sa.true()),
        sa.Column("reused_from", sa.String(36)),
        sa.Column("time_limit_seconds", sa.Float),
        sa.Column("callback_url", sa.Text),
        sa.Column("stage_seconds", sa.Text, nullable=False, server_default="{}"),
        sa.Column("expires_at", _TIME),
        sa.Column("expired_at", _TIME),
        sa.Column("revision", sa.Integer, nullable=False, server_default="0"),
    ):
        op.add_column("jobs", column)
    op.create_index("jobs_by_tenant", "jobs", ["tenant", "created_at", "id"])
    op.create_index("jobs_by_key", "jobs", ["key_id", "created_at"])
    op.create_index("jobs_by_batch", "jobs", ["tenant", "batch_id", "created_at"])
    op.create_index("jobs_by_result_key", "jobs", ["tenant", "result_key"])
    op.create_index("jobs_by_expiry", "jobs", ["expires_at"])
    op.create_index("jobs_idempotency", "jobs", ["tenant", "idempotency_key"], unique=True)
    op.create_table(
        "deliveries",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("job_id", sa.String(36), nullable=False),
        sa.Column("event", sa.String(32), nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_attempt_at", _TIME),
        sa.Column("delivered_at", _TIME),
        sa.Column("last_error", sa.Text),
    )
    op.create_index("deliveries_by_event", "deliveries", ["job_id", "event"], unique=True)
    op.create_index("deliveries_by_due", "deliveries", ["next_attempt_at"])
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("hash", sa.String(128), nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("revoked_at", _TIME),
        sa.Column("last_used_at", _TIME),
        sa.Column("rate_limit", sa.Integer),
        sa.Column("quota", sa.Integer),
    )
    op.create_index("api_keys_by_hash", "api_keys", ["hash"], unique=True)
