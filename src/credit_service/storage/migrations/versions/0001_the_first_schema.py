"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# SQLite's STRICT tables know INTEGER (64 bits), not BIGINT.
BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "accounts",
        sa.Column("number", BIG, autoincrement=False, nullable=False),
        sa.Column("merchant_id", sa.LargeBinary(), nullable=False),
        sa.Column("opened_at", BIG, nullable=False),
        sa.Column("settled_at", BIG, nullable=False),
        sa.Column("balance", BIG, nullable=False),
        sa.Column("held", BIG, nullable=False),
        sa.Column("pending", BIG, nullable=False),
        sa.Column("debt", BIG, nullable=False),
        sa.Column("sequence", BIG, nullable=False),
        sa.Column("announced", BIG, nullable=False),
        sa.Column("granted", BIG, nullable=False),
        sa.Column("trial", BIG, nullable=True),
        sa.Column("episode", BIG, nullable=False),
        sa.Column("threshold", BIG, nullable=False),
        sa.Column("low_threshold", BIG, nullable=True),
        sa.Column("when_insufficient", sa.Text(), nullable=True),
        sa.Column("overdraft_limit", BIG, nullable=True),
        sa.Column("total_increases", BIG, nullable=False),
        sa.Column("total_decreases", BIG, nullable=False),
        sa.Column("by_type", sa.Text(), nullable=False),
        sa.Column("carried", sa.Text(), nullable=False),
        sa.Column("next_due_at", BIG, nullable=True),
        sa.Column("last_transaction_at", BIG, nullable=True),
        sa.Column("last_hash", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("when_insufficient IN ('overdraft', 'partial', 'reject')", name=op.f("ck_accounts_policy")),
        sa.CheckConstraint("balance = total_increases - total_decreases", name=op.f("ck_accounts_explained")),
        sa.CheckConstraint(
            "balance BETWEEN -9007199254740991 AND 9007199254740991 AND balance - held - pending BETWEEN -9007199254740991 AND 9007199254740991",
            name=op.f("ck_accounts_in_range"),
        ),
        sa.CheckConstraint(
            "debt = 0 OR balance - held - pending = -debt", name=op.f("ck_accounts_no_debt_with_credits")
        ),
        sa.CheckConstraint(
            "held >= 0 AND pending >= 0 AND debt >= 0 AND sequence >= 0", name=op.f("ck_accounts_not_negative")
        ),
        sa.CheckConstraint("length(last_hash) = 32 AND length(merchant_id) = 16", name=op.f("ck_accounts_hash_length")),
        sa.CheckConstraint("trial BETWEEN 1 AND sequence", name=op.f("ck_accounts_trial_is_one_of_its_own")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_accounts")),
        sa.UniqueConstraint("merchant_id", name=op.f("uq_accounts_merchant_id")),
        postgresql_with={"fillfactor": 60},
        sqlite_strict=True,
    )
    op.create_index(
        "ix_accounts_next_due_at",
        "accounts",
        ["next_due_at"],
        unique=False,
        sqlite_where=sa.text("next_due_at IS NOT NULL"),
        postgresql_where=sa.text("next_due_at IS NOT NULL"),
    )

    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("expires_at", BIG, nullable=True),
        sa.Column("revoked_at", BIG, nullable=True),
        sa.Column("last_used_at", BIG, nullable=True),
        sa.CheckConstraint("scope IN ('read', 'write', 'admin')", name=op.f("ck_api_keys_scope")),
        sa.CheckConstraint("length(secret_hash) = 32", name=op.f("ck_api_keys_hash_length")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sqlite_strict=True,
    )
    op.create_table(
        "dead_letters",
        sa.Column("id", BIG, autoincrement=True, nullable=False),
        sa.Column("account", BIG, nullable=True),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("fact", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dead_letters")),
        sqlite_strict=True,
    )
    op.create_table(
        "events",
        sa.Column("lane", BIG, nullable=False),
        sa.Column("id", BIG, nullable=False),
        sa.Column("account", BIG, nullable=False),
        sa.Column("number", BIG, nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("sequence", BIG, nullable=True),
        sa.Column("available", BIG, nullable=False),
        sa.Column("at", BIG, nullable=False),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("lane", "id", name=op.f("pk_events")),
        sqlite_strict=True,
    )
    op.create_table(
        "given_back",
        sa.Column("account", BIG, nullable=False),
        sa.Column("key_hash", sa.LargeBinary(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("money_micros", BIG, nullable=False),
        sa.Column("by_money", BIG, nullable=False),
        sa.Column("credits", BIG, nullable=False),
        sa.CheckConstraint(
            "money_micros >= 0 AND by_money >= 0 AND credits >= by_money", name=op.f("ck_given_back_not_negative")
        ),
        sa.PrimaryKeyConstraint("account", "key_hash", name=op.f("pk_given_back")),
        sqlite_strict=True,
    )
    op.create_table(
        "grants",
        sa.Column("account", BIG, nullable=False),
        sa.Column("number", BIG, nullable=False),
        sa.Column("sequence", BIG, nullable=False),
        sa.Column("category", sa.Text(), nullable=False),
        sa.Column("priority", BIG, nullable=False),
        sa.Column("effective_at", BIG, nullable=False),
        sa.Column("expires_at", BIG, nullable=True),
        sa.Column("amount", BIG, nullable=False),
        sa.Column("remaining", BIG, nullable=False),
        sa.Column("lapses", BIG, nullable=False),
        sa.Column("open", BIG, nullable=False),
        sa.CheckConstraint("category IN ('paid', 'promotional')", name=op.f("ck_grants_category")),
        sa.CheckConstraint("remaining BETWEEN 0 AND amount", name=op.f("ck_grants_remaining")),
        sa.CheckConstraint("open = CASE WHEN remaining > 0 THEN 1 ELSE 0 END", name=op.f("ck_grants_open")),
        sa.PrimaryKeyConstraint("account", "number", name=op.f("pk_grants")),
        postgresql_with={"fillfactor": 60},
        sqlite_strict=True,
    )
    op.create_index(
        "ix_grants_open",
        "grants",
        ["account"],
        unique=False,
        sqlite_where=sa.text("open = 1"),
        postgresql_where=sa.text("open = 1"),
    )

    op.create_table(
        "parked",
        sa.Column("account", BIG, nullable=False),
        sa.Column("key_hash", sa.LargeBinary(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("waits_for", sa.Text(), nullable=False),
        sa.Column("until", BIG, nullable=False),
        sa.Column("arrived_at", BIG, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("fact", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("account", "key_hash", name=op.f("pk_parked")),
        sqlite_strict=True,
    )
    op.create_index("ix_parked_until", "parked", ["until"], unique=False)

    op.create_table(
        "transactions",
        sa.Column("account", BIG, nullable=False),
        sa.Column("sequence", BIG, nullable=False),
        sa.Column("operation", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("amount", BIG, nullable=False),
        sa.Column("shortfall", BIG, nullable=False),
        sa.Column("balance_before", BIG, nullable=False),
        sa.Column("balance_after", BIG, nullable=False),
        sa.Column("debt_after", BIG, nullable=False),
        sa.Column("key_hash", sa.LargeBinary(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("reference_type", sa.Text(), nullable=True),
        sa.Column("reference_id", sa.Text(), nullable=True),
        sa.Column("metadata", sa.Text(), nullable=True),
        sa.Column("metadata_salt", sa.LargeBinary(), nullable=True),
        sa.Column("metadata_hash", sa.LargeBinary(), nullable=True),
        sa.Column("total_micros", BIG, nullable=True),
        sa.Column("currency", sa.Text(), nullable=True),
        sa.Column("draws", sa.Text(), nullable=False),
        sa.Column("reverses", BIG, nullable=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("correlation_id", sa.Text(), nullable=True),
        sa.Column("occurred_at", BIG, nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint(
            "balance_after = balance_before + CASE operation WHEN 'INCREASE' THEN amount ELSE -amount END",
            name=op.f("ck_transactions_explained"),
        ),
        sa.CheckConstraint("operation IN ('INCREASE', 'DECREASE')", name=op.f("ck_transactions_operation")),
        sa.CheckConstraint(
            "(reference_type IS NULL) = (reference_id IS NULL)", name=op.f("ck_transactions_reference_whole")
        ),
        sa.CheckConstraint("length(hash) = 32 AND length(key_hash) = 16", name=op.f("ck_transactions_hash_length")),
        sa.CheckConstraint(
            "sequence >= 1 AND amount >= 0 AND shortfall >= 0 AND debt_after >= 0",
            name=op.f("ck_transactions_not_negative"),
        ),
        sa.PrimaryKeyConstraint("account", "sequence", name=op.f("pk_transactions")),
        sa.UniqueConstraint("account", "key_hash", name=op.f("uq_transactions_account_key_hash")),
        sqlite_strict=True,
    )
