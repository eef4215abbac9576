"""Alembic's entry point: run the migrations on the connection that `migrate` opened, in its transaction."""

from alembic import context

from credit_service.storage import tables

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=tables.metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
context.run_migrations()
