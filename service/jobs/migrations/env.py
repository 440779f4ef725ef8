"""Alembic's door: runs the revisions on the connection that `service.jobs.schema` hands over, in its transaction."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
