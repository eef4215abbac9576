"""The ledger in one SQLite file: one writer thread, readers beside it, every commit on the disk before it is answered.

SQLite lets one connection write at a time, so all writing is done by one thread of one process; a lock file keeps a
second process out. Readers see the last commit (WAL) and never wait for the writer. The hot statements are compiled
once from the schema and run on the standard library's driver.
"""

import asyncio
import fcntl
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from uuid import UUID

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

from credit_service.ledger.account import Account, Grant, Transaction
from credit_service.ledger.addresses import Address
from credit_service.ledger.announcements import OF_A_TRANSACTION
from credit_service.ledger.decide import Needs
from credit_service.ledger.draft import burn_down_order
from credit_service.storage import rows, tables
from credit_service.storage.base import (
    AccountQuery,
    ApiKey,
    BadRow,
    Books,
    Conflict,
    Held,
    Loaded,
    OutcomeUnknown,
    Positioned,
    Record,
    StorageError,
    StorageUnavailable,
    TransactionQuery,
    Work,
    Writes,
)

T = TypeVar("T")

_DIALECT: Final = sqlite.dialect()
_LANE: Final = 0
_BUSY: Final = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_AWAY: Final = {
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
}


_ZERO: Final[Any] = literal_column("0")


def _sql(statement: ClauseElement) -> str:
    """The text of a statement whose parameters are all named, and given in the order in which they stand."""
    compiled = statement.compile(dialect=_DIALECT)
    assert all(value is None for value in compiled.params.values()), compiled.params
    return str(compiled)


class _Statement(NamedTuple):
    """A compiled statement, with the names of its parameters in their order and the values of its constants."""

    sql: str
    names: tuple[str, ...]
    constants: dict[str, Any]

    def bound(self, values: Mapping[str, Any]) -> list[Any]:
        return [values[name] if name in values else self.constants[name] for name in self.names]


def _statement(statement: Select[Any]) -> _Statement:
    compiled = statement.compile(dialect=_DIALECT)
    return _Statement(str(compiled), tuple(compiled.positiontup or ()), dict(compiled.params))


def _upsert(table: Table, *changing: str) -> str:
    """Insert a row, or bring these columns of it up to date."""
    statement = sqlite.insert(table)
    keys = [column.name for column in table.primary_key]
    return _sql(
        statement.on_conflict_do_update(index_elements=keys, set_={name: statement.excluded[name] for name in changing})
    )


def _value(name: str) -> Any:
    return bindparam(name)


_accounts, _transactions, _grants = tables.accounts, tables.transactions, tables.grants
_given_back, _parked, _events, _keys = tables.given_back, tables.parked, tables.events, tables.api_keys
_account_columns = [column.name for column in _accounts.columns]

UPSERT_ACCOUNT: Final = _upsert(_accounts, *_account_columns[3:])
INSERT_TRANSACTION: Final = _sql(insert(_transactions))
UPSERT_GRANT: Final = _upsert(_grants, "remaining", "lapses")
INSERT_EVENT: Final = _sql(insert(_events))
UPSERT_GIVEN_BACK: Final = _upsert(_given_back, "money_micros", "by_money", "credits")
INSERT_PARKED: Final = _sql(insert(_parked))
DELETE_PARKED: Final = _sql(
    delete(_parked).where(_parked.c.account == _value("account"), _parked.c.key_hash == _value("key_hash"))
)
INSERT_DEAD_LETTER: Final = _sql(
    insert(tables.dead_letters).values(
        {name: _value(name) for name in ("account", "code", "reason", "at", "kind", "fact")}
    )
)
LAST_EVENT: Final = _sql(select(func.coalesce(func.max(_events.c.id), _ZERO)).where(_events.c.lane == _value("lane")))

_some_accounts = select(func.json_each(_value("numbers")).table_valued("value").c.value)
OPEN_GRANTS: Final = _sql(select(_grants).where(_grants.c.account.in_(_some_accounts), _grants.c.remaining > _ZERO))
PARKED: Final = _sql(
    select(_parked).where(_parked.c.account.in_(_some_accounts)).order_by(_parked.c.arrived_at, _parked.c.key)
)
GRANT: Final = _sql(select(_grants).where(_grants.c.account == _value("a"), _grants.c.number == _value("n")))
ALL_GRANTS: Final = _sql(select(_grants).where(_grants.c.account == _value("a")).order_by(_grants.c.number))
GIVEN_BACK: Final = _sql(
    select(_given_back).where(_given_back.c.account == _value("a"), _given_back.c.key_hash == _value("k"))
)
TRANSACTION_BY_KEY: Final = _sql(
    select(_transactions).where(_transactions.c.account == _value("a"), _transactions.c.key_hash == _value("k"))
)
TRANSACTION: Final = _sql(
    select(_transactions).where(_transactions.c.account == _value("a"), _transactions.c.sequence == _value("s"))
)
HISTORY: Final = _sql(
    select(_transactions).where(_transactions.c.account == _value("a")).order_by(_transactions.c.sequence)
)
ALL_ACCOUNTS: Final = _sql(select(_accounts).order_by(_accounts.c.merchant_id))
ACCOUNT_BY_NUMBER: Final = _sql(select(_accounts).where(_accounts.c.number == _value("n")))
DUE: Final = _statement(
    select(_accounts.c.merchant_id, _accounts.c.next_due_at)
    .where(_accounts.c.next_due_at.is_not(None), _accounts.c.next_due_at <= _value("at"))
    .order_by(_accounts.c.next_due_at)
    .limit(_value("limit"))
)
OVERDUE: Final = _statement(
    select(_accounts.c.merchant_id)
    .join(_parked, _parked.c.account == _accounts.c.number)
    .where(_parked.c.until <= _value("at"))
    .order_by(_parked.c.until)
    .limit(_value("limit"))
)
STRAYS: Final = _statement(
    select(_transactions.c.account, _transactions.c.sequence)
    .where(_transactions.c.account.not_in(select(_accounts.c.number)))
    .limit(100)
)
INSERT_KEY: Final = _sql(insert(_keys))
KEY: Final = _sql(select(_keys).where(_keys.c.id == _value("id")))
KEYS: Final = _sql(select(_keys).order_by(_keys.c.created_at.desc(), _keys.c.id))
REVOKE_KEY: Final = _sql(
    update(_keys)
    .where(_keys.c.id == _value("key"))
    .values(revoked_at=func.coalesce(_keys.c.revoked_at, _value("revoked")))
)
USE_KEY: Final = _sql(update(_keys).where(_keys.c.id == _value("key")).values(last_used_at=_value("used")))


@lru_cache(maxsize=64)
def _accounts_of(count: int) -> str:
    return f"{_sql(select(_accounts))} WHERE merchant_id IN ({','.join('?' * count)})"


@lru_cache(maxsize=256)
def _listing(present: frozenset[str], *, counted: bool = False) -> _Statement:
    """The statement that lists (or counts) transactions by these conditions.

    With an account it goes by sequence. Without, it goes by the outbox's key: each transaction has one announcement of
    its own, and those stand in the order of their commits.
    """
    t, e = _transactions.c, _events.c
    within_account = "account" in present
    position = t.sequence if within_account else e.id
    statement: Select[Any] = select(func.count()) if counted else select(position, _transactions)
    if within_account:
        statement = statement.select_from(_transactions).where(t.account == _value("account"))
    else:
        own = e.type.in_([literal_column(f"'{type_}'") for type_ in sorted(OF_A_TRANSACTION)])
        joined = (t.account == e.account) & (t.sequence == e.sequence)
        statement = statement.select_from(_events.join(_transactions, joined)).where(e.lane == _LANE, own)
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


@lru_cache(maxsize=32)
def _account_listing(present: frozenset[str]) -> _Statement:
    a = _accounts.c
    available = a.balance - a.held - a.pending
    threshold = func.coalesce(a.low_threshold, _value("default_threshold"))
    status = case((available <= 0, "EXHAUSTED"), (available <= threshold, "LOW"), else_="ACTIVE")
    conditions = {
        "status": status == _value("status"),
        "min_balance": a.balance >= _value("min_balance"),
        "max_balance": a.balance <= _value("max_balance"),
    }
    wanted = [condition for name, condition in conditions.items() if name in present]
    statement = select(_accounts)
    for condition in wanted:
        statement = statement.where(or_(condition, a.next_due_at <= _value("at")))
    if "after" in present:
        statement = statement.where(a.merchant_id > _value("after"))
    return _statement(statement.order_by(a.merchant_id).limit(_value("limit")))


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the engine's errors into the store's; an unknown one is raised as it is, never dropped."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise BadRow(str(error)) from error
    except sqlite3.OperationalError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _BUSY:
            raise Conflict("The database is locked by something else.") from error
        if code in _AWAY:
            raise StorageUnavailable(f"The database cannot be used: {error}.") from error
        raise
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _AWAY:
            raise StorageUnavailable(f"The database cannot be used: {error}.") from error
        raise


class SQLiteStore:
    """The ledger's store in one SQLite file.

    `path`: the file, whose schema must be up to date. `clock` gives microseconds since 1970, and `draw_number` a new
    account's number (62 random bits); tests replace both. Raises StorageUnavailable when another process serves it.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
        draw_number: Callable[[], int] = lambda: secrets.randbits(62),
        busy_seconds: float = 0.5,
    ) -> None:
        self._path = path
        self._clock = clock
        self._draw_number = draw_number
        self._busy_seconds = busy_seconds
        self._lock = _take_lock(path)
        self._connections: list[sqlite3.Connection] = []
        self._local = threading.local()
        self._writing = ThreadPoolExecutor(1, "sqlite-writer")
        self._reading = ThreadPoolExecutor(2, "sqlite-reader")
        try:
            with _translated():
                self._writer = self._connect()
                self._writer.execute("PRAGMA journal_mode = WAL")
                self._writer.execute("PRAGMA synchronous = FULL")
        except BaseException:
            self._lock.close()
            raise

    # ---- postings

    async def post(self, needs: Sequence[Needs], work: Work) -> Writes:
        """See `base.Store.post`."""
        return await asyncio.get_running_loop().run_in_executor(self._writing, self._post, needs, work)

    def _post(self, needs: Sequence[Needs], work: Work) -> Writes:
        writer = self._writer
        with _translated():
            writer.execute("BEGIN IMMEDIATE")
            try:
                writes = work(self._load(needs))
                self._write(writes)
            except BaseException:
                writer.execute("ROLLBACK")
                raise
        try:
            with _translated():
                writer.execute("COMMIT")
        except StorageError as error:
            self._roll_back()
            if isinstance(error, Conflict):
                raise
            # The pages may have reached the disk although their sync failed: only the keys can tell.
            raise OutcomeUnknown(str(error)) from error
        return writes

    def _roll_back(self) -> None:
        if self._writer.in_transaction:
            self._writer.execute("ROLLBACK")

    def _load(self, needs: Sequence[Needs]) -> Loaded:
        execute = self._writer.execute
        now = self._clock()
        accounts = self._accounts_by_merchant(self._writer, [need.merchant_id for need in needs])
        records = {need.merchant_id: Record(accounts.get(need.merchant_id), self._draw_number) for need in needs}
        by_number = {record.account.number: record for record in records.values() if record.account is not None}
        if not by_number:
            return Loaded(now, records)
        numbers = (_json_numbers(by_number),)
        for number, grants in self._open_grants(self._writer, by_number).items():
            by_number[number].grants = grants
        for row in execute(PARKED, numbers):
            parked = rows.parked(row)
            by_number[row[0]].parked[parked.key] = parked
        for need in needs:
            record = records[need.merchant_id]
            if record.account is not None:
                self._load_seen(record, record.account, need)
        return Loaded(now, records)

    def _load_seen(self, record: Record, account: Account, need: Needs) -> None:
        """Load what was recorded under the need's key, and what it refunds with the grants that one drew on."""
        self._load_first(record, account, need.key)
        if need.trial and account.trial is not None and record.trial is None:
            row = self._writer.execute(TRANSACTION, (account.number, account.trial)).fetchone()
            record.trial = rows.transaction(account.merchant_id, row)
        if need.source is None:
            return
        source = self._load_first(record, account, need.source)
        if source is None or need.source in record.given_back:
            return
        row = self._writer.execute(GIVEN_BACK, (account.number, rows.key_hash(need.source))).fetchone()
        if row is not None:
            record.given_back[need.source] = rows.given_back(row)
        for number, _ in source.draws:
            row = self._writer.execute(GRANT, (account.number, number)).fetchone()
            record.known_grants[number] = rows.grant(row)

    def _load_first(self, record: Record, account: Account, key: str) -> Transaction | None:
        if key and key not in record.firsts:
            row = self._writer.execute(TRANSACTION_BY_KEY, (account.number, rows.key_hash(key))).fetchone()
            if row is not None:
                record.firsts[key] = rows.transaction(account.merchant_id, row)
        return record.firsts.get(key)

    def _write(self, writes: Writes) -> None:
        many = self._writer.executemany
        many(UPSERT_ACCOUNT, map(rows.account_row, writes.accounts.values()))
        many(INSERT_TRANSACTION, map(rows.transaction_row, writes.transactions))
        many(UPSERT_GRANT, [rows.grant_row(account, grant) for (account, _), grant in writes.grants.items()])
        if writes.announcements:
            (last,) = self._writer.execute(LAST_EVENT, (_LANE,)).fetchone()
            events = enumerate(writes.announcements, last + 1)
            many(INSERT_EVENT, [rows.event_row(_LANE, id_, account, event) for id_, (account, event) in events])
        many(
            UPSERT_GIVEN_BACK,
            [rows.given_back_row(account, given) for (account, _), given in writes.given_back.items()],
        )
        many(INSERT_PARKED, [rows.parked_row(account, parked) for (account, _), parked in writes.parked.items()])
        many(DELETE_PARKED, [(account, rows.key_hash(key)) for account, key in writes.unparked])
        many(INSERT_DEAD_LETTER, [rows.dead_letter_row(account, letter) for account, letter in writes.dead_letters])

    # ---- reads

    async def now(self) -> int:
        """See `base.Store.now`."""
        return self._clock()

    async def held(self, merchant_ids: Sequence[UUID], at: int) -> dict[UUID, Held]:
        """See `base.Store.held`."""

        def read(connection: sqlite3.Connection) -> dict[UUID, Held]:
            accounts = self._accounts_by_merchant(connection, merchant_ids)
            held = self._with_due_grants(connection, accounts.values(), at)
            return {entry.account.merchant_id: entry for entry in held}

        return await self._read(read)

    async def accounts(self, query: AccountQuery, after: UUID | None, limit: int) -> list[Held]:
        """See `base.Store.accounts`."""
        values = {name: value for name, value in query._asdict().items() if value is not None}
        values |= {"limit": limit} | ({} if after is None else {"after": after.bytes})
        statement = _account_listing(frozenset(values))

        def read(connection: sqlite3.Connection) -> list[Held]:
            found = connection.execute(statement.sql, statement.bound(values)).fetchall()
            return self._with_due_grants(connection, map(rows.account, found), query.at)

        return await self._read(read)

    async def grants(self, account: int) -> list[Grant]:
        """See `base.Store.grants`."""
        return await self._read(lambda connection: list(self._open_grants(connection, [account]).get(account, ())))

    async def transaction(self, address: Address) -> Transaction | None:
        """See `base.Store.transaction`."""

        def read(connection: sqlite3.Connection) -> Transaction | None:
            row = connection.execute(TRANSACTION, (address.account, address.number)).fetchone()
            return None if row is None else self._with_merchants(connection, [row])[0]

        return await self._read(read)

    async def transactions(
        self, query: TransactionQuery, before: int | None, limit: int, offset: int = 0
    ) -> list[Positioned]:
        """See `base.Store.transactions`."""
        values = {name: value for name, value in query._asdict().items() if value is not None}
        values |= {"limit": limit, "offset": offset} | ({} if before is None else {"before": before})
        statement = _listing(frozenset(values))

        def read(connection: sqlite3.Connection) -> list[Positioned]:
            found = connection.execute(statement.sql, statement.bound(values)).fetchall()
            transactions = self._with_merchants(connection, [row[1:] for row in found])
            return [Positioned(row[0], transaction) for row, transaction in zip(found, transactions, strict=True)]

        return await self._read(read)

    async def count(self, query: TransactionQuery) -> int:
        """See `base.Store.count`."""
        values = {name: value for name, value in query._asdict().items() if value is not None}
        statement = _listing(frozenset(values), counted=True)

        def read(connection: sqlite3.Connection) -> int:
            (found,) = connection.execute(statement.sql, statement.bound(values)).fetchone()
            return int(found)

        return await self._read(read)

    async def due(self, at: int, limit: int) -> list[UUID]:
        """See `base.Store.due`."""
        values = {"at": at, "limit": limit}

        def read(connection: sqlite3.Connection) -> list[UUID]:
            found = [row[0] for row in connection.execute(DUE.sql, DUE.bound(values))]
            found += [row[0] for row in connection.execute(OVERDUE.sql, OVERDUE.bound(values))]
            return [UUID(bytes=merchant) for merchant in dict.fromkeys(found)]

        return await self._read(read)

    async def books(self, merchant_ids: Sequence[UUID] | None = None) -> AsyncIterator[Books]:
        """See `base.Store.books`. All are read from one snapshot."""
        connection = self._connect(query_only=True)
        try:
            connection.execute("BEGIN")
            for row in connection.execute(ALL_ACCOUNTS):
                if merchant_ids is None or UUID(bytes=row[1]) in merchant_ids:
                    yield self._books_of(connection, row)
        finally:
            self._connections.remove(connection)
            connection.close()

    def _books_of(self, connection: sqlite3.Connection, row: rows.Row) -> Books:
        account = rows.account(row)
        faults: list[tuple[int | None, str]] = []
        grants = [rows.grant(grant) for grant in connection.execute(ALL_GRANTS, (account.number,))]

        def history() -> Iterator[Transaction]:
            for found in connection.execute(HISTORY, (account.number,)):
                try:
                    transaction = rows.transaction(account.merchant_id, found)
                    if found[9] != rows.key_hash(transaction.key):
                        faults.append((found[1], "the hash of the idempotency key does not match the key"))
                except (ValueError, TypeError) as error:
                    faults.append((found[1], f"the row cannot be read: {error}"))
                else:
                    yield transaction

        return Books(account, grants, history(), faults)

    async def strays(self) -> list[tuple[int, int]]:
        """See `base.Store.strays`."""
        return await self._read(lambda connection: connection.execute(STRAYS.sql, STRAYS.bound({})).fetchall())

    # ---- API keys

    async def add_key(self, key: ApiKey) -> None:
        """See `base.Store.add_key`."""
        await self._execute(INSERT_KEY, [tuple(key)])

    async def keys(self) -> list[ApiKey]:
        """See `base.Store.keys`."""
        return await self._read(lambda connection: [rows.api_key(row) for row in connection.execute(KEYS)])

    async def key(self, key_id: str) -> ApiKey | None:
        """See `base.Store.key`."""

        def read(connection: sqlite3.Connection) -> ApiKey | None:
            row = connection.execute(KEY, (key_id,)).fetchone()
            return None if row is None else rows.api_key(row)

        return await self._read(read)

    async def revoke_key(self, key_id: str, at: int) -> bool:
        """See `base.Store.revoke_key`."""
        return await self._execute(REVOKE_KEY, [(at, key_id)]) == 1

    async def use_keys(self, used: Mapping[str, int]) -> None:
        """See `base.Store.use_keys`."""
        await self._execute(USE_KEY, [(at, key_id) for key_id, at in used.items()])

    # ---- housekeeping

    async def check(self) -> None:
        """See `base.Store.check`."""
        await self._execute(LAST_EVENT, [])

    async def close(self) -> None:
        """See `base.Store.close`."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._writing.shutdown()
        self._reading.shutdown()
        for connection in self._connections:
            connection.close()
        self._lock.close()

    async def _execute(self, sql: str, parameters: Sequence[Sequence[Any]]) -> int:
        """Run a statement once for each of the parameters, in one transaction of the writer; the rows it changed."""

        def run() -> int:
            with _translated():
                self._writer.execute("BEGIN IMMEDIATE")
                try:
                    changed = self._writer.executemany(sql, parameters).rowcount if parameters else 0
                    self._writer.execute("COMMIT")
                except BaseException:
                    self._roll_back()
                    raise
            return changed

        return await asyncio.get_running_loop().run_in_executor(self._writing, run)

    async def _read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        def run() -> T:
            with _translated():
                connection = getattr(self._local, "connection", None)
                if connection is None:
                    connection = self._local.connection = self._connect(query_only=True)
                return read(connection)

        return await asyncio.get_running_loop().run_in_executor(self._reading, run)

    def _connect(self, *, query_only: bool = False) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path,
            timeout=self._busy_seconds,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        connection.execute("PRAGMA cache_size = -65536")
        connection.execute(f"PRAGMA query_only = {int(query_only)}")
        self._connections.append(connection)
        return connection

    def _accounts_by_merchant(
        self, connection: sqlite3.Connection, merchant_ids: Sequence[UUID]
    ) -> dict[UUID, Account]:
        wanted = list({merchant_id.bytes for merchant_id in merchant_ids})
        # Rounded up, so that few different statements are prepared; an id named twice is found once.
        count = 1 << (len(wanted) - 1).bit_length()
        found = connection.execute(_accounts_of(count), wanted + wanted[-1:] * (count - len(wanted)))
        return {account.merchant_id: account for account in map(rows.account, found)}

    def _open_grants(self, connection: sqlite3.Connection, numbers: Iterable[int]) -> dict[int, tuple[Grant, ...]]:
        found: dict[int, list[Grant]] = {}
        for row in connection.execute(OPEN_GRANTS, (_json_numbers(numbers),)):
            found.setdefault(row[0], []).append(rows.grant(row))
        return {number: tuple(sorted(grants, key=burn_down_order)) for number, grants in found.items()}

    def _with_due_grants(self, connection: sqlite3.Connection, accounts: Iterable[Account], at: int) -> list[Held]:
        accounts = list(accounts)
        due = [a.number for a in accounts if a.next_due_at is not None and a.next_due_at <= at]
        grants = self._open_grants(connection, due) if due else {}
        return [Held(account, grants.get(account.number, ())) for account in accounts]

    def _with_merchants(self, connection: sqlite3.Connection, found: Sequence[rows.Row]) -> list[Transaction]:
        merchants = {
            number: rows.account(connection.execute(ACCOUNT_BY_NUMBER, (number,)).fetchone()).merchant_id
            for number in {row[0] for row in found}
        }
        return [rows.transaction(merchants[row[0]], row) for row in found]


def _json_numbers(numbers: Iterable[int]) -> str:
    return f"[{','.join(map(str, numbers))}]"


def _take_lock(path: Path) -> Any:
    """Hold the file `<path>.lock` for as long as this process serves the database."""
    lock = open(f"{path}.lock", "a+", encoding="ascii")  # noqa: SIM115 - held until the store is closed
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise StorageUnavailable(f"{path} is in use by another credit-service process (pid {holder}).") from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock
