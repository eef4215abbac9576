"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# SQLite's STRICT tables know INTEGER (64 bits), not BIGINT.
BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# Keys are ordered by their bytes, whatever the language of the database.
KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


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
        sa.CheckConstraint("balance = total_increases - total_decreases", name=op.f("ck_accounts_explained")),
        sa.CheckConstraint("length(last_hash) = 32 AND length(merchant_id) = 16", name=op.f("ck_accounts_hash_length")),
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
        sa.CheckConstraint("when_insufficient IN ('overdraft', 'partial', 'reject')", name=op.f("ck_accounts_policy")),
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
        sa.CheckConstraint("length(secret_hash) = 32", name=op.f("ck_api_keys_hash_length")),
        sa.CheckConstraint("scope IN ('status', 'read', 'write', 'admin')", name=op.f("ck_api_keys_scope")),
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
        sa.Column("kind", sa.Text(), nullable=True),
        sa.Column("fact", sa.Text(), nullable=True),
        sa.Column("subject", sa.Text(), nullable=True),
        sa.Column("original", sa.LargeBinary(), nullable=True),
        sa.Column("message_hash", sa.LargeBinary(), nullable=True),
        sa.Column("published_at", BIG, nullable=True),
        sa.Column("replayed_at", BIG, nullable=True),
        sa.CheckConstraint(
            "(kind IS NULL) = (fact IS NULL) AND (kind IS NULL) <> (subject IS NULL) AND (subject IS NULL) = (original IS NULL) AND (subject IS NULL) = (message_hash IS NULL)",
            name=op.f("ck_dead_letters_fact_or_event"),
        ),
        sa.CheckConstraint("length(message_hash) = 16", name=op.f("ck_dead_letters_hash_length")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dead_letters")),
        sa.UniqueConstraint("message_hash", name=op.f("uq_dead_letters_message_hash")),
        sqlite_strict=True,
    )
    op.create_index(
        "ix_dead_letters_unpublished",
        "dead_letters",
        ["id"],
        unique=False,
        sqlite_where=sa.text("published_at IS NULL"),
        postgresql_where=sa.text("published_at IS NULL"),
    )

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
    op.create_index("ix_events_account_number", "events", ["account", "number"], unique=True)

    op.create_table(
        "gate_policies",
        sa.Column("merchant_id", sa.LargeBinary(), nullable=False),
        sa.Column("fail", sa.Text(), nullable=False),
        sa.CheckConstraint("fail IN ('closed', 'open')", name=op.f("ck_gate_policies_fail")),
        sa.CheckConstraint("length(merchant_id) = 16", name=op.f("ck_gate_policies_id_length")),
        sa.PrimaryKeyConstraint("merchant_id", name=op.f("pk_gate_policies")),
        sqlite_strict=True,
    )

    op.create_table(
        "given_back",
        sa.Column("account", BIG, nullable=False),
        sa.Column("key", KEY, nullable=False),
        sa.Column("money_micros", BIG, nullable=False),
        sa.Column("by_money", BIG, nullable=False),
        sa.Column("credits", BIG, nullable=False),
        sa.CheckConstraint(
            "money_micros >= 0 AND by_money >= 0 AND credits >= by_money", name=op.f("ck_given_back_not_negative")
        ),
        sa.PrimaryKeyConstraint("account", "key", name=op.f("pk_given_back")),
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
        sa.CheckConstraint("open = CASE WHEN remaining > 0 THEN 1 ELSE 0 END", name=op.f("ck_grants_open")),
        sa.CheckConstraint("remaining BETWEEN 0 AND amount", name=op.f("ck_grants_remaining")),
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
        sa.Column("key", KEY, nullable=False),
        sa.Column("waits_for", sa.Text(), nullable=False),
        sa.Column("until", BIG, nullable=False),
        sa.Column("arrived_at", BIG, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("fact", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("account", "key", name=op.f("pk_parked")),
        sqlite_strict=True,
    )
    op.create_index("ix_parked_until", "parked", ["until"], unique=False)

    op.create_table(
        "shopify_claims",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("merchant_id", sa.LargeBinary(), nullable=False),
        sa.Column("shop", sa.Text(), nullable=False),
        sa.CheckConstraint("length(merchant_id) = 16", name=op.f("ck_shopify_claims_hash_length")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_shopify_claims")),
        sqlite_strict=True,
    )

    op.create_table(
        "shopify_deliveries",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("shop", sa.Text(), nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("awaits", sa.Text(), nullable=True),
        sa.Column("received_at", BIG, nullable=False),
        sa.CheckConstraint("awaits IN ('link', 'merchant')", name=op.f("ck_shopify_deliveries_awaits")),
        sa.CheckConstraint("length(digest) = 16", name=op.f("ck_shopify_deliveries_hash_length")),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_shopify_deliveries")),
        sqlite_strict=True,
    )
    op.create_index("ix_shopify_deliveries_shop", "shopify_deliveries", ["shop"], unique=False)

    op.create_table(
        "shops",
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("merchant_id", sa.LargeBinary(), nullable=False),
        sa.Column("linked_at", BIG, nullable=False),
        sa.Column("unlinked_at", BIG, nullable=True),
        sa.Column("uninstalled_at", BIG, nullable=True),
        sa.CheckConstraint("length(merchant_id) = 16", name=op.f("ck_shops_hash_length")),
        sa.PrimaryKeyConstraint("domain", name=op.f("pk_shops")),
        sqlite_strict=True,
    )

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
        sa.Column("key", KEY, nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("reference_type", sa.Text(), nullable=True),
        sa.Column("reference_id", sa.Text(), nullable=True),
        sa.Column("metadata", sa.Text(), nullable=True),
        sa.Column("salt", sa.LargeBinary(), nullable=True),
        sa.Column("personal_hash", sa.LargeBinary(), nullable=True),
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
        sa.CheckConstraint("length(hash) = 32", name=op.f("ck_transactions_hash_length")),
        sa.CheckConstraint(
            "sequence >= 1 AND amount >= 0 AND shortfall >= 0 AND debt_after >= 0",
            name=op.f("ck_transactions_not_negative"),
        ),
        sa.CheckConstraint("operation IN ('INCREASE', 'DECREASE')", name=op.f("ck_transactions_operation")),
        sa.CheckConstraint(
            "(reference_type IS NULL) = (reference_id IS NULL)", name=op.f("ck_transactions_reference_whole")
        ),
        sa.PrimaryKeyConstraint("account", "sequence", name=op.f("pk_transactions")),
        sa.UniqueConstraint("account", "key", name=op.f("uq_transactions_account_key")),
        sqlite_strict=True,
    )
    if op.get_bind().dialect.name == "postgresql":  # docs/decisions/0032
        op.execute("ALTER TABLE transactions ALTER COLUMN account SET (n_distinct = -0.1)")

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
        sa.CheckConstraint(
            "(ended_at IS NULL) = (state = 'pending') AND (next_at IS NULL) = (state <> 'pending')",
            name=op.f("ck_webhook_deliveries_ended"),
        ),
        sa.CheckConstraint("(account IS NULL) = (event IS NULL)", name=op.f("ck_webhook_deliveries_event_whole")),
        sa.CheckConstraint("state IN ('pending', 'delivered', 'failed')", name=op.f("ck_webhook_deliveries_state")),
        sa.PrimaryKeyConstraint("endpoint", "number", name=op.f("pk_webhook_deliveries")),
        sqlite_strict=True,
    )
    op.create_index(
        "ix_webhook_deliveries_pending",
        "webhook_deliveries",
        ["endpoint", "next_at"],
        unique=False,
        sqlite_where=sa.text("state = 'pending'"),
        postgresql_where=sa.text("state = 'pending'"),
    )

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
