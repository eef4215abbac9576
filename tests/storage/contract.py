"""The laws of every engine. The test module of an engine defines how to build one (`Harness`) and inherits the tests.

A test of a law of the engine alone passes values to the engine directly. A test that needs real postings uses
`Posting`, as the service does. The test of batches shows that an engine stores exactly the ledger's decisions.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any, Protocol
from uuid import UUID

import pytest
from hypothesis import given, settings
from sqlalchemy import CheckConstraint

from credit_service.ledger import commands
from credit_service.ledger.account import (
    Account,
    DeadLetter,
    GivenBack,
    Parked,
    Reference,
    Transaction,
    TypeTotal,
    transaction_time,
)
from credit_service.ledger.addresses import ACCOUNT, GRANT, TRANSACTION, Address
from credit_service.ledger.announcements import OF_A_TRANSACTION
from credit_service.ledger.decide import Needs, Outcome, Replayed, Waiting
from credit_service.ledger.draft import Posted
from credit_service.ledger.policy import Policy
from credit_service.ledger.proof import verify
from credit_service.posting import Posting, RefusedAt
from credit_service.storage import erasing, letters, rows, tables
from credit_service.storage.accounts import AccountQuery, Accounts, LoadedAccount
from credit_service.storage.engine import BadRow, Engine, Loaded, Writes
from credit_service.storage.erasing import Erasing
from credit_service.storage.keys import ApiKey, Keys
from credit_service.storage.letters import Letter, LetterQuery, Letters
from credit_service.storage.outbox import Outbox
from credit_service.storage.policies import FailPolicies
from credit_service.storage.questions import Ask
from credit_service.storage.shops import Shop, Shops
from credit_service.storage.transactions import TransactionQuery, Transactions
from tests.ledger.telling import MERCHANT, T0, add, days, opening, order, payment, payment_refund, sweep, use
from tests.ledger.telling import refund as told_refund
from tests.storage import values
from tests.storage.batches import MERCHANTS, Batch, Shelf, batches, policies
from tests.storage.values import NUMBER, OTHER, account, grant, of, transaction, writes

SHOP = "a.myshopify.com"


class Clock:
    """The clock of the engine. A test can move it."""

    def __init__(self) -> None:
        self.now = T0

    def __call__(self) -> int:
        return self.now


class Harness(Protocol):
    """Builds engines of one kind for tests, and reads their rows."""

    clock: Clock

    async def fresh(self) -> Engine:
        """Return an engine without rows. It reads `clock`, and numbers new accounts 1, 2, 3 …"""
        ...

    async def renewed(self, engine: Engine) -> Engine:
        """Return an engine without rows. It may be this engine, emptied."""
        ...

    async def reopened(self, engine: Engine) -> Engine:
        """Close this engine, and return a new engine on the same database."""
        ...

    async def rows(self, table: str) -> list[tuple[Any, ...]]:
        """Return the committed rows of a table, in the order of its primary key."""
        ...

    def halfway(self, engine: Engine) -> AbstractAsyncContextManager[None]:
        """Halt the next posting between its last write and its commit. It commits at the end of the block."""
        ...

    async def close(self) -> None:
        """Close the connections of the harness, in their event loop."""
        ...


def merchant(index: int) -> str:
    """Return one of many merchants. Their order is the order of `index`."""
    return str(UUID(int=index + 1))


def need(key: str = "", merchant_id: str = MERCHANT, source: str | None = None, *, trial: bool = False) -> Needs:
    """Return the needs of a command."""
    return Needs(merchant_id, key, source, awaited=False, trial=trial, overdue=False)


async def write(engine: Engine, made: Writes) -> None:
    """Write these rows in one posting."""
    await engine.post([need("", account.merchant_id) for account in made.accounts.values()], lambda loaded: made)


async def load(engine: Engine, *wanted: Needs) -> Loaded:
    """Return the records that a posting with these needs loads."""
    seen: list[Loaded] = []

    def work(loaded: Loaded) -> Writes:
        seen.append(loaded)
        return Writes()

    await engine.post(wanted, work)
    return seen[-1]


async def tell(engine: Engine, *sent: commands.Command, policy: Policy | None = None) -> list[Outcome]:
    """Post commands as the service does, in one batch."""
    async with at_work(engine, policy) as posting:
        return await posting.submit_many(sent)


async def tell_apart(engine: Engine, *sent: commands.Command) -> Sequence[Any]:
    """Post commands as the service does, each by its own caller. Returns outcomes or errors."""
    async with at_work(engine) as posting:
        outcomes: Sequence[Any] = await asyncio.gather(*map(posting.submit, sent), return_exceptions=True)
        return outcomes


@asynccontextmanager
async def at_work(engine: Engine, policy: Policy | None = None, **settings: Any) -> AsyncIterator[Posting]:
    """Run the posting path in front of an engine."""
    posting = Posting(engine, policy or Policy(), **settings)
    posting.start()
    try:
        yield posting
    finally:
        await posting.drain()


async def posted(engine: Engine, *sent: commands.Command, policy: Policy | None = None) -> list[Transaction]:
    """Post commands that must all succeed. Returns their transactions."""
    transactions = []
    for outcome in await tell(engine, *sent, policy=policy):
        assert isinstance(outcome, Posted), outcome
        assert outcome.transaction is not None
        transactions.append(outcome.transaction)
    return transactions


TABLES = tuple(tables.metadata.tables)
BESIDE = (
    "api_keys",
    "event_cursors",
    "gate_policies",
    "service_state",
    "shops",
    "shopify_claims",
    "shopify_deliveries",
    "webhook_endpoints",
    "webhook_deliveries",
)
LEDGER = tuple(name for name in TABLES if name not in BESIDE)


def _sums(history: Iterable[Transaction]) -> dict[str, TypeTotal]:
    """The sums of some transactions by type, as (transactions, added, taken)."""
    sums: dict[str, TypeTotal] = {}
    for one in history:
        count, added, taken = sums.get(one.type, (0, 0, 0))
        is_increase = one.operation == "INCREASE"
        sums[one.type] = (count + 1, added + one.amount * is_increase, taken + one.amount * (not is_increase))
    return sums


class EngineContract:
    """The laws of an engine. The module of a subclass has the fixture `harness`."""

    @pytest.fixture
    async def engine(self, harness: Harness) -> AsyncIterator[Engine]:
        engine = await harness.fresh()
        yield engine
        await engine.close()

    # ---- a posting: load, decide, write, commit

    async def test_written_rows_are_returned_and_survive_a_restart(self, harness: Harness):
        engine = await harness.fresh()
        made = writes(account(sequence=1), transactions=[transaction()])
        try:
            assert (await engine.post([], lambda loaded: made)).writes is made
        finally:
            engine = await harness.reopened(engine)
        try:
            held = await Accounts(engine).load([MERCHANT], T0)
            assert held[MERCHANT].account == account(sequence=1)
            assert await Transactions(engine).get(Address(NUMBER, TRANSACTION, 1)) == transaction()
        finally:
            await engine.close()

    async def test_L4_posting_whose_work_fails_leaves_nothing(self, harness: Harness, engine: Engine):
        class Sudden(Exception):
            pass

        def work(loaded: Loaded) -> Writes:
            raise Sudden("unchanged")

        with pytest.raises(Sudden, match="unchanged"):
            await engine.post([need("k")], work)
        assert await self._all_rows(harness) == {name: [] for name in TABLES}
        await write(engine, writes(account()))
        assert len(await harness.rows("accounts")) == 1

    async def test_L4_posting_with_one_refused_row_leaves_nothing(self, harness: Harness, engine: Engine):
        whole: dict[str, Any] = {
            "transactions": [transaction()],
            "grants": [grant()],
            "announcements": [values.FULL_ANNOUNCEMENT],
            "given_back": [values.FULL_GIVEN_BACK],
            "parked": [values.FULL_PARKED],
            "dead_letters": [DeadLetter("order_unknown", "The order never came.", T0, values.FULL_REFUND)],
        }
        spoilt: dict[str, Any]
        for spoilt in (
            {"transactions": [transaction(), transaction(2, amount=-1)]},
            {"grants": [grant(), grant(2, remaining=6)]},
            {"given_back": [values.FULL_GIVEN_BACK, GivenBack("k", -1)]},
        ):
            with pytest.raises(BadRow):
                await write(engine, writes(account(), **(whole | spoilt)))
            assert await self._all_rows(harness) == {name: [] for name in TABLES}
        await write(engine, writes(account(), **whole))
        assert {name: len(found) for name, found in (await self._all_rows(harness)).items()} == {
            name: int(name in LEDGER) for name in TABLES
        }

    async def test_L4_posting_leaves_transaction_grant_account_and_events_together(
        self, harness: Harness, engine: Engine
    ):
        (bought,) = await posted(engine, payment("P", 5))
        assert [row[0] for row in await harness.rows("accounts")] == [bought.account]
        assert [row[:2] for row in await harness.rows("transactions")] == [(bought.account, 1)]
        assert [row[:3] for row in await harness.rows("grants")] == [(bought.account, 1, 1)]
        events = await harness.rows("events")
        assert [row[2:6] for row in events] == [
            (bought.account, 1, "account.created", None),
            (bought.account, 2, "recharged", 1),
            (bought.account, 3, "plugin_status_changed", 1),
        ]

    async def test_readers_see_no_uncommitted_posting_and_do_not_wait(self, harness: Harness, engine: Engine):
        await posted(engine, payment("P", 5))
        read: list[Callable[[], Any]] = [
            lambda: Accounts(engine).load([MERCHANT], T0),
            lambda: Accounts(engine).page(AccountQuery(T0, 0), None, 10),
            lambda: Accounts(engine).with_grants(MERCHANT),
            lambda: Transactions(engine).page(TransactionQuery(account=1), None, 10),
            lambda: Transactions(engine).page(TransactionQuery(), None, 10),
            lambda: Transactions(engine).count(TransactionQuery()),
            lambda: Accounts(engine).due(days(400), 10),
            lambda: Accounts(engine).drifting(None, 10),
            Accounts(engine).parked_count,
            Transactions(engine).strays,
            Keys(engine).all,
            lambda: Keys(engine).get("none"),
        ]
        before = [await one() for one in read]
        async with harness.halfway(engine):
            late = asyncio.create_task(tell(engine, use(2), payment("Q", 5, expires_at=days(30))))
            await asyncio.sleep(0)
            assert [await one() for one in read] == before
            assert [len(list(books.transactions)) async for books in engine.books()] == [1]
            assert not late.done()
        await late
        assert await Transactions(engine).count(TransactionQuery()) == 3

    async def test_work_receives_the_time_of_the_database_clock(self, harness: Harness, engine: Engine):
        harness.clock.now = days(3)
        assert (await load(engine)).now == days(3)
        assert await engine.now() == days(3)

    async def test_merchant_without_account_has_an_empty_record_with_a_number(self, engine: Engine):
        loaded = await load(engine, need("a"), need("b"), need("a", OTHER))
        record, other = loaded.records[MERCHANT], loaded.records[OTHER]
        assert list(loaded.records) == [MERCHANT, OTHER]
        assert (record.account, record.grants, record.firsts, record.parked) == (None, (), {}, {})
        assert (record.number, other.number) == (1, 2)

    async def test_merchant_is_loaded_with_its_account(self, engine: Engine):
        await write(engine, writes(account()))
        record = (await load(engine, need("a"))).records[MERCHANT]
        assert (record.account, record.number) == (account(), NUMBER)

    async def test_L6_only_open_grants_are_loaded_in_burn_down_order(self, engine: Engine):
        grants = [
            grant(1),
            grant(2, category="promotional"),
            grant(3, expires_at=T0 + 9),
            grant(4, remaining=0),
            grant(5, priority=1),
            grant(6, effective_at=T0 - 1),
        ]
        await write(engine, writes(account(granted=6), grants=grants))
        await write(engine, writes(account(2, OTHER, granted=1), grants=[grant(1, amount=7, remaining=7)]))
        loaded = await load(engine, need("a"), need("a", OTHER))
        assert [found.number for found in loaded.records[MERCHANT].grants] == [5, 3, 2, 6, 1]
        assert loaded.records[OTHER].grants == (grant(1, amount=7, remaining=7),)

    async def test_L3_transaction_of_a_key_is_loaded_for_its_merchant_only(self, engine: Engine):
        first = transaction(key="the key")
        await write(engine, writes(account(), transactions=[first, transaction(2)]))
        await write(engine, writes(account(2, OTHER)))
        loaded = await load(engine, need("the key"), need("the key", OTHER), need("The key"))
        assert loaded.records[MERCHANT].firsts == {"the key": first}
        assert loaded.records[OTHER].firsts == {}

    async def test_L12_trial_is_loaded_whatever_its_key(self, engine: Engine):
        granted = transaction(2, type="TRIAL", key="by hand")
        await write(engine, writes(account(sequence=2, trial=2), transactions=[transaction(), granted]))
        key = commands.trial_key(MERCHANT)
        assert (await load(engine, need(key, trial=True))).records[MERCHANT].trial == granted
        assert (await load(engine, need(key))).records[MERCHANT].trial is None

    async def test_L8_refunded_order_is_loaded_with_its_refunds_and_its_grants(self, engine: Engine):
        paid = transaction(
            3, operation="DECREASE", balance_before=9, balance_after=4, key="o", draws=((1, -2), (2, -3))
        )
        given = GivenBack("o", 1, 2, 3)
        grants = [grant(1, remaining=0), grant(2, remaining=2), grant(3, remaining=0)]
        await write(engine, writes(account(granted=3), transactions=[paid], grants=grants, given_back=[given]))
        record = (await load(engine, need("r", source="o"))).records[MERCHANT]
        assert record.firsts == {"o": paid}
        assert record.given_back == {"o": given}
        assert record.known_grants == {1: grants[0], 2: grants[1]}

    async def test_L8_order_without_refunds_is_loaded_without_them(self, engine: Engine):
        await write(engine, writes(account(granted=1), transactions=[transaction(draws=((1, 5),))], grants=[grant()]))
        record = (await load(engine, need("r", source="key 1"), need("s", source="unknown"))).records[MERCHANT]
        assert (set(record.firsts), record.given_back, record.known_grants) == ({"key 1"}, {}, {1: grant()})

    async def test_L8_parked_refunds_are_loaded_with_their_merchant(self, engine: Engine):
        waiting = [Parked(key, "o", T0 + 9, T0, values.refund(key=key)) for key in ("b", "c", "a")]
        await write(engine, writes(account(), parked=waiting))
        await write(engine, writes(account(2, OTHER), parked=[values.PARKED_PAYMENT_REFUND]))
        loaded = await load(engine, need("x"), need("x", OTHER))
        assert loaded.records[MERCHANT].parked == {parked.key: parked for parked in waiting}
        assert loaded.records[OTHER].parked == {values.PARKED_PAYMENT_REFUND.key: values.PARKED_PAYMENT_REFUND}

    async def test_L8_parked_refunds_apply_by_arrival_then_by_key(self, harness: Harness, engine: Engine):
        await tell(engine, payment("P", 10), told_refund("b", "1", credits=1), told_refund("a", "1", credits=1))
        harness.clock.now += 1
        await tell(engine, told_refund("0", "1", credits=1))
        (outcome,) = await tell(engine, order("1", 10))
        assert isinstance(outcome, Posted)
        assert [one.key[-1] for one in outcome.transactions] == ["1", "a", "b", "0"]

    async def test_L8_refund_can_be_unparked_and_parked_again_in_one_posting(self, harness: Harness, engine: Engine):
        await write(engine, writes(account(), parked=[values.FULL_PARKED]))
        again = values.FULL_PARKED._replace(until=T0 + 99)
        await write(engine, writes(account(), parked=[again], unparked=[again.key]))
        assert (await load(engine, need("x"))).records[MERCHANT].parked == {again.key: again}
        await write(engine, writes(account(), unparked=[again.key]))
        assert await harness.rows("parked") == []

    async def test_thousands_of_merchants_and_keys_load_at_once(self, engine: Engine):
        some = 2_500
        accounts = [account(index + 1, merchant(index), granted=1) for index in range(some)]
        made = writes(*accounts)
        made.transactions = [transaction(1, index + 1, merchant(index), key=f"k{index}") for index in range(some)]
        made.grants = {(index + 1, 1): grant(amount=index + 1, remaining=index + 1) for index in range(some)}
        await write(engine, made)
        loaded = await load(engine, *(need(f"k{index}", merchant(index)) for index in range(some)))
        for index in range(some):
            record = loaded.records[merchant(index)]
            assert record.account == accounts[index]
            assert record.firsts == {f"k{index}": made.transactions[index]}
            assert record.grants == (made.grants[index + 1, 1],)
        held = await Accounts(engine).load([merchant(index) for index in range(some)], T0)
        assert {merchant: found.account for merchant, found in held.items()} == {a.merchant_id: a for a in accounts}

    async def test_last_value_of_a_row_wins(self, harness: Harness, engine: Engine):
        await write(engine, writes(account(granted=1), grants=[grant()], given_back=[GivenBack("o")]))
        later = account(granted=2, balance=3, total_increases=3, next_due_at=T0 + 1, low_threshold=7)
        spent, new = grant(remaining=0, lapses=1), grant(2)
        await write(engine, writes(later, grants=[spent, new], given_back=[GivenBack("o", 1, 2, 3)]))
        assert (await Accounts(engine).load([MERCHANT], T0))[MERCHANT].account == later
        assert [books.grants async for books in engine.books()] == [[spent, new]]
        assert [rows.given_back(row) for row in await harness.rows("given_back")] == [GivenBack("o", 1, 2, 3)]

    # ---- the engine stores exactly the ledger's decisions

    def test_L4_batches_leave_the_same_as_single_commands_in_memory(self, harness: Harness):
        with asyncio.Runner() as runner:  # one event loop for all examples, so that they can share connections
            engine = runner.run(harness.fresh())

            @given(some=batches, policy=policies)
            @settings(max_examples=max(10, settings().max_examples // 2))
            def leave_the_same(some: list[Batch], policy: Policy) -> None:
                nonlocal engine
                engine = runner.run(harness.renewed(engine))
                runner.run(self._batches(harness, engine, some, policy))

            try:
                leave_the_same()
            finally:
                runner.run(engine.close())
                runner.run(harness.close())

    async def _batches(self, harness: Harness, engine: Engine, some: list[Batch], policy: Policy) -> None:
        shelf = Shelf(policy)
        posting = Posting(engine, policy, max_batch=7)
        posting.start()
        try:
            for batch in some:
                harness.clock.now += batch.wait
                submit = posting.submit_atomic if batch.atomic else posting.submit_many
                outcomes = await submit(batch.commands)
                held = await Accounts(engine).load(MERCHANTS, harness.clock.now)
                numbers = {merchant_id: one.account.number for merchant_id, one in held.items()}
                expected = shelf.answer(batch, harness.clock.now, numbers)
                assert (outcomes if isinstance(outcomes, RefusedAt) else list(outcomes)) == expected
            await self._same_rows(harness, engine, shelf)
            for book in shelf.books.values():
                if book.account is not None:
                    await self._periods(engine, book.account, book.transactions)
        finally:
            await posting.drain()

    async def _periods(self, engine: Engine, account: Account, history: Sequence[Transaction]) -> None:
        """L7: opening + movements = closing, wherever a history is cut, and each transaction is in one period."""
        dates = sorted({transaction_time(one) for one in history})
        cuts = {*dates[:12], *[date + 1 for date in dates[:12:3]]}
        for start, end in pairwise(sorted(cuts)):
            period = await Transactions(engine).totals(account.number, start, end)
            inside = [one for one in history if start <= transaction_time(one) < end]
            before = (await Accounts(engine).past(account.number, start - 1)).balance
            after = (await Accounts(engine).past(account.number, end - 1)).balance
            moved = sum(total.added - total.taken for total in period.totals.values())
            assert (period.opening, period.opening + moved) == (before, after)
            assert {type_: total[:3] for type_, total in period.totals.items()} == _sums(inside)
        whole = await Transactions(engine).totals(account.number)
        assert {type_: total[:3] for type_, total in whole.totals.items()} == account.by_type

    async def _same_rows(self, harness: Harness, engine: Engine, shelf: Shelf) -> None:
        open_books = sorted(
            (book for book in shelf.books.values() if book.account is not None),
            key=lambda book: book.account.merchant_id if book.account else OTHER,
        )
        async for found in engine.books():
            book = open_books.pop(0)
            assert found.account == book.account
            assert list(found.grants) == [book.grants[number] for number in sorted(book.grants)]
            transactions = list(found.transactions)
            assert transactions == list(book.transactions)
            assert [*found.faults, *verify(found.account, found.grants, transactions)] == []
        assert open_books == []
        by_number = {book.number: book for book in shelf.books.values() if book.account is not None}
        events = await harness.rows("events")
        for _, lane in groupby(events, key=itemgetter(0)):
            assert {row[1] - place for place, row in enumerate(lane, 1)} == {0}
        for number, book in by_number.items():
            assert [row[3:8] for row in events if row[2] == number] == [one[:5] for one in book.announcements]
        given = {rows.given_back_row(number, one) for number, book in by_number.items() for one in book.given.values()}
        assert {tuple(row) for row in await harness.rows("given_back")} == given
        parked = {(number, *one[:4]) for number, book in by_number.items() for one in book.parked.values()}
        assert {tuple(row[:5]) for row in await harness.rows("parked")} == parked
        letters = [(number, *one[:3]) for number, book in by_number.items() for one in book.dead_letters]
        assert sorted(row[1:5] for row in await harness.rows("dead_letters")) == sorted(letters)

    # ---- values

    @pytest.mark.parametrize("whole", [values.FULL_ACCOUNT, values.RICH_ACCOUNT, account()])
    async def test_account_is_read_back_exactly(self, engine: Engine, whole: Any):
        await write(engine, writes(account(whole.number, whole.merchant_id)))
        await write(engine, writes(whole._replace(opened_at=T0)))
        found = (await load(engine, need("", whole.merchant_id))).records[whole.merchant_id].account
        assert found == whole
        assert [type(value) for value in found or ()] == [type(value) for value in whole]

    @pytest.mark.parametrize("whole", [values.FULL_TRANSACTION, transaction()], ids=["full", "plain"])
    async def test_transaction_is_read_back_exactly(self, engine: Engine, whole: Transaction):
        await write(engine, writes(account(), transactions=[whole]))
        loaded = (await load(engine, need(whole.key))).records[MERCHANT].firsts[whole.key]
        read = await Transactions(engine).get(Address(NUMBER, TRANSACTION, whole.sequence))
        ((_, listed, _),) = await Transactions(engine).page(TransactionQuery(account=NUMBER), None, 1)
        for found in (loaded, read, listed):
            assert found == whole
            assert [type(value) for value in found] == [type(value) for value in whole]

    @pytest.mark.parametrize("whole", [values.FULL_GRANT, grant(), grant(remaining=0, amount=1)])
    async def test_grant_is_read_back_exactly(self, engine: Engine, whole: Any):
        await write(engine, writes(account(), grants=[whole]))
        assert [books.grants async for books in engine.books()] == [[whole]]
        loaded = await Accounts(engine).with_grants(MERCHANT)
        assert loaded == LoadedAccount(account(), (whole,) if whole.remaining else ())

    @pytest.mark.parametrize("whole", [values.FULL_PARKED, values.PARKED_PAYMENT_REFUND])
    async def test_parked_refund_is_read_back_exactly(self, engine: Engine, whole: Parked):
        await write(engine, writes(account(), parked=[whole]))
        assert (await load(engine, need(""))).records[MERCHANT].parked == {whole.key: whole}

    async def test_refunds_of_an_order_are_read_back_exactly(self, engine: Engine):
        paid = transaction(key=values.FULL_GIVEN_BACK.key)
        await write(engine, writes(account(), transactions=[paid], given_back=[values.FULL_GIVEN_BACK]))
        record = (await load(engine, need("", source=paid.key))).records[MERCHANT]
        assert record.given_back == {paid.key: values.FULL_GIVEN_BACK}

    async def test_dead_letter_keeps_its_fact(self, harness: Harness, engine: Engine):
        letter = DeadLetter("order_unknown", "The order never came.", T0, values.FULL_REFUND)
        await write(engine, writes(account(), dead_letters=[letter, letter]))
        kept = await harness.rows("dead_letters")
        assert [row[1:6] for row in kept] == [
            (NUMBER, "order_unknown", "The order never came.", T0, "order_refunded")
        ] * 2
        await write(engine, writes(account(), parked=[values.FULL_PARKED]))
        ((*_, text),) = await harness.rows("parked")
        assert {row[6] for row in kept} == {text}  # the text restores the parked refund exactly

    async def test_event_row_keeps_fields_that_its_transaction_lacks(self, harness: Harness, engine: Engine):
        plain = values.FULL_ANNOUNCEMENT._replace(number=1, sequence=None, detail=None)
        await write(engine, writes(account(), announcements=[values.FULL_ANNOUNCEMENT, plain]))
        first, second = await harness.rows("events")
        full = values.FULL_ANNOUNCEMENT
        assert first[2:] == (NUMBER, *full[:5], '{"reason":"exhausted","n":[1]}')
        assert second[2:] == (NUMBER, 1, full.type, None, full.available, full.at, None)

    # ---- events

    async def test_events_are_numbered_without_gaps_in_commit_order(self, harness: Harness, engine: Engine):
        announcements = [values.FULL_ANNOUNCEMENT._replace(number=number) for number in range(1, 8)]
        for first in (0, 2, 4):
            await write(engine, writes(account(), announcements=announcements[first : first + 2]))
        with pytest.raises(BadRow):
            await write(engine, writes(account(balance=1), announcements=announcements[6:]))
        with pytest.raises(BadRow):
            await write(engine, writes(account(), announcements=announcements[:1]))  # a merchant id
        await write(engine, writes(account(), announcements=announcements[6:]))
        kept = await harness.rows("events")
        assert [row[1] for row in kept] == list(range(1, 8))
        assert len({row[0] for row in kept}) == 1  # the lane of their merchant

    async def test_every_transaction_has_one_announcement_of_its_own(self, harness: Harness, engine: Engine):
        rejecting = Policy(when_insufficient="reject")
        await tell(engine, opening(), payment("P", 5), order("1", 200), policy=rejecting)
        await tell(engine, use(3), payment_refund("R", "P", 9), add(1, expires_at=days(1)))
        transactions = [row[:2] for row in await harness.rows("transactions")]
        own = [(row[2], row[5]) for row in await harness.rows("events") if row[4] in OF_A_TRANSACTION]
        assert own == transactions

    # ---- what the database itself refuses

    BROKEN: dict[str, Writes] = {  # noqa: RUF012 - a table, never written to
        "ck_accounts_explained": writes(account(balance=1)),
        "ck_accounts_in_range": writes(account(balance=2**53, total_increases=2**53)),
        "ck_accounts_not_negative": writes(account(held=-1)),
        "ck_accounts_no_debt_with_credits": writes(account(debt=1)),
        "ck_accounts_policy": writes(account(when_insufficient="forgive")),
        "ck_accounts_state": writes(account(state="melted")),
        "ck_accounts_trial_is_one_of_its_own": writes(account(trial=1)),
        "ck_accounts_hash_length": writes(account(last_hash=bytes(31))),
        "uq_accounts_merchant_id": writes(account(1), account(2)),
        "ck_transactions_operation": writes(transactions=[transaction(operation="TRANSFER", balance_after=-5)]),
        "ck_transactions_explained": writes(transactions=[transaction(balance_after=6)]),
        "ck_transactions_not_negative": writes(transactions=[transaction(shortfall=-1)]),
        "ck_transactions_reference_whole": writes(transactions=[transaction(reference=Reference("order", None))]),  # type: ignore[arg-type]  # the very fault
        "ck_transactions_hash_length": writes(transactions=[transaction(hash=b"")]),
        "pk_transactions": writes(transactions=[transaction(), transaction(key="other")]),
        "uq_transactions_account_key": writes(transactions=[transaction(), transaction(2, key="key 1")]),
        "ck_grants_remaining": writes(grants=[grant(remaining=6)]),
        "ck_grants_category": writes(grants=[grant(category="borrowed")]),
        "ck_given_back_not_negative": writes(given_back=[GivenBack("o", 0, 2, 1)]),
        "ck_given_back_of_payment": writes(given_back=[GivenBack("o", refunded=-1)]),
    }

    @pytest.mark.parametrize("constraint", BROKEN)
    async def test_database_refuses_a_row_that_breaks(self, harness: Harness, engine: Engine, constraint: str):
        with pytest.raises(BadRow, match=constraint if constraint.startswith("ck_") else None):
            await write(engine, self.BROKEN[constraint])
        assert await self._all_rows(harness) == {name: [] for name in TABLES}

    def test_every_check_constraint_of_the_ledger_is_tried(self):
        checks = {
            str(constraint.name)
            for name in LEDGER
            for constraint in tables.metadata.tables[name].constraints
            if isinstance(constraint, CheckConstraint)
        }
        # An engine computes these columns itself. Another test covers the constraints of dead letters.
        derived = {"ck_grants_open", "ck_dead_letters_fact_or_event", "ck_dead_letters_hash_length"}
        assert checks - derived == {name for name in self.BROKEN if name.startswith("ck_")}

    @pytest.mark.parametrize("late", [2**63, -(2**63) - 1])
    async def test_engine_refuses_number_beyond_64_bits(self, harness: Harness, engine: Engine, late: int):
        with pytest.raises((BadRow, OverflowError)):
            await write(engine, writes(account(), transactions=[transaction(occurred_at=late)]))
        assert await harness.rows("accounts") == []

    # ---- reading accounts

    async def test_load_finds_the_accounts_of_these_merchants_only(self, engine: Engine):
        await write(engine, writes(account(), account(2, OTHER)))
        found = await Accounts(engine).load([MERCHANT, merchant(7), MERCHANT], T0)
        assert {key: held.account for key, held in found.items()} == {MERCHANT: account()}
        assert await Accounts(engine).load([], T0) == {}

    async def test_load_brings_open_grants_if_something_is_due(self, engine: Engine):
        grants = [grant(2, expires_at=T0 + 5), grant(1), grant(3, remaining=0)]
        await write(engine, writes(account(granted=3, next_due_at=T0 + 5), grants=grants))
        assert (await Accounts(engine).load([MERCHANT], T0 + 4))[MERCHANT].grants == ()
        assert (await Accounts(engine).load([MERCHANT], T0 + 5))[MERCHANT].grants == (grants[0], grants[1])

    async def test_grants_are_the_open_ones_in_burn_down_order(self, engine: Engine):
        grants = [grant(1), grant(2, priority=1), grant(3, remaining=0)]
        await write(engine, writes(account(granted=3), grants=grants))
        loaded = await Accounts(engine).with_grants(MERCHANT)
        assert loaded == LoadedAccount(account(granted=3), (grants[1], grants[0]))
        assert await Accounts(engine).with_grants(merchant(7)) is None

    @pytest.mark.parametrize("query", [{}, {"type": "MANUAL"}, {"start_at": T0}, {"end_at": T0}, {"end_at": T0 + 1}])
    async def test_page_by_merchant_is_the_page_by_number(self, engine: Engine, query: dict[str, Any]):
        history = [transaction(sequence) for sequence in (1, 2, 3)]
        await write(engine, writes(account(), transactions=history))
        transactions = Transactions(engine)
        by_number, by_merchant = (
            TransactionQuery(account=NUMBER, **query),
            TransactionQuery(merchant_id=MERCHANT, **query),
        )
        for before, offset in ((None, 0), ((3,), 0), (None, 1)):
            found = await transactions.page(by_number, before, 2, offset)
            assert await transactions.page(by_merchant, before, 2, offset) == found
        assert await transactions.page(TransactionQuery(merchant_id=merchant(7), **query), None, 5) == []

    async def test_accounts_are_listed_by_merchant_after_a_cursor(self, engine: Engine):
        accounts = [account(9 - index, merchant(index)) for index in range(5)]
        await write(engine, writes(*accounts))
        query = AccountQuery(at=T0, default_threshold=0)
        assert [held.account for held in await Accounts(engine).page(query, None, 3)] == accounts[:3]
        assert [held.account for held in await Accounts(engine).page(query, merchant(2), 3)] == accounts[3:]
        assert await Accounts(engine).page(query, merchant(4), 3) == []

    async def test_accounts_are_filtered_by_status_and_balance(self, engine: Engine):
        standing = {
            "debt": {"balance": -5, "debt": 5},
            "zero": {"balance": 0},
            "held": {"balance": 30, "held": 20, "pending": 10},
            "low": {"balance": 20},
            "above": {"balance": 21},
            "own": {"balance": 21, "low_threshold": 50},
            "never low": {"balance": 1, "low_threshold": 0},
        }
        accounts = {
            name: account(
                index + 1, merchant(index), total_increases=100, total_decreases=100 - more["balance"], **more
            )
            for index, (name, more) in enumerate(standing.items())
        }
        await write(engine, writes(*accounts.values()))

        async def listed(**filters: Any) -> set[str]:
            found = await Accounts(engine).page(AccountQuery(at=T0, default_threshold=20, **filters), None, 100)
            return {name for name, one in accounts.items() if one in [held.account for held in found]}

        assert await listed() == set(standing)
        assert await listed(status="EXHAUSTED") == {"debt", "zero", "held"}
        assert await listed(status="LOW") == {"low", "own"}
        assert await listed(status="ACTIVE") == {"above", "never low"}
        assert await listed(min_balance=21) == {"above", "own", "held"}
        assert await listed(max_balance=0) == {"debt", "zero"}
        assert await listed(min_balance=1, max_balance=20, status="LOW") == {"low"}

    async def test_L7_due_accounts_are_listed_with_grants_whatever_the_filter(self, engine: Engine):
        expiring = grant(expires_at=T0 + 5)
        await write(
            engine, writes(account(balance=5, total_increases=5, granted=1, next_due_at=T0 + 5), grants=[expiring])
        )
        query = AccountQuery(at=T0 + 4, default_threshold=0, status="EXHAUSTED", min_balance=100, max_balance=1)
        assert await Accounts(engine).page(query, None, 10) == []
        (held,) = await Accounts(engine).page(query._replace(at=T0 + 5), None, 10)
        assert held.grants == (expiring,)

    # ---- reading transactions

    async def test_transaction_is_found_by_its_address_only(self, engine: Engine):
        await write(engine, writes(account(), transactions=[transaction()]))
        assert await Transactions(engine).get(Address(NUMBER, TRANSACTION, 1)) == transaction()
        for wrong in (
            Address(NUMBER, TRANSACTION, 2),
            Address(NUMBER, TRANSACTION, 0),
            Address(NUMBER - 1, TRANSACTION, 1),
            Address(NUMBER, ACCOUNT, 1),
            Address(NUMBER, GRANT, 1),
        ):
            assert await Transactions(engine).get(wrong) is None

    @pytest.fixture
    async def history(self, harness: Harness, engine: Engine) -> list[Transaction]:
        """Two merchants' transactions in the order of their commits."""
        done: list[Transaction] = []
        for day in range(4):
            harness.clock.now = days(day)
            done += await posted(
                engine,
                payment(f"P{day}", 50),
                of(OTHER, payment(f"Q{day}", 5)),
                order(f"{day}", 3),
                use(2, reference=Reference("job", str(day % 2))),
                of(OTHER, use(1)),
            )
        return done

    FILTERS: list[dict[str, Any]] = [  # noqa: RUF012 - a table, never written to
        {},
        {"operation": "DECREASE"},
        {"type": "PAYMENT"},
        {"start_at": days(1)},
        {"end_at": days(2)},
        {"start_at": days(1), "end_at": days(3), "operation": "INCREASE"},
        {"reference_type": "job", "reference_id": "1"},
        {"reference_type": "order"},
        {"type": "TRIAL"},
    ]

    @pytest.mark.parametrize("filters", FILTERS, ids=str)
    @pytest.mark.parametrize("number", [None, 1, 2, 3], ids=["all", "first", "second", "unknown"])
    async def test_transactions_are_listed_newest_first_by_filter_cursor_and_offset(
        self, engine: Engine, history: list[Transaction], number: int | None, filters: dict[str, Any]
    ):
        def matches(one: Transaction) -> bool:
            return (
                number in (None, one.account)
                and filters.get("operation", one.operation) == one.operation
                and filters.get("type", one.type) == one.type
                and filters.get("start_at", 0) <= one.created_at < filters.get("end_at", days(9))
                and ("reference_type" not in filters or (one.reference or ("", ""))[0] == filters["reference_type"])
                and ("reference_id" not in filters or (one.reference or ("", ""))[1] == filters["reference_id"])
            )

        expected = [one for one in reversed(history) if matches(one)]
        query = TransactionQuery(account=number, **filters)
        assert await Transactions(engine).count(query) == len(expected)
        assert [found.transaction for found in await Transactions(engine).page(query, None, 100)] == expected

        paged: list[Transaction] = []
        before = None
        while page := await Transactions(engine).page(query, before, 3):
            assert len(page) <= 3
            positions = [found.position for found in page]
            assert positions == sorted(positions, reverse=True)
            paged += [found.transaction for found in page]
            before = page[-1].position
        assert paged == expected

        for offset in (0, 1, 4, 100):
            found = await Transactions(engine).page(query, None, 2, offset)
            assert [one.transaction for one in found] == expected[offset : offset + 2]
        after_first = await Transactions(engine).page(query, None, 1)
        if after_first:
            found = await Transactions(engine).page(query, after_first[0].position, 2, 1)
            assert [one.transaction for one in found] == expected[2:4]
        found = await Transactions(engine).page(query, (10**9,) * (1 if number else engine.lanes), 2, 1)
        assert [one.transaction for one in found] == expected[1:3]

    async def test_transaction_without_account_is_in_no_list(self, harness: Harness, engine: Engine):
        await write(engine, writes(account(1), transactions=[transaction(1, 1)]))
        assert await Transactions(engine).strays() == []
        lost = [transaction(sequence, NUMBER, OTHER) for sequence in (1, 2)]
        own = values.FULL_ANNOUNCEMENT._replace(type="recharged", sequence=1)
        await write(engine, writes(transactions=lost, announcements=[own]))
        assert sorted(await Transactions(engine).strays()) == [(NUMBER, 1), (NUMBER, 2)]
        assert await Transactions(engine).get(Address(NUMBER, TRANSACTION, 1)) is None
        assert await Transactions(engine).page(TransactionQuery(), None, 10) == []

    # ---- the outbox

    async def test_outbox_is_read_in_lane_order_with_its_transactions(self, harness: Harness, engine: Engine):
        merchants = [merchant(index) for index in range(20)]
        await tell(engine, *[of(one, opening()) for one in merchants])
        harness.clock.now = days(1)
        spent = await posted(engine, *[of(one, use(2)) for one in merchants])
        start = (0,) * engine.lanes
        everything = await Outbox(engine).events(start, 1000)
        assert len(everything) == len(await harness.rows("events"))
        for lane in range(engine.lanes):
            ids = [event.id for event in everything if event.lane == lane]
            assert ids == list(range(1, len(ids) + 1))
        for one in merchants:
            own = [event for event in everything if event.merchant_id == one]
            assert [event.announcement.number for event in own] == [1, 2, 3, 4]
            expected = ["account.created", "recharged", "plugin_status_changed", "consumed"]
            assert [event.announcement.type for event in own] == expected
            assert own[0].transaction is None
            assert own[3].transaction in spent
            assert own[3].announcement.available == 98
            assert await Outbox(engine).events_of(own[0].account, 0, 10) == own
            assert await Outbox(engine).events_of(own[0].account, 1, 1) == own[1:2]
        assert [event.announcement.at for event in everything] == [T0] * 60 + [days(1)] * 20

        paged, position = [], list(start)
        while page := await Outbox(engine).events(tuple(position), 7):
            assert len(page) <= 7
            paged += page
            for event in page:
                assert event.id == position[event.lane] + 1, "no event is skipped"
                position[event.lane] = event.id
        assert sorted(paged) == sorted(everything)
        assert await Outbox(engine).end() == tuple(position)

    @pytest.mark.parametrize("limit", [1, 2, 7, 16, 40, 1000])
    async def test_outbox_pages_are_ordered_by_time_across_lanes(self, harness: Harness, engine: Engine, limit: int):
        for number in range(30):
            harness.clock.now = days(number)
            busy = [of(merchant(0), use(1)) for _ in range(3)] if number < 20 else []
            await tell(engine, *[of(merchant(index), opening()) for index in range(number % 5)], *busy)
        everything, position = [], [0] * engine.lanes
        while page := await Outbox(engine).events(tuple(position), limit):
            everything += page
            for event in page:
                assert event.id == position[event.lane] + 1, "no event is skipped"
                position[event.lane] = event.id
        assert tuple(position) == await Outbox(engine).end()
        instants = [event.announcement.at for event in everything]
        assert instants == sorted(instants)

    async def test_one_owner_at_a_time_reads_on_from_the_cursor(self, engine: Engine):
        there = tuple(range(1, engine.lanes + 1))
        first = await Outbox(engine).claim("reader", "a", T0, 10)
        assert first is not None
        assert (first.epoch, first.position, first.leased_until) == (1, (0,) * engine.lanes, T0 + 10_000_000)
        assert await Outbox(engine).claim("reader", "b", T0 + 9_999_999, 10) is None
        assert await Outbox(engine).claim("other reader", "b", T0, 10) is not None
        on = await Outbox(engine).advance(first, there, T0 + 5_000_000, 10)
        assert on == first._replace(position=there, leased_until=T0 + 15_000_000)
        assert await Outbox(engine).claim("reader", "b", T0 + 14_999_999, 10) is None

        taken = await Outbox(engine).claim("reader", "b", T0 + 15_000_000, 10)
        assert taken is not None
        assert (taken.epoch, taken.position) == (2, there)
        assert await Outbox(engine).advance(on, (9,) * engine.lanes, T0 + 15_000_000, 10) is None, (
            "a late owner changes nothing"
        )
        await Outbox(engine).release(on)
        assert await Outbox(engine).claim("reader", "a", T0 + 16_000_000, 10) is None

        again = await Outbox(engine).claim("reader", "b", T0 + 16_000_000, 10)
        assert again is not None
        assert again.epoch == 3, "a new claim of the owner replaces its old claim"
        assert await Outbox(engine).advance(taken, there, T0 + 16_000_000, 10) is None
        await Outbox(engine).release(again)
        assert (await Outbox(engine).claim("reader", "a", T0 + 16_000_000, 10) or again).owner == "a"
        assert [(one.reader, one.owner) for one in await Outbox(engine).cursors()] == [
            ("other reader", "b"),
            ("reader", "a"),
        ]

    async def test_one_of_many_simultaneous_claims_wins(self, engine: Engine):
        for now in (T0, T0 + 10_000_000):
            claims = await asyncio.gather(*[Outbox(engine).claim("reader", f"owner {n}", now, 10) for n in range(8)])
            (held,) = [claim for claim in claims if claim is not None]
            assert await Outbox(engine).advance(held, held.position, now, 10) is not None

    # ---- the past

    async def test_L7_past_balance_counts_expiries_from_their_instants(self, harness: Harness, engine: Engine):
        (first, *_) = await posted(engine, payment("P", 100), payment("Q", 50, expires_at=days(2)))
        harness.clock.now = days(5)
        # The account is settled only now, and part of this posting expires at once, at an instant long past.
        await tell(engine, payment("R", 7, expires_at=days(1)), use(10))
        instants = [days(0) - 1, days(0), days(2) - 1, days(2), days(5) - 1, days(5)]
        assert [(await Accounts(engine).past(first.account, at)).balance for at in instants] == [
            0,
            150,
            150,
            100,
            100,
            90,
        ]

    async def test_past_balance_is_right_throughout_a_long_history(self, harness: Harness, engine: Engine):
        balances = {}
        for day in range(37):
            harness.clock.now = days(day)
            (last,) = await posted(engine, payment(f"P{day}", day + 1))
            balances[day] = last.balance_after
        number = (await Accounts(engine).load([MERCHANT], days(40)))[MERCHANT].account.number
        for day, balance in balances.items():
            assert (await Accounts(engine).past(number, days(day))).balance == balance
            between = TransactionQuery(account=number, start_at=days(day), end_at=days(day + 2))
            assert await Transactions(engine).count(between) == min(2, 37 - day)
            assert [one.transaction.amount for one in await Transactions(engine).page(between, None, 1, 1)] == [
                day + 1
            ] * (day < 36)

    # ---- what is due

    async def test_L7_due_merchants_are_listed_longest_due_first(self, engine: Engine):
        await write(engine, writes(account(1, merchant(1), next_due_at=T0 + 3), account(2, merchant(2))))
        await write(engine, writes(account(3, merchant(3), next_due_at=T0 + 1)))
        await write(
            engine,
            writes(
                account(4, merchant(4)),
                parked=[values.FULL_PARKED._replace(key=f"{until}", until=T0 + until) for until in (9, 2)],
            ),
        )
        assert await Accounts(engine).due(T0, 10) == []
        assert await Accounts(engine).due(T0 + 2, 10) == [merchant(3), merchant(4)]
        assert await Accounts(engine).due(T0 + 9, 10) == [merchant(3), merchant(4), merchant(1)]
        assert await Accounts(engine).due(T0 + 9, 2) == [merchant(3), merchant(4)]
        assert await Accounts(engine).due(T0 + 9, 1) == [merchant(3)]

    async def test_L7_settled_merchant_is_no_longer_due(self, harness: Harness, engine: Engine):
        await posted(engine, payment("P", 5, expires_at=days(30)))
        await tell(engine, told_refund("R", "unknown", credits=1))
        harness.clock.now = days(40)
        assert await Accounts(engine).due(days(40), 10) == [MERCHANT]
        await tell(engine, sweep())
        assert await Accounts(engine).due(days(40), 10) == []
        assert [row[2] for row in await harness.rows("dead_letters")] == ["order_unknown"]
        assert await harness.rows("parked") == []

    # ---- books

    async def test_books_hold_everything_of_each_account_by_merchant(self, engine: Engine, history: list[Transaction]):
        books = [(one.account, one.grants, list(one.transactions), one.faults) async for one in engine.books()]
        assert [entry[0].merchant_id for entry in books] == [OTHER, MERCHANT]
        for found, grants, transactions, faults in books:
            assert transactions == [one for one in history if one.account == found.number]
            assert [one.number for one in grants] == list(range(1, found.granted + 1))
            assert list(faults) == []
            assert list(verify(found, grants, transactions)) == []

    async def test_books_of_some_merchants_name_each_once(self, engine: Engine, history: list[Transaction]):
        async def of_these(*merchants: str) -> list[str]:
            return [books.account.merchant_id async for books in engine.books(merchants)]

        assert await of_these(MERCHANT, merchant(99), MERCHANT) == [MERCHANT]
        assert await of_these(MERCHANT, OTHER) == [OTHER, MERCHANT]
        assert await of_these() == []

    async def test_books_are_one_snapshot(self, engine: Engine, history: list[Transaction]):
        counted = []
        async for books in engine.books():
            await posted(engine, use(1), of(OTHER, use(1)))
            counted.append(len(list(books.transactions)))
        assert counted == [8, 12]

    async def test_books_can_be_left_half_read(self, engine: Engine, history: list[Transaction]):
        reading = engine.books()
        books = await anext(reading)
        assert next(iter(books.transactions)) == history[1]
        await reading.aclose()  # type: ignore[attr-defined]  # an async generator, as its users know it

    # ---- the audit

    async def test_posted_accounts_do_not_drift(self, harness: Harness, engine: Engine):
        await tell(engine, opening(), payment("P", 5, expires_at=days(30)), order("1", 200), told_refund("R", "2"))
        await posted(engine, of(OTHER, payment("P", 9)), of(OTHER, use(3)))
        await write(engine, writes(account(3, merchant(50))))  # opened, and nothing posted yet
        assert await Accounts(engine).drifting(None, 10) == ([], None)
        harness.clock.now = days(40)
        await tell(engine, sweep())
        assert await Accounts(engine).drifting(None, 10) == ([], None)

    DRIFTED: dict[str, Writes] = {  # noqa: RUF012 - a table, never written to
        "a missing transaction": writes(account(sequence=1)),
        "an extra transaction": writes(account(), transactions=[transaction(amount=0, balance_after=0)]),
        "another balance": writes(account(sequence=1), transactions=[transaction()], grants=[grant(remaining=0)]),
        "another hash": writes(
            account(sequence=1, balance=5, total_increases=5, last_hash=b"x" * 32),
            transactions=[transaction()],
            grants=[grant()],
        ),
        "a grant with an unrecorded draw": writes(
            account(sequence=1, balance=5, total_increases=5), transactions=[transaction()], grants=[grant(remaining=4)]
        ),
        "an extra grant": writes(account(), grants=[grant()]),
        "a wrong debt": writes(account(debt=5, pending=5), grants=[grant(remaining=0)]),
    }

    @pytest.mark.parametrize("what", DRIFTED)
    async def test_account_that_disagrees_with_its_rows_drifts(self, engine: Engine, what: str):
        await write(engine, writes(account(1, OTHER)))
        await write(engine, self.DRIFTED[what])
        assert await Accounts(engine).drifting(None, 10) == ([MERCHANT], None)

    async def test_drift_is_checked_page_by_page_by_merchant(self, engine: Engine):
        await write(engine, writes(*(account(9 - index, merchant(index), sequence=index % 2) for index in range(5))))
        assert await Accounts(engine).drifting(None, 2) == ([merchant(1)], merchant(1))
        assert await Accounts(engine).drifting(merchant(1), 2) == ([merchant(3)], merchant(3))
        assert await Accounts(engine).drifting(merchant(3), 2) == ([], None)
        assert await Accounts(engine).drifting(merchant(4), 2) == ([], None)

    async def test_parked_refunds_are_counted(self, engine: Engine):
        assert await Accounts(engine).parked_count() == 0
        await write(engine, writes(account(), parked=[values.FULL_PARKED, values.FULL_PARKED._replace(key="other")]))
        assert await Accounts(engine).parked_count() == 2
        await write(engine, writes(account(), unparked=["other"]))
        assert await Accounts(engine).parked_count() == 1

    async def test_parked_refunds_are_listed_by_the_end_of_their_wait(self, engine: Engine):
        def entry(key: str, until: int) -> Parked:
            return values.FULL_PARKED._replace(key=key, until=until)

        await write(engine, writes(account(1), parked=[entry("late", T0 + 9), entry("b", T0), entry("a", T0)]))
        await write(engine, writes(account(2, OTHER), parked=[entry("b", T0), values.PARKED_PAYMENT_REFUND]))
        found = await Accounts(engine).parked(None, 10)
        assert [one.parked.until for one in found] == [T0, T0, T0, T0, T0 + 9]
        assert sorted((one.merchant_id, one.parked.key) for one in found) == sorted(
            [(MERCHANT, "late"), (MERCHANT, "b"), (MERCHANT, "a"), (OTHER, "b"), (OTHER, values.PAYMENT_REFUND.key)]
        )
        assert values.PARKED_PAYMENT_REFUND in [one.parked for one in found]
        paged, position = [], None
        while page := await Accounts(engine).parked(position, 2):
            paged += page
            position = page[-1].position
        assert paged == found

    # ---- dead letters

    async def test_dead_letter_of_an_event_is_read_back_exactly(self, engine: Engine):
        assert await Letters(engine).put_aside([values.FULL_UNDELIVERABLE]) == 1
        (kept,) = await Letters(engine).page(LetterQuery(), None, 10)
        whole = values.FULL_UNDELIVERABLE
        assert kept == Letter(kept.id, whole.code, whole.reason, whole.at, None, whole.subject, whole.original)
        assert await Letters(engine).get(kept.id) == kept
        assert await Letters(engine).get(kept.id + 1) is None

    async def test_dead_letter_of_parked_refund_keeps_its_fact(self, engine: Engine):
        facts = (values.FULL_REFUND, values.PAYMENT_REFUND)
        letters = [DeadLetter("order_unknown", "The order never came.", T0, fact) for fact in facts]
        await write(engine, writes(account(), dead_letters=letters))
        kept = await Letters(engine).page(LetterQuery(), None, 10)
        assert [one.fact for one in reversed(kept)] == [*facts]
        assert {one[1:4] for one in kept} == {("order_unknown", "The order never came.", T0)}
        assert {one[5:] for one in kept} == {(None, None, None, None)}

    async def test_event_delivered_again_makes_no_second_dead_letter(self, engine: Engine):
        first = values.FULL_UNDELIVERABLE
        assert await Letters(engine).put_aside([first, first, first._replace(code="other", at=T0 + 1)]) == 1
        assert await Letters(engine).put_aside([first]) == 0
        other = [first._replace(subject="other"), first._replace(original=b"other")]
        assert await Letters(engine).put_aside(other) == 2
        assert await Letters(engine).put_aside([]) == 0
        assert [one.code for one in await Letters(engine).page(LetterQuery(), None, 10)] == [first.code] * 3

    async def test_simultaneous_copies_of_event_make_one_dead_letter(self, engine: Engine):
        events = [values.FULL_UNDELIVERABLE._replace(subject=str(number)) for number in range(5)]
        counts = await asyncio.gather(*[Letters(engine).put_aside(events) for _ in range(8)])
        assert sum(counts) == await Letters(engine).count(LetterQuery()) == 5

    async def test_dead_letters_are_listed_newest_first_by_filter_and_cursor(self, engine: Engine):
        plain = values.FULL_UNDELIVERABLE
        for number in range(4):
            await Letters(engine).put_aside(
                [plain._replace(subject=f"s{number % 2}", original=b"%d" % number, code=f"c{number}")]
            )
        letter = DeadLetter("c1", "The order never came.", T0, values.FULL_REFUND)
        await write(engine, writes(account(), dead_letters=[letter]))
        every = await Letters(engine).page(LetterQuery(), None, 10)
        assert [one.code for one in every] == ["c1", "c3", "c2", "c1", "c0"]
        assert await Letters(engine).page(LetterQuery(), every[1].id, 2) == every[2:4]
        assert await Letters(engine).mark_replayed(every[3].id, T0 + 5)

        async def codes(query: LetterQuery) -> list[str]:
            found = await Letters(engine).page(query, None, 10)
            assert await Letters(engine).count(query) == len(found)
            return [one.code for one in found]

        assert await codes(LetterQuery(code="c1")) == ["c1", "c1"]
        assert await codes(LetterQuery(subject="s1")) == ["c3", "c1"]
        assert await codes(LetterQuery(subject="s1", kind="order_refunded")) == ["c1", "c3", "c1"]
        assert await codes(LetterQuery(subject="s1", code="c3")) == ["c3"]
        assert await codes(LetterQuery(unreplayed=True)) == ["c1", "c3", "c2", "c0"]

    async def test_dead_letters_are_published_oldest_first_and_once(self, engine: Engine):
        for number in range(3):
            await Letters(engine).put_aside([values.FULL_UNDELIVERABLE._replace(subject=str(number))])
        unpublished = await Letters(engine).unpublished(10)
        assert [one.subject for one in unpublished] == ["0", "1", "2"]
        assert await Letters(engine).unpublished(2) == unpublished[:2]
        await Letters(engine).mark_published([one.id for one in unpublished[:2]], T0 + 1)
        await Letters(engine).mark_published([], T0)
        assert await Letters(engine).unpublished(10) == unpublished[2:]
        assert await Letters(engine).get(unpublished[0].id) == unpublished[0]._replace(published_at=T0 + 1)

    async def test_dead_letter_shows_when_it_was_replayed(self, engine: Engine):
        await Letters(engine).put_aside([values.FULL_UNDELIVERABLE])
        (kept,) = await Letters(engine).page(LetterQuery(), None, 1)
        assert await Letters(engine).mark_replayed(kept.id, T0 + 2)
        assert await Letters(engine).get(kept.id) == kept._replace(replayed_at=T0 + 2)
        assert not await Letters(engine).mark_replayed(kept.id + 1, T0)

    @pytest.mark.parametrize("wrong", [{"message_hash": bytes(15)}, {"subject": None}, {"original": None}])
    async def test_database_refuses_unreplayable_dead_letter(self, engine: Any, wrong: Any):
        whole = {**values.FULL_UNDELIVERABLE._asdict(), "message_hash": bytes(16)}
        assert await engine.write([Ask(letters.PUT_ASIDE, whole)]) == 1
        with pytest.raises(BadRow, match="ck_dead_letters_"):
            await engine.write([Ask(letters.PUT_ASIDE, whole | {"message_hash": b"another 16 bytes"} | wrong)])

    # ---- shops and their deliveries

    async def test_shop_is_linked_to_one_merchant_at_a_time(self, engine: Engine):
        assert await Shops(engine).get(SHOP) is None
        await Shops(engine).link(SHOP, MERCHANT, T0)
        assert await Shops(engine).get(SHOP) == Shop(SHOP, MERCHANT, T0)
        assert await Shops(engine).uninstall(SHOP, T0 + 1)
        assert await Shops(engine).get(SHOP) == Shop(SHOP, MERCHANT, T0, None, T0 + 1)
        await Shops(engine).link(SHOP, OTHER, T0 + 2)
        assert await Shops(engine).get(SHOP) == Shop(SHOP, OTHER, T0 + 2)
        assert await Shops(engine).get("other.myshopify.com") is None

    async def test_unlinked_shop_is_kept_and_does_not_change(self, engine: Engine):
        assert not await Shops(engine).unlink(SHOP, T0)
        await Shops(engine).link(SHOP, MERCHANT, T0)
        assert not await Shops(engine).uninstall(SHOP, T0 - 1)  # an event about an earlier time arrives late
        assert await Shops(engine).unlink(SHOP, T0 + 1)
        assert not await Shops(engine).unlink(SHOP, T0 + 2)
        assert not await Shops(engine).uninstall(SHOP, T0 + 2)
        assert await Shops(engine).get(SHOP) == Shop(SHOP, MERCHANT, T0, T0 + 1)

    async def test_delivery_is_kept_once_until_it_is_dropped(self, engine: Engine):
        kept = values.KEPT_ORDER
        assert await Shops(engine).keep(kept)
        assert not await Shops(engine).keep(kept._replace(received_at=T0 + 1))
        for other in (kept._replace(topic="t"), kept._replace(shop=SHOP), kept._replace(body="{}", received_at=T0 - 1)):
            assert await Shops(engine).keep(other)
        found = await Shops(engine).kept(kept.shop)
        assert [one._replace(digest=b"") for one in found] == [
            kept._replace(body="{}", received_at=T0 - 1),
            *sorted([kept, kept._replace(topic="t")], key=lambda one: found[1].topic != one.topic),
        ]
        await Shops(engine).drop(found)
        await Shops(engine).drop([])
        assert await Shops(engine).kept(kept.shop) == []
        assert len(await Shops(engine).kept(SHOP)) == 1

    async def test_purchase_is_claimed_by_the_first_merchant(self, engine: Engine):
        shops, another = Shops(engine), "another.myshopify.com"
        assert await shops.claim("gid", "period 1", MERCHANT, SHOP)
        assert await shops.claim("gid", "period 1", MERCHANT, another), "the shop may have another domain now"
        assert not await shops.claim("gid", "period 2", OTHER, another)
        assert await shops.claim("gid", "period 2", MERCHANT, SHOP), "the refused claim stored nothing"
        assert not await shops.claim("gid", "period 2", OTHER, SHOP)
        assert await shops.claim("gid", "period 3", OTHER, SHOP), "the shop may have another merchant now"
        racing = [shops.claim("raced", "raced", merchant(number), f"{number}") for number in range(8)]
        assert sorted(await asyncio.gather(*racing)) == [False] * 7 + [True]

    async def test_deliveries_are_due_once_linked_or_after_their_wait(self, engine: Engine):
        order = values.KEPT_ORDER._replace(shop=SHOP)
        erasure, asked = order._replace(topic="r", awaits="merchant"), order._replace(topic="q", awaits=None)
        late = order._replace(body="late", received_at=T0 + 9)
        for one in (late, order, erasure, asked):
            await Shops(engine).keep(one)

        async def due(before: int = T0 - 1, limit: int = 10) -> list[tuple[str, str | None]]:
            return [(one.topic, merchant) for one, merchant in await Shops(engine).due(before, limit)]

        assert await due() == []
        assert sorted(await due(T0)) == [("orders/paid", None), ("r", None)]
        await Shops(engine).link(SHOP, MERCHANT, T0)
        assert sorted(await due()) == [("orders/paid", MERCHANT)] * 2 + [("r", MERCHANT)]
        assert [one.received_at for one, _ in await Shops(engine).due(T0, 10)] == [T0, T0, T0 + 9]
        assert len(await due(limit=2)) == 2
        await Shops(engine).unlink(SHOP, T0)
        assert await due() == [("r", MERCHANT)]  # the request to erase data still knows the merchant
        assert sorted(await due(T0)) == [("orders/paid", None), ("r", MERCHANT)]

    # ---- erasing

    @pytest.mark.parametrize("at_once", [1, 2, 1000])
    async def test_L15_metadata_is_erased_and_the_chain_verifies(
        self, engine: Engine, at_once: int, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(erasing, "AT_ONCE", at_once)
        personal: dict[str, Any] = {"metadata": '{"email":"a@b.c"}', "salt": bytes(16)}
        posted_facts = [
            replace(fact, **personal)
            for fact in (
                payment("P", 500),
                order("1", 20),
                told_refund("r", "1", credits=7),
                order("2", 30),
                told_refund("early", "3", credits=1),
                told_refund("later", "4", credits=1),
            )
        ]
        await tell(engine, *posted_facts, *[of(OTHER, fact) for fact in posted_facts])

        async def erase(merchant_id: str, orders: set[str] | None) -> int:
            erasing_ = Erasing(engine)
            parked = await erasing_.erase_parked(merchant_id, orders)
            return parked + await erasing_.erase_transactions(merchant_id, orders)

        assert await erase(str(UUID(int=99)), None) == 0

        async def kept(merchant_id: str = MERCHANT) -> list[str]:
            history: list[Transaction] = []
            async for books in engine.books([merchant_id]):
                history = list(books.transactions)
                assert [*books.faults, *verify(books.account, books.grants, history)] == []
            assert all((one.metadata is None) == (one.salt is None) for one in history)
            parked = [one.parked for one in await Accounts(engine).parked(None, 9) if one.merchant_id == merchant_id]
            assert all((one.fact.metadata is None) == (one.fact.salt is None) for one in parked)
            return sorted(
                [one.key for one in history if one.metadata is not None]
                + [one.key for one in parked if one.fact.metadata is not None]
            )

        every = sorted(fact.key for fact in posted_facts)
        assert await kept() == every
        assert await erase(MERCHANT, {"1", "3", "unknown"}) == 3
        left = ["billing:payment:P", "shopify:order:2", "shopify:refund:later"]
        assert await kept() == left
        assert await erase(MERCHANT, {"1", "3"}) == 0
        assert await erase(MERCHANT, None) == 3
        assert await kept() == []
        assert await kept(OTHER) == every
        # A repeat replays, and a parked refund applies without the erased metadata.
        assert all(isinstance(outcome, Replayed | Waiting) for outcome in await tell(engine, *posted_facts))
        await tell(engine, order("3", 10))
        assert await kept() == []

    async def test_dead_letter_is_rewritten(self, engine: Engine):
        await Letters(engine).put_aside([values.FULL_UNDELIVERABLE])
        await write(engine, writes(account(), dead_letters=[DeadLetter("c", "r", T0, values.FULL_REFUND)]))
        fact, event = await Letters(engine).page(LetterQuery(), None, 10)
        for letter in (event._replace(original=b""), fact._replace(fact=erasing.without(values.FULL_REFUND))):
            await Letters(engine).rewrite(letter)
            assert await Letters(engine).get(letter.id) == letter
        assert (
            await Letters(engine).put_aside([values.FULL_UNDELIVERABLE]) == 1
        )  # the database keeps no hash of the old text (L15)

    # ---- API keys

    async def test_key_is_read_back_exactly_by_its_id(self, engine: Engine):
        plain = ApiKey("plain", "n", "read", bytes(32), T0)
        await Keys(engine).add(values.FULL_KEY)
        await Keys(engine).add(plain)
        assert await Keys(engine).get("id") == values.FULL_KEY
        assert await Keys(engine).get("plain") == plain
        assert await Keys(engine).get("ID") is None

    async def test_keys_are_listed_newest_first(self, engine: Engine):
        keys = [ApiKey(id_, "n", "read", bytes(32), at) for id_, at in (("a", 2), ("c", 1), ("b", 1), ("d", 3))]
        for key in keys:
            await Keys(engine).add(key)
        assert [key.id for key in await Keys(engine).all()] == ["d", "a", "b", "c"]

    async def test_key_id_is_unique_and_scope_is_limited(self, engine: Engine):
        await Keys(engine).add(values.FULL_KEY)
        for wrong in (
            values.FULL_KEY,
            values.FULL_KEY._replace(id="x", scope="root"),
            values.FULL_KEY._replace(id="y", secret_hash=b"short"),
        ):
            with pytest.raises(BadRow):
                await Keys(engine).add(wrong)
        assert await Keys(engine).all() == [values.FULL_KEY]

    async def test_key_is_revoked_once(self, engine: Engine):
        await Keys(engine).add(ApiKey("id", "n", "read", bytes(32), T0))
        assert not await Keys(engine).revoke("other", T0 + 1)
        assert await Keys(engine).revoke("id", T0 + 2)
        assert await Keys(engine).revoke("id", T0 + 3)
        found = await Keys(engine).get("id")
        assert found is not None
        assert found.revoked_at == T0 + 2

    async def test_last_use_of_keys_is_noted(self, engine: Engine):
        for id_ in ("a", "b", "c"):
            await Keys(engine).add(ApiKey(id_, "n", "read", bytes(32), T0))
        await Keys(engine).note_uses({"a": T0 + 1, "b": T0 + 2, "gone": T0 + 3})
        await Keys(engine).note_uses({})
        assert {key.id: key.last_used_at for key in await Keys(engine).all()} == {"a": T0 + 1, "b": T0 + 2, "c": None}

    # ---- the gate

    async def test_merchant_has_one_fail_policy_of_its_own_or_none(self, engine: Engine):
        await FailPolicies(engine).set(MERCHANT, "open")
        await FailPolicies(engine).set(OTHER, "open")
        await FailPolicies(engine).set(OTHER, "closed")
        assert await FailPolicies(engine).all() == {MERCHANT: "open", OTHER: "closed"}
        await FailPolicies(engine).set(MERCHANT, None)
        await FailPolicies(engine).set(MERCHANT, None)
        with pytest.raises(BadRow):
            await FailPolicies(engine).set(OTHER, "ajar")
        assert await FailPolicies(engine).all() == {OTHER: "closed"}

    # ---- housekeeping

    async def test_check_passes_and_writes_nothing(self, harness: Harness, engine: Engine):
        await engine.check()
        assert await self._all_rows(harness) == {name: [] for name in TABLES}

    async def test_close_finishes_the_postings_under_way(self, harness: Harness):
        engine = await harness.fresh()
        under_way = [
            asyncio.create_task(write(engine, writes(account(index + 1, merchant(index))))) for index in range(5)
        ]
        await asyncio.sleep(0)
        engine = await harness.reopened(engine)
        await asyncio.gather(*under_way)
        assert len(await harness.rows("accounts")) == 5
        await engine.close()

    async def _all_rows(self, harness: Harness) -> dict[str, list[tuple[Any, ...]]]:
        return {name: await harness.rows(name) for name in TABLES}
