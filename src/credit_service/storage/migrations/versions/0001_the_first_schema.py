"""The first schema. A frozen copy of `storage/tables.py` as it was then: later changes are migrations of their own."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# SQLite's STRICT tables know INTEGER (64 bits), not BIGINT. Keys are ordered by their bytes.
TYPES: dict[str, Any] = {
    "big": sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
    "text": sa.Text(),
    "key": sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
    "binary": sa.LargeBinary(),
}


def table(name: str, columns: str, primary: str, *, unique: str = "", checks: dict[str, str], **options: Any) -> None:
    """Create a table. A column is `name:type`, with a question mark where it may be null, `+` where it counts up."""
    made: list[Any] = []
    for column in columns.split():
        called, type_ = column.split(":")
        kind = type_.rstrip("?+")
        made.append(sa.Column(called, TYPES[kind], nullable=type_.endswith("?"), autoincrement=type_.endswith("+")))
    made += [sa.CheckConstraint(sql, name=op.f(f"ck_{name}_{rule}")) for rule, sql in checks.items()]
    made.append(sa.PrimaryKeyConstraint(*primary.split(), name=op.f(f"pk_{name}")))
    if unique:
        made.append(sa.UniqueConstraint(*unique.split(), name=op.f(f"uq_{name}_{'_'.join(unique.split())}")))
    op.create_table(name, *made, sqlite_strict=True, **options)


def index(name: str, on: str, columns: str, where: str | None = None, *, unique: bool = False) -> None:
    """Create an index, perhaps of some rows alone."""
    condition = None if where is None else sa.text(where)
    op.create_index(name, on, columns.split(), unique=unique, sqlite_where=condition, postgresql_where=condition)


def upgrade() -> None:
    table(
        "accounts",
        "number:big merchant_id:binary opened_at:big settled_at:big balance:big held:big pending:big debt:big "
        "sequence:big announced:big granted:big trial:big? episode:big threshold:big low_threshold:big? "
        "when_insufficient:text? overdraft_limit:big? total_increases:big total_decreases:big by_type:text "
        "carried:text next_due_at:big? last_transaction_at:big? last_hash:binary",
        "number",
        unique="merchant_id",
        checks={
            "explained": "balance = total_increases - total_decreases",
            "hash_length": "length(last_hash) = 32 AND length(merchant_id) = 16",
            "in_range": "balance BETWEEN -9007199254740991 AND 9007199254740991 AND balance - held - pending BETWEEN "
            "-9007199254740991 AND 9007199254740991",
            "no_debt_with_credits": "debt = 0 OR balance - held - pending = -debt",
            "not_negative": "held >= 0 AND pending >= 0 AND debt >= 0 AND sequence >= 0",
            "policy": "when_insufficient IN ('overdraft', 'partial', 'reject')",
            "trial_is_one_of_its_own": "trial BETWEEN 1 AND sequence",
        },
        postgresql_with={"fillfactor": 60},
    )
    index("ix_accounts_next_due_at", "accounts", "next_due_at", "next_due_at IS NOT NULL")
    table(
        "api_keys",
        "id:text name:text scope:text secret_hash:binary created_at:big expires_at:big? revoked_at:big? "
        "last_used_at:big?",
        "id",
        checks={
            "hash_length": "length(secret_hash) = 32",
            "scope": "scope IN ('status', 'read', 'write', 'admin')",
        },
    )
    table(
        "dead_letters",
        "id:big+ account:big? code:text reason:text at:big kind:text? fact:text? subject:text? original:binary? "
        "message_hash:binary? published_at:big? replayed_at:big?",
        "id",
        unique="message_hash",
        checks={
            "fact_or_event": "(kind IS NULL) = (fact IS NULL) AND (kind IS NULL) <> (subject IS NULL) AND (subject IS NULL) = "
            "(original IS NULL) AND (subject IS NULL) = (message_hash IS NULL)",
            "hash_length": "length(message_hash) = 16",
        },
    )
    index("ix_dead_letters_unpublished", "dead_letters", "id", "published_at IS NULL")
    table(
        "event_cursors",
        "reader:text position:text epoch:big owner:text leased_until:big",
        "reader",
        checks={},
    )
    table(
        "events",
        "lane:big id:big account:big number:big type:text sequence:big? available:big at:big detail:text?",
        "lane id",
        checks={},
    )
    index("ix_events_account_number", "events", "account number", unique=True)
    table(
        "gate_policies",
        "merchant_id:binary fail:text",
        "merchant_id",
        checks={
            "fail": "fail IN ('closed', 'open')",
            "id_length": "length(merchant_id) = 16",
        },
    )
    table(
        "given_back",
        "account:big key:key money_micros:big by_money:big credits:big",
        "account key",
        checks={
            "not_negative": "money_micros >= 0 AND by_money >= 0 AND credits >= by_money",
        },
    )
    table(
        "grants",
        "account:big number:big sequence:big category:text priority:big effective_at:big expires_at:big? amount:big "
        "remaining:big lapses:big open:big",
        "account number",
        checks={
            "category": "category IN ('paid', 'promotional')",
            "open": "open = CASE WHEN remaining > 0 THEN 1 ELSE 0 END",
            "remaining": "remaining BETWEEN 0 AND amount",
        },
        postgresql_with={"fillfactor": 60},
    )
    index("ix_grants_open", "grants", "account", "open = 1")
    table(
        "parked",
        "account:big key:key waits_for:text until:big arrived_at:big kind:text fact:text",
        "account key",
        checks={},
    )
    index("ix_parked_until", "parked", "until")
    table(
        "shopify_claims",
        "name:text merchant_id:binary shop:text",
        "name",
        checks={
            "hash_length": "length(merchant_id) = 16",
        },
    )
    table(
        "shopify_deliveries",
        "digest:binary shop:text topic:text body:text awaits:text? received_at:big",
        "digest",
        checks={
            "awaits": "awaits IN ('link', 'merchant')",
            "hash_length": "length(digest) = 16",
        },
    )
    index("ix_shopify_deliveries_shop", "shopify_deliveries", "shop")
    table(
        "shops",
        "domain:text merchant_id:binary linked_at:big unlinked_at:big? uninstalled_at:big?",
        "domain",
        checks={
            "hash_length": "length(merchant_id) = 16",
        },
    )
    table(
        "transactions",
        "account:big sequence:big operation:text type:text amount:big shortfall:big balance_before:big "
        "balance_after:big debt_after:big key:key content:binary reference_type:text? reference_id:text? "
        "metadata:text? salt:binary? personal_hash:binary? total_micros:big? currency:text? draws:text reverses:big? "
        "actor:text correlation_id:text? occurred_at:big created_at:big hash:binary",
        "account sequence",
        unique="account key",
        checks={
            "explained": "balance_after = balance_before + CASE operation WHEN 'INCREASE' THEN amount ELSE -amount END",
            "hash_length": "length(hash) = 32",
            "not_negative": "sequence >= 1 AND amount >= 0 AND shortfall >= 0 AND debt_after >= 0",
            "operation": "operation IN ('INCREASE', 'DECREASE')",
            "reference_whole": "(reference_type IS NULL) = (reference_id IS NULL)",
        },
    )
    table(
        "webhook_deliveries",
        "endpoint:text number:big type:text account:big? event:big? redelivers:big? state:text attempts:big "
        "next_at:big? status:big? error:text? created_at:big ended_at:big?",
        "endpoint number",
        checks={
            "ended": "(ended_at IS NULL) = (state = 'pending') AND (next_at IS NULL) = (state <> 'pending')",
            "event_whole": "(account IS NULL) = (event IS NULL)",
            "state": "state IN ('pending', 'delivered', 'failed')",
        },
    )
    index("ix_webhook_deliveries_pending", "webhook_deliveries", "endpoint next_at", "state = 'pending'")
    table(
        "webhook_endpoints",
        "id:text url:text event_types:text? secrets:text created_at:big position:text deliveries:big "
        "failing_since:big? disabled_at:big? disabled_reason:text? deleted_at:big?",
        "id",
        checks={
            "disabled_for_a_reason": "(disabled_at IS NULL) = (disabled_reason IS NULL)",
        },
    )
    table("service_state", "name:text value:text", "name", checks={})
    if op.get_bind().dialect.name == "postgresql":  # docs/decisions/0032
        op.execute("ALTER TABLE transactions ALTER COLUMN account SET (n_distinct = -0.1)")
