"""The statements of the SQLite store, compiled from the schema once and kept as text for the standard library's driver.

What they mean is said where they are used; here stands only how SQLite is asked.
"""

import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain, repeat
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ClauseElement,
    Select,
    Table,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import sqlite

from credit_service.ledger.announcements import OF_A_TRANSACTION
from credit_service.storage import tables
from credit_service.storage.rows import Row

LANE: Final = 0
"""SQLite has one writer, so its outbox has one lane."""

PLACES_AT_ONCE: Final = 1024

_DIALECT: Final = sqlite.dialect()
_ZERO: Final[Any] = literal_column("0")


def _sql(statement: ClauseElement) -> str:
    """The text of a statement whose parameters are all named, and given in the order in which they stand."""
    compiled = statement.compile(dialect=_DIALECT)
    assert all(value is None for value in compiled.params.values()), compiled.params
    return str(compiled)


class Statement(NamedTuple):
    """A compiled statement, with the names of its parameters in their order and the values of its constants."""

    sql: str
    names: tuple[str, ...]
    constants: dict[str, Any]

    def bound(self, values: Mapping[str, Any]) -> list[Any]:
        """The parameters in their order; values that the statement does not ask for are left out."""
        return [values[name] if name in values else self.constants[name] for name in self.names]


def _statement(statement: Select[Any]) -> Statement:
    compiled = statement.compile(dialect=_DIALECT)
    return Statement(str(compiled), tuple(compiled.positiontup or ()), dict(compiled.params))


def _value(name: str) -> Any:
    return bindparam(name)


def _values(*names: str) -> dict[str, Any]:
    return {name: bindparam(name) for name in names}


_accounts, _transactions, _grants = tables.accounts, tables.transactions, tables.grants
_given_back, _parked, _events, _keys = tables.given_back, tables.parked, tables.events, tables.api_keys
_account_columns = [column.name for column in _accounts.columns]

# ---- writing. New rows are inserted and known ones updated, since an upsert checks each row twice (a third dearer).

INSERT_ACCOUNT: Final = _sql(insert(_accounts))
UPDATE_ACCOUNT: Final = _sql(
    update(_accounts).where(_accounts.c.number == _value("key")).values(_values(*_account_columns[3:]))
)
INSERT_TRANSACTION: Final = _sql(insert(_transactions))
INSERT_GRANT: Final = _sql(insert(_grants))
UPDATE_GRANT: Final = _sql(
    update(_grants)
    .where(_grants.c.account == _value("a"), _grants.c.number == _value("n"))
    .values(_values("remaining", "lapses"))
)
LAST_EVENT: Final = _sql(select(func.coalesce(func.max(_events.c.id), _ZERO)).where(_events.c.lane == _value("lane")))
INSERT_EVENT: Final = _sql(insert(_events))
_given = sqlite.insert(_given_back)
UPSERT_GIVEN_BACK: Final = _sql(
    _given.on_conflict_do_update(
        index_elements=["account", "key_hash"],
        set_={name: _given.excluded[name] for name in ("money_micros", "by_money", "credits")},
    )
)
INSERT_PARKED: Final = _sql(insert(_parked))
DELETE_PARKED: Final = _sql(delete(_parked).where(_parked.c.account == _value("a"), _parked.c.key_hash == _value("k")))
INSERT_DEAD_LETTER: Final = _sql(
    insert(tables.dead_letters).values(_values("account", "code", "reason", "at", "kind", "fact"))
)

# ---- reading

ALL_GRANTS: Final = _sql(select(_grants).where(_grants.c.account == _value("a")).order_by(_grants.c.number))
TRANSACTION: Final = _sql(
    select(_transactions).where(_transactions.c.account == _value("a"), _transactions.c.sequence == _value("s"))
)
HISTORY: Final = _sql(
    select(_transactions).where(_transactions.c.account == _value("a")).order_by(_transactions.c.sequence)
)
LAST_BEFORE: Final = _statement(
    select(_transactions.c.sequence, _transactions.c.balance_after)
    .where(_transactions.c.account == _value("account"), _transactions.c.created_at <= _value("at"))
    .order_by(_transactions.c.sequence.desc())
    .limit(1)
)
LAPSED_SINCE: Final = _statement(
    select(func.coalesce(func.sum(_transactions.c.amount), _ZERO)).where(
        _transactions.c.account == _value("account"),
        _transactions.c.sequence > _value("sequence"),
        _transactions.c.type == literal_column("'EXPIRY'"),
        _transactions.c.occurred_at <= _value("at"),
    )
)
PENDING_THEN: Final = _statement(
    select(_grants.c.number, _grants.c.amount).where(
        _grants.c.account == _value("account"),
        _grants.c.sequence <= _value("sequence"),
        _grants.c.effective_at > _value("at"),
    )
)
PAYMENTS_REFUNDED: Final = _statement(
    select(_transactions.c.draws).where(
        _transactions.c.account == _value("account"),
        _transactions.c.sequence <= _value("sequence"),
        _transactions.c.type == literal_column("'PAYMENT_REFUNDED'"),
    )
)
_available = _accounts.c.balance - _accounts.c.held - _accounts.c.pending
ALL_IN_SUM: Final = _statement(
    select(
        func.count(),
        func.coalesce(func.sum(case((_available > _ZERO, literal_column("1")), else_=_ZERO)), _ZERO),
        func.coalesce(
            func.sum(
                case(
                    (_available <= _ZERO, _ZERO),
                    (
                        _available <= func.coalesce(_accounts.c.low_threshold, _value("default_threshold")),
                        literal_column("1"),
                    ),
                    else_=_ZERO,
                )
            ),
            _ZERO,
        ),
        func.avg(_accounts.c.balance),
    ).where(or_(_accounts.c.next_due_at.is_(None), _accounts.c.next_due_at > _value("at")))
)
DUE_ACCOUNTS: Final = _statement(select(_accounts).where(_accounts.c.next_due_at <= _value("at")))
ALL_ACCOUNTS: Final = _sql(select(_accounts).order_by(_accounts.c.merchant_id))
ACCOUNT: Final = _sql(select(_accounts).where(_accounts.c.merchant_id == _value("merchant_id")))
DUE: Final = _statement(
    select(_accounts.c.next_due_at, _accounts.c.merchant_id)
    .where(_accounts.c.next_due_at.is_not(None), _accounts.c.next_due_at <= _value("at"))
    .order_by(_accounts.c.next_due_at)
    .limit(_value("limit"))
)
OVERDUE: Final = _statement(
    select(_parked.c.until, _accounts.c.merchant_id)
    .join(_accounts, _parked.c.account == _accounts.c.number)
    .where(_parked.c.until <= _value("at"))
    .order_by(_parked.c.until)
    .limit(_value("limit"))
)
STRAYS: Final = _statement(
    select(_transactions.c.account, _transactions.c.sequence)
    .where(_transactions.c.account.not_in(select(_accounts.c.number)))
    .limit(100)
)


@lru_cache(maxsize=128)
def _rows_at(table: Table, columns: tuple[str, ...], condition: str, count: int) -> str:
    names = ", ".join(columns)
    places = ",".join([f"({','.join('?' * len(columns))})"] * count)
    wanted = ", ".join([str(column) for column in table.columns])
    # CROSS JOIN is how SQLite is told to walk through the places and look up each; left to itself it scans the table.
    source = f"place CROSS JOIN {table.name} USING ({names})"
    return f"WITH place({names}) AS (VALUES {places}) SELECT {wanted} FROM {source} WHERE {condition}"  # noqa: S608 - names, never values


def find(
    connection: sqlite3.Connection,
    table: Table,
    columns: tuple[str, ...],
    places: Collection[Sequence[Any]],
    condition: str = "true",
) -> Iterator[Row]:
    """The rows of a table at these places (values of `columns`), each named once; an index must lead there.

    One statement finds hundreds: one for each took eight times as long.
    """
    left = list(places)
    while left:
        some, left = left[:PLACES_AT_ONCE], left[PLACES_AT_ONCE:]
        # Rounded up with places where nothing can be, so that few different statements are prepared.
        room = (1 << (len(some) - 1).bit_length()) - len(some)
        values = [*chain.from_iterable(some), *repeat(None, room * len(columns))]
        yield from connection.execute(_rows_at(table, columns, condition, len(some) + room), values)


@lru_cache(maxsize=256)
def listing(present: frozenset[str], *, counted: bool = False) -> Statement:
    """The statement that lists (or counts) transactions by these conditions, the newest first.

    With an account it goes by sequence. Without, it goes by the outbox's key: each transaction has one announcement of
    its own, and those stand in the order of their commits.
    """
    t, e = _transactions.c, _events.c
    if "account" in present:
        if present <= {"account", "before", "limit", "offset"}:
            return _whole_history("before" in present, counted)
        position: Any = t.sequence
        source = select(func.count()) if counted else select(position, _transactions)
        statement = source.select_from(_transactions).where(t.account == _value("account"))
    else:
        position = e.id
        own = e.type.in_([literal_column(f"'{type_}'") for type_ in sorted(OF_A_TRANSACTION)])
        joined = (t.account == e.account) & (t.sequence == e.sequence)
        source = select(func.count()) if counted else select(position, _transactions)
        statement = source.select_from(_events.join(_transactions, joined)).where(e.lane == LANE, own)
    conditions = {
        "operation": t.operation == _value("operation"),
        "type": t.type == _value("type"),
        "start_at": t.created_at >= _value("start_at"),
        "end_at": t.created_at < _value("end_at"),
        "reference_type": t.reference_type == _value("reference_type"),
        "reference_id": t.reference_id == _value("reference_id"),
        "before": position < _value("before"),
    }
    statement = statement.where(*[condition for name, condition in conditions.items() if name in present])
    if not counted:
        statement = statement.order_by(position.desc()).limit(_value("limit")).offset(_value("offset"))
    return _statement(statement)


@lru_cache(maxsize=64)
def period_totals(present: frozenset[str]) -> Statement:
    """What an account's transactions in a period come to, by their type."""
    t = _transactions.c
    conditions = {"start_at": t.created_at >= _value("start_at"), "end_at": t.created_at < _value("end_at")}
    added = case((t.operation == literal_column("'INCREASE'"), t.amount), else_=_ZERO)
    sums = (func.count(), func.sum(added), func.sum(t.amount - added), func.max(t.created_at))
    wanted = [condition for name, condition in conditions.items() if name in present]
    return _statement(select(t.type, *sums).where(t.account == _value("account"), *wanted).group_by(t.type))


def _whole_history(continued: bool, counted: bool) -> Statement:
    """All of an account: its sequence has no gap, so count and offset are arithmetic, however long it is."""
    t = _transactions.c
    mine = t.account == _value("account")
    last = func.coalesce(func.max(t.sequence), _ZERO)
    if counted:
        return _statement(select(last).where(mine))
    end: Any = select(last + 1).where(mine).scalar_subquery()
    if continued:
        end = func.min(_value("before"), end)
    page = select(t.sequence, _transactions).where(mine, t.sequence < end - _value("offset"))
    return _statement(page.order_by(t.sequence.desc()).limit(_value("limit")))


@lru_cache(maxsize=32)
def account_listing(present: frozenset[str]) -> Statement:
    """The statement that lists accounts by these conditions, and those of which only `settle` can tell by `at`."""
    a = _accounts.c
    available = a.balance - a.held - a.pending
    threshold = func.coalesce(a.low_threshold, _value("default_threshold"))
    status = case((available <= 0, "EXHAUSTED"), (available <= threshold, "LOW"), else_="ACTIVE")
    conditions = {
        "status": status == _value("status"),
        "min_balance": a.balance >= _value("min_balance"),
        "max_balance": a.balance <= _value("max_balance"),
    }
    statement = select(_accounts)
    for name, condition in conditions.items():
        if name in present:
            statement = statement.where(or_(condition, a.next_due_at <= _value("at")))
    if "after" in present:
        statement = statement.where(a.merchant_id > _value("after"))
    return _statement(statement.order_by(a.merchant_id).limit(_value("limit")))


# ---- API keys

INSERT_KEY: Final = _sql(insert(_keys))
KEY: Final = _sql(select(_keys).where(_keys.c.id == _value("id")))
KEYS: Final = _sql(select(_keys).order_by(_keys.c.created_at.desc(), _keys.c.id))
REVOKE_KEY: Final = _sql(
    update(_keys)
    .where(_keys.c.id == _value("key"))
    .values(revoked_at=func.coalesce(_keys.c.revoked_at, _value("revoked")))
)
USE_KEY: Final = _sql(update(_keys).where(_keys.c.id == _value("key")).values(last_used_at=_value("used")))
