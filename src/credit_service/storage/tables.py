"""The schema, the same for both engines; the migrations must lead to exactly this one.

Credits, sequences and instants (microseconds since 1970) are 64-bit integers, hashes and ids are bytes, and JSON is
canonical text: SQLite would drop the zones and precision of richer types, and a database's own JSON type would change
bytes that a hash covers. One command touches one merchant, and no key crosses accounts. Every posting pays for each
index on a hot table, so there are few (docs/decisions/0001 and 0027).
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
"""The last migration, which leads to this schema."""

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
"""Free space in the pages of tables whose rows change with each posting, so that the new row fits beside the old."""


def _big(name: str, *, null: bool = False) -> Column[Any]:
    return Column(name, BIG, nullable=null)


def _bigs(*names: str) -> list[Column[Any]]:
    return [_big(name) for name in names]


def _text(name: str, *, null: bool = False) -> Column[Any]:
    return Column(name, Text, nullable=null)


def _key() -> Column[Any]:
    """An idempotency key. Its index is ordered by bytes, so keys that count up share few pages."""
    return Column("key", Text().with_variant(Text(collation="C"), "postgresql"), nullable=False)


def _merchant(**options: Any) -> Column[Any]:
    """A merchant's id; ordered by bytes, so that lists are the same on every engine."""
    return Column("merchant_id", Text().with_variant(Text(collation="C"), "postgresql"), nullable=False, **options)


def _bytes(name: str, *, null: bool = False) -> Column[Any]:
    return Column(name, LargeBinary, nullable=null)


def _check(name: str, sql: str) -> CheckConstraint:
    return CheckConstraint(sql, name=name)


def _table(name: str, *parts: Any, **options: Any) -> Table:
    return Table(name, metadata, *parts, sqlite_strict=True, **options)


accounts = _table(
    "accounts",
    Column("number", BIG, primary_key=True, autoincrement=False),
    _merchant(),
    *_bigs("opened_at", "settled_at", "balance", "held", "pending", "debt", "sequence", "announced", "granted"),
    _big("trial", null=True),
    *_bigs("episode", "threshold"),
    _big("low_threshold", null=True),
    _text("when_insufficient", null=True),
    _big("overdraft_limit", null=True),
    _text("state"),
    *_bigs("total_increases", "total_decreases"),
    _text("by_type"),
    _text("plan", null=True),
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
    _check("state", "state IN ('open', 'frozen', 'closed')"),
    _check("trial_is_one_of_its_own", "trial BETWEEN 1 AND sequence"),
    _check("hash_length", "length(last_hash) = 32"),
    postgresql_with=_ROOM,
)
# For the sweep, and for reads that must settle a row that is due.
_due = text("next_due_at IS NOT NULL")
Index(None, accounts.c.next_due_at, sqlite_where=_due, postgresql_where=_due)

transactions = _table(
    "transactions",
    *_bigs("account", "sequence"),
    _text("operation"),
    _text("type"),
    *_bigs("amount", "shortfall", "balance_before", "balance_after", "debt_after"),
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
    *_bigs("occurred_at", "created_at"),
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
# When most merchants have one or two transactions, PostgreSQL's planner expects that of all merchants, and may choose
# the wrong index: it then reads millions of rows to find one. This setting makes it expect ten (docs/decisions/0032).
SKEWED: Final = "ALTER TABLE transactions ALTER COLUMN account SET (n_distinct = -0.1)"
event.listen(
    transactions,
    "after_create",
    DDL(SKEWED).execute_if(dialect="postgresql"),  # type: ignore[no-untyped-call]  # SQLAlchemy's own gap
)

grants = _table(
    "grants",
    *_bigs("account", "number", "sequence"),
    _text("category"),
    *_bigs("priority", "effective_at"),
    _big("expires_at", null=True),
    *_bigs("amount", "remaining", "lapses", "gone"),
    # A separate column, so that drawing on an open grant changes no index.
    _big("open"),
    PrimaryKeyConstraint("account", "number"),
    _check("remaining", "remaining BETWEEN 0 AND amount AND gone >= 0"),
    _check("category", "category IN ('paid', 'promotional')"),
    _check("open", "open = CASE WHEN remaining > 0 THEN 1 ELSE 0 END"),
    postgresql_with=_ROOM,
)
OPEN: Final = "open = 1"
"""The condition for open grants. A posting loads only those, since an account may have many spent ones."""
_open = text(OPEN)
Index("ix_grants_open", grants.c.account, sqlite_where=_open, postgresql_where=_open)

given_back = _table(
    "given_back",
    _big("account"),
    _key(),
    *_bigs("money_micros", "by_money", "credits", "refunded", "waived"),
    _text("taken"),
    _text("disputes"),
    PrimaryKeyConstraint("account", "key"),
    _check("not_negative", "money_micros >= 0 AND by_money >= 0 AND credits >= by_money"),
    _check("of_payment", "refunded >= 0 AND waived >= 0"),
)

parked = _table(
    "parked",
    _big("account"),
    _key(),
    _text("waits_for"),
    *_bigs("until", "arrived_at"),
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
    # NATS may deliver the same message many times before it is acknowledged.
    UniqueConstraint("message_hash"),
    _check(
        "fact_or_event",
        "(kind IS NULL) = (fact IS NULL) AND (kind IS NULL) <> (subject IS NULL) "
        "AND (subject IS NULL) = (original IS NULL) AND (subject IS NULL) = (message_hash IS NULL)",
    ),
    _check("hash_length", "length(message_hash) = 16"),
)
LEDGERS_LETTER: Final = ("account", "code", "reason", "at", "kind", "fact")
"""The columns of a dead letter that a posting writes."""
_unpublished = text("published_at IS NULL")
Index("ix_dead_letters_unpublished", dead_letters.c.id, sqlite_where=_unpublished, postgresql_where=_unpublished)

events = _table(
    "events",
    *_bigs("lane", "id", "account", "number"),
    _text("type"),
    _big("sequence", null=True),
    *_bigs("available", "at"),
    _text("detail", null=True),
    PrimaryKeyConstraint("lane", "id"),
)
# To replay the events of one account from any number.
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
    _merchant(),
    _big("linked_at"),
    _big("unlinked_at", null=True),
    _big("uninstalled_at", null=True),
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
    _merchant(),
    _text("shop"),
)

webhook_endpoints = _table(
    "webhook_endpoints",
    Column("id", Text, primary_key=True),
    _text("url"),
    _text("event_types", null=True),
    # The signing secrets in plain text, because an HMAC needs them. Only one value of the storage holds them.
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

# Deliveries to an endpoint, numbered by it. The sender reads the event itself from the outbox.
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

# A table of its own: every posting writes the row of an account, and only the gate needs this (docs/decisions/0024).
gate_policies = _table(
    "gate_policies",
    _merchant(primary_key=True),
    _text("fail"),
    _check("fail", "fail IN ('closed', 'open')"),
)

# What the service notes of itself; readiness writes a row here, and removes it, to find out whether it can.
service_state = _table("service_state", Column("name", Text, primary_key=True), _text("value"))
