"""The ledger in PostgreSQL, for any number of processes and hosts.

A merchant has a lane, which is locked until whatever is written for it is committed: so the events of a lane commit in
the order of their numbers. A posting is decided without a lock, on what this process remembers of its own last ones or
on what was loaded, and written by one statement on the condition that nothing has changed: the truth is always in the
database. Where much must be loaded, or another process was faster, it locks its lanes, loads, decides, writes and
commits, in a few messages to the server, however large it is. What this process remembers may be under way itself: so
the next posting is decided while the server has the one before it. The statements stand in `postgres_statements`, the
reasons in docs/decisions/0009, 0026, 0029 and 0031.
"""

import asyncio
import secrets
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from functools import lru_cache, partial
from threading import Thread
from typing import Any, Final, NamedTuple, TypeVar
from uuid import UUID
from zlib import crc32

import asyncpg
from sqlalchemy import Table

from credit_service.ledger.decide import Needs
from credit_service.storage import books, dsn, rows, tables
from credit_service.storage import postgres_statements as sql
from credit_service.storage.engine import (
    BadRow,
    Books,
    Committed,
    Conflict,
    OutcomeUnknown,
    StorageError,
    StorageUnavailable,
    Work,
    Writes,
)
from credit_service.storage.loading import Loading
from credit_service.storage.questions import Ask, Find, Question, Read, Row
from credit_service.storage.remembered import Commit, Remembered

T = TypeVar("T")
Q = TypeVar("Q", bound=Question)
Connection = Any
"""An asyncpg connection, or one of its pool."""

Written = tuple[Table, str, Sequence[Row]]
"""Rows of a table, and how they are written (`postgres_statements.Part`)."""

LANES: Final = 16
_KNOCK_SECONDS = 0.1
"""How long nobody tries to connect after an attempt that failed."""
_CLOCK_SECONDS = 10.0
"""How long the database's clock is reckoned from this process's before it is asked again."""
_LONG_SECONDS = 300.0
"""How long a read over all accounts may take."""
_ROWS_AT_ONCE = 1000
_CLOCK_JUMP_SECONDS = 0.1
"""How far two clocks of this process may have drifted apart; more, and one was set or stood still."""
_CLOCK_ANSWER_SECONDS = 0.05
"""For how long an answer may have been under way that tells the database's clock."""
_FEW: Final = 4
"""Up to so many merchants are loaded by one statement, which is slower for each and waits once."""
_MANY: Final = 1_000
"""Up to so many accounts are posted to without a lock, in one message. What it costs in vain grows with them."""
_AHEAD: Final = 100
"""After a posting of up to so many accounts the next is decided meanwhile; of more, others go beside it anyway."""
_WARY: Final = 100
"""So many postings of a stream lock first, after one whose account was changed by somebody else meanwhile."""
_COPIED: Final = 50
"""From so many new rows on, a message of their own to the server costs less than what it saves."""
_PREPARED: Final = 50
"""So many statements are kept prepared for a connection, beside those that the driver keeps."""
_DEFAULTS: Final = {"jit": "off"}
_KEPT_ALIVE: Final = {"tcp_keepalives_idle": "60", "tcp_keepalives_interval": "10", "tcp_keepalives_count": "6"}
"""What stands between may forget a connection that says nothing, and some are used only at the busiest hours."""
_COMMITTED: Final = Commit(0)
"""What the database itself told."""

_TRANSIENT: Final = (
    asyncpg.TransactionRollbackError,  # serialization failures and deadlocks
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
    asyncpg.InvalidCachedStatementError,
)
_AWAY: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.InvalidTransactionStateError,  # read-only, or undone by the server since we were silent
    asyncpg.PostgresSystemError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)


def lane_of(merchant_id: UUID) -> int:
    """The lane of a merchant's postings and events. Part of what is stored: it may never change."""
    return _lane_of(merchant_id.int)


@lru_cache(maxsize=20_000)  # each posting asks three times
def _lane_of(number: int) -> int:
    return crc32(number.to_bytes(16)) % LANES


class translated:  # noqa: N801 - is used like the functions that make a context, and costs a lone caller less
    """Turn the driver's errors into the store's; an unknown one is raised as it is, never dropped.

    `name` is what a message calls the database. Nothing the server or the driver says of a connection is passed on but
    the kind of the error: it may hold a password.
    """

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError)):
            raise BadRow(str(error)) from error
        if isinstance(error, _TRANSIENT):
            raise Conflict(f"{self._name} had a conflict: {_kind(error)}.") from error
        if isinstance(error, _AWAY):
            raise StorageUnavailable(f"{self._name} cannot be used: {_kind(error)}.") from error


def _kind(error: BaseException) -> str:
    if isinstance(error, asyncpg.PostgresError):
        return str(error.args[0] if error.args else type(error).__name__)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, ConnectionError) and "SSL" in str(error):
        return "it does not offer TLS"
    late = isinstance(error, (TimeoutError, asyncio.CancelledError))
    return "it did not answer in time" if late else type(error).__name__


class PostgresEngine:
    """The ledger's store in a PostgreSQL database.

    `url`: postgresql://user:password@host:port/database, whose schema must be up to date. `streams`: postings at once.
    `pool_size`: connections for reads. `timeout_seconds` bounds each wait for the server. `pooled`: behind a pooler
    that gives a connection for one transaction at a time, as PgBouncer does. `clock` gives microseconds since 1970 in
    place of the database's, and `draw_number` a new account's number (62 random bits); tests replace both.
    """

    lanes = LANES

    def __init__(
        self,
        url: str,
        *,
        streams: int = 4,
        pool_size: int = 10,
        timeout_seconds: float = 5.0,
        pooled: bool = False,
        clock: Callable[[], int] | None = None,
        draw_number: Callable[[], int] = lambda: secrets.randbits(62),
    ) -> None:
        self.name = name_of(url)
        self.streams = streams
        self.ahead = 0 if pooled else _AHEAD
        self._timeout = timeout_seconds
        self._clock = clock
        self._draw_number = draw_number
        self._connect = connector(url, timeout_seconds=timeout_seconds, pooled=pooled)
        self._connect_patiently = connector(url, timeout_seconds=timeout_seconds, pooled=pooled, patient=True)
        patience = str(int(timeout_seconds * 800))  # a little less than ours: the server can say that nothing was done
        # Of a process that vanished in the midst of a posting the server may hear nothing for hours, not even its end.
        for_posting = {
            "lock_timeout": patience,
            "idle_in_transaction_session_timeout": patience,
            **sql.POSTING_SETTINGS,
        }
        # A pooled connection has no settings of its own, so each posting brings them along.
        self._local = for_posting if pooled else {}
        connect = connector(url, timeout_seconds=timeout_seconds, pooled=pooled, settings=for_posting)
        door = _Door(self.name, timeout_seconds)
        self._streams = [_Stream() for _ in range(streams)]
        self._lines = [_Line(partial(door.connected, connect), timeout_seconds) for _ in range(streams)]
        self._readers = _Readers(self.name, partial(door.connected, self._connect), pool_size)
        self._clock_offset = 0  # of the database's clock, against this process's
        self._read_at = float("-inf")  # when the database's clock was, by a clock that cannot be set
        self._read_at_time = float("-inf")  # and by the one that it is reckoned from
        self._remembered = Remembered()
        self._last: dict[int, _Last] = {}  # by lane

    def stream_of(self, merchant_id: UUID) -> int:
        """See `Engine.stream_of`: a stream is a fixed share of the lanes, whose postings go one after the other."""
        return lane_of(merchant_id) % self.streams

    # ---- postings

    async def post(self, needs: Sequence[Needs], work: Work, after: "asyncio.Future[bool] | None" = None) -> Committed:
        """See `Engine.post`."""
        stream = self._streams[self.stream_of(needs[0].merchant_id) if needs else 0]
        with self._decided_ahead(stream, needs, work, after) or nullcontext() as ahead:
            if after is not None and not await after and ahead is not None:
                ahead.lost()
            stream.busy = True
            try:
                return await self._post(stream, needs, work, ahead)
            finally:
                stream.busy = False

    async def _post(self, stream: "_Stream", needs: Sequence[Needs], work: Work, ahead: "_Decided | None") -> Committed:
        # The first that is free, so that who is alone always meets the same process of the server, with warm caches.
        line = next((line for line in self._lines if line.is_free), self._lines[0])
        async with line as connection:
            with translated(self.name):
                if ahead is not None and not (ahead.may_be_written() and self._is_recent(ahead)):
                    ahead.lost()
                    ahead = None
                if self._may_go_unlocked(stream, len(needs) if ahead is None else len(ahead.loading.accounts)):
                    if (done := await self._post_unlocked(stream, line, needs, work, ahead)) is not None:
                        return done
                    ahead = None
                until = asyncio.get_running_loop().time() + self._timeout
                async with asyncio.timeout_at(until):
                    decided = await self._decided_locked(stream, connection, needs, work, ahead)
                with decided:
                    async with asyncio.timeout_at(until):  # not of the commit: its silence means something else
                        written, version = await self._write_rows(connection, decided)
                        if not written:
                            await connection.execute("ROLLBACK")
                            return decided.committed
                    await self._commit(connection)
                    decided.commit.version = version
        return decided.committed

    def _decided_ahead(
        self, stream: "_Stream", needs: Sequence[Needs], work: Work, after: "asyncio.Future[bool] | None"
    ) -> "_Decided | None":
        """Decide on what is remembered, also while that is under way; None where something must be known before."""
        if stream.wary or (after is not None and any(one.busy for one in self._streams)):
            return None
        if (known := self._recalled(needs, pending=after is not None)) is None or known[0].merchants:
            return None
        try:
            return self._decided(*known, work)
        except Exception:  # what is wrong is told when it is decided again, in its turn
            return None

    def _recalled(
        self, needs: Sequence[Needs], *, pending: bool = False
    ) -> "tuple[Loading, int, dict[int, _Last]] | None":
        """What is remembered of merchants, the time, and the last event of each lane; None where nothing is.

        `pending`: also what is not committed yet.
        """
        if not self._knows_the_time() or not (recalled := self._remembered.recall(needs, pending=pending)):
            return None
        loading = Loading(needs, recalled)
        lanes = _lanes(loading)
        last: dict[int, _Last] = {}
        for lane in lanes:
            known = self._last.get(lane)
            if known is not None and known.commit.is_to_be_believed(pending=pending):
                last[lane] = known
        # Where something must be loaded, so are the lanes.
        return (loading, self._reckoned(), last) if loading.merchants or len(last) == len(lanes) else None

    def _decided(self, loading: Loading, now: int, last: "Mapping[int, _Last]", work: Work) -> "_Decided":
        """Decide, and remember it from now on, so that what follows can be decided before it is committed."""
        writes = work(loading.loaded(now))
        after = {lane: id_ for lane, (id_, _) in last.items()}
        decided = _Decided(loading, now, last, writes, *_parts(writes, loading.granted, after))
        self._remembered.keep(loading.records.items(), writes.accounts, decided.commit)
        for lane, id_ in after.items():
            before = last.get(lane)
            self._last[lane] = before if before and before.id == id_ else _Last(id_, decided.commit)
        return decided

    def _is_recent(self, decided: "_Decided") -> bool:
        """Whether what was decided will not be too old when the server has it (`sql.LAG_MICROS`)."""
        return abs(self._reckoned() - decided.now) < sql.LAG_MICROS * 3 // 4

    def _may_go_unlocked(self, stream: "_Stream", accounts: int) -> bool:
        """Whether a posting of at most so many accounts is small, and nobody else has lately posted to its stream's."""
        if stream.wary:
            stream.wary -= 1
            return False
        # Behind a pooler there is no transaction to which the settings of a posting could be confined.
        return not self._local and 0 < accounts <= _MANY

    async def _post_unlocked(
        self, stream: "_Stream", line: "_Line", needs: Sequence[Needs], work: Work, ahead: "_Decided | None"
    ) -> Committed | None:
        """Post in one message to the server, or in two where something must be loaded; None: nothing was done.

        Whatever is loaded for a merchant, or remembered, changes only with its account's row. To refuse or to replay
        needs no lock: it was right at the moment when it was loaded. Of what is remembered nobody can say so.
        """
        if ahead is not None:
            if (done := await self._write_decided(stream, line, ahead)) is None:
                ahead.lost()
        elif (known := self._recalled(needs)) is not None:
            done = await self._attempt(stream, line, *known, work)
        else:
            done = None
        if done is not None or stream.wary:
            return done
        return await self._attempt(stream, line, Loading(needs), 0, {}, work)

    async def _attempt(
        self,
        stream: "_Stream",
        line: "_Line",
        loading: Loading,
        now: int,
        last: "Mapping[int, _Last]",
        work: Work,
    ) -> Committed | None:
        """Load what is not known without a lock, decide, and write only where nothing has changed."""
        if len(loading.merchants) > _FEW:
            return None
        if loading.merchants:
            async with asyncio.timeout(self._timeout):
                now, last = await self._load_few(line.connection, loading, _lanes(loading))
        with self._decided(loading, now, last, work) as decided:
            return await self._write_decided(stream, line, decided)

    async def _write_decided(self, stream: "_Stream", line: "_Line", decided: "_Decided") -> Committed | None:
        """Write in one message, and only where nothing has changed; None: nothing was done."""
        loading, writes, commits = decided.loading, decided.writes, decided.loading.commits
        if not decided.parts:
            return None if loading.unseen else decided.committed
        if writes.unparked:  # what is parked again under its key is not for one statement
            return None
        decided_at = None if self._clock is not None else decided.now
        if decided.is_alone:
            (lane,), (account,), ((_, key),) = decided.before, loading.accounts.values(), loading.unseen
            parts, values = _statement(decided.parts, commits, [account.settled_at])
            statement = sql.write_alone_unless_changed(parts)
            values += (lane, *decided.ids, decided_at, key)
        else:
            parts, values = _statement(decided.parts, commits)
            statement = sql.write_unless_changed(parts)
            values += ([*decided.before], decided.ids, decided_at, *_known(loading), *_columns(loading.unseen))
            known = sum([number in commits for number in writes.accounts])
            values += [known] if known else []
        asked_at = time.monotonic()
        stream.busy = False
        try:
            now, used, version = await self._write_unless_changed(line, statement, values)
        except (asyncpg.IntegrityConstraintViolationError, asyncpg.DivisionByZeroError):
            stream.wary = _WARY  # somebody else's event or account, or a law
            return None
        finally:
            stream.busy = True
        self._reckon(now, asked_at)
        if version is None:
            is_late = decided_at is not None and abs(now - decided_at) >= sql.LAG_MICROS
            stream.wary = 0 if used or is_late else _WARY
            return None
        decided.commit.version = version
        return decided.committed

    async def _write_unless_changed(self, line: "_Line", guarded: str, values: Sequence[Any]) -> Row:
        """Write and commit in one statement."""
        try:
            return await line.ask(guarded, values)
        except asyncpg.DataError:
            raise  # a value that cannot be, for us or for the server
        except Exception as error:
            if isinstance(error, asyncpg.PostgresError) and error.as_dict().get("severity_en") == "ERROR":
                raise  # the server says that it did not
            raise self._unknown(error) from error

    async def _commit(self, connection: Connection) -> None:
        try:
            done = await connection.execute("COMMIT")
        except (asyncpg.TransactionRollbackError, asyncpg.IntegrityConstraintViolationError):
            raise  # the server says that it did not
        except Exception as error:
            raise self._unknown(error) from error
        if done != "COMMIT":
            raise Conflict(f"{self.name} undid a posting at its commit.")

    def _unknown(self, error: Exception) -> OutcomeUnknown:
        return OutcomeUnknown(f"{self.name} did not say whether it committed: {_kind(error)}.")

    async def _decided_locked(
        self, stream: "_Stream", connection: Connection, needs: Sequence[Needs], work: Work, ahead: "_Decided | None"
    ) -> "_Decided":
        """Lock, then load and decide; or see that what is remembered, or what was decided ahead on it, still holds."""
        lanes = sorted({lane_of(need.merchant_id) for need in needs})
        await connection.execute(sql.begin(lanes, self._local))
        loading = None
        if ahead is not None:
            loading = ahead.loading
        elif not stream.wary and (recalled := self._remembered.recall(needs)):
            loading = Loading(needs, recalled)
        if loading is not None:
            asked_at = time.monotonic()
            now, ids, same, used = await connection.fetchrow(
                sql.STATE_AS_KNOWN, lanes, *_known(loading), *_columns(loading.unseen)
            )
            if same and not used:
                decided_at = self._reckon(now, asked_at)
                if ahead is not None:
                    if ahead.ids == ids and abs(decided_at - ahead.now) < sql.LAG_MICROS:
                        return ahead
                elif loading.merchants:
                    loading.unseen.clear()
                    return self._decided(loading, *await self._load_by_size(connection, loading, lanes), work)
                else:
                    return self._decided(loading, decided_at, _lasts(lanes, ids), work)
            else:
                stream.wary = 0 if same else _WARY
        loading = Loading(needs)
        return self._decided(loading, *await self._load_by_size(connection, loading, lanes), work)

    async def _load_by_size(
        self, connection: Connection, loading: Loading, lanes: list[int]
    ) -> "tuple[int, dict[int, _Last]]":
        load = self._load_few if len(loading.merchants) <= _FEW else self._load_many
        return await load(connection, loading, lanes)

    async def _load_many(
        self, connection: Connection, loading: Loading, lanes: list[int]
    ) -> "tuple[int, dict[int, _Last]]":
        """Load in several messages to the server, which finds a thousand places faster when they are of one table."""
        asked_at = time.monotonic()
        now, ids = await connection.fetchrow(sql.STATE, lanes)
        now = self._reckon(now, asked_at)
        await _answered(connection, loading.questions(self._draw_number))
        return now, _lasts(lanes, ids)

    async def _load_few(
        self, connection: Connection, loading: Loading, lanes: list[int]
    ) -> "tuple[int, dict[int, _Last]]":
        """Load in one message: a lone caller waits for each of them."""
        keys, sources, trials = loading.keys(), loading.sources(), loading.trials()
        places = [[*loading.merchants], lanes, *_by_merchant(keys)]
        if sources:
            places += _by_merchant(sources)
        if trials:
            places.append([merchant.bytes for merchant in trials])
        asked_at = time.monotonic()
        now, ids, *found = await connection.fetchrow(sql.load(bool(sources), bool(trials)), *places)
        now = self._reckon(now, asked_at)
        versioned, grants, parked, firsts, given_back, trials_found = [some or () for some in found]
        loading.found_accounts([tuple(row)[:-1] for row in versioned], self._draw_number)
        loading.commits |= {row[0]: Commit(row[-1]) for row in versioned}
        loading.found_grants(grants)
        loading.found_parked(parked)
        loading.found_firsts(firsts)
        loading.found_given_back(given_back)
        loading.found_trials(trials_found)
        if sources:
            loading.found_drawn(await _answer(connection, loading.drawn()))
        return now, _lasts(lanes, ids or ())

    async def _write_rows(self, connection: Connection, decided: "_Decided") -> tuple[bool, int | None]:
        """Write all of it; whether there was anything to write, and the version that rows of accounts have now."""
        unparked = decided.writes.unparked
        if unparked:
            await connection.execute(sql.DELETE_PARKED, *sql.by_column(unparked))
        rest = []
        for table, how, some in decided.parts:
            if len(some) > _COPIED and how == "insert":
                names = sql.columns_of(table)
                await connection.copy_records_to_table(table.name, records=some, columns=names)
            else:
                rest.append((table, how, some))
        parts, values = _statement(rest)
        if not (decided.parts or unparked):
            return False, None
        return True, await connection.fetchval(sql.write(parts), *values)

    # ---- reads

    async def now(self) -> int:
        """See `Engine.now`. Reckoned from this process's clock, whose distance every posting measures anew."""
        if not self._knows_the_time():
            asked_at = time.monotonic()
            now: int = await self._asked(lambda connection: connection.fetchval(sql.NOW))
            return self._reckon(now, asked_at)
        return self._reckoned()

    def _knows_the_time(self) -> bool:
        """Whether the database's clock was read lately, and this process's was not set since."""
        if self._clock is not None:
            return True
        since = time.monotonic() - self._read_at
        return since < _CLOCK_SECONDS and abs(time.time() - self._read_at_time - since) < _CLOCK_JUMP_SECONDS

    def _reckoned(self) -> int:
        """The database's clock, from that of this process."""
        return self._clock() if self._clock is not None else time.time_ns() // 1000 + self._clock_offset

    def _reckon(self, now: int, asked_at: float) -> int:
        """Take note of the database's clock; returns the time of what is done then.

        Where the answer took long, nobody knows how old it is: the database may have waited for something meanwhile.
        """
        answered_at, local = time.monotonic(), time.time_ns() // 1000
        if answered_at - asked_at < _CLOCK_ANSWER_SECONDS:
            self._clock_offset = now - local
            self._read_at, self._read_at_time = answered_at, local / 1e6
        return now if self._clock is None else self._clock()

    async def read(self, read: Callable[[], Read[T]], *, snapshot: bool = True, long: bool = False) -> T:
        """See `Engine.read`."""
        if long:
            return await self._read_long(read)

        async def ask(connection: Connection) -> T:
            if not snapshot:
                return await _answered(connection, read())
            steps = read()
            try:
                steps.send(await _answer(connection, next(steps)))
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]  # what the generator returned
            # Few reads ask a second question. Those begin again, so that one snapshot answers all they ask.
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                return await _answered(connection, read())

        return await self._asked(ask)

    async def _read_long(self, read: Callable[[], Read[T]]) -> T:
        """On a connection of its own: it may take much longer than anybody waits for another read."""
        with translated(self.name):
            async with asyncio.timeout(_LONG_SECONDS):
                connection = await self._connect_patiently()
                try:
                    async with connection.transaction(isolation="repeatable_read", readonly=True):
                        return await _answered(connection, read())
                finally:
                    connection.terminate()

    async def _asked(self, ask: Callable[[Connection], Awaitable[T]]) -> T:
        """What is answered; asked again where the connection had been lost, since to ask changes nothing."""
        try:
            async with self._reading() as connection:
                return await ask(connection)
        except Conflict:
            async with self._reading() as connection:
                return await ask(connection)

    async def write(self, asks: Sequence[Ask], merchant_id: UUID | None = None, *, guarded: bool = False) -> int:
        """See `Engine.write`."""
        changed = 0
        async with self._reading() as connection:
            await connection.execute("BEGIN" if merchant_id is None else sql.begin([lane_of(merchant_id)], {}))
            if merchant_id is not None:  # a posting that has loaded what is changed here must begin again
                await connection.execute(sql.TOUCH, merchant_id.bytes)
            for question in asks:
                made = sql.compiled(question.statement)
                status = await connection.execute(made.sql, *made.bound(question.values))
                changed += int(status.rpartition(" ")[2])
                if guarded and not changed:
                    break
            await self._commit(connection)
        return changed

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[Connection]:
        with translated(self.name):
            async with asyncio.timeout(self._timeout), self._readers.taken() as connection:
                yield connection

    def books(self, merchant_ids: Sequence[UUID] | None = None) -> AsyncIterator[Books]:
        """See `Engine.books`."""
        return books.in_a_thread(self._books(merchant_ids))

    def _books(self, merchant_ids: Sequence[UUID] | None) -> Generator[Books]:
        with translated(self.name), _loop_beside() as run:
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
                    places = [(merchant_id.bytes,) for merchant_id in sorted(set(merchant_ids))]
                    accounts = run(_answer(connection, Find(tables.accounts, ("merchant_id",), places)))
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
        """See `Engine.check`."""

        async def ask(connection: Connection) -> None:
            if await connection.fetchval(sql.IS_READ_ONLY):
                raise Conflict(f"{self.name} can only be read.")  # which a session begun later may not be told

        await self._asked(ask)

    async def close(self) -> None:
        """See `Engine.close`."""
        await asyncio.gather(*[line.close() for line in self._lines], self._readers.close())


def name_of(url: str) -> str:
    """What messages call a database: its place, without user and password."""
    return dsn.parse(url).name


def connector(
    url: str,
    *,
    timeout_seconds: float,
    pooled: bool = False,
    patient: bool = False,
    settings: Mapping[str, str] = _DEFAULTS,
) -> Callable[[], Any]:
    """How a connection is made. `patient` waits for answers as long as they take; `settings` are the server's.

    Of several hosts the one that worked last is tried first. `timeout_seconds` bounds each attempt, unless the URL says
    connect_timeout.
    """
    place = dsn.parse(url)
    attempts = place.attempts()
    ours = {"application_name": "credit-service", **_KEPT_ALIVE, **settings}
    # Behind a pooler the next statement may meet another connection, which knows nothing of what was prepared or set.
    options: Mapping[str, Any] = (
        {"statement_cache_size": 0}
        if pooled
        else {"server_settings": {name: value for name, value in ours.items() if name not in place.options}}
    )

    async def attempt(host: Mapping[str, Any]) -> Connection:
        with suppress(ValueError, asyncpg.DataError, asyncpg.UndefinedObjectError, asyncpg.PostgresSyntaxError):
            return await asyncpg.connect(
                place.url,
                timeout=place.connect_seconds or timeout_seconds,
                command_timeout=None if patient else timeout_seconds,
                **host,
                **options,
            )
        # The driver's own words may quote a secret that stands in the wrong place.
        raise StorageUnavailable(f"{place.name} cannot be used: DATABASE_URL has an option or a part that cannot be.")

    async def connect() -> Connection:
        for left, host in enumerate(list(attempts), 1 - len(attempts)):
            try:
                connection = await attempt(host)
            except asyncpg.TargetServerAttributeNotMatched:
                if not left:
                    raise StorageUnavailable(f"{place.name} cannot be used: no host takes postings.") from None
            except (OSError, asyncpg.CannotConnectNowError):
                if not left:
                    raise
            else:
                attempts.remove(host)
                attempts.insert(0, host)
                if (encoding := connection.get_settings().server_encoding) != "UTF8":
                    connection.terminate()
                    raise StorageUnavailable(
                        f"{place.name} has the encoding {encoding}, which cannot store every text: create the database "
                        "with ENCODING 'UTF8'."
                    )
                return connection

    return connect


class _Last(NamedTuple):
    """The last event of a lane, as far as this process knows, and the posting that wrote it."""

    id: int
    commit: Commit


class _Decided:
    """A batch that was decided. Used as a context, at whose end it is lost unless it was committed."""

    __slots__ = ("before", "commit", "loading", "now", "parts", "places", "writes")

    def __init__(
        self,
        loading: Loading,
        now: int,
        before: Mapping[int, _Last],
        writes: Writes,
        parts: Sequence[Written],
        places: Sequence[tuple[int, int]],
    ) -> None:
        self.loading = loading
        self.now = now
        self.before = before  # the last event of each of its lanes
        self.writes = writes
        self.parts = parts  # what is written, as rows
        self.places = places  # of its events
        self.commit = Commit()

    @property
    def committed(self) -> Committed:
        """What it has written when it is committed."""
        return Committed(self.writes, self.places)

    @property
    def is_alone(self) -> bool:
        """Whether it writes one account that was known, and rests on nothing else but one key and one lane."""
        loading = self.loading
        return (
            len(loading.accounts) == len(loading.unseen) == len(self.before) == len(self.writes.accounts) == 1
            and len(loading.commits) == 1
            and loading.commits.keys() == self.writes.accounts.keys()
        )

    @property
    def ids(self) -> list[int]:
        """The last event of each of its lanes, ascending, before it."""
        return [last.id for last in self.before.values()]

    def may_be_written(self) -> bool:
        """Whether it is not lost, and all that it was decided on is known to be committed."""
        return (
            not self.commit.lost
            and None not in [commit.version for commit in self.loading.commits.values()]
            and None not in [last.commit.version for last in self.before.values()]
        )

    def lost(self) -> None:
        """It will not be committed: nothing may rest on it."""
        self.commit.lost = True

    def __enter__(self) -> "_Decided":
        return self

    def __exit__(self, *error: object) -> None:
        if self.commit.version is None:
            self.lost()


def _lanes(loading: Loading) -> list[int]:
    """The lanes of a posting, ascending."""
    return sorted({lane_of(merchant_id) for merchant_id in (*loading.merchants.values(), *loading.accounts)})


def _lasts(lanes: Iterable[int], ids: Iterable[int]) -> dict[int, _Last]:
    return {lane: _Last(id_, _COMMITTED) for lane, id_ in zip(lanes, ids, strict=True)}


def _known(loading: Loading) -> tuple[list[int], list[int | None], list[int]]:
    """The accounts on which a posting is decided: their numbers, the versions of their rows, when they were settled."""
    commits = loading.commits
    settled = {account.number: account.settled_at for account in loading.accounts.values()}
    return [*commits], [commit.version for commit in commits.values()], [settled[number] for number in commits]


def _columns(pairs: Collection[tuple[int, Any]]) -> list[list[Any]]:
    """Pairs as two arrays; there may be none."""
    return [[one for one, _ in pairs], [other for _, other in pairs]]


def _by_merchant(some: Iterable[tuple[UUID, str]]) -> tuple[list[bytes], list[str]]:
    return [merchant.bytes for merchant, _ in some], [key for _, key in some]


def _statement(
    some: Iterable[Written], commits: Mapping[int, Commit] | None = None, more: Iterable[int] = ()
) -> tuple[tuple[sql.Part, ...], list[Any]]:
    """The parts of the statement that writes these rows, and the values of its parameters.

    `commits`: rows of accounts that are updated must still have the version that these tell; then comes `more`.
    """
    parts: list[sql.Part] = []
    values: list[Any] = []
    for table, how, written in some:
        checked = commits if table is tables.accounts and how == "update" else None
        many = len(written) > 1
        part = sql.Part(table, how if checked is None else sql.CHECKED, many)
        parts.append(part)
        values += sql.values_of(part, written)
        if checked is not None:
            versions = [checked[row[0]].version for row in written]
            values.append(versions if many else versions[0])
            values += more
    return tuple(parts), values


def _parts(
    writes: Writes, granted: Mapping[int, int], last: dict[int, int]
) -> tuple[list[Written], list[tuple[int, int]]]:
    """What is to be written, table by table, the accounts first: how, and the rows; and the places of the events.

    `granted`: the accounts that were there before, with the number of their last grant. `last`: the last event of each
    of the lanes, which is moved on.
    """
    parts: list[Written] = []
    places: list[tuple[int, int]] = []
    accounts = [rows.account_row(account) for account in writes.accounts.values()]
    if new := [row for row in accounts if row[0] not in granted]:
        parts.append((tables.accounts, "insert", new))
        accounts = [row for row in accounts if row[0] in granted]
    if accounts:
        parts.append((tables.accounts, "update", accounts))
    if writes.transactions:
        parts.append((tables.transactions, "insert", [rows.transaction_row(one) for one in writes.transactions]))
    new_grants: list[Row] = []
    old_grants: list[Row] = []
    for (account, number), grant in writes.grants.items():
        (new_grants if number > granted.get(account, 0) else old_grants).append(rows.grant_row(account, grant))
    if new_grants:
        parts.append((tables.grants, "insert", new_grants))
    if old_grants:
        parts.append((tables.grants, "update", old_grants))
    if writes.announcements:
        lanes = {number: lane_of(account.merchant_id) for number, account in writes.accounts.items()}
        for account, _ in writes.announcements:
            lane = lanes.get(account, 0)  # only tests write events of an account that they do not write
            last[lane] = last.get(lane, 0) + 1
            places.append((lane, last[lane]))
        parts.append((tables.events, "insert", rows.event_rows(writes.announcements, places)))
    if writes.given_back:
        given = [rows.given_back_row(account, given) for (account, _), given in writes.given_back.items()]
        parts.append((tables.given_back, "upsert", given))
    if writes.parked:
        parked = [rows.parked_row(account, parked) for (account, _), parked in writes.parked.items()]
        parts.append((tables.parked, "insert", parked))
    if writes.dead_letters:
        letters = [rows.dead_letter_row(account, letter) for account, letter in writes.dead_letters]
        parts.append((tables.dead_letters, "insert", letters))
    return parts, places


@contextmanager
def _loop_beside() -> Iterator[Callable[[Coroutine[Any, Any, T]], T]]:
    """An event loop in a thread of its own: it runs what is awaited for whoever cannot await, in any thread."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, name="postgres-books")
    thread.start()
    try:
        yield lambda awaited: asyncio.run_coroutine_threadsafe(awaited, loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class _Door:
    """Makes connections. While the server lets nobody in one caller at a time knocks; others are refused at once.

    Else each of the thousands who wait for a server that is just coming back would knock, and find it silent for long.
    """

    def __init__(self, name: str, patience_seconds: float) -> None:
        self._name = name
        self._patience_seconds = patience_seconds
        self._refusal: str | None = None
        self._knocking = False
        self._next_at = 0.0

    async def connected(self, connect: Callable[[], Any]) -> Connection:
        """A new connection. Raises StorageUnavailable."""
        if self._refusal is not None and (self._knocking or time.monotonic() < self._next_at):
            raise StorageUnavailable(self._refusal)
        self._knocking, began = True, time.monotonic()
        try:
            with translated(self._name):
                try:
                    connection = await connect()
                except (asyncpg.PostgresConnectionError, ConnectionError):  # what has just cut all others cut this, too
                    connection = await connect()
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and time.monotonic() - began < self._patience_seconds / 2:
                raise  # whoever wanted it went away, which says nothing of the server
            refusal = str(error) if isinstance(error, StorageError) else f"{self._name} refused us: {_kind(error)}."
            self._refusal, self._next_at = refusal, time.monotonic() + _KNOCK_SECONDS
            if isinstance(error, Conflict):
                raise StorageUnavailable(refusal) from error
            raise
        finally:
            self._knocking = False
        self._refusal = None
        return connection


def _is_lost(connection: Connection, error: BaseException) -> bool:
    """Whether that was its end. The driver may have heard the server's last word, and not yet that it was the last."""
    return connection.is_closed() or isinstance(error.__cause__ or error, asyncpg.InternalClientError)


class _Stream:
    """What is known of the postings of a stream."""

    __slots__ = ("busy", "wary")

    def __init__(self) -> None:
        self.wary = 0  # so many postings lock first
        self.busy = False  # with a posting that is not decided yet, or has more than one message left for the server


class _Line:
    """A connection for postings, made again when it was lost. As a context it is taken, for one transaction."""

    def __init__(self, connect: Callable[[], Any], timeout_seconds: float) -> None:
        self._connect = connect
        self._timeout = timeout_seconds
        self.connection: Connection = None  # whoever has taken the line has one
        self._prepared: dict[str, Any] = {}  # statements, by their text
        self._turn = asyncio.Lock()

    @property
    def is_free(self) -> bool:
        """Whether nobody has taken it."""
        return not self._turn.locked()

    async def __aenter__(self) -> Connection:
        await self._turn.acquire()
        try:
            if self.connection is None or self.connection.is_closed():
                self._prepared.clear()
                self.connection = await self._connect()
        except BaseException:
            self._turn.release()
            raise
        return self.connection

    async def ask(self, statement: str, values: Sequence[Any]) -> Row:
        """The one row that a statement answers, which is asked again and again."""
        prepared = self._prepared.pop(statement, None)
        if prepared is None:
            if len(self._prepared) >= _PREPARED:
                del self._prepared[next(iter(self._prepared))]
            async with asyncio.timeout(self._timeout):  # the driver may first have to tell of what is not kept any more
                prepared = await self.connection.prepare(statement)
        self._prepared[statement] = prepared  # the one that was asked last stands last
        row: Row = await prepared.fetchrow(*values)
        return row

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Whatever went wrong, what was begun is undone."""
        try:
            if error is not None:
                await self._failed(error)
        finally:
            self._turn.release()

    async def _failed(self, error: BaseException) -> None:
        connection = self.connection
        self._prepared.clear()  # perhaps it was one of them
        lost = _is_lost(connection, error)
        if isinstance(error, StorageUnavailable | OutcomeUnknown) or not isinstance(error, Exception):
            # It is silent, or its server cannot do what another one at this address may.
            connection.terminate()
        else:
            await self._undo(connection)
        if lost and isinstance(error, StorageUnavailable):
            # In the midst of a transaction, which is undone then; a new one may be had at once.
            raise Conflict(str(error)) from error

    async def _undo(self, connection: Connection) -> None:
        try:
            if connection.is_in_transaction():
                await connection.execute("ROLLBACK", timeout=1)
        except BaseException:
            connection.terminate()

    async def close(self) -> None:
        """Finish what is under way, and disconnect."""
        async with self._turn:
            if self.connection is not None:
                await _closed(self.connection)


class _Readers:
    """Connections for reads, made as they are needed."""

    def __init__(self, name: str, connect: Callable[[], Any], size: int) -> None:
        self._name = name
        self._connect = connect
        self._free: list[Connection] = []
        self._room = asyncio.Semaphore(size)

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[Connection]:
        """A connection that nobody else has; one that something went wrong with is not used again."""
        async with self._room:
            connection = None
            while connection is None or connection.is_closed():
                connection = self._free.pop() if self._free else await self._connect()
            try:
                yield connection
            except BaseException as error:
                lost = _is_lost(connection, error)
                # What befell it has befallen those, too, that just nobody uses.
                for one in (connection, *self._free):
                    one.terminate()
                self._free.clear()
                if lost and isinstance(error, _AWAY):
                    raise Conflict(f"{self._name} lost a connection: {_kind(error)}.") from error
                raise
            self._free.append(connection)

    async def close(self) -> None:
        """Disconnect."""
        free, self._free = self._free, []
        await asyncio.gather(*map(_closed, free))


async def _closed(connection: Connection) -> None:
    try:
        await connection.close(timeout=2)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        connection.terminate()


async def _answer(connection: Connection, question: Question) -> list[Row]:
    if isinstance(question, Find):
        table, columns, places, condition = question
        if not places:
            return []
        arrays = sql.by_column(list(places))
        return list(map(tuple, await connection.fetch(sql.rows_at(table, columns, condition), *arrays)))
    made = sql.compiled(question.statement)
    # No text holds a NUL there, nor may one be asked for; \1 is as little in anything that is looked for.
    values = [one.replace("\0", "\1") if isinstance(one, str) else one for one in made.bound(question.values)]
    return list(map(tuple, await connection.fetch(made.sql, *values)))


async def _answered(connection: Connection, steps: Generator[Q, list[Row], T]) -> T:
    """As `reads.answered`, by awaiting."""
    try:
        question = next(steps)
        while True:
            question = steps.send(await _answer(connection, question))
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # what the generator returned
