"""The statements of PostgreSQL: its dialect, one statement that loads a posting, and one that writes it.

Whatever the size of a batch, its values go as arrays, so the number of statements does not grow.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import count
from typing import Any, Final, NamedTuple

from sqlalchemy import BigInteger, ClauseElement, LargeBinary, Table
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg

from credit_service.storage import questions, tables
from credit_service.storage.questions import Statement
from credit_service.storage.rows import CHANGES, KEYS, columns_of, of_update

_DIALECT: Final = PGDialect_asyncpg()  # type: ignore[no-untyped-call]  # SQLAlchemy's own gap
LOCKS: Final = 0x63726564
"""The first half of the keys of our advisory locks, so that they differ from those of other programs."""

CLOCK: Final = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
NOW: Final = f"SELECT {CLOCK}"
IS_READ_ONLY: Final = "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on'"
SAFETY: Final = f"""
SELECT {CLOCK}, current_setting('fsync'), current_setting('full_page_writes'), current_setting('synchronous_commit')
"""
_LOADED: Final = ("accounts", "grants", "parked", "firsts", "given_back", "trials")
"""The columns of `load` after the clock and the last events, in this order."""


@lru_cache(maxsize=512)
def compiled(statement: ClauseElement) -> Statement:
    """A statement as asyncpg takes it."""
    return questions.compiled(statement, _DIALECT)


POSTING_SETTINGS: Final = {
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}
"""The server's settings for the statements of a posting.

They are planned once, since planning takes longer than running; not compiled, for the same reason; and use the indexes
alone, since a plan made while a table was small would scan it forever.
"""


def begin(lanes: Sequence[int], settings: Mapping[str, str]) -> str:
    """The statement that begins a posting with these settings and locks these lanes, in one message to the server.

    Lanes are locked in ascending order, so two postings never wait for each other; and before anything is read, so what
    is read is what the last posting left.
    """
    local = "".join([f"SET LOCAL {name} = {value};" for name, value in settings.items()])
    locks = "".join([f"SELECT pg_advisory_xact_lock({LOCKS}, {lane});" for lane in sorted(lanes)])
    return f"BEGIN ISOLATION LEVEL READ COMMITTED;{local}{locks}"


def _type(table: Table, column: str) -> str:
    kind = table.columns[column].type
    return "bigint" if isinstance(kind, BigInteger) else "bytea" if isinstance(kind, LargeBinary) else "text"


def _names(table: Table, of: str = "") -> str:
    return ", ".join([f"{of}{column.name}" for column in table.columns])


# LATERAL with OFFSET 0 makes PostgreSQL look up each place by the index; without it, it may scan.
LOOK_UP: Final = "CROSS JOIN LATERAL (SELECT {what} FROM {table} WHERE {where} OFFSET 0) {name}"


def _of_account(table: Table, where: str, name: str) -> str:
    looked_up = LOOK_UP.format(what=_names(table), table=table.name, where=where, name=name)
    return f"(SELECT array_agg(ROW({_names(table, f'{name}.')})) FROM {{places}} {_ACCOUNT} {looked_up})"


_ACCOUNT: Final = LOOK_UP.format(
    what="number, trial", table="accounts", where="merchant_id = place.merchant_id", name="mine"
)
_ALL: Final = "unnest($1::text[]) place(merchant_id)"
_MATCHING: Final = "account = mine.number AND key = place.key"


@lru_cache(maxsize=8)
def load(sources: bool, trials: bool) -> str:
    """The statement that loads a posting, with what only refunds (`sources`) and trials need, if asked for.

    Parameters: merchants; lanes; merchants and keys; the same of sources; merchants of trials. The rows of each table
    come as one array; those of accounts end with the version of the row (xmin), which each update changes.
    """
    number = count(5)
    found = {
        "accounts": "(SELECT array_agg(ROW({names})) FROM {places} {look_up})".format(
            names=f"{_names(tables.accounts, 'found.')}, found.xmin",
            places=_ALL,
            look_up=LOOK_UP.format(
                what=f"{_names(tables.accounts)}, xmin",
                table="accounts",
                where="merchant_id = place.merchant_id",
                name="found",
            ),
        ),
        "grants": _of_account(tables.grants, f"account = mine.number AND {tables.OPEN}", "open").format(places=_ALL),
        "parked": _of_account(tables.parked, "account = mine.number", "waiting").format(places=_ALL),
        "firsts": _of_account(tables.transactions, _MATCHING, "first").format(
            places="unnest($3::text[], $4::text[]) place(merchant_id, key)"
        ),
    }
    if sources:
        places = f"unnest(${next(number)}::text[], ${next(number)}::text[]) place(merchant_id, key)"
        found["given_back"] = _of_account(tables.given_back, _MATCHING, "back").format(places=places)
    if trials:
        where = "account = mine.number AND sequence = mine.trial"
        places = f"unnest(${next(number)}::text[]) place(merchant_id)"
        found["trials"] = _of_account(tables.transactions, where, "trial").format(places=places)
    return f"SELECT {_state('$2')}, {', '.join([found.get(name, 'NULL') for name in _LOADED])}"


LAST_EVENT: Final = "(SELECT coalesce(max(id), 0) FROM events WHERE lane = wanted.lane)"


def _state(lanes: str) -> str:
    """The time, and the last event of each of the lanes."""
    wanted = f"unnest({lanes}::bigint[]) WITH ORDINALITY wanted(lane, place)"
    return f"{CLOCK}, (SELECT array_agg({LAST_EVENT} ORDER BY place) FROM {wanted})"


STATE: Final = f"SELECT {_state('$1')}"


@lru_cache(maxsize=128)
def rows_at(table: Table, columns: tuple[str, ...], condition: str) -> str:
    """The statement that finds the rows of a table at places, given as an array for each of the columns."""
    arrays = ", ".join([f"${index}::{_type(table, name)}[]" for index, name in enumerate(columns, 1)])
    where = " AND ".join([f"{name} = place.{name}" for name in columns])
    looked_up = LOOK_UP.format(what=_names(table), table=table.name, where=f"{where} AND {condition}", name="found")
    return f"SELECT {_names(table, 'found.')} FROM unnest({arrays}) place({', '.join(columns)}) {looked_up}"


CHECKED: Final = "checked update"
"""How a row is updated that must still have a certain version."""
VERSION: Final = "pg_current_xact_id()::xid"
"""The version that this transaction gives to the rows it writes."""


class Part(NamedTuple):
    """What a statement does to a table: how (insert, update, CHECKED, upsert), and whether to many rows or to one."""

    table: Table
    how: str
    many: bool = True


_of_update: Final = lru_cache(maxsize=8)(of_update)


def values_of(part: Part, some: Sequence[Sequence[Any]]) -> Sequence[Any]:
    """The values of a part's parameters, from rows of its table. Those of a CHECKED part are followed by the versions.

    Many rows go as one array of rows: of an array for each column the driver would inspect every value three times.
    """
    if part.many:
        return by_column(some) if part.table is tables.dead_letters else (some,)
    return _of_update(part.table)(some[0]) if part.how in ("update", CHECKED) else some[0]


@lru_cache(maxsize=256)
def write(parts: tuple[Part, ...]) -> str:
    """The statement that writes these parts at once, and returns the version of their rows; see `values_of`.

    A single row goes without an array, which costs a lone caller half as much.
    """
    number = count(1)
    texts = [f"part_{index} AS ({part_text(part, number)})" for index, part in enumerate(parts)]
    return f"WITH {', '.join(texts)} SELECT {VERSION}" if texts else f"SELECT {VERSION}"


def part_text(part: Part, number: "count[int]", only: str | None = None) -> str:
    """The text of a part, which does nothing unless the condition `only` holds."""
    table, how, many = part
    if how in ("update", CHECKED):
        return _update(part, number, only)
    name, columns = table.name, columns_of(table)
    if many and table is not tables.dead_letters:
        source = f"SELECT * FROM unnest(${next(number)}::{name}[])"
    else:
        places = ", ".join([f"${next(number)}::{_type(table, column)}{'[]' if many else ''}" for column in columns])
        source = f"SELECT * FROM unnest({places})" if many else f"SELECT {places}"
    text = f"INSERT INTO {name} ({', '.join(columns)}) {source}{f' WHERE {only}' if only else ''}"
    if how == "upsert":
        changes = ", ".join([f"{column} = excluded.{column}" for column in CHANGES[name]])
        text += f" ON CONFLICT ({', '.join(KEYS[name])}) DO UPDATE SET {changes}"
    return text


def _update(part: Part, number: "count[int]", only: str | None) -> str:
    table, how, many = part
    name, columns = table.name, columns_of(table)
    changed, keys = CHANGES[name], KEYS[name]
    if many:
        new = {column: f"new.{column}" for column in (*changed, *keys)}
        arrays = f"${next(number)}::{name}[]"
        if how == CHECKED:
            arrays, columns = f"{arrays}, ${next(number)}::xid[]", (*columns, "version")
        source, version = f" FROM unnest({arrays}) new({', '.join(columns)})", "new.version"
    else:
        new = {column: f"${next(number)}::{_type(table, column)}" for column in (*changed, *keys)}
        source, version = "", f"${next(number)}::xid" if how == CHECKED else ""
    changes = ", ".join([f"{column} = {new[column]}" for column in changed])
    conditions = [f"old.{column} = {new[column]}" for column in keys]
    conditions += [f"old.xmin = {version}"] if how == CHECKED else []
    conditions += [only] if only else []
    returning = " RETURNING 1" if how == CHECKED else ""
    return f"UPDATE {name} old SET {changes}{source} WHERE {' AND '.join(conditions)}{returning}"


TOUCH: Final = "UPDATE accounts SET settled_at = settled_at WHERE merchant_id = $1"
DELETE_PARKED: Final = (
    "DELETE FROM parked USING unnest($1::bigint[], $2::text[]) gone(account, key) "
    "WHERE parked.account = gone.account AND parked.key = gone.key"
)


def by_column(some: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Rows as arrays, one for each column."""
    return list(zip(*some, strict=True))
