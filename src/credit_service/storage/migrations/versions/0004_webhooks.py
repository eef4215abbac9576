"""Webhooks: who is told, and what each was sent."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("event_types", sa.Text(), nullable=True),
        sa.Column("secrets", sa.Text(), nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("position", sa.Text(), nullable=False),
        sa.Column("deliveries", BIG, nullable=False),
        sa.Column("failing_since", BIG, nullable=True),
        sa.Column("disabled_at", BIG, nullable=True),
        sa.Column("disabled_reason", sa.Text(), nullable=True),
        sa.Column("deleted_at", BIG, nullable=True),
        sa.CheckConstraint(
            "(disabled_at IS NULL) = (disabled_reason IS NULL)", name=op.f("ck_webhook_endpoints_disabled_for_a_reason")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_endpoints")),
        sqlite_strict=True,
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("number", BIG, nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("account", BIG, nullable=True),
        sa.Column("event", BIG, nullable=True),
        sa.Column("redelivers", BIG, nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", BIG, nullable=False),
        sa.Column("next_at", BIG, nullable=True),
        sa.Column("status", BIG, nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("ended_at", BIG, nullable=True),
        sa.CheckConstraint("state IN ('pending', 'delivered', 'failed')", name=op.f("ck_webhook_deliveries_state")),
        sa.CheckConstraint("(account IS NULL) = (event IS NULL)", name=op.f("ck_webhook_deliveries_event_whole")),
        sa.CheckConstraint(
            "(ended_at IS NULL) = (state = 'pending') AND (next_at IS NULL) = (state <> 'pending')",
            name=op.f("ck_webhook_deliveries_ended"),
        ),
        sa.PrimaryKeyConstraint("endpoint", "number", name=op.f("pk_webhook_deliveries")),
        sqlite_strict=True,
    )
    pending = sa.text("state = 'pending'")
    op.create_index(
        "ix_webhook_deliveries_pending",
        "webhook_deliveries",
        ["endpoint", "next_at"],
        sqlite_where=pending,
        postgresql_where=pending,
    )
