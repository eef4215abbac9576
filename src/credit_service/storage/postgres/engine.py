"""The PostgreSQL engine: plugs together the two ways to post, the connections, and the reads.

A merchant has a lane, which stays locked until everything written for it is committed: so the events of a lane commit
in the order of their numbers. The locked way to post is complete by itself (`locked`); the optimistic way is a layer
over it that saves messages to the server (`optimistic`), and one flag switches it off. The truth is always in the
database, never in the memory of a process (docs/decisions/0009, 0026, 0029 and 0031).
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from functools import partial
from threading import Thread
from typing import Any, Final, TypeVar

from credit_service.ledger.decide import Needs
from credit_service.storage import books, tables
from credit_service.storage.clock import ClockMoved, steady_micros
from credit_service.storage.engine import Books, Committed, Conflict, Work
from credit_service.storage.postgres import statements as sql
from credit_service.storage.postgres.clock import DatabaseClock
from credit_service.storage.postgres.connections import (
    Connection,
    ConnectThrottle,
    PostingConnection,
    ReadPool,
    answer,
    answered,
    connector,
    name_of,
)
from credit_service.storage.postgres.errors import translated
from credit_service.storage.postgres.lanes import LANES, lane_of
from credit_service.storage.postgres.locked import LockedPosting
from credit_service.storage.postgres.optimistic import AHEAD, OptimisticPosting
from credit_service.storage.questions import Ask, Find, Read, Row

T = TypeVar("T")

_LONG_SECONDS: Final = 300.0
"""How long a read over all accounts may take."""
_ROWS_AT_ONCE: Final = 1000


class PostgresEngine:
    """The ledger in a PostgreSQL database. See `Engine`.

    `url`: postgresql://user:password@host:port/database, whose schema must be up to date. `streams`: postings at once.
    `pool_size`: connections for reads. `timeout_seconds` bounds each wait for the server. `optimistic` switches the
    optimistic way on. `pooled`: behind a pooler that gives a connection for one transaction at a time, as PgBouncer
    does, which allows the locked way only. `clock` gives microseconds since 1970 in place of the database's clock, and
    `draw_number` the number of a new account (62 random bits); tests replace both.
    """

    lanes = LANES

    def __init__(
        self,
        url: str,
        *,
        streams: int = 4,
        pool_size: int = 10,
        timeout_seconds: float = 5.0,
        optimistic: bool = True,
        pooled: bool = False,
        clock: Callable[[], int] | None = None,
        draw_number: Callable[[], int] = lambda: secrets.randbits(62),
    ) -> None:
        self.name = name_of(url)
        self.streams = streams
        self.clock = DatabaseClock(self.name, clock)
        self._timeout = timeout_seconds
        self._connect = connector(url, timeout_seconds=timeout_seconds, pooled=pooled)
        self._connect_patiently = connector(url, timeout_seconds=timeout_seconds, pooled=pooled, patient=True)
        patience = str(int(timeout_seconds * 800))  # a little less than ours, so the server can say that it did nothing
        settings = {
            "lock_timeout": patience,
            "idle_in_transaction_session_timeout": patience,  # a process may vanish without closing its connection
            **sql.POSTING_SETTINGS,
        }
        throttle = ConnectThrottle(self.name, timeout_seconds)
        connect = connector(url, timeout_seconds=timeout_seconds, pooled=pooled, settings=settings)
        self._posting = [PostingConnection(partial(throttle.connect, connect), timeout_seconds) for _ in range(streams)]
        self._reads = ReadPool(self.name, partial(throttle.connect, self._connect), pool_size)
        # A connection of a pooler has no settings of its own, so each posting brings them along.
        self.locked = LockedPosting(self.name, self.clock, draw_number, timeout_seconds, settings if pooled else {})
        self.optimistic: OptimisticPosting | None = None
        if optimistic and not pooled:
            self.optimistic = OptimisticPosting(self.name, self.locked, self.clock, streams, timeout_seconds)
        self.ahead = 0 if self.optimistic is None else AHEAD

    def stream_of(self, merchant_id: str) -> int:
        """See `Engine.stream_of`: a stream is a fixed share of the lanes."""
        return lane_of(merchant_id) % self.streams

    # ---- postings

    async def post(self, needs: Sequence[Needs], work: Work, after: asyncio.Future[bool] | None = None) -> Committed:
        if self.optimistic is not None:
            return await self._post_optimistically(self.optimistic, needs, work, after)
        if after is not None:
            await after
        async with self._free_connection() as connection:
            with translated(self.name):
                return await self.locked.post(connection.raw, needs, work)

    async def _post_optimistically(
        self, optimistic: OptimisticPosting, needs: Sequence[Needs], work: Work, after: asyncio.Future[bool] | None
    ) -> Committed:
        """Try the optimistic way first, and the locked way if that did nothing."""
        stream = optimistic.streams[self.stream_of(needs[0].merchant_id) if needs else 0]
        with optimistic.decide_ahead(stream, needs, work, follows=after is not None) or nullcontext() as ahead:
            if after is not None and not await after and ahead is not None:
                ahead.lose()
            stream.is_working = True
            try:
                async with self._free_connection() as connection:
                    with translated(self.name):
                        committed = await optimistic.post(connection, stream, needs, work, ahead)
                        if committed is None:
                            if ahead is not None:
                                ahead.lose()
                            committed = await self.locked.post(connection.raw, needs, work, optimistic.note)
                        return committed
            finally:
                stream.is_working = False

    def _free_connection(self) -> PostingConnection:
        """The first free connection, so that a lone caller always meets the same process of the server: it is warm."""
        return next((one for one in self._posting if one.is_free), self._posting[0])

    # ---- reads

    async def now(self) -> int:
        """See `Engine.now`: an estimate, since each posting measures the server's clock."""
        if not self.clock.is_known:
            with suppress(ClockMoved):
                await self._measure_clock()
        return self.clock.estimate()

    async def _measure_clock(self) -> None:
        asked_at = steady_micros()
        now: int = await self._read(lambda connection: connection.fetchval(sql.NOW))
        self.clock.measured(now, asked_at)

    async def read(self, read: Callable[[], Read[T]], *, snapshot: bool = True, long: bool = False) -> T:
        if long:
            return await self._read_long(read)

        async def ask(connection: Connection) -> T:
            if not snapshot:
                return await answered(connection, read())
            steps = read()
            try:
                steps.send(await answer(connection, next(steps)))
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]  # what the generator returned
            # Few reads ask a second question. Those start again, so that one snapshot answers all of them.
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                return await answered(connection, read())

        return await self._read(ask)

    async def _read_long(self, read: Callable[[], Read[T]]) -> T:
        """Read on a connection of its own: it may take much longer than the other reads can wait."""
        with translated(self.name):
            async with asyncio.timeout(_LONG_SECONDS):
                connection = await self._connect_patiently()
                try:
                    async with connection.transaction(isolation="repeatable_read", readonly=True):
                        return await answered(connection, read())
                finally:
                    connection.terminate()

    async def _read(self, ask: Callable[[Connection], Awaitable[T]]) -> T:
        """Ask, and ask again if the connection was lost: a question changes nothing."""
        try:
            async with self._read_connection() as connection:
                return await ask(connection)
        except Conflict:
            async with self._read_connection() as connection:
                return await ask(connection)

    async def write(self, asks: Sequence[Ask], merchant_id: str | None = None, *, guarded: bool = False) -> int:
        changed = 0
        async with self._read_connection() as connection:
            await connection.execute("BEGIN" if merchant_id is None else sql.begin([lane_of(merchant_id)], {}))
            if merchant_id is not None:  # gives its row another version, which an optimistic posting must notice
                await connection.execute(sql.TOUCH, merchant_id)
            for question in asks:
                made = sql.compiled(question.statement)
                status = await connection.execute(made.sql, *made.bound(question.values))
                changed += int(status.rpartition(" ")[2])
                if guarded and not changed:
                    break
            await self.locked.commit(connection)
        return changed

    @asynccontextmanager
    async def _read_connection(self) -> AsyncIterator[Connection]:
        with translated(self.name):
            async with asyncio.timeout(self._timeout), self._reads.acquired() as connection:
                yield connection

    def books(self, merchant_ids: Sequence[str] | None = None) -> AsyncIterator[Books]:
        return books.in_a_thread(self._books(merchant_ids))

    def _books(self, merchant_ids: Sequence[str] | None) -> Generator[Books]:
        with translated(self.name), _loop_in_a_thread() as run:
            connection = run(self._connect())
            try:
                run(connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"))

                def asked(question: Ask) -> Iterator[Row]:
                    made = sql.compiled(question.statement)

                    async def opened() -> Any:
                        return await connection.cursor(made.sql, *made.bound(question.values))

                    with translated(self.name):
                        cursor = run(opened())
                        while found := run(cursor.fetch(_ROWS_AT_ONCE)):
                            yield from map(tuple, found)

                accounts: Iterable[Row] = asked(Ask(books.ALL_ACCOUNTS))
                if merchant_ids is not None:
                    places = [(merchant_id,) for merchant_id in sorted(set(merchant_ids))]
                    accounts = run(answer(connection, Find(tables.accounts, ("merchant_id",), places)))
                for row in accounts:
                    values = {"account": row[0]}
                    grants = asked(Ask(books.ALL_GRANTS, values))
                    yield books.books_of(row, grants, asked(Ask(books.HISTORY, values)))
            finally:
                with suppress(Exception):
                    run(connection.close(timeout=self._timeout))

    # ---- housekeeping

    async def scrub(self) -> None:
        """See `Engine.scrub`: here VACUUM does it, in its own time (docs/operating.md)."""

    async def check(self) -> None:

        async def ask(connection: Connection) -> None:
            if await connection.fetchval(sql.IS_READ_ONLY):
                raise Conflict(f"{self.name} can only be read.")  # another server at this address may not be read-only

        await self._read(ask)
        await self._measure_clock()

    async def close(self) -> None:
        await asyncio.gather(*[connection.close() for connection in self._posting], self._reads.close())


@contextmanager
def _loop_in_a_thread() -> Iterator[Callable[[Coroutine[Any, Any, T]], T]]:
    """An event loop in a thread of its own, and a function that runs coroutines in it from any other thread."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, name="postgres-books")
    thread.start()
    try:
        yield lambda awaited: asyncio.run_coroutine_threadsafe(awaited, loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
