"""The one schema, for both engines; migrations must lead to exactly this.

Credits, sequences and instants (microseconds since 1970) are 64-bit integers, hashes and ids bytes, JSON canonical
text: SQLite would drop zones and precision of richer types, and a database's own JSON would change bytes that a hash
covers. Every unique key begins with the account, and one command touches one merchant, so the schema can be distributed
by account. Each index on a hot table is paid for by every posting, so there are few: `docs/decisions/` tells why.
"""

from typing import Any, Final

from sqlalchemy import (
    DDL,
    BigInteger,
    CheckConstraint,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    event,
    text,
)
from sqlalchemy.types import TypeEngine

REVISION: Final = "0001"
"""The migration that leads to this schema: the last one."""

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

# SQLite's STRICT tables know INTEGER (64 bits), not BIGINT.
BIG: TypeEngine[int] = BigInteger().with_variant(Integer, "sqlite")
MAX_CREDITS = 2**53 - 1
_ROOM: Final = {"fillfactor": 60}
"""For tables whose rows change with each posting: the new row goes beside the old one while there is room."""


def _big(name: str, *, null: bool = False) -> Column[Any]:
    return Column(name, BIG, nullable=null)


def _text(name: str, *, null: bool = False) -> Column[Any]:
    return Column(name, Text, nullable=null)


def _key() -> Column[Any]:
    """An idempotency key, in an index by its bytes: keys that count up stand together, and touch few of its pages."""
    return Column("key", Text().with_variant(Text(collation="C"), "postgresql"), nullable=False)


def _bytes(name: str, *, null: bool = False) -> Column[Any]:
    return Column(name, LargeBinary, nullable=null)


def _check(name: str, sql: str) -> CheckConstraint:
    return CheckConstraint(sql, name=name)


def _table(name: str, *parts: Any, **options: Any) -> Table:
    return Table(name, metadata, *parts, sqlite_strict=True, **options)


accounts = _table(
    "accounts",
    Column("number", BIG, primary_key=True, autoincrement=False),
    _bytes("merchant_id"),
    _big("opened_at"),
    _big("settled_at"),
    _big("balance"),
    _big("held"),
    _big("pending"),
    _big("debt"),
    _big("sequence"),
    _big("announced"),
    _big("granted"),
    _big("trial", null=True),
    _big("episode"),
    _big("threshold"),
    _big("low_threshold", null=True),
    _text("when_insufficient", null=True),
    _big("overdraft_limit", null=True),
    _big("total_increases"),
    _big("total_decreases"),
    _text("by_type"),
    _text("carried"),
    _big("next_due_at", null=True),
    _big("last_transaction_at", null=True),
    _bytes("last_hash"),
    UniqueConstraint("merchant_id"),
    _check("explained", "balance = total_increases - total_decreases"),
    _check(
        "in_range",
        f"balance BETWEEN -{MAX_CREDITS} AND {MAX_CREDITS} "
        f"AND balance - held - pending BETWEEN -{MAX_CREDITS} AND {MAX_CREDITS}",
    ),
    _check("not_negative", "held >= 0 AND pending >= 0 AND debt >= 0 AND sequence >= 0"),
    _check("no_debt_with_credits", "debt = 0 OR balance - held - pending = -debt"),
    _check("policy", "when_insufficient IN ('overdraft', 'partial', 'reject')"),
    _check("trial_is_one_of_its_own", "trial BETWEEN 1 AND sequence"),
    _check("hash_length", "length(last_hash) = 32 AND length(merchant_id) = 16"),
    postgresql_with=_ROOM,
)
# The sweep and the reads that must not trust a row whose time has come.
_due = text("next_due_at IS NOT NULL")
Index(None, accounts.c.next_due_at, sqlite_where=_due, postgresql_where=_due)

transactions = _table(
    "transactions",
    _big("account"),
    _big("sequence"),
    _text("operation"),
    _text("type"),
    _big("amount"),
    _big("shortfall"),
    _big("balance_before"),
    _big("balance_after"),
    _big("debt_after"),
    _key(),
    _bytes("content"),
    _text("reference_type", null=True),
    _text("reference_id", null=True),
    _text("metadata", null=True),
    _bytes("salt", null=True),
    _bytes("personal_hash", null=True),
    _big("total_micros", null=True),
    _text("currency", null=True),
    _text("draws"),
    _big("reverses", null=True),
    _text("actor"),
    _text("correlation_id", null=True),
    _big("occurred_at"),
    _big("created_at"),
    _bytes("hash"),
    PrimaryKeyConstraint("account", "sequence"),
    UniqueConstraint("account", "key"),
    _check("operation", "operation IN ('INCREASE', 'DECREASE')"),
    _check(
        "explained",
        "balance_after = balance_before + CASE operation WHEN 'INCREASE' THEN amount ELSE -amount END",
    ),
    _check("not_negative", "sequence >= 1 AND amount >= 0 AND shortfall >= 0 AND debt_after >= 0"),
    _check("reference_whole", "(reference_type IS NULL) = (reference_id IS NULL)"),
    _check("hash_length", "length(hash) = 32"),
)
# Where most merchants have a transaction or two, PostgreSQL believes that of all of them. Then an index that only
# begins with the account seems as good as the one that was made for what is looked up, and of a merchant who has
# millions all are read to find one. So it is told to reckon with ten transactions for each account.
SKEWED: Final = "ALTER TABLE transactions ALTER COLUMN account SET (n_distinct = -0.1)"
event.listen(
    transactions,
    "after_create",
    DDL(SKEWED).execute_if(dialect="postgresql"),  # type: ignore[no-untyped-call]  # SQLAlchemy's own gap
)

grants = _table(
    "grants",
    _big("account"),
    _big("number"),
    _big("sequence"),
    _text("category"),
    _big("priority"),
    _big("effective_at"),
    _big("expires_at", null=True),
    _big("amount"),
    _big("remaining"),
    _big("lapses"),
    # A column of its own, so that what is drawn from an open grant touches no index.
    _big("open"),
    PrimaryKeyConstraint("account", "number"),
    _check("remaining", "remaining BETWEEN 0 AND amount"),
    _check("category", "category IN ('paid', 'promotional')"),
    _check("open", "open = CASE WHEN remaining > 0 THEN 1 ELSE 0 END"),
    postgresql_with=_ROOM,
)
OPEN: Final = "open = 1"
"""Which grants are open: an account may have many spent ones; only the open ones are loaded for a posting."""
_open = text(OPEN)
Index("ix_grants_open", grants.c.account, sqlite_where=_open, postgresql_where=_open)

given_back = _table(
    "given_back",
    _big("account"),
    _key(),
    _big("money_micros"),
    _big("by_money"),
    _big("credits"),
    PrimaryKeyConstraint("account", "key"),
    _check("not_negative", "money_micros >= 0 AND by_money >= 0 AND credits >= by_money"),
)

parked = _table(
    "parked",
    _big("account"),
    _key(),
    _text("waits_for"),
    _big("until"),
    _big("arrived_at"),
    _text("kind"),
    _text("fact"),
    PrimaryKeyConstraint("account", "key"),
)
Index(None, parked.c.until)

dead_letters = _table(
    "dead_letters",
    Column("id", BIG, primary_key=True, autoincrement=True),
    _big("account", null=True),
    _text("code"),
    _text("reason"),
    _big("at"),
    _text("kind", null=True),
    _text("fact", null=True),
    _text("subject", null=True),
    _bytes("original", null=True),
    _bytes("message_hash", null=True),
    _big("published_at", null=True),
    _big("replayed_at", null=True),
    # The same message may be delivered again and again before it is acknowledged.
    UniqueConstraint("message_hash"),
    _check(
        "fact_or_event",
        "(kind IS NULL) = (fact IS NULL) AND (kind IS NULL) <> (subject IS NULL) "
        "AND (subject IS NULL) = (original IS NULL) AND (subject IS NULL) = (message_hash IS NULL)",
    ),
    _check("hash_length", "length(message_hash) = 16"),
)
LEDGERS_LETTER: Final = ("account", "code", "reason", "at", "kind", "fact")
"""The columns of a dead letter that the ledger itself puts aside, in a posting."""
_unpublished = text("published_at IS NULL")
Index("ix_dead_letters_unpublished", dead_letters.c.id, sqlite_where=_unpublished, postgresql_where=_unpublished)

events = _table(
    "events",
    _big("lane"),
    _big("id"),
    _big("account"),
    _big("number"),
    _text("type"),
    _big("sequence", null=True),
    _big("available"),
    _big("at"),
    _text("detail", null=True),
    PrimaryKeyConstraint("lane", "id"),
)
# For replay of one account's, from any number.
Index("ix_events_account_number", events.c.account, events.c.number, unique=True)

event_cursors = _table(
    "event_cursors",
    Column("reader", Text, primary_key=True),
    _text("position"),
    _big("epoch"),
    _text("owner"),
    _big("leased_until"),
)

api_keys = _table(
    "api_keys",
    Column("id", Text, primary_key=True),
    _text("name"),
    _text("scope"),
    _bytes("secret_hash"),
    _big("created_at"),
    _big("expires_at", null=True),
    _big("revoked_at", null=True),
    _big("last_used_at", null=True),
    _check("scope", "scope IN ('status', 'read', 'write', 'admin')"),
    _check("hash_length", "length(secret_hash) = 32"),
)

shops = _table(
    "shops",
    Column("domain", Text, primary_key=True),
    _bytes("merchant_id"),
    _big("linked_at"),
    _big("unlinked_at", null=True),
    _big("uninstalled_at", null=True),
    _check("hash_length", "length(merchant_id) = 16"),
)

shopify_deliveries = _table(
    "shopify_deliveries",
    Column("digest", LargeBinary, primary_key=True),
    _text("shop"),
    _text("topic"),
    _text("body"),
    _text("awaits", null=True),
    _big("received_at"),
    _check("awaits", "awaits IN ('link', 'merchant')"),
    _check("hash_length", "length(digest) = 16"),
)
Index(None, shopify_deliveries.c.shop)

# The merchant of a purchase or subscription (named by its global id), and of each posting for it (by its natural key).
shopify_claims = _table(
    "shopify_claims",
    Column("name", Text, primary_key=True),
    _bytes("merchant_id"),
    _text("shop"),
    _check("hash_length", "length(merchant_id) = 16"),
)

webhook_endpoints = _table(
    "webhook_endpoints",
    Column("id", Text, primary_key=True),
    _text("url"),
    _text("event_types", null=True),
    # What its deliveries are signed with, as it is: an HMAC needs it. No value of a store but one holds it.
    _text("secrets"),
    _big("created_at"),
    _text("position"),
    _big("deliveries"),
    _big("failing_since", null=True),
    _big("disabled_at", null=True),
    _text("disabled_reason", null=True),
    _big("deleted_at", null=True),
    _check("disabled_for_a_reason", "(disabled_at IS NULL) = (disabled_reason IS NULL)"),
)

# What was, or is to be, sent to an endpoint, numbered by it. What is sent of an event is read from the outbox again.
webhook_deliveries = _table(
    "webhook_deliveries",
    _text("endpoint"),
    _big("number"),
    _text("type"),
    _big("account", null=True),
    _big("event", null=True),
    _big("redelivers", null=True),
    _text("state"),
    _big("attempts"),
    _big("next_at", null=True),
    _big("status", null=True),
    _text("error", null=True),
    _big("created_at"),
    _big("ended_at", null=True),
    PrimaryKeyConstraint("endpoint", "number"),
    _check("state", "state IN ('pending', 'delivered', 'failed')"),
    _check("event_whole", "(account IS NULL) = (event IS NULL)"),
    _check("ended", "(ended_at IS NULL) = (state = 'pending') AND (next_at IS NULL) = (state <> 'pending')"),
)
_pending = text("state = 'pending'")
Index(
    "ix_webhook_deliveries_pending",
    webhook_deliveries.c.endpoint,
    webhook_deliveries.c.next_at,
    sqlite_where=_pending,
    postgresql_where=_pending,
)

# Beside the accounts and not in them: every posting writes an account's row, and nothing but the gate asks for this.
gate_policies = _table(
    "gate_policies",
    Column("merchant_id", LargeBinary, primary_key=True),
    _text("fail"),
    _check("fail", "fail IN ('closed', 'open')"),
    _check("id_length", "length(merchant_id) = 16"),
)
