"""Faults of a PostgreSQL connection at each message of a posting, and the errors of the engine.

After Conflict nothing was written, and a retry may work. After StorageUnavailable nothing was written. OutcomeUnknown
means that the answer to the commit was lost. In each case the next posting works as soon as the database works.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg
import pytest

from credit_service.ledger.commands import Command
from credit_service.ledger.decide import Needs, Outcome, Replayed
from credit_service.ledger.draft import Posted
from credit_service.ledger.proof import verify
from credit_service.ledger.types import CONSUMED
from credit_service.posting import queue
from credit_service.storage.accounts import Accounts
from credit_service.storage.engine import Committed, OutcomeUnknown, StorageError, StorageUnavailable, Work
from credit_service.storage.postgres.engine import PostgresEngine
from credit_service.storage.transactions import TransactionQuery, Transactions
from tests.ledger.telling import MERCHANT, payment, use
from tests.servers.postgres import Databases
from tests.servers.proxy import Proxy
from tests.storage.contract import at_work, tell_apart
from tests.storage.engines import template

KEY = "the-key"
ALL = TransactionQuery()
COMMIT = b"COMMIT\0"  # the NUL tells it from READ COMMITTED, which BEGIN contains
SILENCE_SECONDS = 0.4


class RecordingEngine(PostgresEngine):
    """An engine that records the errors of its postings, and can be halted before it writes or commits.

    By default it locks before it loads, as for a large batch. `way` selects another way.
    """

    way = "locked"

    def __init__(self, url: str, **more: Any) -> None:
        super().__init__(url, **more)
        self._layer = self.optimistic
        self._write, self._commit = self.locked._write, self.locked.commit
        self.locked._write = self._halted_write  # type: ignore[method-assign, assignment]
        self.locked.commit = self._halted_commit  # type: ignore[method-assign]
        if self._layer is not None:
            self._send = self._layer._send
            self._layer._send = self._halted_send  # type: ignore[method-assign, assignment]
        self.errors: list[str] = []
        self.before_write: Callable[[], object] = lambda: None
        self.before_commit: Callable[[], object] = lambda: None
        self.before_lone_write: Callable[[], object] = lambda: None
        self.spoiled = False

    async def post(self, needs: Sequence[Needs], work: Work, *more: Any) -> Committed:
        self.optimistic = None if self.way == "locked" else self._layer
        if self.way == "loaded" and self._layer is not None:
            self._layer.recent.clear()
        try:
            return await super().post(needs, work, *more)
        except Exception as error:
            self.errors.append(type(error).__name__)
            raise

    async def _halted_send(self, *arguments: Any) -> Any:
        self.before_lone_write()
        return await self._send(*arguments)

    async def _halted_write(self, *arguments: Any) -> Any:
        self.before_write()
        return await self._write(*arguments)

    async def _halted_commit(self, connection: Any) -> Any:
        self.before_commit()
        if self.spoiled:
            self.spoiled = False
            with suppress(asyncpg.DivisionByZeroError):
                await connection.execute("SELECT 1 / 0")
        return await self._commit(connection)


@pytest.fixture
def url(postgres: Databases) -> Iterator[str]:
    with postgres.database(template(postgres)) as url:
        yield url


@pytest.fixture
def proxy(url: str, proxied: Callable[[str], Proxy]) -> Proxy:
    return proxied(url)


@asynccontextmanager
async def opened(url: str, **more: Any) -> AsyncIterator[RecordingEngine]:
    """Open an engine, and post and read once, so that its connections are open and its statements prepared."""
    engine = RecordingEngine(url, **{"timeout_seconds": 20, **more})  # long enough for a busy machine
    try:
        if "127.0.0.1:1/" not in url:
            engine.way = "recent"
            await tell(engine, payment("P", 100))
            await tell(engine, use(1))
            assert await Transactions(engine).count(ALL) == 2
            engine.way = "locked"
        yield engine
    finally:
        await engine.close()


async def tell(engine: PostgresEngine, *told: Command, deadline_seconds: float = 5) -> Outcome:
    """Post commands as the service does. Returns the outcome of the last command."""
    async with at_work(engine, deadline_seconds=deadline_seconds) as posting:
        return (await posting.submit_many(told))[-1]


async def asked(url: str, *statements: str) -> None:
    """Run statements on a separate connection."""
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


# ---- a connection that is cut

# The engine locks in the message with BEGIN. The load is the first message with the merchant's id, and the write is the
# first message with an announcement.
LOCKED: dict[str, tuple[Callable[[Proxy], Any], list[str]]] = {
    "idle": (Proxy.cut, ["Conflict"]),
    "before the lock": (lambda proxy: proxy.cut_before(b"BEGIN"), ["Conflict"]),
    "after the lock": (lambda proxy: proxy.cut_after(b"BEGIN"), ["Conflict"]),
    "before the load": (lambda proxy: proxy.cut_before(MERCHANT.encode()), ["Conflict"]),
    "after the load": (lambda proxy: proxy.cut_after(MERCHANT.encode()), ["Conflict"]),
    "before the write": (lambda proxy: proxy.cut_before(CONSUMED.encode()), ["Conflict"]),
    "after the write": (lambda proxy: proxy.cut_after(CONSUMED.encode()), ["Conflict"]),
    "before the commit": (lambda proxy: proxy.cut_before(COMMIT), ["OutcomeUnknown"]),
    "after the commit": (lambda proxy: proxy.cut_after(COMMIT), ["OutcomeUnknown"]),
}
# The optimistic way writes and commits in one statement. Without recent accounts, it first loads without a lock.
RECENT = {name: (LOCKED[name][0], ["OutcomeUnknown"]) for name in ("idle", "before the write", "after the write")}
LOADED = RECENT | {name: LOCKED[name] for name in ("idle", "before the load", "after the load")}
WAYS = {"locked": LOCKED, "loaded": LOADED, "recent": RECENT}


@pytest.mark.parametrize(("way", "where"), [(way, where) for way, places in WAYS.items() for where in places])
async def test_posting_on_a_cut_connection_is_posted_once(proxy: Proxy, way: str, where: str) -> None:
    cut, errors = WAYS[way][where]
    async with opened(proxy.url) as engine:
        engine.way = way
        sprung = cut(proxy)
        outcome = await tell(engine, use(1, KEY))
        assert sprung is None or sprung.is_set()
        assert isinstance(outcome, Posted), (
            "the caller gets the first result, even if the engine had to repeat the posting"
        )
        assert engine.errors == errors
        assert isinstance(await tell(engine, use(1, KEY)), Replayed)
        assert await Transactions(engine).count(ALL) == 3
        assert (await Accounts(engine).load([MERCHANT], 0))[MERCHANT].account.balance == 98


@pytest.mark.parametrize(
    ("way", "where"), [(way, where) for way, places in WAYS.items() for where in places if where != "idle"]
)
async def test_next_batch_on_a_cut_connection_is_posted_once(
    proxy: Proxy, way: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "AHEAD", 1)  # two commands become two batches
    cut, errors = WAYS[way][where]
    async with opened(proxy.url) as engine:
        engine.way = way
        sprung = cut(proxy)
        first, second = await tell_apart(engine, use(1, KEY), use(1, "second"))
        assert sprung is None or sprung.is_set()
        assert isinstance(first, Posted)
        assert isinstance(second, Posted)
        assert first.account.sequence + 1 == second.account.sequence
        assert engine.errors == errors
        async for books in engine.books():
            assert [*books.faults, *verify(books.account, books.grants, list(books.transactions))] == []
        assert await Transactions(engine).count(ALL) == 4


async def test_reads_on_cut_connections_are_repeated(proxy: Proxy) -> None:
    async with opened(proxy.url, pool_size=3) as engine:
        for _ in range(3):
            assert (
                await asyncio.gather(*(Transactions(engine).count(ALL) for _ in range(6))) == [2] * 6
            )  # uses all connections
            proxy.cut()
            assert await Transactions(engine).count(ALL) == 2
            proxy.cut()
            await engine.check()
            engine.clock._measured_at = None
            proxy.cut()
            assert await engine.now() > 0


# ---- a connection that is silent


async def test_silent_server_before_commit_is_unavailable_and_writes_nothing(proxy: Proxy) -> None:
    async with opened(proxy.url, timeout_seconds=SILENCE_SECONDS) as engine:
        engine.before_write = proxy.hold
        started = time.monotonic()
        with pytest.raises(StorageUnavailable, match="did not answer in time"):
            await tell(engine, use(1, KEY))
        assert time.monotonic() - started < SILENCE_SECONDS + 1
        engine.before_write = lambda: None
        proxy.release()
        assert isinstance(await soon(lambda: tell(engine, use(1, KEY))), Posted)
        assert await Transactions(engine).count(ALL) == 3


async def test_silent_server_at_commit_is_unknown_until_retry(proxy: Proxy) -> None:
    async with opened(proxy.url, timeout_seconds=SILENCE_SECONDS) as engine:
        engine.before_commit = proxy.hold
        started = time.monotonic()
        with pytest.raises(OutcomeUnknown):
            await tell(engine, use(1, KEY), deadline_seconds=1)
        assert engine.errors[0] == "OutcomeUnknown"
        assert time.monotonic() - started < 1 + 2 * SILENCE_SECONDS + 1
        engine.before_commit = lambda: None
        proxy.release()
        await soon(lambda: tell(engine, use(1, KEY)))
        assert await Transactions(engine).count(ALL) == 3
        assert (await Accounts(engine).load([MERCHANT], 0))[MERCHANT].account.balance == 98


@pytest.mark.parametrize("way", ["loaded", "recent"])
async def test_silent_server_at_optimistic_write_is_unknown_until_retry(proxy: Proxy, way: str) -> None:
    async with opened(proxy.url, timeout_seconds=SILENCE_SECONDS) as engine:
        engine.way = way
        engine.before_lone_write = proxy.hold
        with pytest.raises(OutcomeUnknown):
            await tell(engine, use(1, KEY), deadline_seconds=1)
        assert engine.errors[0] == "OutcomeUnknown"
        engine.before_lone_write = lambda: None
        proxy.release()
        await soon(lambda: tell(engine, use(1, KEY)))
        assert await Transactions(engine).count(ALL) == 3
        assert (await Accounts(engine).load([MERCHANT], 0))[MERCHANT].account.balance == 98


async def test_timed_out_read_leaves_no_connection_behind(proxy: Proxy) -> None:
    async with opened(proxy.url, timeout_seconds=SILENCE_SECONDS, pool_size=3) as engine:
        await asyncio.gather(*(Transactions(engine).count(ALL) for _ in range(6)))
        proxy.hold()
        with pytest.raises(StorageUnavailable, match="did not answer in time"):
            await Transactions(engine).count(ALL)
        assert engine._reads._free == []
        proxy.release()
        assert await soon(lambda: Transactions(engine).count(ALL)) == 2


async def test_cancelled_caller_does_not_block_other_callers(url: str, proxy: Proxy) -> None:
    engine = RecordingEngine(proxy.url)
    try:
        proxy.hold()
        leaving = asyncio.create_task(Transactions(engine).count(ALL))
        await asyncio.sleep(0)  # the task starts to connect
        leaving.cancel()
        await asyncio.wait([leaving])
        proxy.release()
        assert await Transactions(engine).count(ALL) == 0
    finally:
        await engine.close()


async def test_lock_of_a_vanished_process_blocks_only_briefly(url: str, proxy: Proxy) -> None:
    async with opened(proxy.url, timeout_seconds=SILENCE_SECONDS) as vanishing:
        vanishing.before_write = proxy.hold  # the server holds the lock, and the connection falls silent
        with pytest.raises(StorageUnavailable):
            await tell(vanishing, use(1, KEY))
        other = RecordingEngine(url)
        try:
            assert isinstance(await tell(other, use(1, "other")), Posted)
        finally:
            await other.close()
        proxy.release()


async def test_engine_closes_while_server_is_silent(proxy: Proxy) -> None:
    async with opened(proxy.url, pool_size=5) as engine:
        await asyncio.gather(*(Transactions(engine).count(ALL) for _ in range(10)))
        proxy.hold()
        started = time.monotonic()
        await engine.close()
        assert time.monotonic() - started < 4
        proxy.release()


async def soon(ask: Callable[[], Any], seconds: float = 5) -> Any:
    """Retry until the call works. After `seconds` raise the last error."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with suppress(StorageError):
            return await ask()
        await asyncio.sleep(0.01)
    return await ask()


# ---- a server that refuses


async def test_engine_does_not_keep_read_only_sessions(url: str, proxy: Proxy) -> None:
    name = url.rpartition("/")[2]
    async with opened(proxy.url) as engine:
        await asked(url, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        proxy.cut()
        for _ in range(2):
            with pytest.raises(StorageUnavailable, match="read-only"):
                await tell(engine, use(1, KEY))
            with pytest.raises(StorageError, match="can only be read"):
                await engine.check()
            assert await Transactions(engine).count(ALL) == 2
        await asked(url, "SET default_transaction_read_only = off", f'ALTER DATABASE "{name}" RESET ALL')
        assert isinstance(await tell(engine, use(1, KEY)), Posted)
        await engine.check()


async def test_commit_that_rolls_back_is_a_conflict(url: str) -> None:
    async with opened(url) as engine:
        engine.spoiled = True
        assert isinstance(await tell(engine, use(1, KEY)), Posted)
        assert engine.errors == ["Conflict"]
        assert await Transactions(engine).count(ALL) == 3


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("state", "error"), [("40001", "Conflict"), ("23514", "BadRow")])
async def test_refused_commit_writes_nothing(url: str, way: str, state: str, error: str) -> None:
    refusal = f"""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'at the commit' USING ERRCODE = '{state}'; END $$;
        CREATE CONSTRAINT TRIGGER refusing AFTER INSERT ON transactions
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()
    """
    async with opened(url) as engine:
        engine.way = way
        await asked(url, refusal)
        with pytest.raises(StorageError, match="at the commit"):
            await tell(engine, use(1, KEY), deadline_seconds=1)
        assert set(engine.errors) == {error}
        await asked(url, "DROP TRIGGER refusing ON transactions")
        assert isinstance(await tell(engine, use(1, KEY)), Posted)


async def test_engine_does_not_flood_a_refusing_server() -> None:
    calls = 0

    def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        calls += 1
        writer.transport.abort()

    refusing = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = refusing.sockets[0].getsockname()[1]
    engine = RecordingEngine(f"postgresql://user:word@127.0.0.1:{port}/database")

    async def keep_asking(ask: Callable[[], Any], until: float) -> int:
        refused = 0
        while time.monotonic() < until:
            with pytest.raises(StorageUnavailable):
                await ask()
            refused += 1
            await asyncio.sleep(0)
        return refused

    started = time.monotonic()
    reads = [keep_asking(lambda: Transactions(engine).count(ALL), started + 0.5) for _ in range(30)]
    posts = [keep_asking(lambda: tell(engine, use(1)), started + 0.5) for _ in range(5)]
    refused = await asyncio.gather(*reads, *posts)
    assert sum(refused) > 3 * calls
    # The first callers connect together. Later only one caller at a time connects, with a pause. Each tries twice.
    assert calls <= 2 * (10 + 4 + (time.monotonic() - started) / 0.1)
    refusing.close()
    await refusing.wait_closed()
    await engine.close()
