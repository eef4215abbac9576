"""The PostgreSQL store: the contract of all stores, and what only PostgreSQL has."""

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
from tests.storage.contract import Clock, StoreContract, tell, tell_apart
from tests.storage.engines import on_server, template
from tests.storage.values import of


class HaltingStore(PostgresEngine):
    """A store whose next posting can be made to stop before its commit."""

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
        self._beneath: Any = None  # a connection, since to make one takes longer than most tests

    async def fresh(self) -> HaltingStore:
        await self._empty()
        return self.open()

    def open(self) -> HaltingStore:
        numbers = count(1)
        return HaltingStore(
            self.url,
            optimistic=self.optimistic,
            clock=self.clock,
            draw_number=lambda: next(numbers),
            timeout_seconds=20,
        )

    async def renewed(self, store: Engine) -> Engine:
        assert isinstance(store, HaltingStore)
        await self._empty()
        store.locked._draw_number = count(1).__next__
        return store

    async def reopened(self, store: Engine) -> HaltingStore:
        await store.close()
        return self.open()

    async def rows(self, table: str) -> list[tuple[Any, ...]]:
        order = ", ".join(column.name for column in tables.metadata.tables[table].primary_key)
        return list(map(tuple, await (await self.beneath()).fetch(f"SELECT * FROM {table} ORDER BY {order}")))

    @asynccontextmanager
    async def halfway(self, store: Engine) -> AsyncIterator[None]:
        assert isinstance(store, HaltingStore)
        store.has_stopped = asyncio.Event()
        store.goes_on = asyncio.Event()
        optimistic, store.optimistic = store.optimistic, None  # which would commit in the statement that writes
        try:
            yield
            await store.has_stopped.wait()
        finally:
            store.optimistic = optimistic
            store.goes_on.set()

    async def beneath(self) -> Any:
        """A connection to the database, beside those of the store."""
        if self._beneath is None:
            self._beneath = await asyncpg.connect(self.url)
        return self._beneath

    async def close(self) -> None:
        if self._beneath is not None:
            await self._beneath.close()
            self._beneath = None

    async def _empty(self) -> None:
        # Not TRUNCATE, which makes new files: for the few rows of a test that takes far longer.
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


class TestPostgres(StoreContract):
    """The contract, with the optimistic way on."""


class TestPostgresLocked(StoreContract):
    """The contract, with the locked way alone."""

    @pytest.fixture
    async def harness(self, database: str) -> AsyncIterator[PostgresHarness]:
        harness = PostgresHarness(database, optimistic=False)
        yield harness
        await harness.close()


# ---- asking


LARGE = """
INSERT INTO accounts SELECT n, {n16}, 0, 0, 0, 0, 0, 0, 8, 8, 0, NULL, 0, 0, NULL, NULL, NULL, 0, 0, '{{}}', '[]',
    CASE WHEN n % 50 = 0 THEN n END, 0, {zero} FROM generate_series(1, 4000) n;
INSERT INTO transactions SELECT account, n, 'INCREASE', 'PAYMENT', 0, 0, 0, 0, 0, 'k' || n, '', NULL, NULL, NULL,
    NULL, NULL, NULL, NULL, '[]', NULL, 'a', NULL, 0, 0, {zero}
    FROM generate_series(1, 4000) account, generate_series(1, CASE account WHEN 7 THEN 3000 ELSE 8 END) n;
INSERT INTO grants (account, number, sequence, category, priority, effective_at, amount, remaining, lapses, open)
    SELECT account, n, 1, 'paid', 100, 0, 5, CASE n WHEN 1 THEN 5 ELSE 0 END, 0, CASE n WHEN 1 THEN 1 ELSE 0 END
    FROM generate_series(1, 4000) account, generate_series(1, 6) n;
INSERT INTO events SELECT n % 16, n, n % 4000 + 1, n, 'recharged', n % 8 + 1, 0, 0 FROM generate_series(1, 30000) n;
INSERT INTO parked SELECT n, 'k', 'o', n, 0, 'order_refunded', '{{}}' FROM generate_series(1, 3000) n;
INSERT INTO given_back SELECT n, 'k', 0, 0, 0 FROM generate_series(1, 3000) n;
INSERT INTO api_keys SELECT n::text, 'n', 'read', {zero}, n FROM generate_series(1, 2000) n;
""".format(n16="decode(lpad(to_hex(n), 32, '0'), 'hex')", zero="decode(repeat('00', 32), 'hex')")


@pytest.fixture(scope="module")
def large(postgres: Databases) -> Iterator[str]:
    """The URL of a ledger that is large enough for the planner to take it seriously."""
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
    "drift": (accounts.DRIFT, {"after": b"", "limit": 10, "genesis": bytes(32)}),
    "the last one by then": (transactions.LAST_BY, {"account": 7, "at": 5}),
    "an account's history": (transactions._history(frozenset()), {"account": 7, **_BETWEEN, **_PAGE}),
    "everybody's history": (transactions._listing(frozenset(_PAGE), 16), {**_LANES, "limit": 5}),
    "accounts": (accounts._listing(frozenset({"after", "at", "limit"})), {"after": b"", "at": 0, "limit": 5}),
}


async def plan(url: str, statement: str, *values: Any, **settings: str) -> str:
    """How the server means to answer."""
    connection = await asyncpg.connect(url, server_settings={"jit": "off", **settings})
    try:
        return "\n".join([row[0] for row in await connection.fetch(f"EXPLAIN {statement}", *values)])
    finally:
        await connection.close()


@pytest.mark.parametrize("name", OFTEN)
async def test_no_question_asked_often_scans_or_sorts_a_table(large: str, name: str):
    statement, given = OFTEN[name]
    made = sql.compiled(statement)
    told = await plan(large, made.sql, *made.bound(given))
    assert "Seq Scan" not in told, told
    assert "Sort" not in told or name == "an account's grants", told  # some rows, that are read by its key at once


@pytest.mark.parametrize(
    ("table", "columns", "place", "condition"),
    [
        (tables.accounts, ("merchant_id",), (bytes(16),), "true"),
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
async def test_places_are_looked_up_by_an_index_however_many_they_are(
    large: str, table: Any, columns: tuple[str, ...], place: tuple[Any, ...], condition: str, places: int
):
    told = await plan(large, sql.rows_at(table, columns, condition), *[[value] * places for value in place])
    assert "Seq Scan" not in told, told


@pytest.mark.parametrize("with_all", [False, True])
async def test_a_posting_is_loaded_by_indexes_alone(postgres: Databases, large: str, with_all: bool):
    places: list[list[Any]] = [[bytes(16)], [3], [bytes(16)], ["a key"]]
    if with_all:
        places += [[bytes(16)], ["a key"], [bytes(16)]]
    with postgres.database(template(postgres)) as empty:  # where the planner would think a scan the best
        for url in (empty, large):
            told = await plan(url, sql.load(with_all, with_all), *places, **sql.POSTING_SETTINGS)
            assert "Seq Scan" not in told, told


@pytest.fixture
def skewed(postgres: Databases) -> Iterator[str]:
    """The URL of a ledger in which each merchant has one transaction, but for one who has 200."""
    one_each = LARGE.partition("INSERT INTO grants")[0].replace("ELSE 8", "ELSE 1").replace("THEN 3000", "THEN 200")
    with postgres.database(template(postgres)) as url, on_server(url, one_each, "ANALYZE"):
        yield url


@pytest.mark.parametrize(
    ("column", "types", "values"),
    [("key", "(bigint[], text[])", "'{7}', '{k1}'"), ("sequence", "(bigint[], bigint[])", "'{7}', '{1}'")],
)
async def test_where_most_merchants_have_one_transaction_one_of_many_is_still_found_by_its_own_index(
    skewed: str, column: str, types: str, values: str
):
    connection = await asyncpg.connect(skewed, server_settings=sql.POSTING_SETTINGS)
    try:
        asked = sql.rows_at(tables.transactions, ("account", column), "true")
        await connection.execute(f"PREPARE asked {types} AS {asked}")
        told = "\n".join([row[0] for row in await connection.fetch(f"EXPLAIN EXECUTE asked ({values})")])
    finally:
        await connection.close()
    assert f"{column} = " in told.partition("Index Cond:")[2].partition("\n")[0], told


async def test_deep_pages_of_a_long_history_read_no_more_than_the_first(large: str):
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


# ---- several at once


def test_lanes_are_locked_ascending_before_anything_is_read():
    text = sql.begin([9, 3, 12], {"lock_timeout": "5"})
    begun, timeout, *locks, end = text.split(";")
    assert (begun, timeout, end) == ("BEGIN ISOLATION LEVEL READ COMMITTED", "SET LOCAL lock_timeout = 5", "")
    assert locks == [f"SELECT pg_advisory_xact_lock({sql.LOCKS}, {lane})" for lane in (3, 9, 12)]


def test_a_lane_is_part_of_what_is_stored_and_never_changes():
    assert [lane_of(UUID(int=number)) for number in (0, 1, 2, 2**64, 2**127)] == [5, 3, 9, 6, 1]


@pytest.mark.parametrize("ahead", [queue.AHEAD, 2], ids=["seldom ahead", "often ahead"])
async def test_two_stores_that_post_to_the_same_accounts_lose_nothing_and_post_each_key_once(
    harness: PostgresHarness, ahead: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(queue, "AHEAD", ahead)
    await (await harness.fresh()).close()
    stores = [PostgresEngine(harness.url, timeout_seconds=20) for _ in range(2)]
    conflicts: list[Exception] = []
    postings = [Posting(store, Policy(trial_credits=0), deadline_seconds=60) for store in stores]
    for store, each in zip(stores, postings, strict=True):
        _spy(store, conflicts)
        each.start()
    chance = random.Random(4)
    merchants = [UUID(int=number) for number in range(1, 13)]
    expected = Counter[UUID]()
    try:
        await asyncio.gather(*[postings[0].submit(of(merchant, payment("P", 1_000_000))) for merchant in merchants])

        async def post(caller: int) -> None:
            for number in range(12):
                some = chance.sample(merchants, 4)
                amounts = [chance.randint(1, 9) for _ in some]
                told = [of(one, use(amount, f"{caller} {number}")) for one, amount in zip(some, amounts, strict=True)]
                for outcome in await postings[caller % 2].submit_many(told):
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
        async for books in stores[1].books():
            assert books.account.balance == 1_000_000 - expected[books.account.merchant_id]
            assert [*books.faults, *verify(books.account, books.grants, list(books.transactions))] == []
        assert await Accounts(stores[0]).drifting(None, 100) == ([], None)
    finally:
        for each in postings:
            await each.drain()
        for store in stores:
            await store.close()
    assert conflicts == []
    events = await harness.rows("events")
    for _, lane in groupby(events, key=itemgetter(0)):
        assert {row[1] - position for position, row in enumerate(lane, 1)} == {0}
    for merchant, account in {UUID(bytes=row[1]): row for row in await harness.rows("accounts")}.items():
        mine = [row for row in events if row[2] == account[0]]  # in the order of their lane
        assert {row[0] for row in mine} == {lane_of(merchant)}
        assert [row[3] for row in mine] == list(range(1, len(mine) + 1))


def _spy(store: PostgresEngine, seen: list[Exception]) -> None:
    post = store.post

    async def spied(needs: Sequence[Needs], work: Work, after: asyncio.Future[bool] | None = None) -> Committed:
        try:
            return await post(needs, work, after)
        except Exception as error:
            seen.append(error)
            raise

    store.post = spied  # type: ignore[method-assign]


# ---- a small posting, in one message where its accounts are remembered, else in two


class Interrupted(PostgresEngine):
    """A store that lets something happen between its load and its decision, and counts its loads."""

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
    """The only engine of an empty database. The clock stands still, so that a busy machine delays no decision."""
    await (await harness.fresh()).close()
    store = kind(harness.url, timeout_seconds=20, **{"clock": harness.clock, **more})
    try:
        yield store
    finally:
        await store.close()


async def books_are_right(harness: PostgresHarness, store: PostgresEngine) -> None:
    """Every account verifies, and no event's number is missing in a lane."""
    async for one in store.books():
        assert [*one.faults, *verify(one.account, one.grants, list(one.transactions))] == []
    for _, lane in groupby(await harness.rows("events"), key=itemgetter(0)):
        ids = [row[1] for row in lane]
        assert ids == list(range(1, len(ids) + 1))


SAME_LANE = next(one for number in count(100) if lane_of(one := UUID(int=number)) == lane_of(MERCHANT))
OTHERS = [
    pytest.param([use(5, "other")], id="posted to the account"),
    pytest.param([of(SAME_LANE, payment("P", 1))], id="announced something in the lane"),
    pytest.param([refund("R", "unknown", credits=1)], id="parked a refund"),
    pytest.param([use(3, "mine")], id="used the key"),
]


@pytest.mark.parametrize("others", OTHERS)
@pytest.mark.parametrize("remembered", [False, True], ids=["loaded", "remembered"])
async def test_a_posting_is_decided_anew_where_another_was_faster(
    harness: PostgresHarness, others: list[Any], remembered: bool
):
    other = await harness.fresh()
    store = Interrupted(harness.url, timeout_seconds=20, clock=harness.clock)
    try:
        if remembered:
            await tell(store, payment("P", 100))
            await tell(other, *others)
        else:
            await tell(other, payment("P", 100))
            store.interruption = lambda: tell(other, *others)
        (outcome,) = await tell(store, use(3, "mine"))
        replayed = others[0].key == "mine"
        assert isinstance(outcome, Replayed if replayed else Posted)
        again = remembered and replayed  # a repeat, for all that the database said
        assert _locked_next(store) == ([] if again else [100]), "it goes on with locks for a while"
        await books_are_right(harness, store)
        account = (await Accounts(store).load([MERCHANT], 0))[MERCHANT].account
        assert account.balance == 100 - 3 - (5 if others[0].key == "other" else 0)
        await tell(store, use(1))
        assert _locked_next(store) == ([] if again else [99]), "what came to nothing is forgotten"
    finally:
        await store.close()
        await other.close()


def _locked_next(store: Interrupted) -> list[int]:
    """How many more postings of each stream go the locked way, of those that do."""
    return [stream.locked_next for stream in store.layer.streams if stream.locked_next]


async def test_what_a_store_wrote_last_it_need_not_load(harness: PostgresHarness):
    merchants = [UUID(int=number) for number in range(1, 41)]
    async with alone(harness) as store:
        await tell(store, *[of(merchant, payment("P", 100)) for merchant in merchants])
        store.loads = 0
        await tell(store, *[of(merchant, use(2, "small")) for merchant in merchants], of(merchants[0], use(1)))
        await tell(store, *[of(merchant, use(1)) for merchant in merchants * 3])
        assert store.loads == 0
        outcomes = await tell(store, of(merchants[0], use(1)), of(UUID(int=99), payment("P", 9)))
        assert all(isinstance(outcome, Posted) for outcome in outcomes)
        assert store.loads == 1, "of the merchant who was not known"
        held = await Accounts(store).load(merchants, 0)
        assert [held[merchant].account.balance for merchant in merchants] == [93, *[95] * 39]
        assert _locked_next(store) == []
        await books_are_right(harness, store)


@pytest.mark.parametrize("many", [1, 60, 150])
async def test_what_is_remembered_replays_and_refuses_nothing_without_asking(harness: PostgresHarness, many: int):
    other = await harness.fresh()
    store = Interrupted(harness.url, timeout_seconds=20, clock=harness.clock)
    merchants = [UUID(int=number) for number in range(1, many + 1)]
    try:
        await tell(store, *[of(merchant, payment("P", 10)) for merchant in merchants])
        used = [of(merchant, use(1, "key")) for merchant in merchants]
        await tell(store, *used)
        assert [type(one) for one in await tell(store, *used)] == [Replayed] * many
        assert _locked_next(store) == [], "a repeat is nobody else's doing"
        await tell(other, of(merchants[0], payment("Q", 90)))
        assert [type(one) for one in await tell(store, of(merchants[0], use(99, "all")))] == [Posted]
        await tell(other, of(merchants[0], use(1, "last")), *[of(one, use(9, "last")) for one in merchants[1:]])
        outcomes = await tell(store, *[of(merchant, use(1, "more")) for merchant in merchants])
        assert [type(one) for one in outcomes] == [Refused] * many
    finally:
        await store.close()
        await other.close()


async def test_a_version_that_another_server_gave_out_again_is_not_the_one_that_is_remembered(harness: PostgresHarness):
    """A server that takes another's place may lack the last postings, and goes on with the numbers that these had."""
    other = await harness.fresh()
    store = Interrupted(harness.url, timeout_seconds=20, clock=harness.clock)
    try:
        await tell(store, payment("P", 100))
        await tell(other, use(30))
        beneath = await harness.beneath()
        known = store.layer.recent._accounts[MERCHANT.int]
        version = await beneath.fetchval("SELECT xmin FROM accounts")
        store.layer.recent._accounts[MERCHANT.int] = known._replace(commit=CommitState(version))
        (outcome,) = await tell(store, use(1))
        assert isinstance(outcome, Posted)
        assert outcome.account.balance == 69
    finally:
        await store.close()
        await other.close()


# ---- deciding ahead


@asynccontextmanager
async def lane_locked(harness: PostgresHarness) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Let nobody post in the merchant's lane; what is given waits until somebody wants to."""
    beneath = await harness.beneath()

    async def somebody_waits() -> None:
        while not await beneath.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            await beneath.execute("SELECT pg_sleep(0.01)")

    async with beneath.transaction():
        await beneath.execute(f"SELECT pg_advisory_xact_lock({sql.LOCKS}, {lane_of(MERCHANT)})")
        yield somebody_waits


@pytest.fixture
def in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two commands that wait are two batches already, the second decided ahead."""
    monkeypatch.setattr(queue, "AHEAD", 1)


@pytest.mark.usefixtures("in_halves")
@pytest.mark.parametrize("second", [MERCHANT, SAME_LANE], ids=["of the same account", "of another in the lane"])
async def test_a_posting_is_decided_on_what_the_one_before_it_will_leave_while_that_is_in_the_store(
    harness: PostgresHarness, second: UUID
):
    async with alone(harness) as store:
        await tell(store, *[of(one, payment("P", 100)) for one in (MERCHANT, SAME_LANE)])
        store.loads = store.decisions = 0
        async with lane_locked(harness) as somebody_waits:
            told = asyncio.create_task(tell_apart(store, use(1, "first"), of(second, use(1, "second"))))
            await somebody_waits()
            assert store.decisions == 2
        assert [type(outcome) for outcome in await told] == [Posted, Posted]
        assert (store.decisions, store.loads, _locked_next(store)) == (2, 0, [])
        await books_are_right(harness, store)


@pytest.mark.usefixtures("in_halves")
@pytest.mark.parametrize("others", OTHERS)
@pytest.mark.parametrize("second", [MERCHANT, SAME_LANE], ids=["of the same account", "of another in the lane"])
async def test_what_was_decided_ahead_on_what_came_to_nothing_is_decided_anew(
    harness: PostgresHarness, others: list[Any], second: UUID
):
    other = await harness.fresh()
    store = Interrupted(harness.url, timeout_seconds=20, clock=harness.clock)
    try:
        await tell(store, payment("P", 100), of(SAME_LANE, payment("Q", 100)))
        await tell(other, *others)
        first, last = await tell_apart(store, use(3, "mine"), of(second, use(4, "second")))
        assert isinstance(first, Replayed if others[0].key == "mine" else Posted)
        assert isinstance(last, Posted)
        await books_are_right(harness, store)
    finally:
        await store.close()
        await other.close()


async def test_a_lane_whose_last_event_is_another_than_is_remembered_gets_no_gap(harness: PostgresHarness):
    lane = lane_of(MERCHANT)
    async with alone(harness) as store:
        await tell(store, payment("P", 100))
        store.layer.last_events[lane] = store.layer.last_events[lane]._replace(id=9)
        assert isinstance((await tell(store, use(1)))[0], Posted)
        await books_are_right(harness, store)


@pytest.mark.usefixtures("in_halves")
async def test_batch_decided_ahead_is_decided_again_if_its_turn_came_late(harness: PostgresHarness):
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

    async with alone(harness, Late) as store:
        await tell(store, payment("P", 100))
        store.decisions = 0
        assert [type(one) for one in await tell_apart(store, use(1, "a"), use(1, "b"))] == [Posted, Posted]
        assert (store.decisions, _locked_next(store)) == (3, []), "the second batch twice, without a conflict"
        await books_are_right(harness, store)


@pytest.mark.usefixtures("in_halves")
async def test_what_follows_a_command_that_breaks_a_law_of_the_database_leaves_no_gap_among_the_events(
    harness: PostgresHarness,
):
    beneath = await harness.beneath()
    async with alone(harness) as store:
        await beneath.execute("ALTER TABLE transactions ADD CONSTRAINT lawful CHECK (key <> 'unlawful')")
        try:
            await tell(store, *[of(one, payment("P", 100)) for one in (MERCHANT, SAME_LANE)])
            broken, outcome = await tell_apart(store, use(1, "unlawful"), of(SAME_LANE, use(2, "lawful")))
            assert isinstance(broken, BadRow)
            assert isinstance(outcome, Posted)
            await books_are_right(harness, store)
        finally:
            await beneath.execute("ALTER TABLE transactions DROP CONSTRAINT lawful")


@pytest.mark.usefixtures("in_halves")
async def test_what_the_ledger_cannot_decide_ahead_is_told_in_its_turn(
    harness: PostgresHarness, monkeypatch: pytest.MonkeyPatch
):
    decided: list[str] = []

    def decide(state: Any, command: Any, *more: Any) -> Any:
        decided.append(command.key)
        if command.key == "broken":
            raise RuntimeError("a rule broke")
        return ledger_decides(state, command, *more)

    ledger_decides = ledger.decide
    monkeypatch.setattr(batch, "decide", decide)
    async with alone(harness) as store:
        await tell(store, payment("P", 100))
        first, second = await tell_apart(store, use(1, "first"), use(1, "broken"))
        assert isinstance(first, Posted)
        assert isinstance(second, RuntimeError)
        assert decided.count("broken") > 1
        await books_are_right(harness, store)


@pytest.mark.parametrize("remembered", [False, True], ids=["loaded", "remembered"])
async def test_L7_what_waited_for_its_lane_is_decided_anew_by_the_time_it_is_then(
    harness: PostgresHarness, remembered: bool
):
    beneath = await harness.beneath()
    async with alone(harness, clock=None) as store:
        await tell(store, payment("P", 100))
        if not remembered:
            store.layer.recent.clear()
        async with lane_locked(harness) as somebody_waits:
            told = asyncio.create_task(tell(store, use(1)))
            await somebody_waits()
            await beneath.execute("SELECT pg_sleep(0.2)")
            free_at = await beneath.fetchval(sql.NOW)
        (outcome,) = await told
        assert isinstance(outcome, Posted)
        assert outcome.transaction is not None
        assert outcome.transaction.created_at >= free_at
        assert abs(await store.now() - await beneath.fetchval(sql.NOW)) < 100_000, "nor is the clock read from it"


async def test_who_waits_too_long_for_a_lane_is_told_that_nothing_was_done(harness: PostgresHarness):
    await (await harness.fresh()).close()
    store = PostgresEngine(harness.url, timeout_seconds=0.5)
    beneath = await harness.beneath()
    seen: list[Exception] = []
    try:
        await tell(store, payment("P", 100))
        _spy(store, seen)
        async with beneath.transaction():
            await beneath.execute(f"SELECT pg_advisory_xact_lock({sql.LOCKS}, {lane_of(MERCHANT)})")
            posting = asyncio.create_task(tell(store, use(1)))
            while not seen:
                await beneath.execute("SELECT pg_sleep(0.01)")
        assert isinstance((await posting)[0], Posted)
        assert {type(error) for error in seen} == {Conflict}
    finally:
        await store.close()


async def test_recent_accounts_are_posted_at_the_time_of_the_database(harness: PostgresHarness):
    async with alone(harness, clock=None) as store:
        await tell(store, payment("P", 100))
        store.loads = 0
        await tell(store, use(1))
        assert store.loads == 0
        before = await store.now()
        assert store.clock._measured_at is not None
        store.clock._measured_at -= 11_000_000
        store.clock._offset += 10**12
        await tell(store, use(1))
        assert store.loads == 1
        ((_, last),) = await Transactions(store).page(TransactionQuery(), None, 1)
        assert 0 <= last.created_at - before < 10**10


async def test_an_account_that_two_open_at_once_is_opened_once(harness: PostgresHarness):
    other = await harness.fresh()
    store = Interrupted(harness.url, timeout_seconds=20, clock=harness.clock)
    try:
        store.interruption = lambda: tell(other, payment("P", 100))
        (outcome,) = await tell(store, payment("Q", 10))
        assert isinstance(outcome, Posted)
        assert not outcome.opened
        assert outcome.account.balance == 110
    finally:
        await store.close()
        await other.close()


async def test_what_needs_nothing_written_waits_for_no_lock_and_what_does_waits_for_its_lane(harness: PostgresHarness):
    store = await harness.fresh()
    await tell(store, payment("P", 100), use(1, "k"))
    beneath = await harness.beneath()
    async with beneath.transaction():
        await beneath.execute(f"SELECT pg_advisory_xact_lock({sql.LOCKS}, {lane_of(MERCHANT)})")
        assert isinstance((await tell(store, use(1, "k")))[0], Replayed)
        assert isinstance((await tell(store, use(1000)))[0], Refused)
        posting = asyncio.create_task(tell(store, use(2)))
        done, _ = await asyncio.wait([posting], timeout=0.1)
        assert not done
    assert isinstance((await posting)[0], Posted)
    await store.close()


async def test_batches_that_name_the_same_merchants_in_opposite_order_do_not_wait_for_each_other(
    harness: PostgresHarness,
):
    """As one stream, where a batch has many lanes."""
    await (await harness.fresh()).close()
    stores = [PostgresEngine(harness.url, timeout_seconds=20, streams=1) for _ in range(2)]
    merchants = [UUID(int=number) for number in range(1, 33)]
    try:

        async def post(store: PostgresEngine, order: list[UUID], name: str) -> None:
            for number in range(15):
                told = [of(merchant, add(1, f"{name} {number}")) for merchant in order]
                await tell(store, *told)

        await tell(stores[0], *[of(merchant, payment("P", 1)) for merchant in merchants])
        await asyncio.gather(post(stores[0], merchants, "there"), post(stores[1], merchants[::-1], "back"))
        assert {books.account.balance async for books in stores[0].books()} == {31}
    finally:
        for store in stores:
            await store.close()


# ---- behind a pooler


@pytest.mark.parametrize("real", [False, True], ids=["as if", "PgBouncer"])
async def test_behind_a_pooler_all_works(harness: PostgresHarness, pooled: Any, real: bool):
    await (await harness.fresh()).close()
    url = (await asyncio.to_thread(pooled, harness.url)).url if real else harness.url
    stores = [PostgresEngine(url, timeout_seconds=20, pooled=True) for _ in range(2)]
    merchants = [UUID(int=number) for number in range(1, 9)]
    try:
        await tell(stores[0], *[of(merchant, payment("P", 1_000)) for merchant in merchants])

        async def post(store: PostgresEngine, name: str) -> None:
            for number in range(8):
                told = [of(merchant, use(1, f"{name} {number}")) for merchant in merchants]
                await tell(store, *told, of(merchants[0], refund(f"{name} {number}", f"{name}", credits=1)))
                await Accounts(store).load(merchants, T0)
                await Transactions(store).page(TransactionQuery(), None, 5)

        await asyncio.gather(*[post(store, f"{index}") for index, store in enumerate(stores)])
        await tell(stores[0], *[of(UUID(int=100 + number), payment("P", 1)) for number in range(300)])
        async for books in stores[1].books(merchants):
            assert books.account.balance == 1_000 - 16
            assert [*books.faults, *verify(books.account, books.grants, list(books.transactions))] == []
        await Keys(stores[0]).add(values.FULL_KEY)
        await stores[1].check()
        assert await Keys(stores[1]).all() == [values.FULL_KEY]
    finally:
        for store in stores:
            await store.close()
