"""What can happen to a connection to PostgreSQL at each message of a posting, and what the store says then.

Conflict: nothing was done, the same again may work. StorageUnavailable: nothing was done. OutcomeUnknown: the commit's
answer was lost. Whatever it was, the next posting works as soon as the database does.
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
COMMIT = b"COMMIT\0"  # and not BEGIN, whose isolation level is READ COMMITTED
SILENCE_SECONDS = 0.4


class Told(PostgresEngine):
    """A store that remembers what it told of postings that failed, and can be halted before it writes or commits.

    It locks before it loads, as for a large batch, unless its `way` is another.
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
        self.told: list[str] = []
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
            self.told.append(type(error).__name__)
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
async def opened(url: str, **more: Any) -> AsyncIterator[Told]:
    """A store that has posted and read, so that it has its connections and their statements."""
    store = Told(url, **{"timeout_seconds": 20, **more})  # on a machine that has much else to do, too
    try:
        if "127.0.0.1:1/" not in url:
            store.way = "remembered"
            await tell(store, payment("P", 100))
            await tell(store, use(1))
            assert await Transactions(store).count(ALL) == 2
            store.way = "locked"
        yield store
    finally:
        await store.close()


async def tell(store: PostgresEngine, *told: Command, deadline_seconds: float = 5) -> Outcome:
    """Post commands as the service does; the outcome of the last."""
    async with at_work(store, deadline_seconds=deadline_seconds) as posting:
        return (await posting.submit_many(told))[-1]


async def asked(url: str, *statements: str) -> None:
    """Run these statements on a connection of its own."""
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


# ---- a connection that is cut

# The lock goes with BEGIN. The merchant is first named to load what is known, what is announced to write it.
LOCKED: dict[str, tuple[Callable[[Proxy], Any], list[str]]] = {
    "idle": (Proxy.cut, ["Conflict"]),
    "before the lock": (lambda proxy: proxy.cut_before(b"BEGIN"), ["Conflict"]),
    "after the lock": (lambda proxy: proxy.cut_after(b"BEGIN"), ["Conflict"]),
    "before the load": (lambda proxy: proxy.cut_before(MERCHANT.bytes), ["Conflict"]),
    "after the load": (lambda proxy: proxy.cut_after(MERCHANT.bytes), ["Conflict"]),
    "before the write": (lambda proxy: proxy.cut_before(CONSUMED.encode()), ["Conflict"]),
    "after the write": (lambda proxy: proxy.cut_after(CONSUMED.encode()), ["Conflict"]),
    "before the commit": (lambda proxy: proxy.cut_before(COMMIT), ["OutcomeUnknown"]),
    "after the commit": (lambda proxy: proxy.cut_after(COMMIT), ["OutcomeUnknown"]),
}
# What is remembered is written and committed by one statement; else it is loaded without a lock before.
REMEMBERED = {name: (LOCKED[name][0], ["OutcomeUnknown"]) for name in ("idle", "before the write", "after the write")}
LOADED = REMEMBERED | {name: LOCKED[name] for name in ("idle", "before the load", "after the load")}
WAYS = {"locked": LOCKED, "loaded": LOADED, "remembered": REMEMBERED}


@pytest.mark.parametrize(("way", "where"), [(way, where) for way, places in WAYS.items() for where in places])
async def test_a_connection_that_is_cut_is_made_again_and_the_posting_posted_once(
    proxy: Proxy, way: str, where: str
) -> None:
    cut, told = WAYS[way][where]
    async with opened(proxy.url) as store:
        store.way = way
        sprung = cut(proxy)
        outcome = await tell(store, use(1, KEY))
        assert sprung is None or sprung.is_set()
        assert isinstance(outcome, Posted), "it is the first answer, also where a repeat had to find it out"
        assert store.told == told
        assert isinstance(await tell(store, use(1, KEY)), Replayed)
        assert await Transactions(store).count(ALL) == 3
        assert (await Accounts(store).load([MERCHANT], 0))[MERCHANT].account.balance == 98


@pytest.mark.parametrize(
    ("way", "where"), [(way, where) for way, places in WAYS.items() for where in places if where != "idle"]
)
async def test_what_is_decided_behind_a_posting_whose_connection_is_cut_is_posted_after_it_once(
    proxy: Proxy, way: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "AHEAD", 1)  # two commands are two batches already
    cut, told = WAYS[way][where]
    async with opened(proxy.url) as store:
        store.way = way
        sprung = cut(proxy)
        first, second = await tell_apart(store, use(1, KEY), use(1, "second"))
        assert sprung is None or sprung.is_set()
        assert isinstance(first, Posted)
        assert isinstance(second, Posted)
        assert first.account.sequence + 1 == second.account.sequence
        assert store.told == told
        async for books in store.books():
            assert [*books.faults, *verify(books.account, books.grants, list(books.transactions))] == []
        assert await Transactions(store).count(ALL) == 4


async def test_reads_on_connections_that_were_cut_are_read_again(proxy: Proxy) -> None:
    async with opened(proxy.url, pool_size=3) as store:
        for _ in range(3):
            assert (
                await asyncio.gather(*(Transactions(store).count(ALL) for _ in range(6))) == [2] * 6
            )  # all connections are used
            proxy.cut()
            assert await Transactions(store).count(ALL) == 2
            proxy.cut()
            await store.check()
            store.clock._measured_at = None
            proxy.cut()
            assert await store.now() > 0


# ---- a connection that is silent


async def test_silence_before_the_commit_is_unavailable_and_has_done_nothing(proxy: Proxy) -> None:
    async with opened(proxy.url, timeout_seconds=SILENCE_SECONDS) as store:
        store.before_write = proxy.hold
        started = time.monotonic()
        with pytest.raises(StorageUnavailable, match="did not answer in time"):
            await tell(store, use(1, KEY))
        assert time.monotonic() - started < SILENCE_SECONDS + 1
        store.before_write = lambda: None
        proxy.release()
        assert isinstance(await soon(lambda: tell(store, use(1, KEY))), Posted)
        assert await Transactions(store).count(ALL) == 3


async def test_silence_at_the_commit_is_unknown_and_the_key_finds_out(proxy: Proxy) -> None:
    async with opened(proxy.url, timeout_seconds=SILENCE_SECONDS) as store:
        store.before_commit = proxy.hold
        started = time.monotonic()
        with pytest.raises(OutcomeUnknown):
            await tell(store, use(1, KEY), deadline_seconds=1)
        assert store.told[0] == "OutcomeUnknown"
        assert time.monotonic() - started < 1 + 2 * SILENCE_SECONDS + 1
        store.before_commit = lambda: None
        proxy.release()
        await soon(lambda: tell(store, use(1, KEY)))
        assert await Transactions(store).count(ALL) == 3
        assert (await Accounts(store).load([MERCHANT], 0))[MERCHANT].account.balance == 98


@pytest.mark.parametrize("way", ["loaded", "remembered"])
async def test_silence_at_a_write_of_one_statement_is_unknown_and_the_key_finds_out(proxy: Proxy, way: str) -> None:
    async with opened(proxy.url, timeout_seconds=SILENCE_SECONDS) as store:
        store.way = way
        store.before_lone_write = proxy.hold
        with pytest.raises(OutcomeUnknown):
            await tell(store, use(1, KEY), deadline_seconds=1)
        assert store.told[0] == "OutcomeUnknown"
        store.before_lone_write = lambda: None
        proxy.release()
        await soon(lambda: tell(store, use(1, KEY)))
        assert await Transactions(store).count(ALL) == 3
        assert (await Accounts(store).load([MERCHANT], 0))[MERCHANT].account.balance == 98


async def test_a_read_that_met_silence_leaves_no_connection_behind_that_others_would_meet(proxy: Proxy) -> None:
    async with opened(proxy.url, timeout_seconds=SILENCE_SECONDS, pool_size=3) as store:
        await asyncio.gather(*(Transactions(store).count(ALL) for _ in range(6)))
        proxy.hold()
        with pytest.raises(StorageUnavailable, match="did not answer in time"):
            await Transactions(store).count(ALL)
        assert store._reads._free == []
        proxy.release()
        assert await soon(lambda: Transactions(store).count(ALL)) == 2


async def test_who_goes_away_while_it_connects_leaves_no_refusal_to_others(url: str, proxy: Proxy) -> None:
    store = Told(proxy.url)
    try:
        proxy.hold()
        leaving = asyncio.create_task(Transactions(store).count(ALL))
        await asyncio.sleep(0)  # it knocks
        leaving.cancel()
        await asyncio.wait([leaving])
        proxy.release()
        assert await Transactions(store).count(ALL) == 0
    finally:
        await store.close()


async def test_who_vanished_in_the_midst_of_a_posting_keeps_nobody_waiting_for_long(url: str, proxy: Proxy) -> None:
    async with opened(proxy.url, timeout_seconds=SILENCE_SECONDS) as vanishing:
        vanishing.before_write = proxy.hold  # the server has locked, and hears nothing more, not even an end
        with pytest.raises(StorageUnavailable):
            await tell(vanishing, use(1, KEY))
        other = Told(url)
        try:
            assert isinstance(await tell(other, use(1, "other")), Posted)
        finally:
            await other.close()
        proxy.release()


async def test_a_store_that_hears_nothing_is_closed_all_the_same(proxy: Proxy) -> None:
    async with opened(proxy.url, pool_size=5) as store:
        await asyncio.gather(*(Transactions(store).count(ALL) for _ in range(10)))
        proxy.hold()
        started = time.monotonic()
        await store.close()
        assert time.monotonic() - started < 4
        proxy.release()


async def soon(ask: Callable[[], Any], seconds: float = 5) -> Any:
    """What is answered as soon as the store is back; the last failure, where that takes longer."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with suppress(StorageError):
            return await ask()
        await asyncio.sleep(0.01)
    return await ask()


# ---- a server that refuses


async def test_sessions_begun_while_a_database_was_read_only_are_not_kept(url: str, proxy: Proxy) -> None:
    name = url.rpartition("/")[2]
    async with opened(proxy.url) as store:
        await asked(url, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        proxy.cut()
        for _ in range(2):
            with pytest.raises(StorageUnavailable, match="read-only"):
                await tell(store, use(1, KEY))
            with pytest.raises(StorageError, match="can only be read"):
                await store.check()
            assert await Transactions(store).count(ALL) == 2
        await asked(url, "SET default_transaction_read_only = off", f'ALTER DATABASE "{name}" RESET ALL')
        assert isinstance(await tell(store, use(1, KEY)), Posted)
        await store.check()


async def test_a_commit_that_the_server_answers_with_a_rollback_is_none(url: str) -> None:
    async with opened(url) as store:
        store.spoiled = True
        assert isinstance(await tell(store, use(1, KEY)), Posted)
        assert store.told == ["Conflict"]
        assert await Transactions(store).count(ALL) == 3


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("state", "told"), [("40001", "Conflict"), ("23514", "BadRow")])
async def test_a_commit_that_the_server_refuses_has_done_nothing(url: str, way: str, state: str, told: str) -> None:
    refusal = f"""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'at the commit' USING ERRCODE = '{state}'; END $$;
        CREATE CONSTRAINT TRIGGER refusing AFTER INSERT ON transactions
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()
    """
    async with opened(url) as store:
        store.way = way
        await asked(url, refusal)
        with pytest.raises(StorageError, match="at the commit"):
            await tell(store, use(1, KEY), deadline_seconds=0.2)
        assert set(store.told) == {told}
        await asked(url, "DROP TRIGGER refusing ON transactions")
        assert isinstance(await tell(store, use(1, KEY)), Posted)


async def test_a_server_that_refuses_is_not_stormed_with_connections() -> None:
    calls = 0

    def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        calls += 1
        writer.transport.abort()

    refusing = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = refusing.sockets[0].getsockname()[1]
    store = Told(f"postgresql://user:word@127.0.0.1:{port}/database")

    async def keep_asking(ask: Callable[[], Any], until: float) -> int:
        refused = 0
        while time.monotonic() < until:
            with pytest.raises(StorageUnavailable):
                await ask()
            refused += 1
            await asyncio.sleep(0)
        return refused

    started = time.monotonic()
    reads = [keep_asking(lambda: Transactions(store).count(ALL), started + 0.5) for _ in range(30)]
    posts = [keep_asking(lambda: tell(store, use(1)), started + 0.5) for _ in range(5)]
    refused = await asyncio.gather(*reads, *posts)
    assert sum(refused) > 3 * calls
    # Those that came together at first, and then one at a time with a pause; each tries twice.
    assert calls <= 2 * (10 + 4 + (time.monotonic() - started) / 0.1)
    refusing.close()
    await refusing.wait_closed()
    await store.close()
