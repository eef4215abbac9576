"""How PostgreSQL is asked: its dialect, one statement that loads a posting and one that writes it.

Whatever the size of a batch, its values go as arrays, so the number of statements does not grow. What the statements
mean is said where they are used.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import count
from operator import itemgetter
from typing import Any, Final, NamedTuple

from sqlalchemy import BigInteger, ClauseElement, LargeBinary, Table
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg

from credit_service.storage import questions, tables
from credit_service.storage.questions import Statement

_DIALECT: Final = PGDialect_asyncpg()  # type: ignore[no-untyped-call]  # SQLAlchemy's own gap
LOCKS: Final = 0x63726564
"""The first half of the advisory locks' keys, so that they are not those of something else in the database."""

LAG_MICROS: Final = 100_000
"""So much may pass between a decision without a lock and its writing, and no more: credits may have expired (L7)."""
CLOCK: Final = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
NOW: Final = f"SELECT {CLOCK}"
IS_READ_ONLY: Final = "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on'"
SAFETY: Final = f"""
SELECT {CLOCK}, current_setting('fsync'), current_setting('full_page_writes'), current_setting('synchronous_commit')
"""
LOADED: Final = ("accounts", "grants", "parked", "firsts", "given_back", "trials")
"""What `load` finds, beside the clock and the outbox' last positions, in this order."""


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
"""How the server is told to go about a posting's statements.

Planned once, since planning one takes longer than running it; without compiling, for the same reason; and by the
indexes alone, since a plan outlives the moment when a table was small enough to be scanned.
"""


def begin(lanes: Sequence[int], settings: Mapping[str, str]) -> str:
    """Begin a posting with these settings, and lock these lanes, ascending so that no two wait for each other.

    The lanes are locked before anything is read, so what is read then is what the last posting left. In one message to
    the server: each would cost a lone caller as much again.
    """
    local = "".join([f"SET LOCAL {name} = {value};" for name, value in settings.items()])
    locks = "".join([f"SELECT pg_advisory_xact_lock({LOCKS}, {lane});" for lane in sorted(lanes)])
    return f"BEGIN ISOLATION LEVEL READ COMMITTED;{local}{locks}"


def _type(table: Table, column: str) -> str:
    kind = table.columns[column].type
    return "bigint" if isinstance(kind, BigInteger) else "bytea" if isinstance(kind, LargeBinary) else "text"


def _names(table: Table, of: str = "") -> str:
    return ", ".join([f"{of}{column.name}" for column in table.columns])


# LATERAL with OFFSET 0 is how PostgreSQL is told to look up each place by the index; left to itself it may scan.
_LOOK_UP: Final = "CROSS JOIN LATERAL (SELECT {what} FROM {table} WHERE {where} OFFSET 0) {name}"


def _of_account(table: Table, where: str, name: str) -> str:
    looked_up = _LOOK_UP.format(what=_names(table), table=table.name, where=where, name=name)
    return f"(SELECT array_agg(ROW({_names(table, f'{name}.')})) FROM {{places}} {_ACCOUNT} {looked_up})"


_ACCOUNT: Final = _LOOK_UP.format(
    what="number, trial", table="accounts", where="merchant_id = place.merchant_id", name="mine"
)
_ALL: Final = "unnest($1::bytea[]) place(merchant_id)"
_MATCHING: Final = "account = mine.number AND key = place.key"


@lru_cache(maxsize=8)
def load(sources: bool, trials: bool) -> str:
    """The statement that loads a posting, with or without what only refunds and trials need.

    Parameters: merchants; lanes; merchants and keys; the same of sources; merchants of trials. Each table's
    rows come as one array of rows; those of accounts end with the version of the row, which each update changes.
    """
    number = count(5)
    found = {
        "accounts": "(SELECT array_agg(ROW({names})) FROM {places} {look_up})".format(
            names=f"{_names(tables.accounts, 'found.')}, found.xmin",
            places=_ALL,
            look_up=_LOOK_UP.format(
                what=f"{_names(tables.accounts)}, xmin",
                table="accounts",
                where="merchant_id = place.merchant_id",
                name="found",
            ),
        ),
        "grants": _of_account(tables.grants, f"account = mine.number AND {tables.OPEN}", "open").format(places=_ALL),
        "parked": _of_account(tables.parked, "account = mine.number", "waiting").format(places=_ALL),
        "firsts": _of_account(tables.transactions, _MATCHING, "first").format(
            places="unnest($3::bytea[], $4::text[]) place(merchant_id, key)"
        ),
    }
    if sources:
        places = f"unnest(${next(number)}::bytea[], ${next(number)}::text[]) place(merchant_id, key)"
        found["given_back"] = _of_account(tables.given_back, _MATCHING, "back").format(places=places)
    if trials:
        where = "account = mine.number AND sequence = mine.trial"
        places = f"unnest(${next(number)}::bytea[]) place(merchant_id)"
        found["trials"] = _of_account(tables.transactions, where, "trial").format(places=places)
    return f"SELECT {_state('$2')}, {', '.join([found.get(name, 'NULL') for name in LOADED])}"


_LAST: Final = "(SELECT coalesce(max(id), 0) FROM events WHERE lane = wanted.lane)"


def _state(lanes: str) -> str:
    """The time, and the last event of each of the lanes."""
    wanted = f"unnest({lanes}::bigint[]) WITH ORDINALITY wanted(lane, place)"
    return f"{CLOCK}, (SELECT array_agg({_LAST} ORDER BY place) FROM {wanted})"


STATE: Final = f"SELECT {_state('$1')}"


@lru_cache(maxsize=128)
def rows_at(table: Table, columns: tuple[str, ...], condition: str) -> str:
    """The statement that finds a table's rows at places, which are given as an array for each of the columns."""
    arrays = ", ".join([f"${index}::{_type(table, name)}[]" for index, name in enumerate(columns, 1)])
    where = " AND ".join([f"{name} = place.{name}" for name in columns])
    looked_up = _LOOK_UP.format(what=_names(table), table=table.name, where=f"{where} AND {condition}", name="found")
    return f"SELECT {_names(table, 'found.')} FROM unnest({arrays}) place({', '.join(columns)}) {looked_up}"


CHECKED: Final = "update of a version"
"""How a row is updated that must still be a certain version."""
_VERSION: Final = "pg_current_xact_id()::xid"
"""The version that a row gets from being written."""


class Part(NamedTuple):
    """What is done to a table (insert, update, CHECKED, upsert), and whether to several rows or to a single one."""

    table: Table
    how: str
    many: bool = True


_KEYS: Final = {"accounts": ("number",), "grants": ("account", "number"), "given_back": ("account", "key")}
_CHANGED: Final = {
    "accounts": tuple(column.name for column in tables.accounts.columns)[3:],
    "grants": ("remaining", "lapses", "open"),
    "given_back": ("money_micros", "by_money", "credits"),
}


def values_of(part: Part, some: Sequence[Sequence[Any]]) -> Sequence[Any]:
    """The values of a part's parameters: rows of its table. Those of a CHECKED one are followed by the versions.

    Many go as one array of rows: of an array for each column the driver would look at every value three times.
    """
    if part.many:
        return by_column(some) if part.table is tables.dead_letters else (some,)
    return _written(part.table)(some[0]) if part.how in ("update", CHECKED) else some[0]


@lru_cache(maxsize=8)
def _written(table: Table) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """What an update takes of a row: the columns that it changes, then the key."""
    columns = columns_of(table)
    return itemgetter(*[columns.index(name) for name in (*_CHANGED[table.name], *_KEYS[table.name])])


@lru_cache(maxsize=8)
def columns_of(table: Table) -> tuple[str, ...]:
    """The columns of rows that are written to a table, in their order."""
    return tables.LEDGERS_LETTER if table is tables.dead_letters else tuple(column.name for column in table.columns)


@lru_cache(maxsize=256)
def write(parts: tuple[Part, ...]) -> str:
    """The statement that writes these parts, all at once; each takes what `values_of` says.

    A single row goes without an array, which costs a lone caller half as much. Returns the version that the rows have
    then.
    """
    number = count(1)
    texts = [f"part_{index} AS ({_part(part, number)})" for index, part in enumerate(parts)]
    return f"WITH {', '.join(texts)} SELECT {_VERSION}" if texts else f"SELECT {_VERSION}"


@lru_cache(maxsize=256)
def write_unless_changed(parts: tuple[Part, ...]) -> str:
    """As `write`, in a transaction of its own, and only where nothing has changed since it was decided.

    More parameters: the lanes that it locks, and the last event of each; the time at which it was decided, unless that
    is not the database's; then those of `_as_known`, and how many accounts are updated, if any. Returns the time,
    whether one of the keys was used before, and the version of the rows, which is NULL where nothing was written.

    What is asked before the lanes are locked may have changed when they are. Then the key of `events` or of
    `transactions` is broken, or a row of `accounts` is not written for its version, which ends in a division by zero.
    """
    number = count(1)
    texts = [_part(part, number, only="(SELECT ready FROM locked)") for part in parts]
    lanes, last, decided_at, *known = (next(number) for _ in range(8))
    updates = [f"(SELECT count(*) FROM part_{index})" for index, part in enumerate(parts) if part.how == CHECKED]
    written = f"1 / ({' + '.join(updates)} = ${next(number)})::integer" if updates else "1"
    version = f"CASE WHEN {written} = 1 THEN {_VERSION} END"
    return f"""
WITH found AS MATERIALIZED (
    SELECT {_as_known(*known)}
), fits AS MATERIALIZED (
    SELECT FROM found WHERE same AND NOT used
    AND NOT EXISTS (
        SELECT FROM unnest(${lanes}::integer[], ${last}::bigint[]) wanted(lane, last) WHERE last <> {_LAST}
    )
), locked AS MATERIALIZED (
    SELECT count(pg_advisory_xact_lock({LOCKS}, lane)) > 0
        AND coalesce(abs({CLOCK} - ${decided_at}::bigint) < {LAG_MICROS}, true) AS ready
    FROM fits, unnest(${lanes}::integer[]) lane
), {", ".join([f"part_{index} AS ({text})" for index, text in enumerate(texts)])}
SELECT {CLOCK}, used, CASE WHEN (SELECT ready FROM locked) THEN {version} END FROM found"""


def _as_known(accounts: int, versions: int, settled: int, used_by: int, keys: int) -> str:
    """Whether all accounts are as they are known, and whether any of the keys was used.

    Parameters, by their numbers: accounts, the versions of their rows, when they were settled; accounts and keys. A
    version alone would not do: a server that takes another's place gives those out again that were lost.
    """
    looked_up = partial(_LOOK_UP.format, what="", name="found")
    same = looked_up(
        table="accounts",
        where="accounts.number = known.number AND xmin = known.version AND accounts.settled_at = known.settled_at",
    )
    first = looked_up(table="transactions", where="account = asked.account AND key = asked.key")
    known = (
        f"unnest(${accounts}::bigint[], ${versions}::xid[], ${settled}::bigint[]) known(number, version, settled_at)"
    )
    return (
        f"(SELECT count(*) FROM {known} {same}) = cardinality(${accounts}::bigint[]) AS same, "
        f"EXISTS (SELECT FROM unnest(${used_by}::bigint[], ${keys}::text[]) asked(account, key) {first}) AS used"
    )


@lru_cache(maxsize=64)
def write_alone_unless_changed(parts: tuple[Part, ...]) -> str:
    """As `write_unless_changed`, for one account that is known, which is the first part, and one key.

    After the version of the account comes when it was settled; after all parts the lane and its last event, the time,
    and the key. A lone caller waits for each node of a plan, and here there are fewer: nothing is an array, and all
    other parts follow the first, which looks at the account when it writes it.
    """
    version = len(_CHANGED["accounts"]) + len(_KEYS["accounts"]) + 1
    account, settled, number = version - 1, version + 1, count(version + 2)
    ready = f"(SELECT ready FROM locked) AND old.settled_at = ${settled}::bigint"
    texts = [_part(parts[0], count(1), only=ready)]
    texts += [_part(part, number, only="EXISTS (SELECT FROM part_0)") for part in parts[1:]]
    lane, last, decided_at, key = (next(number) for _ in range(4))
    return f"""
WITH found AS MATERIALIZED (
    SELECT EXISTS (SELECT FROM transactions WHERE account = ${account} AND key = ${key}::text) AS used
), locked AS MATERIALIZED (
    SELECT count(pg_advisory_xact_lock({LOCKS}, ${lane}::integer)) > 0
        AND coalesce(abs({CLOCK} - ${decided_at}::bigint) < {LAG_MICROS}, true) AS ready
    FROM found WHERE NOT used
        AND ${last}::bigint = (SELECT coalesce(max(id), 0) FROM events WHERE lane = ${lane}::integer)
), {", ".join([f"part_{index} AS ({text})" for index, text in enumerate(texts)])}
SELECT {CLOCK}, used, (SELECT {_VERSION} FROM part_0) FROM found"""


STATE_AS_KNOWN: Final = f"SELECT {_state('$1')}, {_as_known(2, 3, 4, 5, 6)}"
"""As `STATE`, with what `_as_known` tells, for lanes that are locked."""


def _part(part: Part, number: "count[int]", only: str | None = None) -> str:
    """The text of a part, which does nothing where `only` is given and not so."""
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
        changes = ", ".join([f"{column} = excluded.{column}" for column in _CHANGED[name]])
        text += f" ON CONFLICT ({', '.join(_KEYS[name])}) DO UPDATE SET {changes}"
    return text


def _update(part: Part, number: "count[int]", only: str | None) -> str:
    table, how, many = part
    name, columns = table.name, columns_of(table)
    changed, keys = _CHANGED[name], _KEYS[name]
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
