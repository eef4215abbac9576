"""Dead letters are kept of events that came in, too, and know whether they were published and replayed."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    with op.batch_alter_table("dead_letters", table_kwargs={"sqlite_strict": True}) as letters:
        letters.alter_column("kind", existing_type=sa.Text(), nullable=True)
        letters.alter_column("fact", existing_type=sa.Text(), nullable=True)
        letters.add_column(sa.Column("subject", sa.Text(), nullable=True))
        letters.add_column(sa.Column("original", sa.LargeBinary(), nullable=True))
        letters.add_column(sa.Column("message_hash", sa.LargeBinary(), nullable=True))
        letters.add_column(sa.Column("published_at", BIG, nullable=True))
        letters.add_column(sa.Column("replayed_at", BIG, nullable=True))
        letters.create_unique_constraint(op.f("uq_dead_letters_message_hash"), ["message_hash"])
        letters.create_check_constraint(
            op.f("ck_dead_letters_fact_or_event"),
            "(kind IS NULL) = (fact IS NULL) AND (kind IS NULL) <> (subject IS NULL) "
            "AND (subject IS NULL) = (original IS NULL) AND (subject IS NULL) = (message_hash IS NULL)",
        )
        letters.create_check_constraint(op.f("ck_dead_letters_hash_length"), "length(message_hash) = 16")
    op.create_index(
        "ix_dead_letters_unpublished",
        "dead_letters",
        ["id"],
        unique=False,
        sqlite_where=sa.text("published_at IS NULL"),
        postgresql_where=sa.text("published_at IS NULL"),
    )
