"""The ledger in one SQLite file: one writer thread, readers beside it, every commit on the disk before it is answered.

SQLite lets one connection write at a time, so one thread does all writing of a process; a lock file keeps a second
service out. Commands may read and write beside the service: SQLite's own lock orders their transactions. Readers see
the last commit (WAL) and never wait for the writer. The statements stand in `statements`, the files in `files`.
"""

import asyncio
import secrets
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Final, Literal, TypeVar

from credit_service.ledger.decide import Needs
from credit_service.storage import books, rows, tables
from credit_service.storage.clock import Clock
from credit_service.storage.engine import Books, Committed, Conflict, Loaded, OutcomeUnknown, Work, Writes
from credit_service.storage.loading import Loading
from credit_service.storage.questions import Ask, Find, Question, Read, Row, answered
from credit_service.storage.recent import STORED, RecentAccount, RecentAccounts
from credit_service.storage.sqlite import statements as sql
from credit_service.storage.sqlite.files import Watch, is_undone, refuse_link, take_lock, translated

T = TypeVar("T")
Access = Literal["serve", "alone", "write", "read"]
"""How a process opens a ledger: one has it as `serve` or `alone`, any number `write` and `read` beside that one."""

# The log is put back into the file every 40 MB: a page that many postings change is then written back once. Caches grow
# with the ledger up to 256 MB and 64 MB: with less, a posting among a million transactions cost half as much again.
_WRITER: Final = (
    "synchronous = FULL",
    "cache_size = -262144",
    "wal_autocheckpoint = 10000",
    "secure_delete = ON",  # what was erased or deleted must not stay readable in the file
)
_READER: Final = ("query_only = 1", "cache_size = -65536")


class SQLiteEngine:
    """The ledger in one SQLite file. See `Engine`.

    `path`: the file, whose schema must be up to date. `clock` gives microseconds since 1970 in place of the machine's
    clock, and `draw_number` the number of a new account (62 random bits); tests replace both. `busy_seconds`: how long
    a transaction waits for the lock of another process before it raises Conflict. Raises InUse if another process
    serves the file.
    """

    lanes = 1
    streams = 1
    ahead = 0

    def __init__(
        self,
        path: Path,
        access: Access = "serve",
        *,
        clock: Callable[[], int] | None = None,
        draw_number: Callable[[], int] = lambda: secrets.randbits(62),
        busy_seconds: float = 0.5,
    ) -> None:
        refuse_link(path)
        self._path = path.absolute()
        self.name = str(path)
        self.clock = Clock("this machine", clock)
        self._mode = "ro" if access == "read" else "rw"
        self._draw_number = draw_number
        self._busy_seconds = busy_seconds
        self._lock = take_lock(path) if access in ("serve", "alone") else None
        self._watch: Watch | None = None
        self._readers: list[sqlite3.Connection] = []
        self._local = threading.local()
        self._recent = RecentAccounts()
        self._version = 0  # of the file, which changes when another connection writes to it
        self._writing = ThreadPoolExecutor(1, "sqlite-writer")
        self._reading = ThreadPoolExecutor(4, "sqlite-reader")
        try:
            # A command leaves the journal mode as it is: a backup stays one file.
            wal = ("journal_mode = WAL",) if self._lock is not None else ()
            self._writer = self._connect(*wal, *(_READER if access == "read" else _WRITER))
            if access != "read":
                self._watch = Watch(self._path)
        except BaseException:
            if self._lock is not None:
                self._lock.close()
            raise

    def stream_of(self, merchant_id: str) -> int:
        """See `Engine.stream_of`: there is one writer."""
        return 0

    # ---- postings

    async def post(self, needs: Sequence[Needs], work: Work, after: asyncio.Future[bool] | None = None) -> Committed:
        if after is not None:
            await after
        return await asyncio.get_running_loop().run_in_executor(self._writing, self._post, needs, work)

    def _post(self, needs: Sequence[Needs], work: Work) -> Committed:
        with self._transaction():
            loading = Loading(needs, self._recent_of(needs))
            writes = work(self._load(loading))
            places = self._write_rows(writes, loading.granted)
        self._recent.note(loading.records.items(), writes.accounts, STORED)
        return Committed(writes, places)

    def _recent_of(self, needs: Sequence[Needs]) -> Mapping[str, RecentAccount]:
        """What need not be loaded; nothing after another process has written to the file."""
        version = self._data_version()
        if version != self._version:
            self._recent.clear()
            self._version = version
        return self._recent.find(needs)

    def _data_version(self) -> int:
        (version,) = self._writer.execute("PRAGMA data_version").fetchone()
        return int(version)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """One transaction of the writer, there entirely or not at all."""
        self._check_files()
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
            if isinstance(error, Conflict) or is_undone(error.__cause__):
                raise
            # The pages may have reached the disk although their sync failed: only the keys can tell.
            raise OutcomeUnknown(str(error)) from error

    def _roll_back(self) -> None:
        self._recent.clear()  # where the commit failed, only the database can tell what it has
        if self._writer.in_transaction:  # after some errors SQLite has done it by itself
            self._writer.execute("ROLLBACK")

    def _load(self, loading: Loading) -> Loaded:
        now = self.clock.read()
        answered(loading.questions(self._draw_number), partial(sql.find, self._writer))
        return loading.loaded(now)

    def _write_rows(self, writes: Writes, granted: Mapping[int, int]) -> list[tuple[int, int]]:
        """Write all of it; returns the places of the announcements in the outbox.

        `granted`: the accounts that existed before, with the number of their last grant.
        """

        places: list[tuple[int, int]] = []
        if writes.announcements:
            (last,) = self._writer.execute(sql.LAST_EVENT, (sql.LANE,)).fetchone()
            places = [(sql.LANE, last + place) for place in range(1, len(writes.announcements) + 1)]
        self._writer.executemany(sql.DELETE_PARKED, writes.unparked)
        for table, how, written in rows.all_rows(writes, granted, places):
            values = map(sql.of_update(table), written) if how == "update" else written
            self._writer.executemany(sql.write(table, how), values)
        return places

    # ---- reads

    async def now(self) -> int:
        return self.clock.estimate()

    def books(self, merchant_ids: Sequence[str] | None = None) -> AsyncIterator[Books]:
        return books.in_a_thread(self._books(merchant_ids))

    def _books(self, merchant_ids: Sequence[str] | None) -> Generator[Books]:
        with closing(self._connect(*_READER)) as connection, translated():
            # Text that was damaged must not stop the verification that is to find it.
            connection.text_factory = lambda text: text.decode(errors="backslashreplace")
            connection.execute("BEGIN")
            if merchant_ids is None:
                found: Iterable[Row] = sql.ask(connection, Ask(books.ALL_ACCOUNTS))
            else:
                places = [(merchant_id,) for merchant_id in set(merchant_ids)]
                found = sorted(sql.find(connection, Find(tables.accounts, ("merchant_id",), places)), key=itemgetter(1))
            for row in found:
                values = {"account": row[0]}
                grants = sql.ask(connection, Ask(books.ALL_GRANTS, values))
                yield books.books_of(row, grants, _history(connection, row[0]))

    # ---- housekeeping

    async def scrub(self) -> None:
        """See `Engine.scrub`: secure_delete zeroed the text in the file, and this empties the WAL with its copies."""

        def run() -> None:
            with translated():
                (is_busy, *_) = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if is_busy:
                raise Conflict("A reader keeps erased text in the write-ahead log. Erase again when it has ended.")

        await asyncio.get_running_loop().run_in_executor(self._writing, run)

    async def check(self) -> None:
        self.clock.read()
        await self.write([])  # to begin is enough: SQLite asks then whether it may write

    async def close(self) -> None:
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._writing.shutdown()
        self._reading.shutdown()
        for connection in (*self._readers, self._writer):
            connection.close()
        if self._lock is not None:
            self._lock.close()

    def _check_files(self) -> None:
        if self._watch is not None:
            self._watch.check()

    async def data_version(self) -> int:
        """A number that changes when another process has written to the file."""

        def run() -> int:
            if self._watch is not None:
                self._watch.look()  # once a second in a service, so that reads need not look themselves
            with translated():
                return self._data_version()

        return await asyncio.get_running_loop().run_in_executor(self._writing, run)

    async def write(self, asks: Sequence[Ask], merchant_id: str | None = None, *, guarded: bool = False) -> int:

        def run() -> int:
            changed = 0
            with self._transaction():
                for question in asks:
                    changed += sql.ask(self._writer, question).rowcount
                    if guarded and not changed:
                        break
            return changed

        return await asyncio.get_running_loop().run_in_executor(self._writing, run)

    async def read(self, read: Callable[[], Read[T]], *, snapshot: bool = True, long: bool = False) -> T:

        def run() -> T:
            if self._watch is not None and not self._watch.is_in_place:
                self._watch.check()
            with translated():
                connection = getattr(self._local, "connection", None)
                if connection is None:
                    connection = self._local.connection = self._connect(*_READER)
                    self._readers.append(connection)
                connection.execute("BEGIN")  # one snapshot for all questions of a read
                try:
                    return answered(read(), partial(_answer, connection))
                finally:
                    if connection.in_transaction:
                        connection.execute("COMMIT")

        return await asyncio.get_running_loop().run_in_executor(self._reading, run)

    def _connect(self, *pragmas: str) -> sqlite3.Connection:
        self._check_files()
        with translated():
            connection = sqlite3.connect(
                f"{self._path.as_uri()}?mode={self._mode}",  # a file that is gone is an error, not a new empty one
                uri=True,
                timeout=self._busy_seconds,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=256,
            )
            try:
                for pragma in pragmas:
                    connection.execute(f"PRAGMA {pragma}")
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens the log, for `Watch`
            except BaseException:
                connection.close()
                raise
            return connection


def _answer(connection: sqlite3.Connection, question: Question) -> list[Row]:
    if isinstance(question, Find):
        return list(sql.find(connection, question))
    return sql.ask(connection, question).fetchall()


def _history(connection: sqlite3.Connection, account: int) -> Iterator[Row]:
    with translated():
        # Not `yield from`, which would close the cursor when this is dropped, after the connection was closed.
        for row in sql.ask(connection, Ask(books.HISTORY, {"account": account})):  # noqa: UP028
            yield row
