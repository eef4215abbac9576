"""The ledger in one SQLite file: one writer thread, readers beside it, every commit on the disk before it is answered.

SQLite lets one connection write at a time, so all writing is done by one thread of one process; a lock file keeps a
second process out. Readers see the last commit (WAL) and never wait for the writer. The statements stand in
`sqlite_statements`.
"""

import asyncio
import fcntl
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import UUID

from credit_service.ledger.account import Account, Grant, Transaction
from credit_service.ledger.addresses import TRANSACTION, Address
from credit_service.ledger.decide import Needs
from credit_service.ledger.draft import burn_down_order
from credit_service.storage import rows, tables
from credit_service.storage import sqlite_statements as sql
from credit_service.storage.base import (
    AccountQuery,
    AllAccounts,
    ApiKey,
    BadRow,
    Books,
    Conflict,
    Held,
    InUse,
    Loaded,
    OutcomeUnknown,
    Past,
    PeriodTotal,
    Positioned,
    Record,
    StorageUnavailable,
    TransactionQuery,
    Work,
    Writes,
)

T = TypeVar("T")
_Known = Sequence[tuple[Account, Needs]]

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

# The log is put back into the file every 40 MB: a page that many postings change is then written back once.
_WRITER: Final = ("journal_mode = WAL", "synchronous = FULL", "cache_size = -65536", "wal_autocheckpoint = 10000")
_READER: Final = ("query_only = 1", "cache_size = -16384")


@contextmanager
def translated(name: str = "The database") -> Iterator[None]:
    """Turn the engine's errors into the store's; an unknown one is raised as it is, never dropped.

    `name` is what a message calls the database.
    """
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise BadRow(str(error)) from error
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _BUSY:
            raise Conflict(f"{name} is locked by something else.") from error
        if code in _AWAY:
            raise StorageUnavailable(f"{name} cannot be used: {error}.") from error
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
        # The real path: a link must not lead to a lock of its own.
        self._path = path.resolve()
        self._clock = clock
        self._draw_number = draw_number
        self._busy_seconds = busy_seconds
        self._lock = _take_lock(self._path)
        self._readers: list[sqlite3.Connection] = []
        self._local = threading.local()
        self._writing = ThreadPoolExecutor(1, "sqlite-writer")
        self._reading = ThreadPoolExecutor(4, "sqlite-reader")
        try:
            self._writer = self._connect(*_WRITER)
        except BaseException:
            self._lock.close()
            raise

    # ---- postings

    async def post(self, needs: Sequence[Needs], work: Work) -> Writes:
        """See `base.Store.post`."""
        return await asyncio.get_running_loop().run_in_executor(self._writing, self._post, needs, work)

    def _post(self, needs: Sequence[Needs], work: Work) -> Writes:
        with self._transaction():
            loaded = self._load(needs)
            # As they were: `work` brings the records up to date.
            granted = {record.number: record.account.granted for record in loaded.records.values() if record.account}
            writes = work(loaded)
            self._write(writes, granted)
        return writes

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """One transaction of the writer, there entirely or not at all."""
        with translated():
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._roll_back()
                raise
        try:
            with translated():
                self._writer.execute("COMMIT")
        except Exception as error:
            self._roll_back()
            if isinstance(error, Conflict):
                raise
            # The pages may have reached the disk although their sync failed: only the keys can tell.
            raise OutcomeUnknown(str(error)) from error

    def _roll_back(self) -> None:
        if self._writer.in_transaction:  # after some errors SQLite has done it by itself
            self._writer.execute("ROLLBACK")

    def _load(self, needs: Sequence[Needs]) -> Loaded:
        now = self._clock()
        merchants = dict.fromkeys([need.merchant_id for need in needs])
        accounts = _accounts(self._writer, merchants)
        records = {merchant: Record(accounts.get(merchant), self._draw_number) for merchant in merchants}
        if accounts:
            by_number = {account.number: records[merchant] for merchant, account in accounts.items()}
            for number, grants in _open_grants(self._writer, by_number).items():
                by_number[number].grants = grants
            found = sql.find(self._writer, tables.parked, ("account",), [(number,) for number in by_number])
            for row in found:
                parked = rows.parked(row)
                by_number[row[0]].parked[parked.key] = parked
            known = [(account, need) for need in needs if (account := accounts.get(need.merchant_id)) is not None]
            self._load_firsts(by_number, known)
            self._load_sources(by_number, known)
        return Loaded(now, records)

    def _load_firsts(self, by_number: Mapping[int, Record], known: _Known) -> None:
        """Load what was recorded under the keys; and trials, which may have been granted under another."""
        merchants = {account.number: account.merchant_id for account, _ in known}
        hashed = rows.key_hash
        keys = {(account.number, hashed(key)) for account, need in known for key in (need.key, need.source) if key}
        for row in sql.find(self._writer, tables.transactions, ("account", "key_hash"), keys):
            first = rows.transaction(merchants[row[0]], row)
            by_number[row[0]].firsts[first.key] = first
        trials = {(account.number, account.trial) for account, need in known if need.trial and account.trial}
        for row in sql.find(self._writer, tables.transactions, ("account", "sequence"), trials):
            by_number[row[0]].trial = rows.transaction(merchants[row[0]], row)

    def _load_sources(self, by_number: Mapping[int, Record], known: _Known) -> None:
        """Load what was given back of refunded orders and payments, and the grants on which those had drawn."""
        sources = {
            source
            for account, need in known
            if need.source and (source := by_number[account.number].firsts.get(need.source)) is not None
        }
        given = {(source.account, rows.key_hash(source.key)) for source in sources}
        for row in sql.find(self._writer, tables.given_back, ("account", "key_hash"), given):
            back = rows.given_back(row)
            by_number[row[0]].given_back[back.key] = back
        drawn = {(source.account, number) for source in sources for number, _ in source.draws}
        for row in sql.find(self._writer, tables.grants, ("account", "number"), drawn):
            grant = rows.grant(row)
            by_number[row[0]].known_grants[grant.number] = grant

    def _write(self, writes: Writes, granted: Mapping[int, int]) -> None:
        """Write all of it. `granted`: the accounts that were there before, with the number of their last grant."""

        def many(statement: str, new: Sequence[rows.Row]) -> None:
            if new:
                self._writer.executemany(statement, new)

        accounts = list(map(rows.account_row, writes.accounts.values()))
        many(sql.INSERT_ACCOUNT, [row for row in accounts if row[0] not in granted])
        many(sql.UPDATE_ACCOUNT, [(*row[3:], row[0]) for row in accounts if row[0] in granted])
        many(sql.INSERT_TRANSACTION, list(map(rows.transaction_row, writes.transactions)))
        new_grants, old_grants = [], []
        for (account, number), grant in writes.grants.items():
            if number > granted.get(account, 0):
                new_grants.append(rows.grant_row(account, grant))
            else:
                old_grants.append((grant.remaining, grant.lapses, account, number))
        many(sql.INSERT_GRANT, new_grants)
        many(sql.UPDATE_GRANT, old_grants)
        if writes.announcements:
            (last,) = self._writer.execute(sql.LAST_EVENT, (sql.LANE,)).fetchone()
            events = enumerate(writes.announcements, last + 1)
            many(sql.INSERT_EVENT, [rows.event_row(sql.LANE, id_, account, event) for id_, (account, event) in events])
        many(
            sql.UPSERT_GIVEN_BACK,
            [rows.given_back_row(account, given) for (account, _), given in writes.given_back.items()],
        )
        # A refund may be parked again under the key of one that was given up.
        many(sql.DELETE_PARKED, [(account, rows.key_hash(key)) for account, key in writes.unparked])
        many(sql.INSERT_PARKED, [rows.parked_row(account, parked) for (account, _), parked in writes.parked.items()])
        many(sql.INSERT_DEAD_LETTER, [rows.dead_letter_row(account, letter) for account, letter in writes.dead_letters])

    # ---- reads

    async def now(self) -> int:
        """See `base.Store.now`."""
        return self._clock()

    async def held(self, merchant_ids: Sequence[UUID], at: int) -> dict[UUID, Held]:
        """See `base.Store.held`."""

        def read(connection: sqlite3.Connection) -> dict[UUID, Held]:
            accounts = _accounts(connection, merchant_ids)
            return dict(zip(accounts, _with_due_grants(connection, accounts.values(), at), strict=True))

        return await self._read(read)

    async def accounts(self, query: AccountQuery, after: UUID | None, limit: int) -> list[Held]:
        """See `base.Store.accounts`."""
        values = _asked(query) | {"limit": limit} | ({} if after is None else {"after": after.bytes})
        statement = sql.account_listing(frozenset(values))

        def read(connection: sqlite3.Connection) -> list[Held]:
            found = connection.execute(statement.sql, statement.bound(values)).fetchall()
            return _with_due_grants(connection, map(rows.account, found), query.at)

        return await self._read(read)

    async def grants(self, account: int) -> list[Grant]:
        """See `base.Store.grants`."""
        return await self._read(lambda connection: list(_open_grants(connection, [account]).get(account, ())))

    async def transaction(self, address: Address) -> Transaction | None:
        """See `base.Store.transaction`."""
        if address.kind != TRANSACTION:
            return None

        def read(connection: sqlite3.Connection) -> Transaction | None:
            found = connection.execute(sql.TRANSACTION, (address.account, address.number)).fetchall()
            return next(_with_merchants(connection, found), None)

        return await self._read(read)

    async def transactions(
        self, query: TransactionQuery, before: int | None, limit: int, offset: int = 0
    ) -> list[Positioned]:
        """See `base.Store.transactions`."""
        values = _asked(query) | {"limit": limit, "offset": offset} | ({} if before is None else {"before": before})
        statement = sql.listing(frozenset(values))

        def read(connection: sqlite3.Connection) -> list[Positioned]:
            found = connection.execute(statement.sql, statement.bound(values)).fetchall()
            positions = {(row[1], row[2]): row[0] for row in found}
            return [
                Positioned(positions[transaction.account, transaction.sequence], transaction)
                for transaction in _with_merchants(connection, [row[1:] for row in found])
            ]

        return await self._read(read)

    async def count(self, query: TransactionQuery) -> int:
        """See `base.Store.count`."""
        values = _asked(query)
        statement = sql.listing(frozenset(values), counted=True)

        def read(connection: sqlite3.Connection) -> int:
            (found,) = connection.execute(statement.sql, statement.bound(values)).fetchone()
            return int(found)

        return await self._read(read)

    async def totals(self, query: TransactionQuery) -> dict[str, PeriodTotal]:
        """See `base.Store.totals`."""
        values = _asked(query)
        statement = sql.period_totals(frozenset(values))

        def read(connection: sqlite3.Connection) -> dict[str, PeriodTotal]:
            found = connection.execute(statement.sql, statement.bound(values))
            return {row[0]: PeriodTotal(*row[1:]) for row in found}

        return await self._read(read)

    async def past(self, account: int, at: int) -> Past:
        """See `base.Store.past`."""
        values = {"account": account, "at": at, "sequence": 0}

        def read(connection: sqlite3.Connection) -> Past:
            def rows_of(statement: sql.Statement) -> list[rows.Row]:
                return connection.execute(statement.sql, statement.bound(values)).fetchall()

            balance = 0
            for last, balance_after in rows_of(sql.LAST_BEFORE):
                values["sequence"], balance = last, balance_after
            (lapsed,) = rows_of(sql.LAPSED_SINCE)[0]
            pending: dict[int, int] = dict(rows_of(sql.PENDING_THEN))
            if pending:  # before it begins, a grant is only drawn on by a refund of its payment
                for (draws,) in rows_of(sql.PAYMENTS_REFUNDED):
                    for number, change in rows.draws(draws):
                        if number in pending:
                            pending[number] += change
            return Past(balance - lapsed, sum(pending.values()))

        return await self._read(read)

    async def all_accounts(self, at: int, default_threshold: int) -> AllAccounts:
        """See `base.Store.all_accounts`."""
        values = {"at": at, "default_threshold": default_threshold}

        def read(connection: sqlite3.Connection) -> AllAccounts:
            statement = sql.ALL_IN_SUM
            count, enabled, low, average = connection.execute(statement.sql, statement.bound(values)).fetchone()
            return AllAccounts(count, enabled, count - enabled, low, average or 0.0)

        return await self._read(read)

    async def due_accounts(self, at: int) -> list[Held]:
        """See `base.Store.due_accounts`."""

        def read(connection: sqlite3.Connection) -> list[Held]:
            found = connection.execute(sql.DUE_ACCOUNTS.sql, sql.DUE_ACCOUNTS.bound({"at": at})).fetchall()
            return _with_due_grants(connection, map(rows.account, found), at)

        return await self._read(read)

    async def due(self, at: int, limit: int) -> list[UUID]:
        """See `base.Store.due`."""
        values = {"at": at, "limit": limit}

        def read(connection: sqlite3.Connection) -> list[UUID]:
            found = [
                row
                for statement in (sql.DUE, sql.OVERDUE)
                for row in connection.execute(statement.sql, statement.bound(values))
            ]
            merchants = dict.fromkeys([merchant for _, merchant in sorted(found)])
            return [UUID(bytes=merchant) for merchant in merchants][:limit]

        return await self._read(read)

    async def books(self, merchant_ids: Sequence[UUID] | None = None) -> AsyncIterator[Books]:
        """See `base.Store.books`. All are read from one snapshot."""
        # One thread of its own, so that the connection is not closed before the last step has ended.
        thread = ThreadPoolExecutor(1, "sqlite-books")
        in_thread = partial(asyncio.get_running_loop().run_in_executor, thread)
        steps = self._books(merchant_ids)
        try:
            while (books := await in_thread(next, steps, None)) is not None:
                yield books
        finally:
            await in_thread(steps.close)
            thread.shutdown()

    def _books(self, merchant_ids: Sequence[UUID] | None) -> Generator[Books]:
        with closing(self._connect(*_READER)) as connection, translated():
            # Text that was damaged must not stop the verification that is to find it.
            connection.text_factory = lambda text: text.decode(errors="backslashreplace")
            connection.execute("BEGIN")
            if merchant_ids is None:
                found: Iterable[rows.Row] = connection.execute(sql.ALL_ACCOUNTS)
            else:
                places = [(merchant_id.bytes,) for merchant_id in set(merchant_ids)]
                found = sorted(sql.find(connection, tables.accounts, ("merchant_id",), places), key=itemgetter(1))
            for row in found:
                yield _books_of(connection, row)

    async def strays(self) -> list[tuple[int, int]]:
        """See `base.Store.strays`."""
        return await self._read(lambda connection: connection.execute(sql.STRAYS.sql, sql.STRAYS.bound({})).fetchall())

    # ---- API keys

    async def add_key(self, key: ApiKey) -> None:
        """See `base.Store.add_key`."""
        await self._execute(sql.INSERT_KEY, [tuple(key)])

    async def keys(self) -> list[ApiKey]:
        """See `base.Store.keys`."""
        return await self._read(lambda connection: [rows.api_key(row) for row in connection.execute(sql.KEYS)])

    async def key(self, key_id: str) -> ApiKey | None:
        """See `base.Store.key`."""

        def read(connection: sqlite3.Connection) -> ApiKey | None:
            row = connection.execute(sql.KEY, (key_id,)).fetchone()
            return None if row is None else rows.api_key(row)

        return await self._read(read)

    async def revoke_key(self, key_id: str, at: int) -> bool:
        """See `base.Store.revoke_key`."""
        return await self._execute(sql.REVOKE_KEY, [(at, key_id)]) == 1

    async def use_keys(self, used: Mapping[str, int]) -> None:
        """See `base.Store.use_keys`."""
        await self._execute(sql.USE_KEY, [(at, key_id) for key_id, at in used.items()])

    # ---- housekeeping

    async def check(self) -> None:
        """See `base.Store.check`."""
        await self._execute(sql.USE_KEY, [])  # to begin is enough: SQLite asks then whether it may write

    async def close(self) -> None:
        """See `base.Store.close`."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._writing.shutdown()
        self._reading.shutdown()
        for connection in (*self._readers, self._writer):
            connection.close()
        self._lock.close()

    async def _execute(self, statement: str, parameters: Sequence[Sequence[Any]]) -> int:
        """Run a statement once for each of the parameters, in one transaction of the writer; the rows it changed."""

        def run() -> int:
            with self._transaction():
                return self._writer.executemany(statement, parameters).rowcount

        return await asyncio.get_running_loop().run_in_executor(self._writing, run)

    async def _read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        def run() -> T:
            with translated():
                connection = getattr(self._local, "connection", None)
                if connection is None:
                    connection = self._local.connection = self._connect(*_READER)
                    self._readers.append(connection)
                connection.execute("BEGIN")  # one snapshot for all statements of a read
                try:
                    return read(connection)
                finally:
                    if connection.in_transaction:
                        connection.execute("COMMIT")

        return await asyncio.get_running_loop().run_in_executor(self._reading, run)

    def _connect(self, *pragmas: str) -> sqlite3.Connection:
        with translated():
            connection = sqlite3.connect(
                f"{self._path.as_uri()}?mode=rw",  # a file that is gone is an error, not a new empty one
                uri=True,
                timeout=self._busy_seconds,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=256,
            )
            try:
                for pragma in pragmas:
                    connection.execute(f"PRAGMA {pragma}")
            except BaseException:
                connection.close()
                raise
            return connection


def _asked(query: AccountQuery | TransactionQuery) -> dict[str, Any]:
    return {name: value for name, value in query._asdict().items() if value is not None}


def _accounts(connection: sqlite3.Connection, merchant_ids: Iterable[UUID]) -> dict[UUID, Account]:
    asked = {merchant_id.bytes: merchant_id for merchant_id in merchant_ids}
    found = sql.find(connection, tables.accounts, ("merchant_id",), [(place,) for place in asked])
    return {asked[row[1]]: rows.account(row, asked[row[1]]) for row in found}


def _open_grants(connection: sqlite3.Connection, numbers: Iterable[int]) -> dict[int, tuple[Grant, ...]]:
    found: dict[int, list[Grant]] = {}
    places = [(number,) for number in numbers]
    for row in sql.find(connection, tables.grants, ("account",), places, "remaining > 0"):
        found.setdefault(row[0], []).append(rows.grant(row))
    return {number: tuple(sorted(grants, key=burn_down_order)) for number, grants in found.items()}


def _with_due_grants(connection: sqlite3.Connection, accounts: Iterable[Account], at: int) -> list[Held]:
    accounts = list(accounts)
    grants = _open_grants(connection, [a.number for a in accounts if a.next_due_at is not None and a.next_due_at <= at])
    return [Held(account, grants.get(account.number, ())) for account in accounts]


def _with_merchants(connection: sqlite3.Connection, found: Sequence[rows.Row]) -> Iterator[Transaction]:
    """The transactions of these rows; those of no account are left out, they are for `strays` to tell."""
    places = [(number,) for number in {row[0] for row in found}]
    merchants = {row[0]: UUID(bytes=row[1]) for row in sql.find(connection, tables.accounts, ("number",), places)}
    return (rows.transaction(merchants[row[0]], row) for row in found if row[0] in merchants)


def _books_of(connection: sqlite3.Connection, row: rows.Row) -> Books:
    faults: list[tuple[int | None, str]] = []
    try:
        account = rows.account(row)
    except ValueError as error:
        faults.append((None, f"the account's row cannot be read: {error}"))
        account = rows.account((*row[: rows.BY_TYPE], "{}", "[]", *row[rows.BY_TYPE + 2 :]))
    grants = [rows.grant(grant) for grant in connection.execute(sql.ALL_GRANTS, (account.number,))]

    def history() -> Iterator[Transaction]:
        with translated():
            for found in connection.execute(sql.HISTORY, (account.number,)):
                try:
                    transaction = rows.transaction(account.merchant_id, found)
                except (ValueError, TypeError) as error:
                    faults.append((found[1], f"the row cannot be read: {error}"))
                    continue
                if found[9] != rows.key_hash(transaction.key):
                    faults.append((found[1], "the hash of the idempotency key does not match the key"))
                yield transaction

    return Books(account, grants, history(), faults)


def revision(path: Path) -> str | None:
    """The migration that a file's schema is at, None where it has none yet. Changes nothing. Raises StorageError."""
    if not path.exists() or path.stat().st_size == 0:
        return None
    with translated(str(path)), closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone():
            return None
        found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return None if found is None else str(found[0])


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep every other credit-service process from the file. Raises InUse where one has it."""
    with closing(_take_lock(path.resolve())):
        yield


def _take_lock(path: Path) -> Any:
    """Hold the file `<path>.lock` for as long as this process serves the database."""
    try:
        lock = open(f"{path}.lock", "a+", encoding="ascii")  # noqa: SIM115 - held until the store is closed
    except OSError as error:
        raise StorageUnavailable(f"{path}.lock cannot be opened: {error.strerror}.") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise InUse(f"{path} is in use by another credit-service process (pid {holder}).") from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock
