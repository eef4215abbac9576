"""The PostgreSQL engine: the contract, both ways to post, and features of PostgreSQL only."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import count, groupby
from operator import itemgetter
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import ClauseElement

from credit_service.ledger import decide as ledger
from credit_service.ledger.decide import Needs, Replayed
from credit_service.ledger.draft import Posted
from credit_service.ledger.policy import Policy
from credit_service.ledger.proof import verify
from credit_service.ledger.refusals import Refused
from credit_service.posting import Posting, batch, queue
from credit_service.storage import accounts, books, keys, tables, transactions
from credit_service.storage.accounts import Accounts
from credit_service.storage.engine import BadRow, Committed, Conflict, Engine, Work
from credit_service.storage.keys import Keys
from credit_service.storage.postgres import statements as sql
from credit_service.storage.postgres.engine import PostgresEngine
from credit_service.storage.postgres.lanes import lane_of
from credit_service.storage.postgres.optimistic_statements import LAG_MICROS
from credit_service.storage.recent import CommitState
from credit_service.storage.transactions import TransactionQuery, Transactions
from tests.ledger.telling import MERCHANT, T0, add, payment, refund, use
from tests.servers.postgres import Databases
from tests.storage import values
from tests.storage.contract import Clock, EngineContract, tell, tell_apart
from tests.storage.engines import on_server, template
from tests.storage.values import of


class HaltingEngine(PostgresEngine):
    """An engine that can halt its next posting before the commit."""

    goes_on: asyncio.Event | None = None
    has_stopped = asyncio.Event()

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        commit = self.locked.commit

        async def halted(connection: Any) -> None:
            if self.goes_on is not None:
                self.has_stopped.set()
                await self.goes_on.wait()
            await commit(connection)

        self.locked.commit = halted  # type: ignore[method-assign]


class PostgresHarness:
    """See `tests.storage.contract.Harness`."""

    def __init__(self, url: str, *, optimistic: bool = True) -> None:
        self.url = url
        self.optimistic = optimistic
        self.clock = Clock()
        self._beneath: Any = None  # one shared connection, because a new connection takes longer than most tests

    async def fresh(self) -> HaltingEngine:
        await self._empty()
        return self.open()

    def open(self) -> HaltingEngine:
        numbers = count(1)
        return HaltingEngine(
            self.url,
            optimistic=self.optimistic,
            clock=self.clock,
            draw_number=lambda: next(numbers),
            timeout_seconds=20,
        )

    async def renewed(self, engine: Engine) -> Engine:
        assert isinstance(engine, HaltingEngine)
        await self._empty()
        engine.locked._draw_number = count(1).__next__
        return engine

    async def reopened(self, engine: Engine) -> HaltingEngine:
        await engine.close()
        return self.open()

    async def rows(self, table: str) -> list[tuple[Any, ...]]:
        order = ", ".join(column.name for column in tables.metadata.tables[table].primary_key)
        return list(map(tuple, await (await self.beneath()).fetch(f"SELECT * FROM {table} ORDER BY {order}")))

    @asynccontextmanager
    async def halfway(self, engine: Engine) -> AsyncIterator[None]:
        assert isinstance(engine, HaltingEngine)
        engine.has_stopped = asyncio.Event()
        engine.goes_on = asyncio.Event()
        optimistic, engine.optimistic = (
            engine.optimistic,
            None,
        )  # the optimistic way would commit in the statement that writes
        try:
            yield
            await engine.has_stopped.wait()
        finally:
            engine.optimistic = optimistic
            engine.goes_on.set()

    async def beneath(self) -> Any:
        """Return a separate connection to the database."""
        if self._beneath is None:
            self._beneath = await asyncpg.connect(self.url)
        return self._beneath

    async def close(self) -> None:
        if self._beneath is not None:
            await self._beneath.close()
            self._beneath = None

    async def _empty(self) -> None:
        # TRUNCATE makes new files, which is much slower for a few rows.
        await (await self.beneath()).execute("".join([f"DELETE FROM {name};" for name in tables.metadata.tables]))
        self.clock.now = Clock().now


@pytest.fixture(scope="module")
def database(postgres: Databases) -> Iterator[str]:
    with postgres.database(template(postgres)) as url:
        yield url


@pytest.fixture
async def harness(database: str) -> AsyncIterator[PostgresHarness]:
    harness = PostgresHarness(database)
    yield harness
    await harness.close()


class TestPostgres(EngineContract):
    """The contract, with the optimistic way."""


class TestPostgresLocked(EngineContract):
    """The contract, with only the locked way."""

    @pytest.fixture
    async def harness(self, database: str) -> AsyncIterator[PostgresHarness]:
        harness = PostgresHarness(database, optimistic=False)
        yield harness
        await harness.close()


# ---- plans of questions


LARGE = """
INSERT INTO accounts SELECT n, {n16}, 0, 0, 0, 0, 0, 0, 8, 8, 0, NULL, 0, 0, NULL, NULL, NULL, 'open',
    0, 0, '{{}}', NULL, '[]',
    CASE WHEN n % 50 = 0 THEN n END, 0, {zero} FROM generate_series(1, 4000) n;
INSERT INTO transactions SELECT account, n, 'INCREASE', 'PAYMENT', 0, 0, 0, 0, 0, 'k' || n, '', NULL, NULL, NULL,
    NULL, NULL, NULL, NULL, '[]', NULL, 'a', NULL, 0, 0, {zero}
    FROM generate_series(1, 4000) account, generate_series(1, CASE account WHEN 7 THEN 3000 ELSE 8 END) n;
INSERT INTO grants (account, number, sequence, category, priority, effective_at, amount, remaining, lapses, gone,
    open) SELECT account, n, 1, 'paid', 100, 0, 5, CASE n WHEN 1 THEN 5 ELSE 0 END, 0, 0,
    CASE n WHEN 1 THEN 1 ELSE 0 END
    FROM generate_series(1, 4000) account, generate_series(1, 6) n;
INSERT INTO events SELECT n % 16, n, n % 4000 + 1, n, 'recharged', n % 8 + 1, 0, 0 FROM generate_series(1, 30000) n;
INSERT INTO parked SELECT n, 'k', 'o', n, 0, 'order_refunded', '{{}}' FROM generate_series(1, 3000) n;
INSERT INTO given_back SELECT n, 'k', 0, 0, 0, 0, 0, '[]', '[]' FROM generate_series(1, 3000) n;
INSERT INTO api_keys SELECT n::text, 'n', 'read', {zero}, n FROM generate_series(1, 2000) n;
""".format(n16="lpad(to_hex(n), 32, '0')", zero="decode(repeat('00', 32), 'hex')")


@pytest.fixture(scope="module")
def large(postgres: Databases) -> Iterator[str]:
    """Yield the URL of a ledger that is large enough for realistic plans."""
    with postgres.database(template(postgres)) as url, on_server(url, LARGE, "VACUUM ANALYZE"):
        yield url


_PAGE = {"limit": 5, "offset": 0}
_BETWEEN = {"after": 0, "before": 3_001}
_LANES = {f"before_{lane}": 2**60 for lane in range(16)}
OFTEN: dict[str, tuple[ClauseElement, dict[str, Any]]] = {
    "a transaction": (transactions.ONE_TRANSACTION, {"account": 7, "sequence": 5}),
    "a whole history": (books.HISTORY, {"account": 9}),
    "an account's grants": (books.ALL_GRANTS, {"account": 9}),
    "a key": (keys.KEY, {"id": "77"}),
    "due": (accounts.DUE, {"at": 500, "limit": 10}),
    "overdue": (accounts.OVERDUE, {"at": 500, "limit": 10}),
    "drift": (accounts.DRIFT, {"after": "", "limit": 10, "genesis": bytes(32)}),
    "the last one by then": (transactions.LAST_BY, {"account": 7, "at": 5}),
    "an account's history": (transactions._history(frozenset()), {"account": 7, **_BETWEEN, **_PAGE}),
    "everybody's history": (transactions._listing(frozenset(_PAGE), 16), {**_LANES, "limit": 5}),
    "accounts": (accounts._listing(frozenset({"after", "at", "limit"})), {"after": "", "at": 0, "limit": 5}),
}


async def plan(url: str, statement: str, *values: Any, **settings: str) -> str:
    """Return the server's plan for a statement."""
    connection = await asyncpg.connect(url, server_settings={"jit": "off", **settings})
    try:
        return "\n".join([row[0] for row in await connection.fetch(f"EXPLAIN {statement}", *values)])
    finally:
        await connection.close()


@pytest.mark.parametrize("name", OFTEN)
async def test_frequent_questions_neither_scan_nor_sort_a_table(large: str, name: str):
    statement, given = OFTEN[name]
    made = sql.compiled(statement)
    text = await plan(large, made.sql, *made.bound(given))
    assert "Seq Scan" not in text, text
    assert "Sort" not in text or name == "an account's grants", (
        text
    )  # the server finds a few rows by their key and sorts them


@pytest.mark.parametrize(
    ("table", "columns", "place", "condition"),
    [
        (tables.accounts, ("merchant_id",), ("a",), "true"),
        (tables.accounts, ("number",), (5,), "true"),
        (tables.transactions, ("account", "key"), (5, "a key"), "true"),
        (tables.transactions, ("account", "sequence"), (5, 1), "true"),
        (tables.grants, ("account",), (5,), tables.OPEN),
        (tables.grants, ("account", "number"), (5, 1), "true"),
        (tables.given_back, ("account", "key"), (5, "a key"), "true"),
        (tables.parked, ("account",), (5,), "true"),
    ],
    ids=lambda part: getattr(part, "name", None),
)
@pytest.mark.parametrize("places", [1, 1000])
async def test_places_are_looked_up_by_an_index_however_many(
    large: str, table: Any, columns: tuple[str, ...], place: tuple[Any, ...], condition: str, places: int
):
    text = await plan(large, sql.rows_at(table, columns, condition), *[[value] * places for value in place])
    assert "Seq Scan" not in text, text


@pytest.mark.parametrize("with_all", [False, True])
async def test_posting_is_loaded_by_indexes_alone(postgres: Databases, large: str, with_all: bool):
    places: list[list[Any]] = [["a"], [3], ["a"], ["a key"]]
    if with_all:
        places += [["a"], ["a key"], ["a"]]
    with postgres.database(template(postgres)) as empty:  # the planner prefers a scan of an empty table
        for url in (empty, large):
            text = await plan(url, sql.load(with_all, with_all), *places, **sql.POSTING_SETTINGS)
            assert "Seq Scan" not in text, text


@pytest.fixture
def skewed(postgres: Databases) -> Iterator[str]:
    """Yield the URL of a ledger with 200 transactions of one merchant and one of each other merchant."""
    one_each = LARGE.partition("INSERT INTO grants")[0].replace("ELSE 8", "ELSE 1").replace("THEN 3000", "THEN 200")
    with postgres.database(template(postgres)) as url, on_server(url, one_each, "ANALYZE"):
        yield url


@pytest.mark.parametrize(
    ("column", "types", "values"),
    [("key", "(bigint[], text[])", "'{7}', '{k1}'"), ("sequence", "(bigint[], bigint[])", "'{7}', '{1}'")],
)
async def test_transaction_is_found_by_its_index_in_a_skewed_ledger(skewed: str, column: str, types: str, values: str):
    connection = await asyncpg.connect(skewed, server_settings=sql.POSTING_SETTINGS)
    try:
        asked = sql.rows_at(tables.transactions, ("account", column), "true")
        await connection.execute(f"PREPARE asked {types} AS {asked}")
        text = "\n".join([row[0] for row in await connection.fetch(f"EXPLAIN EXECUTE asked ({values})")])
    finally:
        await connection.close()
    assert f"{column} = " in text.partition("Index Cond:")[2].partition("\n")[0], text


async def test_deep_pages_read_no_more_than_the_first(large: str):
    made = sql.compiled(transactions._history(frozenset()))
    connection = await asyncpg.connect(large)
    try:
        read = []
        for offset in (0, 1_500, 2_900):
            given = made.bound({"account": 7, **_BETWEEN, "limit": 5, "offset": offset})
            explained = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {made.sql}", *given)
            (found,) = json.loads(explained)
            assert found["Plan"]["Actual Rows"] == 5
            read.append(found["Plan"]["Shared Hit Blocks"] + found["Plan"]["Shared Read Blocks"])
    finally:
        await connection.close()
    assert max(read) <= min(read) + 3


# ---- several engines at once


def test_lanes_are_locked_in_ascending_order_first():
    text = sql.begin([9, 3, 12], {"lock_timeout": "5"})
    begun, timeout, *locks, end = text.split(";")
    assert (begun, timeout, end) == ("BEGIN ISOLATION LEVEL READ COMMITTED", "SET LOCAL lock_timeout = 5", "")
    assert locks == [f"SELECT pg_advisory_xact_lock({sql.LOCKS}, {lane})" for lane in (3, 9, 12)]


def test_lane_of_a_merchant_never_changes():
    merchants = ["6f1c2a54-8d0e-4c0b-9c55-0c7a8c1f2b11", "cus_17", "1", "2", "a.b:c~d-e_f"]
    assert [lane_of(merchant) for merchant in merchants] == [1, 10, 7, 13, 10]


@pytest.mark.parametrize("ahead", [queue.AHEAD, 2], ids=["seldom ahead", "often ahead"])
async def test_two_engines_on_the_same_accounts_post_each_key_once(
    harness: PostgresHarness, ahead: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(queue, "AHEAD", ahead)
    await (await harness.fresh()).close()
    engines = [PostgresEngine(harness.url, timeout_seconds=20) for _ in range(2)]
    conflicts: list[Exception] = []
    postings = [Posting(engine, Policy(trial_credits=0), deadline_seconds=60) for engine in engines]
    for engine, each in zip(engines, postings, strict=True):
        _spy(engine, conflicts)
        each.start()
    chance = random.Random(4)
    merchants = [str(UUID(int=number)) for number in range(1, 13)]
    expected = Counter[str]()
    try:
        await asyncio.gather(*[postings[0].submit(of(merchant, payment("P", 1_000_000))) for merchant in merchants])

        async def post(caller: int) -> None:
            for number in range(12):
                some = chance.sample(merchants, 4)
                amounts = [chance.randint(1, 9) for _ in some]
                spends = [of(one, use(amount, f"{caller} {number}")) for one, amount in zip(some, amounts, strict=True)]
                for outcome in await postings[caller % 2].submit_many(spends):
                    assert isinstance(outcome, Posted)
                expected.update(dict(zip(some, amounts, strict=True)))

        async def race(caller: int) -> bool:
            outcome = await postings[caller % 2].submit(of(merchants[0], use(7, "the same")))
            assert isinstance(outcome, Posted | Replayed)
            return isinstance(outcome, Posted)

        racing = asyncio.gather(*[race(caller) for caller in range(50)])
        await asyncio.gather(*[post(caller) for caller in range(8)])
        assert sum(await racing) == 1
        expected[merchants[0]] += 7
        async for books in engines[1].books():
            assert books.account.balance == 1_000_000 - expected[books.account.merchant_id]
            assert [*books.faults, *verify(books.account, books.grants, list(books.transactions))] == []
        assert await Accounts(engines[0]).drifting(None, 100) == ([], None)
    finally:
        for each in postings:
            await each.drain()
        for engine in engines:
            await engine.close()
    assert conflicts == []
    events = await harness.rows("events")
    for _, lane in groupby(events, key=itemgetter(0)):
        assert {row[1] - position for position, row in enumerate(lane, 1)} == {0}
    for merchant, account in {row[1]: row for row in await harness.rows("accounts")}.items():
        mine = [row for row in events if row[2] == account[0]]  # in lane order
        assert {row[0] for row in mine} == {lane_of(merchant)}
        assert [row[3] for row in mine] == list(range(1, len(mine) + 1))


def _spy(engine: PostgresEngine, seen: list[Exception]) -> None:
    post = engine.post

    async def spied(needs: Sequence[Needs], work: Work, after: asyncio.Future[bool] | None = None) -> Committed:
        try:
            return await post(needs, work, after)
        except Exception as error:
            seen.append(error)
            raise

    engine.post = spied  # type: ignore[method-assign]


# ---- the optimistic way


class Interrupted(PostgresEngine):
    """An engine that counts loads and decisions. A test can interrupt it between a load and its decision."""

    interruption: Callable[[], Awaitable[object]] | None = None
    loads = 0
    decisions = 0

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        assert self.optimistic is not None
        self.layer = self.optimistic
        load_few, load_many, note = self.locked.load_few, self.locked._load_many, self.layer.note

        async def loaded_few(*arguments: Any) -> Any:
            loaded = await load_few(*arguments)
            self.loads += 1
            if self.interruption is not None:
                interruption, self.interruption = self.interruption, None
                await interruption()
            return loaded

        async def loaded_many(*arguments: Any) -> Any:
            self.loads += 1
            return await load_many(*arguments)

        def noted(*arguments: Any) -> None:
            self.decisions += 1
            note(*arguments)

        self.locked.load_few = loaded_few  # type: ignore[method-assign, assignment]
        self.locked._load_many = loaded_many  # type: ignore[method-assign, assignment]
        self.layer.note = noted  # type: ignore[method-assign, assignment]


@asynccontextmanager
async def alone(
    harness: PostgresHarness, kind: type[Interrupted] = Interrupted, **more: Any
) -> AsyncIterator[Interrupted]:
    """Open the only engine of an empty database. Its clock stands still, so that a busy machine delays no decision."""
    await (await harness.fresh()).close()
    engine = kind(harness.url, timeout_seconds=20, **{"clock": harness.clock, **more})
    try:
        yield engine
    finally:
        await engine.close()


async def books_are_right(harness: PostgresHarness, engine: PostgresEngine) -> None:
    """Check that every account verifies and the event ids of each lane have no gap."""
    async for one in engine.books():
        assert [*one.faults, *verify(one.account, one.grants, list(one.transactions))] == []
    for _, lane in groupby(await harness.rows("events"), key=itemgetter(0)):
        ids = [row[1] for row in lane]
        assert ids == list(range(1, len(ids) + 1))


SAME_LANE = next(one for number in count(100) if lane_of(one := str(UUID(int=number))) == lane_of(MERCHANT))
OTHERS = [
    pytest.param([use(5, "other")], id="posted to the account"),
    pytest.param([of(SAME_LANE, payment("P", 1))], id="announced an event in the lane"),
    pytest.param([refund("R", "unknown", credits=1)], id="parked a refund"),
    pytest.param([use(3, "mine")], id="used the key"),
]


@pytest.mark.parametrize("others", OTHERS)
@pytest.mark.parametrize("recent", [False, True], ids=["loaded", "recent"])
async def test_posting_is_decided_again_after_another_process_wrote(
    harness: PostgresHarness, others: list[Any], recent: bool
):
    other = await harness.fresh()
    engine = Interrupted(harness.url, timeout_seconds=20, clock=harness.clock)
    try:
        if recent:
            await tell(engine, payment("P", 100))
            await tell(other, *others)
        else:
            await tell(other, payment("P", 100))
            engine.interruption = lambda: tell(other, *others)
        (outcome,) = await tell(engine, use(3, "mine"))
        replayed = others[0].key == "mine"
        assert isinstance(outcome, Replayed if replayed else Posted)
        again = recent and replayed  # a replay is not a conflict
        assert _locked_next(engine) == ([] if again else [100]), "the next postings use the locked way"
        await books_are_right(harness, engine)
        account = (await Accounts(engine).load([MERCHANT], 0))[MERCHANT].account
        assert account.balance == 100 - 3 - (5 if others[0].key == "other" else 0)
        await tell(engine, use(1))
        assert _locked_next(engine) == ([] if again else [99]), "the engine forgets the failed batch"
    finally:
        await engine.close()
        await other.close()


def _locked_next(engine: Interrupted) -> list[int]:
    """Return for each stream the number of next postings that use the locked way, without zeros."""
    return [stream.locked_next for stream in engine.layer.streams if stream.locked_next]


async def test_recent_accounts_are_not_loaded(harness: PostgresHarness):
    merchants = [str(UUID(int=number)) for number in range(1, 41)]
    async with alone(harness) as engine:
        await tell(engine, *[of(merchant, payment("P", 100)) for merchant in merchants])
        engine.loads = 0
        await tell(engine, *[of(merchant, use(2, "small")) for merchant in merchants], of(merchants[0], use(1)))
        await tell(engine, *[of(merchant, use(1)) for merchant in merchants * 3])
        assert engine.loads == 0
        outcomes = await tell(engine, of(merchants[0], use(1)), of(str(UUID(int=99)), payment("P", 9)))
        assert all(isinstance(outcome, Posted) for outcome in outcomes)
        assert engine.loads == 1, "the engine loads only the new merchant"
        held = await Accounts(engine).load(merchants, 0)
        assert [held[merchant].account.balance for merchant in merchants] == [93, *[95] * 39]
        assert _locked_next(engine) == []
        await books_are_right(harness, engine)


@pytest.mark.parametrize("many", [1, 60, 150])
async def test_recent_accounts_replay_and_refuse_only_by_the_database(harness: PostgresHarness, many: int):
    other = await harness.fresh()
    engine = Interrupted(harness.url, timeout_seconds=20, clock=harness.clock)
    merchants = [str(UUID(int=number)) for number in range(1, many + 1)]
    try:
        await tell(engine, *[of(merchant, payment("P", 10)) for merchant in merchants])
        used = [of(merchant, use(1, "key")) for merchant in merchants]
        await tell(engine, *used)
        assert [type(one) for one in await tell(engine, *used)] == [Replayed] * many
        assert _locked_next(engine) == [], "a replay is not a conflict"
        await tell(other, of(merchants[0], payment("Q", 90)))
        assert [type(one) for one in await tell(engine, of(merchants[0], use(99, "all")))] == [Posted]
        await tell(other, of(merchants[0], use(1, "last")), *[of(one, use(9, "last")) for one in merchants[1:]])
        outcomes = await tell(engine, *[of(merchant, use(1, "more")) for merchant in merchants])
        assert [type(one) for one in outcomes] == [Refused] * many
    finally:
        await engine.close()
        await other.close()


async def test_engine_detects_reused_row_version_after_failover(harness: PostgresHarness):
    """After a failover the new server may lack the last postings, and use their row versions for other rows."""
    other = await harness.fresh()
    engine = Interrupted(harness.url, timeout_seconds=20, clock=harness.clock)
    try:
        await tell(engine, payment("P", 100))
        await tell(other, use(30))
        beneath = await harness.beneath()
        known = engine.layer.recent._accounts[MERCHANT]
        version = await beneath.fetchval("SELECT xmin FROM accounts")
        engine.layer.recent._accounts[MERCHANT] = known._replace(commit=CommitState(version))
        (outcome,) = await tell(engine, use(1))
        assert isinstance(outcome, Posted)
        assert outcome.account.balance == 69
    finally:
        await engine.close()
        await other.close()


# ---- deciding ahead


@asynccontextmanager
async def lane_locked(harness: PostgresHarness) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Lock the merchant's lane until the end of the block. Yields a function that waits for a blocked posting."""
    beneath = await harness.beneath()

    async def a_posting_waits() -> None:
        while not await beneath.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            await beneath.execute("SELECT pg_sleep(0.01)")

    async with beneath.transaction():
        await beneath.execute(f"SELECT pg_advisory_xact_lock({sql.LOCKS}, {lane_of(MERCHANT)})")
        yield a_posting_waits


@pytest.fixture
def in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Split two pending commands into two batches, so that the second is decided ahead."""
    monkeypatch.setattr(queue, "AHEAD", 1)


@pytest.mark.usefixtures("in_halves")
@pytest.mark.parametrize("second", [MERCHANT, SAME_LANE], ids=["same account", "same lane"])
async def test_batch_is_decided_ahead_while_the_one_before_is_written(harness: PostgresHarness, second: str):
    async with alone(harness) as engine:
        await tell(engine, *[of(one, payment("P", 100)) for one in (MERCHANT, SAME_LANE)])
        engine.loads = engine.decisions = 0
        async with lane_locked(harness) as a_posting_waits:
            posting_both = asyncio.create_task(tell_apart(engine, use(1, "first"), of(second, use(1, "second"))))
            await a_posting_waits()
            assert engine.decisions == 2
        assert [type(outcome) for outcome in await posting_both] == [Posted, Posted]
        assert (engine.decisions, engine.loads, _locked_next(engine)) == (2, 0, [])
        await books_are_right(harness, engine)


@pytest.mark.usefixtures("in_halves")
@pytest.mark.parametrize("others", OTHERS)
@pytest.mark.parametrize("second", [MERCHANT, SAME_LANE], ids=["same account", "same lane"])
async def test_batch_decided_ahead_on_a_failed_batch_is_decided_again(
    harness: PostgresHarness, others: list[Any], second: str
):
    other = await harness.fresh()
    engine = Interrupted(harness.url, timeout_seconds=20, clock=harness.clock)
    try:
        await tell(engine, payment("P", 100), of(SAME_LANE, payment("Q", 100)))
        await tell(other, *others)
        first, last = await tell_apart(engine, use(3, "mine"), of(second, use(4, "second")))
        assert isinstance(first, Replayed if others[0].key == "mine" else Posted)
        assert isinstance(last, Posted)
        await books_are_right(harness, engine)
    finally:
        await engine.close()
        await other.close()


async def test_lane_with_an_unknown_last_event_gets_no_gap(harness: PostgresHarness):
    lane = lane_of(MERCHANT)
    async with alone(harness) as engine:
        await tell(engine, payment("P", 100))
        engine.layer.last_events[lane] = engine.layer.last_events[lane]._replace(id=9)
        assert isinstance((await tell(engine, use(1)))[0], Posted)
        await books_are_right(harness, engine)


@pytest.mark.usefixtures("in_halves")
async def test_batch_decided_ahead_is_decided_again_if_late(harness: PostgresHarness):
    class Late(Interrupted):
        def __init__(self, url: str, **options: Any) -> None:
            super().__init__(url, **options)
            send, estimate = self.layer._send, self.clock.estimate
            self.lag = 0

            async def sent(*arguments: Any) -> Any:
                written = await send(*arguments)
                self.lag = LAG_MICROS
                return written

            def late() -> int:
                lag, self.lag = self.lag, 0
                return estimate() + lag

            self.layer._send = sent  # type: ignore[method-assign, assignment]
            self.clock.estimate = late  # type: ignore[method-assign]

    async with alone(harness, Late) as engine:
        await tell(engine, payment("P", 100))
        engine.decisions = 0
        assert [type(one) for one in await tell_apart(engine, use(1, "a"), use(1, "b"))] == [Posted, Posted]
        assert (engine.decisions, _locked_next(engine)) == (3, []), "the second batch twice, without a conflict"
        await books_are_right(harness, engine)


@pytest.mark.usefixtures("in_halves")
async def test_batch_after_a_broken_constraint_leaves_no_event_gap(
    harness: PostgresHarness,
):
    beneath = await harness.beneath()
    async with alone(harness) as engine:
        await beneath.execute("ALTER TABLE transactions ADD CONSTRAINT lawful CHECK (key <> 'unlawful')")
        try:
            await tell(engine, *[of(one, payment("P", 100)) for one in (MERCHANT, SAME_LANE)])
            broken, outcome = await tell_apart(engine, use(1, "unlawful"), of(SAME_LANE, use(2, "lawful")))
            assert isinstance(broken, BadRow)
            assert isinstance(outcome, Posted)
            await books_are_right(harness, engine)
        finally:
            await beneath.execute("ALTER TABLE transactions DROP CONSTRAINT lawful")


@pytest.mark.usefixtures("in_halves")
async def test_error_of_deciding_ahead_is_raised_in_its_turn(harness: PostgresHarness, monkeypatch: pytest.MonkeyPatch):
    decided: list[str] = []

    def decide(state: Any, command: Any, *more: Any) -> Any:
        decided.append(command.key)
        if command.key == "broken":
            raise RuntimeError("a rule broke")
        return ledger_decides(state, command, *more)

    ledger_decides = ledger.decide
    monkeypatch.setattr(batch, "decide", decide)
    async with alone(harness) as engine:
        await tell(engine, payment("P", 100))
        first, second = await tell_apart(engine, use(1, "first"), use(1, "broken"))
        assert isinstance(first, Posted)
        assert isinstance(second, RuntimeError)
        assert decided.count("broken") > 1
        await books_are_right(harness, engine)


@pytest.mark.parametrize("recent", [False, True], ids=["loaded", "recent"])
async def test_L7_posting_that_waited_for_its_lane_is_decided_again(harness: PostgresHarness, recent: bool):
    beneath = await harness.beneath()
    async with alone(harness, clock=None) as engine:
        await tell(engine, payment("P", 100))
        if not recent:
            engine.layer.recent.clear()
        async with lane_locked(harness) as a_posting_waits:
            waiting = asyncio.create_task(tell(engine, use(1)))
            await a_posting_waits()
            await beneath.execute("SELECT pg_sleep(0.2)")
            free_at = await beneath.fetchval(sql.NOW)
        (outcome,) = await waiting
        assert isinstance(outcome, Posted)
        assert outcome.transaction is not None
        assert outcome.transaction.created_at >= free_at
        assert abs(await engine.now() - await beneath.fetchval(sql.NOW)) < 100_000, (
            "the engine does not measure the clock by that answer"
        )


async def test_posting_that_waits_too_long_for_its_lane_conflicts(harness: PostgresHarness):
    await (await harness.fresh()).close()
    engine = PostgresEngine(harness.url, timeout_seconds=0.5)
    beneath = await harness.beneath()
    seen: list[Exception] = []
    try:
        await tell(engine, payment("P", 100))
        _spy(engine, seen)
        async with beneath.transaction():
            await beneath.execute(f"SELECT pg_advisory_xact_lock({sql.LOCKS}, {lane_of(MERCHANT)})")
            posting = asyncio.create_task(tell(engine, use(1)))
            while not seen:
                await beneath.execute("SELECT pg_sleep(0.01)")
        assert isinstance((await posting)[0], Posted)
        assert {type(error) for error in seen} == {Conflict}
    finally:
        await engine.close()


async def test_recent_accounts_are_posted_at_the_time_of_the_database(harness: PostgresHarness):
    async with alone(harness, clock=None) as engine:
        await tell(engine, payment("P", 100))
        engine.loads = 0
        await tell(engine, use(1))
        assert engine.loads == 0
        before = await engine.now()
        assert engine.clock._measured_at is not None
        engine.clock._measured_at -= 11_000_000
        engine.clock._offset += 10**12
        await tell(engine, use(1))
        assert engine.loads == 1
        ((_, last, _),) = await Transactions(engine).page(TransactionQuery(), None, 1)
        assert 0 <= last.created_at - before < 10**10


async def test_account_opened_by_two_at_once_is_opened_once(harness: PostgresHarness):
    other = await harness.fresh()
    engine = Interrupted(harness.url, timeout_seconds=20, clock=harness.clock)
    try:
        engine.interruption = lambda: tell(other, payment("P", 100))
        (outcome,) = await tell(engine, payment("Q", 10))
        assert isinstance(outcome, Posted)
        assert not outcome.opened
        assert outcome.account.balance == 110
    finally:
        await engine.close()
        await other.close()


async def test_replay_and_refusal_wait_for_no_lock(harness: PostgresHarness):
    engine = await harness.fresh()
    await tell(engine, payment("P", 100), use(1, "k"))
    beneath = await harness.beneath()
    async with beneath.transaction():
        await beneath.execute(f"SELECT pg_advisory_xact_lock({sql.LOCKS}, {lane_of(MERCHANT)})")
        assert isinstance((await tell(engine, use(1, "k")))[0], Replayed)
        assert isinstance((await tell(engine, use(1000)))[0], Refused)
        posting = asyncio.create_task(tell(engine, use(2)))
        done, _ = await asyncio.wait([posting], timeout=0.1)
        assert not done
    assert isinstance((await posting)[0], Posted)
    await engine.close()


async def test_batches_of_opposite_merchant_order_do_not_deadlock(
    harness: PostgresHarness,
):
    """The engine has one stream, so that a batch has many lanes."""
    await (await harness.fresh()).close()
    engines = [PostgresEngine(harness.url, timeout_seconds=20, streams=1) for _ in range(2)]
    merchants = [str(UUID(int=number)) for number in range(1, 33)]
    try:

        async def post(engine: PostgresEngine, order: list[str], name: str) -> None:
            for number in range(15):
                commands = [of(merchant, add(1, f"{name} {number}")) for merchant in order]
                await tell(engine, *commands)

        await tell(engines[0], *[of(merchant, payment("P", 1)) for merchant in merchants])
        await asyncio.gather(post(engines[0], merchants, "there"), post(engines[1], merchants[::-1], "back"))
        assert {books.account.balance async for books in engines[0].books()} == {31}
    finally:
        for engine in engines:
            await engine.close()


# ---- through a pooler


@pytest.mark.parametrize("real", [False, True], ids=["simulated", "PgBouncer"])
async def test_postings_and_reads_work_through_a_pooler(harness: PostgresHarness, pooled: Any, real: bool):
    await (await harness.fresh()).close()
    url = (await asyncio.to_thread(pooled, harness.url)).url if real else harness.url
    engines = [PostgresEngine(url, timeout_seconds=20, pooled=True) for _ in range(2)]
    merchants = [str(UUID(int=number)) for number in range(1, 9)]
    try:
        await tell(engines[0], *[of(merchant, payment("P", 1_000)) for merchant in merchants])

        async def post(engine: PostgresEngine, name: str) -> None:
            for number in range(8):
                commands = [of(merchant, use(1, f"{name} {number}")) for merchant in merchants]
                await tell(engine, *commands, of(merchants[0], refund(f"{name} {number}", f"{name}", credits=1)))
                await Accounts(engine).load(merchants, T0)
                await Transactions(engine).page(TransactionQuery(), None, 5)

        await asyncio.gather(*[post(engine, f"{index}") for index, engine in enumerate(engines)])
        await tell(engines[0], *[of(str(UUID(int=100 + number)), payment("P", 1)) for number in range(300)])
        async for books in engines[1].books(merchants):
            assert books.account.balance == 1_000 - 16
            assert [*books.faults, *verify(books.account, books.grants, list(books.transactions))] == []
        await Keys(engines[0]).add(values.FULL_KEY)
        await engines[1].check()
        assert await Keys(engines[1]).all() == [values.FULL_KEY]
    finally:
        for engine in engines:
            await engine.close()
