"""Rows of the tables and values of the ledger, each made from the other, the same for every engine."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from sqlalchemy import Table

from credit_service.ledger.account import (
    Account,
    Announcement,
    DeadLetter,
    Dispute,
    Draw,
    GivenBack,
    Grant,
    Parked,
    Plan,
    Reference,
    Transaction,
    TypeTotal,
)
from credit_service.ledger.commands import REFUNDS
from credit_service.storage import tables
from credit_service.storage.engine import Writes
from credit_service.storage.questions import Row

T = TypeVar("T")

draws: Final = msgspec.json.Decoder(tuple[Draw, ...]).decode
_by_type: Final = msgspec.json.Decoder(dict[str, TypeTotal]).decode
_plan: Final = msgspec.json.Decoder(Plan).decode
_disputes: Final = msgspec.json.Decoder(tuple[Dispute, ...]).decode
_encoder: Final = msgspec.json.Encoder()


def _text(value: Any) -> str:
    return _encoder.encode(value).decode()


def by_name(given: Sequence[str], wanted: Iterable[str]) -> Callable[[Sequence[Any]], Row]:
    """Picks the wanted names from values that stand in the order of the given names; the last one of equal names."""
    places = {name: place for place, name in enumerate(given)}
    return itemgetter(*[places[name] for name in wanted])


@lru_cache(maxsize=16)
def columns_of(table: Table) -> tuple[str, ...]:
    """The columns of the rows that postings write to a table, in their order."""
    return tables.LEDGERS_LETTER if table is tables.dead_letters else tuple([one.name for one in table.columns])


def _part(names: Sequence[str], first: str, end: str | None = None) -> slice:
    """The values from one name up to another, which is excluded."""
    return slice(names.index(first), None if end is None else names.index(end))


ACCOUNT: Final = columns_of(tables.accounts)
readable: Final = by_name((*ACCOUNT, "by_type", "carried"), ACCOUNT)
"""An account's row with other JSON, which is given behind it."""
_json: Final = by_name(ACCOUNT, ("by_type", "plan", "carried"))
_grant: Final = by_name(columns_of(tables.grants), Grant._fields)

KEYS: Final = {"accounts": ("number",), "grants": ("account", "number"), "given_back": ("account", "key")}
"""The keys of the tables whose rows postings change."""
CHANGES: Final = {
    "accounts": ACCOUNT[_part(ACCOUNT, "settled_at")],
    "grants": ("remaining", "lapses", "gone", "open"),
    "given_back": columns_of(tables.given_back)[2:],
}
"""The columns that postings change."""

# Columns and fields have the same order, except for those that are named here. Slices between names take half the time
# of picking each value by its name, and a posting makes several rows.
_TO_JSON: Final = _part(ACCOUNT, "number", "by_type")
_FROM_JSON: Final = _part(ACCOUNT, "next_due_at")
_TRANSACTION: Final = columns_of(tables.transactions)
_reference_and_draws: Final = by_name(_TRANSACTION, ("reference_type", "reference_id", "draws"))
_FIELDS: Final = [
    _part(Transaction._fields, "sequence", "reference"),
    _part(Transaction._fields, "metadata", "draws"),
    _part(Transaction._fields, "reverses"),
]
_COLUMNS: Final = [
    _part(_TRANSACTION, "sequence", "reference_type"),
    _part(_TRANSACTION, "metadata", "draws"),
    _part(_TRANSACTION, "reverses"),
]


def account_row(account: Account) -> Row:
    values: Row = account
    return (
        *values[_TO_JSON],
        _text(account.by_type),
        None if account.plan is None else _text(account.plan),
        _text(account.carried) if account.carried else "[]",  # nearly always empty, and encoded at each posting
        *values[_FROM_JSON],
    )


def account(row: Row) -> Account:
    by_type, plan, carried = _json(row)
    read = (_by_type(by_type), None if plan is None else _plan(plan), draws(carried))
    return Account._make((*row[_TO_JSON], *read, *row[_FROM_JSON]))


def transaction_row(transaction: Transaction) -> Row:
    values: Row = transaction
    amounts, terms, rest = _FIELDS
    reference = transaction.reference or (None, None)
    drawn = _text(transaction.draws)
    return (transaction.account, *values[amounts], *reference, *values[terms], drawn, *values[rest])


def transaction(merchant_id: str, row: Row) -> Transaction:
    """A transaction from its row and its account's merchant."""
    amounts, terms, rest = _COLUMNS
    reference_type, reference_id, drawn = _reference_and_draws(row)
    reference = None if reference_type is None else Reference(reference_type, reference_id)
    return Transaction._make((row[0], merchant_id, *row[amounts], reference, *row[terms], draws(drawn), *row[rest]))


def is_open(grant: Grant) -> int:
    """Whether a grant has credits left, as a number."""
    return 1 if grant.remaining else 0


def grant_row(account_number: int, grant: Grant) -> Row:
    return (account_number, *grant, is_open(grant))


def grant(row: Row) -> Grant:
    return Grant._make(_grant(row))


def event_rows(announcements: Iterable[tuple[int, Announcement]], places: Iterable[tuple[int, int]]) -> list[Row]:
    """Rows of the outbox (`events`): the announcements at their places, each a lane and an id."""
    return [
        (
            *place,
            account,
            *(one.number, one.type, one.sequence, one.available, one.at),
            None if one.detail is None else _text(one.detail),
        )
        for place, (account, one) in zip(places, announcements, strict=True)
    ]


def given_back_row(account_number: int, given: GivenBack) -> Row:
    values: Row = given
    return (account_number, *values[:-2], _text(given.taken), _text(given.disputes))


def given_back(row: Row) -> GivenBack:
    _, *given, taken, disputes = row
    return GivenBack._make((*given, draws(taken), _disputes(disputes)))


def parked_row(account_number: int, parked: Parked) -> Row:
    return (account_number, parked.key, parked.waits_for, parked.until, parked.arrived_at, *_fact_columns(parked.fact))


def parked(row: Row) -> Parked:
    _, key, waits_for, until, arrived_at, kind, text = row
    return Parked(key, waits_for, until, arrived_at, fact(kind, text))


def dead_letter_row(account_number: int, letter: DeadLetter) -> Row:
    """A row of `dead_letters`, without its id."""
    return (account_number, letter.code, letter.reason, letter.at, *_fact_columns(letter.fact))


def _fact_columns(fact: Any) -> Row:
    return (fact.kind, fact_text(fact))


def fact_text(fact: Any) -> str:
    """A fact as JSON text, for a parked refund or a dead letter."""
    return _text(fact)


def fact(kind: str, text: str) -> Any:
    return msgspec.json.decode(text, type=REFUNDS[kind])


class TableRows(NamedTuple):
    """Rows that a posting writes to a table, and how: insert, update or upsert."""

    table: Table
    how: str
    rows: Sequence[Row]


def of_update(table: Table) -> Callable[[Sequence[Any]], Row]:
    """Picks the values of an update from a row: the columns that it changes, then the key."""
    return by_name(columns_of(table), (*CHANGES[table.name], *KEYS[table.name]))


def all_rows(writes: Writes, granted: Mapping[int, int], places: Iterable[tuple[int, int]]) -> list[TableRows]:
    """The rows of each table that a posting writes, the accounts first.

    `granted`: the accounts that existed before, with the number of their last grant. `places`: those of the
    announcements in the outbox, each a lane and an id.
    """
    accounts = [account_row(account) for account in writes.accounts.values()]
    old_grants: list[Row] = []
    new_grants: list[Row] = []
    for (account, number), grant in writes.grants.items():
        (new_grants if number > granted.get(account, 0) else old_grants).append(grant_row(account, grant))
    # New rows are inserted and known ones updated: an upsert checks each row twice, which costs a third more.
    parts = [
        TableRows(tables.accounts, "insert", [row for row in accounts if row[0] not in granted]),
        TableRows(tables.accounts, "update", [row for row in accounts if row[0] in granted]),
        TableRows(tables.transactions, "insert", [transaction_row(one) for one in writes.transactions]),
        TableRows(tables.grants, "insert", new_grants),
        TableRows(tables.grants, "update", old_grants),
        TableRows(tables.events, "insert", event_rows(writes.announcements, places)),
        TableRows(tables.given_back, "upsert", [given_back_row(*one) for one in _owned(writes.given_back)]),
        TableRows(tables.parked, "insert", [parked_row(*one) for one in _owned(writes.parked)]),
        TableRows(tables.dead_letters, "insert", [dead_letter_row(*one) for one in writes.dead_letters]),
    ]
    return [part for part in parts if part.rows]


def _owned(values: Mapping[tuple[int, str], T]) -> list[tuple[int, T]]:
    return [(account, value) for (account, _), value in values.items()]
