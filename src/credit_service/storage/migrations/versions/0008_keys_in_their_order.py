"""Idempotency keys stand in their indexes themselves, and no hash of them.

On PostgreSQL the hashes' columns are dropped without being looked at, and three indexes are built; SQLite copies the
tables.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        for table in ("transactions", "given_back", "parked"):
            op.alter_column(table, "key", type_=sa.Text(collation="C"), existing_nullable=False)
    with op.batch_alter_table("transactions", table_kwargs={"sqlite_strict": True}) as transactions:
        transactions.drop_constraint(op.f("uq_transactions_account_key_hash"), type_="unique")
        transactions.drop_constraint(op.f("ck_transactions_hash_length"), type_="check")
        transactions.drop_column("key_hash")
        transactions.create_unique_constraint(op.f("uq_transactions_account_key"), ["account", "key"])
        transactions.create_check_constraint(op.f("ck_transactions_hash_length"), "length(hash) = 32")
    for table in ("given_back", "parked"):
        with op.batch_alter_table(table, table_kwargs={"sqlite_strict": True}) as some:
            some.drop_constraint(op.f(f"pk_{table}"), type_="primary")
            some.drop_column("key_hash")
            some.create_primary_key(op.f(f"pk_{table}"), ["account", "key"])
