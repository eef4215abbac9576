"""How SQLite is asked: its dialect, the statements that write rows, and how rows are looked up by the thousand.

What they mean is said where they are used.
"""

import sqlite3
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain, repeat
from typing import Any, Final

from sqlalchemy import ClauseElement, Table, bindparam, delete, func, insert, literal_column, select, update
from sqlalchemy.dialects import sqlite

from credit_service.storage import questions, rows, tables
from credit_service.storage.questions import Ask, Find, Row, Statement, value

LANE: Final = 0
"""SQLite has one writer, so its outbox has one lane."""

PLACES_AT_ONCE: Final = 1024

_DIALECT: Final = sqlite.dialect()
_ZERO: Final[Any] = literal_column("0")


def _sql(statement: ClauseElement) -> str:
    """The text of a statement whose parameters are all named, and given in the order in which they stand."""
    made = questions.compiled(statement, _DIALECT)
    assert all(value is None for value in made.constants.values()), made.constants
    return made.sql


@lru_cache(maxsize=512)
def _compiled(statement: ClauseElement) -> Statement:
    return questions.compiled(statement, _DIALECT)


def ask(connection: sqlite3.Connection, question: Ask) -> sqlite3.Cursor:
    """Put a question to SQLite."""
    made = _compiled(question.statement)
    return connection.execute(made.sql, made.bound(question.values))


def _values(*names: str) -> dict[str, Any]:
    return {name: bindparam(name) for name in names}


_accounts, _grants, _given_back = tables.accounts, tables.grants, tables.given_back
_parked, _events = tables.parked, tables.events

# ---- writing. New rows are inserted and known ones updated, since an upsert checks each row twice (a third dearer).

INSERT_ACCOUNT: Final = _sql(insert(_accounts))
UPDATE_ACCOUNT: Final = _sql(
    update(_accounts).where(_accounts.c.number == value("key")).values(_values(*rows.ACCOUNT_CHANGES))
)
of_update: Final = rows.by_name(rows.ACCOUNT, (*rows.ACCOUNT_CHANGES, "number"))
"""The parameters of UPDATE_ACCOUNT, from a row of `accounts`."""
INSERT_TRANSACTION: Final = _sql(insert(tables.transactions))
INSERT_GRANT: Final = _sql(insert(_grants))
UPDATE_GRANT: Final = _sql(
    update(_grants)
    .where(_grants.c.account == value("a"), _grants.c.number == value("n"))
    .values(_values("remaining", "lapses", "open"))
)
LAST_EVENT: Final = _sql(select(func.coalesce(func.max(_events.c.id), _ZERO)).where(_events.c.lane == value("lane")))
INSERT_EVENT: Final = _sql(insert(_events))
_given = sqlite.insert(_given_back)
UPSERT_GIVEN_BACK: Final = _sql(
    _given.on_conflict_do_update(
        index_elements=["account", "key"],
        set_={name: _given.excluded[name] for name in ("money_micros", "by_money", "credits")},
    )
)
INSERT_PARKED: Final = _sql(insert(_parked))
DELETE_PARKED: Final = _sql(delete(_parked).where(_parked.c.account == value("a"), _parked.c.key == value("k")))
INSERT_DEAD_LETTER: Final = _sql(insert(tables.dead_letters).values(_values(*tables.LEDGERS_LETTER)))

# ---- looking up


@lru_cache(maxsize=128)
def _rows_at(table: Table, columns: tuple[str, ...], condition: str, count: int) -> str:
    names = ", ".join(columns)
    places = ",".join([f"({','.join('?' * len(columns))})"] * count)
    wanted = ", ".join([str(column) for column in table.columns])
    # CROSS JOIN is how SQLite is told to walk through the places and look up each; left to itself it scans the table.
    source = f"place CROSS JOIN {table.name} USING ({names})"
    return f"WITH place({names}) AS (VALUES {places}) SELECT {wanted} FROM {source} WHERE {condition}"


def find(connection: sqlite3.Connection, question: Find) -> Iterator[Row]:
    """The rows at these places. One statement finds hundreds: one for each took eight times as long."""
    table, columns, places, condition = question
    left = list(places)
    while left:
        some, left = left[:PLACES_AT_ONCE], left[PLACES_AT_ONCE:]
        # Rounded up with places where nothing can be, so that few different statements are prepared.
        room = (1 << (len(some) - 1).bit_length()) - len(some)
        values = [*chain.from_iterable(some), *repeat(None, room * len(columns))]
        yield from connection.execute(_rows_at(table, columns, condition, len(some) + room), values)
