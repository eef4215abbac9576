"""The statements of SQLite: its dialect, the statements that write rows, and those that look up thousands of rows."""

import sqlite3
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain, repeat
from typing import Any, Final

from sqlalchemy import ClauseElement, Table, delete, func, literal_column, select, update
from sqlalchemy.dialects import sqlite

from credit_service.storage import questions, rows, tables
from credit_service.storage.questions import Ask, Find, Row, Statement, value

LANE: Final = 0
"""SQLite has one writer, so its outbox has one lane."""

PLACES_AT_ONCE: Final = 1024

_DIALECT: Final = sqlite.dialect()
_ZERO: Final[Any] = literal_column("0")


def _sql(statement: ClauseElement) -> str:
    """The text of a statement that takes its parameters in the order of the text."""
    made = questions.compiled(statement, _DIALECT)
    assert all(value is None for value in made.constants.values()), made.constants
    return made.sql


@lru_cache(maxsize=512)
def _compiled(statement: ClauseElement) -> Statement:
    return questions.compiled(statement, _DIALECT)


def ask(connection: sqlite3.Connection, question: Ask) -> sqlite3.Cursor:
    """The rows of a question, or the number of rows that a statement changed."""
    made = _compiled(question.statement)
    return connection.execute(made.sql, made.bound(question.values))


# ---- writing


def _write(table: Table, how: str) -> str:
    """The statement that writes a row; an update takes what `rows.of_update` picks."""
    if how == "update":
        # Parameters have names of their own: a column's name would mean its new value.
        keyed = [table.c[name] == value(f"key_{name}") for name in rows.KEYS[table.name]]
        return _sql(update(table).where(*keyed).values({name: value(name) for name in rows.CHANGES[table.name]}))
    inserting = sqlite.insert(table).values({name: value(name) for name in rows.columns_of(table)})
    if how == "upsert":
        changes = {name: inserting.excluded[name] for name in rows.CHANGES[table.name]}
        inserting = inserting.on_conflict_do_update(index_elements=rows.KEYS[table.name], set_=changes)
    return _sql(inserting)


write: Final = lru_cache(maxsize=16)(_write)
of_update: Final = lru_cache(maxsize=8)(rows.of_update)
_events, _parked = tables.events, tables.parked
LAST_EVENT: Final = _sql(select(func.coalesce(func.max(_events.c.id), _ZERO)).where(_events.c.lane == value("lane")))
DELETE_PARKED: Final = _sql(delete(_parked).where(_parked.c.account == value("a"), _parked.c.key == value("k")))

# ---- looking up


@lru_cache(maxsize=128)
def _rows_at(table: Table, columns: tuple[str, ...], condition: str, count: int) -> str:
    names = ", ".join(columns)
    places = ",".join([f"({','.join('?' * len(columns))})"] * count)
    wanted = ", ".join([str(column) for column in table.columns])
    # CROSS JOIN makes SQLite walk through the places and look up each; without it, it scans the table.
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
