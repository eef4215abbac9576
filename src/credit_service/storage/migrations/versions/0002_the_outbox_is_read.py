"""The outbox is read: by readers with cursors, and from any number of an account."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_index("ix_events_account_number", "events", ["account", "number"], unique=True)
    op.create_table(
        "event_cursors",
        sa.Column("reader", sa.Text(), nullable=False),
        sa.Column("position", sa.Text(), nullable=False),
        sa.Column("epoch", BIG, nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("leased_until", BIG, nullable=False),
        sa.PrimaryKeyConstraint("reader", name=op.f("pk_event_cursors")),
        sqlite_strict=True,
    )
