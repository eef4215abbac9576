"""PostgreSQL is told not to believe that accounts have few transactions because most have (`tables.SKEWED`).

Nothing is rewritten; a sample of the accounts is looked at.
"""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE transactions ALTER COLUMN account SET (n_distinct = -0.1)")
        op.execute("ANALYZE transactions (account)")
