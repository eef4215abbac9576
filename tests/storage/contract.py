"""What every store must do, said once. An engine's test module says how to build one (`Harness`) and inherits the rest.

Values are handed to the store directly where the law is the store's own; where it needs real postings they come through
`Posting`, as in service. `test_batches` says that a store adds nothing to what the ledger decides.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import Any, Protocol
from uuid import UUID

import pytest
from hypothesis import given, settings
from sqlalchemy import CheckConstraint

from credit_service.ledger import commands
from credit_service.ledger.account import DeadLetter, GivenBack, Parked, Reference, Transaction
from credit_service.ledger.addresses import ACCOUNT, GRANT, TRANSACTION, Address
from credit_service.ledger.announcements import OF_A_TRANSACTION
from credit_service.ledger.decide import Needs, Outcome, Replayed, Waiting
from credit_service.ledger.draft import Posted
from credit_service.ledger.policy import Policy
from credit_service.ledger.proof import verify
from credit_service.posting import Posting, RefusedAt
from credit_service.storage import erasing, letters, tables
from credit_service.storage.accounts import AccountQuery, Accounts
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
    """The store's clock, moved by tests."""

    def __init__(self) -> None:
        self.now = T0

    def __call__(self) -> int:
        return self.now


class Harness(Protocol):
    """How tests build a store of one engine, and look beneath it."""

    clock: Clock

    async def fresh(self) -> Engine:
        """A store with the schema and no rows. It reads `clock`, and numbers accounts 1, 2, 3 as it meets merchants."""
        ...

    async def renewed(self, store: Engine) -> Engine:
        """As `fresh`, in place of a store that nobody needs any more."""
        ...

    async def reopened(self, store: Engine) -> Engine:
        """The same database after the store was closed and the service started again."""
        ...

    async def rows(self, table: str) -> list[tuple[Any, ...]]:
        """What the last commit left in a table of the last store, in order of its primary key."""
        ...

    def halfway(self, store: Engine) -> AbstractAsyncContextManager[None]:
        """While inside, a posting stops when it has written all and not committed yet, which it does at the exit."""
        ...

    async def close(self) -> None:
        """Let go of what it looked through, in the event loop in which it did."""
        ...


def merchant(index: int) -> UUID:
    """One of many merchants, in their order."""
    return UUID(int=index + 1)


def need(key: str = "", merchant_id: UUID = MERCHANT, source: str | None = None, *, trial: bool = False) -> Needs:
    """What to load for a command."""
    return Needs(merchant_id, key, source, awaited=False, trial=trial, overdue=False)


async def write(store: Engine, made: Writes) -> None:
    """Write these rows in one posting."""
    await store.post([need("", account.merchant_id) for account in made.accounts.values()], lambda loaded: made)


async def load(store: Engine, *wanted: Needs) -> Loaded:
    """What a posting with these needs would decide on."""
    seen: list[Loaded] = []

    def work(loaded: Loaded) -> Writes:
        seen.append(loaded)
        return Writes()

    await store.post(wanted, work)
    return seen[-1]


async def tell(store: Engine, *told: commands.Command, policy: Policy | None = None) -> list[Outcome]:
    """Post commands as the service does, in one batch."""
    async with at_work(store, policy) as posting:
        return await posting.submit_many(told)


async def tell_apart(store: Engine, *told: commands.Command) -> Sequence[Any]:
    """Post commands as the service does, each of another caller; what came of them, or why nothing did."""
    async with at_work(store) as posting:
        outcomes: Sequence[Any] = await asyncio.gather(*map(posting.submit, told), return_exceptions=True)
        return outcomes


@asynccontextmanager
async def at_work(store: Engine, policy: Policy | None = None, **settings: Any) -> AsyncIterator[Posting]:
    """The one way in, in front of a store."""
    posting = Posting(store, policy or Policy(), **settings)
    posting.start()
    try:
        yield posting
    finally:
        await posting.drain()


async def posted(store: Engine, *told: commands.Command, policy: Policy | None = None) -> list[Transaction]:
    """The transactions of commands that must all be posted."""
    transactions = []
    for outcome in await tell(store, *told, policy=policy):
        assert isinstance(outcome, Posted), outcome
        assert outcome.transaction is not None
        transactions.append(outcome.transaction)
    return transactions


TABLES = tuple(tables.metadata.tables)
BESIDE = (
    "api_keys",
    "event_cursors",
    "gate_policies",
    "shops",
    "shopify_claims",
    "shopify_deliveries",
    "webhook_endpoints",
    "webhook_deliveries",
)
LEDGER = tuple(name for name in TABLES if name not in BESIDE)


class StoreContract:
    """The laws of a store. A subclass gives the fixture `harness`."""

    @pytest.fixture
    async def store(self, harness: Harness) -> AsyncIterator[Engine]:
        store = await harness.fresh()
        yield store
        await store.close()

    # ---- a posting: load, decide, write, commit

    async def test_what_work_writes_is_returned_and_there_after_a_restart(self, harness: Harness):
        store = await harness.fresh()
        made = writes(account(sequence=1), transactions=[transaction()])
        try:
            assert (await store.post([], lambda loaded: made)).writes is made
        finally:
            store = await harness.reopened(store)
        try:
            held = await Accounts(store).load([MERCHANT], T0)
            assert held[MERCHANT].account == account(sequence=1)
            assert await Transactions(store).get(Address(NUMBER, TRANSACTION, 1)) == transaction()
        finally:
            await store.close()

    async def test_L4_nothing_is_there_of_a_posting_whose_work_fails(self, harness: Harness, store: Engine):
        class Sudden(Exception):
            pass

        def work(loaded: Loaded) -> Writes:
            raise Sudden("as it is")

        with pytest.raises(Sudden, match="as it is"):
            await store.post([need("k")], work)
        assert await self._all_rows(harness) == {name: [] for name in TABLES}
        await write(store, writes(account()))
        assert len(await harness.rows("accounts")) == 1

    async def test_L4_nothing_is_there_of_a_posting_with_one_row_the_database_refuses(
        self, harness: Harness, store: Engine
    ):
        whole: dict[str, Any] = {
            "transactions": [transaction()],
            "grants": [grant()],
            "announcements": [values.FULL_ANNOUNCEMENT],
            "given_back": [values.FULL_GIVEN_BACK],
            "parked": [values.FULL_PARKED],
            "dead_letters": [DeadLetter("order_unknown", "It never came.", T0, values.FULL_REFUND)],
        }
        spoilt: dict[str, Any]
        for spoilt in (
            {"transactions": [transaction(), transaction(2, amount=-1)]},
            {"grants": [grant(), grant(2, remaining=6)]},
            {"given_back": [values.FULL_GIVEN_BACK, GivenBack("k", -1)]},
        ):
            with pytest.raises(BadRow):
                await write(store, writes(account(), **(whole | spoilt)))
            assert await self._all_rows(harness) == {name: [] for name in TABLES}
        await write(store, writes(account(), **whole))
        assert {name: len(found) for name, found in (await self._all_rows(harness)).items()} == {
            name: int(name in LEDGER) for name in TABLES
        }

    async def test_L4_a_posting_leaves_transaction_grant_account_and_events_together(
        self, harness: Harness, store: Engine
    ):
        (bought,) = await posted(store, payment("P", 5))
        assert [row[0] for row in await harness.rows("accounts")] == [bought.account]
        assert [row[:2] for row in await harness.rows("transactions")] == [(bought.account, 1)]
        assert [row[:3] for row in await harness.rows("grants")] == [(bought.account, 1, 1)]
        events = await harness.rows("events")
        assert [row[2:6] for row in events] == [
            (bought.account, 1, "account.created", None),
            (bought.account, 2, "recharged", 1),
            (bought.account, 3, "plugin_status_changed", 1),
        ]

    async def test_readers_see_nothing_of_a_posting_before_its_commit_and_do_not_wait_for_it(
        self, harness: Harness, store: Engine
    ):
        await posted(store, payment("P", 5))
        read: list[Callable[[], Any]] = [
            lambda: Accounts(store).load([MERCHANT], T0),
            lambda: Accounts(store).page(AccountQuery(T0, 0), None, 10),
            lambda: Accounts(store).grants(1),
            lambda: Transactions(store).page(TransactionQuery(account=1), None, 10),
            lambda: Transactions(store).page(TransactionQuery(), None, 10),
            lambda: Transactions(store).count(TransactionQuery()),
            lambda: Accounts(store).due(days(400), 10),
            lambda: Accounts(store).drifting(None, 10),
            Accounts(store).parked_count,
            Transactions(store).strays,
            Keys(store).all,
            lambda: Keys(store).get("none"),
        ]
        before = [await one() for one in read]
        async with harness.halfway(store):
            late = asyncio.create_task(tell(store, use(2), payment("Q", 5, expires_at=days(30))))
            await asyncio.sleep(0)
            assert [await one() for one in read] == before
            assert [len(list(books.transactions)) async for books in store.books()] == [1]
            assert not late.done()
        await late
        assert await Transactions(store).count(TransactionQuery()) == 3

    async def test_work_is_given_the_time_of_the_database_clock(self, harness: Harness, store: Engine):
        harness.clock.now = days(3)
        assert (await load(store)).now == days(3)
        assert await store.now() == days(3)

    async def test_a_merchant_without_an_account_has_an_empty_record_with_a_number_to_open_it(self, store: Engine):
        loaded = await load(store, need("a"), need("b"), need("a", OTHER))
        record, other = loaded.records[MERCHANT], loaded.records[OTHER]
        assert list(loaded.records) == [MERCHANT, OTHER]
        assert (record.account, record.grants, record.firsts, record.parked) == (None, (), {}, {})
        assert (record.number, other.number) == (1, 2)

    async def test_a_merchant_with_an_account_is_loaded_with_it(self, store: Engine):
        await write(store, writes(account()))
        record = (await load(store, need("a"))).records[MERCHANT]
        assert (record.account, record.number) == (account(), NUMBER)

    async def test_L6_only_open_grants_are_loaded_in_burn_down_order(self, store: Engine):
        grants = [
            grant(1),
            grant(2, category="promotional"),
            grant(3, expires_at=T0 + 9),
            grant(4, remaining=0),
            grant(5, priority=1),
            grant(6, effective_at=T0 - 1),
        ]
        await write(store, writes(account(granted=6), grants=grants))
        await write(store, writes(account(2, OTHER, granted=1), grants=[grant(1, amount=7, remaining=7)]))
        loaded = await load(store, need("a"), need("a", OTHER))
        assert [found.number for found in loaded.records[MERCHANT].grants] == [5, 3, 2, 6, 1]
        assert loaded.records[OTHER].grants == (grant(1, amount=7, remaining=7),)

    async def test_L3_what_was_recorded_under_a_key_is_loaded_for_its_own_merchant_only(self, store: Engine):
        first = transaction(key="the key")
        await write(store, writes(account(), transactions=[first, transaction(2)]))
        await write(store, writes(account(2, OTHER)))
        loaded = await load(store, need("the key"), need("the key", OTHER), need("The key"))
        assert loaded.records[MERCHANT].firsts == {"the key": first}
        assert loaded.records[OTHER].firsts == {}

    async def test_L12_the_trial_is_loaded_under_whatever_key_it_was_granted(self, store: Engine):
        granted = transaction(2, type="TRIAL", key="by hand")
        await write(store, writes(account(sequence=2, trial=2), transactions=[transaction(), granted]))
        key = commands.trial_key(MERCHANT)
        assert (await load(store, need(key, trial=True))).records[MERCHANT].trial == granted
        assert (await load(store, need(key))).records[MERCHANT].trial is None

    async def test_L8_a_source_is_loaded_with_what_was_given_back_of_it_and_the_grants_it_drew_on(self, store: Engine):
        paid = transaction(
            3, operation="DECREASE", balance_before=9, balance_after=4, key="o", draws=((1, -2), (2, -3))
        )
        given = GivenBack("o", 1, 2, 3)
        grants = [grant(1, remaining=0), grant(2, remaining=2), grant(3, remaining=0)]
        await write(store, writes(account(granted=3), transactions=[paid], grants=grants, given_back=[given]))
        record = (await load(store, need("r", source="o"))).records[MERCHANT]
        assert record.firsts == {"o": paid}
        assert record.given_back == {"o": given}
        assert record.known_grants == {1: grants[0], 2: grants[1]}

    async def test_L8_a_source_of_which_nothing_was_given_back_is_loaded_without(self, store: Engine):
        await write(store, writes(account(granted=1), transactions=[transaction(draws=((1, 5),))], grants=[grant()]))
        record = (await load(store, need("r", source="key 1"), need("s", source="unknown"))).records[MERCHANT]
        assert (set(record.firsts), record.given_back, record.known_grants) == ({"key 1"}, {}, {1: grant()})

    async def test_L8_parked_refunds_are_loaded_with_their_merchant(self, store: Engine):
        waiting = [Parked(key, "o", T0 + 9, T0, values.refund(key=key)) for key in ("b", "c", "a")]
        await write(store, writes(account(), parked=waiting))
        await write(store, writes(account(2, OTHER), parked=[values.PARKED_PAYMENT_REFUND]))
        loaded = await load(store, need("x"), need("x", OTHER))
        assert loaded.records[MERCHANT].parked == {parked.key: parked for parked in waiting}
        assert loaded.records[OTHER].parked == {values.PARKED_PAYMENT_REFUND.key: values.PARKED_PAYMENT_REFUND}

    async def test_L8_parked_refunds_are_applied_in_order_of_arrival_and_of_one_instant_by_key(
        self, harness: Harness, store: Engine
    ):
        await tell(store, payment("P", 10), told_refund("b", "1", credits=1), told_refund("a", "1", credits=1))
        harness.clock.now += 1
        await tell(store, told_refund("0", "1", credits=1))
        (outcome,) = await tell(store, order("1", 10))
        assert isinstance(outcome, Posted)
        assert [one.key[-1] for one in outcome.transactions] == ["1", "a", "b", "0"]

    async def test_L8_a_refund_that_was_given_up_can_be_parked_again_in_the_same_posting(
        self, harness: Harness, store: Engine
    ):
        await write(store, writes(account(), parked=[values.FULL_PARKED]))
        again = values.FULL_PARKED._replace(until=T0 + 99)
        await write(store, writes(account(), parked=[again], unparked=[again.key]))
        assert (await load(store, need("x"))).records[MERCHANT].parked == {again.key: again}
        await write(store, writes(account(), unparked=[again.key]))
        assert await harness.rows("parked") == []

    async def test_thousands_of_merchants_and_keys_are_loaded_at_once(self, store: Engine):
        some = 2_500
        accounts = [account(index + 1, merchant(index), granted=1) for index in range(some)]
        made = writes(*accounts)
        made.transactions = [transaction(1, index + 1, merchant(index), key=f"k{index}") for index in range(some)]
        made.grants = {(index + 1, 1): grant(amount=index + 1, remaining=index + 1) for index in range(some)}
        await write(store, made)
        loaded = await load(store, *(need(f"k{index}", merchant(index)) for index in range(some)))
        for index in range(some):
            record = loaded.records[merchant(index)]
            assert record.account == accounts[index]
            assert record.firsts == {f"k{index}": made.transactions[index]}
            assert record.grants == (made.grants[index + 1, 1],)
        held = await Accounts(store).load([merchant(index) for index in range(some)], T0)
        assert {merchant: found.account for merchant, found in held.items()} == {a.merchant_id: a for a in accounts}

    async def test_the_last_value_of_a_row_replaces_the_one_before(self, harness: Harness, store: Engine):
        await write(store, writes(account(granted=1), grants=[grant()], given_back=[GivenBack("o")]))
        later = account(granted=2, balance=3, total_increases=3, next_due_at=T0 + 1, low_threshold=7)
        spent, new = grant(remaining=0, lapses=1), grant(2)
        await write(store, writes(later, grants=[spent, new], given_back=[GivenBack("o", 1, 2, 3)]))
        assert (await Accounts(store).load([MERCHANT], T0))[MERCHANT].account == later
        assert [books.grants async for books in store.books()] == [[spent, new]]
        assert [row[1:] for row in await harness.rows("given_back")] == [("o", 1, 2, 3)]

    # ---- the store adds nothing to what the ledger decides

    def test_L4_batches_leave_what_the_same_commands_leave_one_at_a_time_in_memory(self, harness: Harness):
        with asyncio.Runner() as runner:  # one for all examples, so that connections outlast them
            store = runner.run(harness.fresh())

            @given(some=batches, policy=policies)
            @settings(max_examples=max(10, settings().max_examples // 2))
            def leave_the_same(some: list[Batch], policy: Policy) -> None:
                nonlocal store
                store = runner.run(harness.renewed(store))
                runner.run(self._batches(harness, store, some, policy))

            try:
                leave_the_same()
            finally:
                runner.run(store.close())
                runner.run(harness.close())

    async def _batches(self, harness: Harness, store: Engine, some: list[Batch], policy: Policy) -> None:
        shelf = Shelf(policy)
        posting = Posting(store, policy, max_batch=7)
        posting.start()
        try:
            for batch in some:
                harness.clock.now += batch.wait
                submit = posting.submit_atomic if batch.atomic else posting.submit_many
                outcomes = await submit(batch.commands)
                held = await Accounts(store).load(MERCHANTS, harness.clock.now)
                numbers = {merchant_id: one.account.number for merchant_id, one in held.items()}
                expected = shelf.answer(batch, harness.clock.now, numbers)
                assert (outcomes if isinstance(outcomes, RefusedAt) else list(outcomes)) == expected
            await self._same_rows(harness, store, shelf)
        finally:
            await posting.drain()

    async def _same_rows(self, harness: Harness, store: Engine, shelf: Shelf) -> None:
        open_books = sorted(
            (book for book in shelf.books.values() if book.account is not None),
            key=lambda book: book.account.merchant_id if book.account else OTHER,
        )
        async for found in store.books():
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
        given = {(number, *one) for number, book in by_number.items() for one in book.given.values()}
        assert {tuple(row) for row in await harness.rows("given_back")} == given
        parked = {(number, *one[:4]) for number, book in by_number.items() for one in book.parked.values()}
        assert {tuple(row[:5]) for row in await harness.rows("parked")} == parked
        letters = [(number, *one[:3]) for number, book in by_number.items() for one in book.dead_letters]
        assert sorted(row[1:5] for row in await harness.rows("dead_letters")) == sorted(letters)

    # ---- values

    @pytest.mark.parametrize("whole", [values.FULL_ACCOUNT, values.RICH_ACCOUNT, account()])
    async def test_an_account_comes_back_exactly(self, store: Engine, whole: Any):
        await write(store, writes(account(whole.number, whole.merchant_id)))
        await write(store, writes(whole._replace(opened_at=T0)))
        found = (await load(store, need("", whole.merchant_id))).records[whole.merchant_id].account
        assert found == whole
        assert [type(value) for value in found or ()] == [type(value) for value in whole]

    @pytest.mark.parametrize("whole", [values.FULL_TRANSACTION, transaction()], ids=["full", "plain"])
    async def test_a_transaction_comes_back_exactly(self, store: Engine, whole: Transaction):
        await write(store, writes(account(), transactions=[whole]))
        loaded = (await load(store, need(whole.key))).records[MERCHANT].firsts[whole.key]
        read = await Transactions(store).get(Address(NUMBER, TRANSACTION, whole.sequence))
        ((_, listed),) = await Transactions(store).page(TransactionQuery(account=NUMBER), None, 1)
        for found in (loaded, read, listed):
            assert found == whole
            assert [type(value) for value in found] == [type(value) for value in whole]

    @pytest.mark.parametrize("whole", [values.FULL_GRANT, grant(), grant(remaining=0, amount=1)])
    async def test_a_grant_comes_back_exactly(self, store: Engine, whole: Any):
        await write(store, writes(account(), grants=[whole]))
        assert [books.grants async for books in store.books()] == [[whole]]
        assert await Accounts(store).grants(NUMBER) == ([whole] if whole.remaining else [])

    @pytest.mark.parametrize("whole", [values.FULL_PARKED, values.PARKED_PAYMENT_REFUND])
    async def test_a_parked_refund_comes_back_exactly(self, store: Engine, whole: Parked):
        await write(store, writes(account(), parked=[whole]))
        assert (await load(store, need(""))).records[MERCHANT].parked == {whole.key: whole}

    async def test_what_was_given_back_comes_back_exactly(self, store: Engine):
        paid = transaction(key=values.FULL_GIVEN_BACK.key)
        await write(store, writes(account(), transactions=[paid], given_back=[values.FULL_GIVEN_BACK]))
        record = (await load(store, need("", source=paid.key))).records[MERCHANT]
        assert record.given_back == {paid.key: values.FULL_GIVEN_BACK}

    async def test_a_dead_letter_is_kept_with_its_fact(self, harness: Harness, store: Engine):
        letter = DeadLetter("order_unknown", "It never came.", T0, values.FULL_REFUND)
        await write(store, writes(account(), dead_letters=[letter, letter]))
        kept = await harness.rows("dead_letters")
        assert [row[1:6] for row in kept] == [(NUMBER, "order_unknown", "It never came.", T0, "order_refunded")] * 2
        await write(store, writes(account(), parked=[values.FULL_PARKED]))
        ((*_, text),) = await harness.rows("parked")
        assert {row[6] for row in kept} == {text}  # from which a parked refund comes back exactly

    async def test_an_event_is_kept_with_all_that_cannot_be_told_later(self, harness: Harness, store: Engine):
        plain = values.FULL_ANNOUNCEMENT._replace(number=1, sequence=None, detail=None)
        await write(store, writes(account(), announcements=[values.FULL_ANNOUNCEMENT, plain]))
        first, second = await harness.rows("events")
        full = values.FULL_ANNOUNCEMENT
        assert first[2:] == (NUMBER, *full[:5], '{"reason":"exhausted","n":[1]}')
        assert second[2:] == (NUMBER, 1, full.type, None, full.available, full.at, None)

    # ---- events

    async def test_events_are_numbered_without_gaps_in_the_order_of_commits(self, harness: Harness, store: Engine):
        told = [values.FULL_ANNOUNCEMENT._replace(number=number) for number in range(1, 8)]
        for first in (0, 2, 4):
            await write(store, writes(account(), announcements=told[first : first + 2]))
        with pytest.raises(BadRow):
            await write(store, writes(account(balance=1), announcements=told[6:]))
        with pytest.raises(BadRow):
            await write(store, writes(account(), announcements=told[:1]))  # which was told
        await write(store, writes(account(), announcements=told[6:]))
        kept = await harness.rows("events")
        assert [row[1] for row in kept] == list(range(1, 8))
        assert len({row[0] for row in kept}) == 1  # the lane of their merchant

    async def test_every_transaction_has_one_announcement_of_its_own(self, harness: Harness, store: Engine):
        rejecting = Policy(when_insufficient="reject")
        await tell(store, opening(), payment("P", 5), order("1", 200), policy=rejecting)
        await tell(store, use(3), payment_refund("R", "P", 9), add(1, expires_at=days(1)))
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
    }

    @pytest.mark.parametrize("constraint", BROKEN)
    async def test_the_database_refuses_a_row_that_breaks(self, harness: Harness, store: Engine, constraint: str):
        with pytest.raises(BadRow, match=constraint if constraint.startswith("ck_") else None):
            await write(store, self.BROKEN[constraint])
        assert await self._all_rows(harness) == {name: [] for name in TABLES}

    def test_every_check_of_the_ledgers_tables_is_tried(self):
        checks = {
            str(constraint.name)
            for name in LEDGER
            for constraint in tables.metadata.tables[name].constraints
            if isinstance(constraint, CheckConstraint)
        }
        # A store works these out by itself; those of dead letters are tried below.
        derived = {"ck_grants_open", "ck_dead_letters_fact_or_event", "ck_dead_letters_hash_length"}
        assert checks - derived == {name for name in self.BROKEN if name.startswith("ck_")}

    @pytest.mark.parametrize("late", [2**63, -(2**63) - 1])
    async def test_a_number_beyond_64_bits_is_refused_not_wrapped(self, harness: Harness, store: Engine, late: int):
        with pytest.raises((BadRow, OverflowError)):
            await write(store, writes(account(), transactions=[transaction(occurred_at=late)]))
        assert await harness.rows("accounts") == []

    # ---- reading accounts

    async def test_held_finds_the_accounts_of_these_merchants_and_leaves_out_the_others(self, store: Engine):
        await write(store, writes(account(), account(2, OTHER)))
        found = await Accounts(store).load([MERCHANT, merchant(7), MERCHANT], T0)
        assert {key: held.account for key, held in found.items()} == {MERCHANT: account()}
        assert await Accounts(store).load([], T0) == {}

    async def test_held_brings_the_open_grants_where_something_is_due(self, store: Engine):
        grants = [grant(2, expires_at=T0 + 5), grant(1), grant(3, remaining=0)]
        await write(store, writes(account(granted=3, next_due_at=T0 + 5), grants=grants))
        assert (await Accounts(store).load([MERCHANT], T0 + 4))[MERCHANT].grants == ()
        assert (await Accounts(store).load([MERCHANT], T0 + 5))[MERCHANT].grants == (grants[0], grants[1])

    async def test_grants_are_the_open_ones_in_burn_down_order(self, store: Engine):
        grants = [grant(1), grant(2, priority=1), grant(3, remaining=0)]
        await write(store, writes(account(granted=3), grants=grants))
        assert await Accounts(store).grants(NUMBER) == [grants[1], grants[0]]
        assert await Accounts(store).grants(1) == []

    async def test_accounts_are_listed_by_merchant_from_the_one_after_a_cursor(self, store: Engine):
        accounts = [account(9 - index, merchant(index)) for index in range(5)]
        await write(store, writes(*accounts))
        query = AccountQuery(at=T0, default_threshold=0)
        assert [held.account for held in await Accounts(store).page(query, None, 3)] == accounts[:3]
        assert [held.account for held in await Accounts(store).page(query, merchant(2), 3)] == accounts[3:]
        assert await Accounts(store).page(query, merchant(4), 3) == []

    async def test_accounts_are_filtered_by_status_and_balance(self, store: Engine):
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
        await write(store, writes(*accounts.values()))

        async def listed(**filters: Any) -> set[str]:
            found = await Accounts(store).page(AccountQuery(at=T0, default_threshold=20, **filters), None, 100)
            return {name for name, one in accounts.items() if one in [held.account for held in found]}

        assert await listed() == set(standing)
        assert await listed(status="EXHAUSTED") == {"debt", "zero", "held"}
        assert await listed(status="LOW") == {"low", "own"}
        assert await listed(status="ACTIVE") == {"above", "never low"}
        assert await listed(min_balance=21) == {"above", "own", "held"}
        assert await listed(max_balance=0) == {"debt", "zero"}
        assert await listed(min_balance=1, max_balance=20, status="LOW") == {"low"}

    async def test_L7_accounts_whose_time_has_come_are_listed_whatever_the_filter_with_their_grants(
        self, store: Engine
    ):
        expiring = grant(expires_at=T0 + 5)
        await write(
            store, writes(account(balance=5, total_increases=5, granted=1, next_due_at=T0 + 5), grants=[expiring])
        )
        query = AccountQuery(at=T0 + 4, default_threshold=0, status="EXHAUSTED", min_balance=100, max_balance=1)
        assert await Accounts(store).page(query, None, 10) == []
        (held,) = await Accounts(store).page(query._replace(at=T0 + 5), None, 10)
        assert held.grants == (expiring,)

    # ---- reading transactions

    async def test_a_transaction_is_found_by_its_address_and_by_no_other(self, store: Engine):
        await write(store, writes(account(), transactions=[transaction()]))
        assert await Transactions(store).get(Address(NUMBER, TRANSACTION, 1)) == transaction()
        for wrong in (
            Address(NUMBER, TRANSACTION, 2),
            Address(NUMBER, TRANSACTION, 0),
            Address(NUMBER - 1, TRANSACTION, 1),
            Address(NUMBER, ACCOUNT, 1),
            Address(NUMBER, GRANT, 1),
        ):
            assert await Transactions(store).get(wrong) is None

    @pytest.fixture
    async def history(self, harness: Harness, store: Engine) -> list[Transaction]:
        """Two merchants' transactions in the order of their commits."""
        done: list[Transaction] = []
        for day in range(4):
            harness.clock.now = days(day)
            done += await posted(
                store,
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
    @pytest.mark.parametrize("number", [None, 1, 2, 3], ids=["everybody", "first", "second", "nobody"])
    async def test_transactions_are_listed_newest_first_by_filters_cursor_and_offset(
        self, store: Engine, history: list[Transaction], number: int | None, filters: dict[str, Any]
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
        assert await Transactions(store).count(query) == len(expected)
        assert [found.transaction for found in await Transactions(store).page(query, None, 100)] == expected

        paged: list[Transaction] = []
        before = None
        while page := await Transactions(store).page(query, before, 3):
            assert len(page) <= 3
            positions = [found.position for found in page]
            assert positions == sorted(positions, reverse=True)
            paged += [found.transaction for found in page]
            before = page[-1].position
        assert paged == expected

        for offset in (0, 1, 4, 100):
            found = await Transactions(store).page(query, None, 2, offset)
            assert [one.transaction for one in found] == expected[offset : offset + 2]
        after_first = await Transactions(store).page(query, None, 1)
        if after_first:
            found = await Transactions(store).page(query, after_first[0].position, 2, 1)
            assert [one.transaction for one in found] == expected[2:4]
        found = await Transactions(store).page(query, (10**9,) * (1 if number else store.lanes), 2, 1)
        assert [one.transaction for one in found] == expected[1:3]

    async def test_a_transaction_of_no_account_is_a_stray_and_in_no_list(self, harness: Harness, store: Engine):
        await write(store, writes(account(1), transactions=[transaction(1, 1)]))
        assert await Transactions(store).strays() == []
        lost = [transaction(sequence, NUMBER, OTHER) for sequence in (1, 2)]
        own = values.FULL_ANNOUNCEMENT._replace(type="recharged", sequence=1)
        await write(store, writes(transactions=lost, announcements=[own]))
        assert sorted(await Transactions(store).strays()) == [(NUMBER, 1), (NUMBER, 2)]
        assert await Transactions(store).get(Address(NUMBER, TRANSACTION, 1)) is None
        assert await Transactions(store).page(TransactionQuery(), None, 10) == []

    # ---- the outbox

    async def test_the_outbox_is_read_lane_by_lane_in_order_with_what_it_tells_of(
        self, harness: Harness, store: Engine
    ):
        merchants = [merchant(index) for index in range(20)]
        await tell(store, *[of(one, opening()) for one in merchants])
        harness.clock.now = days(1)
        spent = await posted(store, *[of(one, use(2)) for one in merchants])
        start = (0,) * store.lanes
        everything = await Outbox(store).events(start, 1000)
        assert len(everything) == len(await harness.rows("events"))
        for lane in range(store.lanes):
            ids = [event.id for event in everything if event.lane == lane]
            assert ids == list(range(1, len(ids) + 1))
        for one in merchants:
            own = [event for event in everything if event.merchant_id == one]
            assert [event.announcement.number for event in own] == [1, 2, 3, 4]
            told = ["account.created", "recharged", "plugin_status_changed", "consumed"]
            assert [event.announcement.type for event in own] == told
            assert own[0].transaction is None
            assert own[3].transaction in spent
            assert own[3].announcement.available == 98
            assert await Outbox(store).events_of(own[0].account, 0, 10) == own
            assert await Outbox(store).events_of(own[0].account, 1, 1) == own[1:2]
        assert [event.announcement.at for event in everything] == [T0] * 60 + [days(1)] * 20

        paged, position = [], list(start)
        while page := await Outbox(store).events(tuple(position), 7):
            assert len(page) <= 7
            paged += page
            for event in page:
                assert event.id == position[event.lane] + 1, "no event is skipped"
                position[event.lane] = event.id
        assert sorted(paged) == sorted(everything)
        assert await Outbox(store).end() == tuple(position)

    @pytest.mark.parametrize("limit", [1, 2, 7, 16, 40, 1000])
    async def test_pages_of_the_outbox_are_by_time_also_where_one_lane_has_most_of_it(
        self, harness: Harness, store: Engine, limit: int
    ):
        for number in range(30):
            harness.clock.now = days(number)
            busy = [of(merchant(0), use(1)) for _ in range(3)] if number < 20 else []
            await tell(store, *[of(merchant(index), opening()) for index in range(number % 5)], *busy)
        everything, position = [], [0] * store.lanes
        while page := await Outbox(store).events(tuple(position), limit):
            everything += page
            for event in page:
                assert event.id == position[event.lane] + 1, "no event is skipped"
                position[event.lane] = event.id
        assert tuple(position) == await Outbox(store).end()
        instants = [event.announcement.at for event in everything]
        assert instants == sorted(instants)

    async def test_one_owner_at_a_time_reads_as_a_reader_from_where_it_stood(self, store: Engine):
        there = tuple(range(1, store.lanes + 1))
        first = await Outbox(store).claim("reader", "a", T0, 10)
        assert first is not None
        assert (first.epoch, first.position, first.leased_until) == (1, (0,) * store.lanes, T0 + 10_000_000)
        assert await Outbox(store).claim("reader", "b", T0 + 9_999_999, 10) is None
        assert await Outbox(store).claim("other reader", "b", T0, 10) is not None
        on = await Outbox(store).advance(first, there, T0 + 5_000_000, 10)
        assert on == first._replace(position=there, leased_until=T0 + 15_000_000)
        assert await Outbox(store).claim("reader", "b", T0 + 14_999_999, 10) is None

        taken = await Outbox(store).claim("reader", "b", T0 + 15_000_000, 10)
        assert taken is not None
        assert (taken.epoch, taken.position) == (2, there)
        assert await Outbox(store).advance(on, (9,) * store.lanes, T0 + 15_000_000, 10) is None, (
            "who comes back late changes nothing"
        )
        await Outbox(store).release(on)
        assert await Outbox(store).claim("reader", "a", T0 + 16_000_000, 10) is None

        again = await Outbox(store).claim("reader", "b", T0 + 16_000_000, 10)
        assert again is not None
        assert again.epoch == 3, "the owner may claim again, and what it held before is worth nothing"
        assert await Outbox(store).advance(taken, there, T0 + 16_000_000, 10) is None
        await Outbox(store).release(again)
        assert (await Outbox(store).claim("reader", "a", T0 + 16_000_000, 10) or again).owner == "a"
        assert [(one.reader, one.owner) for one in await Outbox(store).cursors()] == [
            ("other reader", "b"),
            ("reader", "a"),
        ]
        await Outbox(store).drop_cursor("reader")
        assert [one.reader for one in await Outbox(store).cursors()] == ["other reader"]
        fresh = await Outbox(store).claim("reader", "b", T0, 10)
        assert fresh is not None
        assert fresh.position == (0,) * store.lanes

    async def test_of_many_who_claim_at_once_one_has_it(self, store: Engine):
        for now in (T0, T0 + 10_000_000):
            claims = await asyncio.gather(*[Outbox(store).claim("reader", f"owner {n}", now, 10) for n in range(8)])
            (held,) = [claim for claim in claims if claim is not None]
            assert await Outbox(store).advance(held, held.position, now, 10) is not None

    # ---- the past

    async def test_L7_the_past_counts_an_expiry_from_its_instant_and_nothing_that_came_later(
        self, harness: Harness, store: Engine
    ):
        (first, *_) = await posted(store, payment("P", 100), payment("Q", 50, expires_at=days(2)))
        harness.clock.now = days(5)
        # It is settled only now; and of what is posted now, some lapses at once at an instant long past.
        await tell(store, payment("R", 7, expires_at=days(1)), use(10))
        instants = [days(0) - 1, days(0), days(2) - 1, days(2), days(5) - 1, days(5)]
        assert [(await Accounts(store).past(first.account, at)).balance for at in instants] == [
            0,
            150,
            150,
            100,
            100,
            90,
        ]

    async def test_the_past_of_a_long_history_is_right_at_every_transaction(self, harness: Harness, store: Engine):
        balances = {}
        for day in range(37):
            harness.clock.now = days(day)
            (last,) = await posted(store, payment(f"P{day}", day + 1))
            balances[day] = last.balance_after
        number = (await Accounts(store).load([MERCHANT], days(40)))[MERCHANT].account.number
        for day, balance in balances.items():
            assert (await Accounts(store).past(number, days(day))).balance == balance
            between = TransactionQuery(account=number, start_at=days(day), end_at=days(day + 2))
            assert await Transactions(store).count(between) == min(2, 37 - day)
            assert [one.transaction.amount for one in await Transactions(store).page(between, None, 1, 1)] == [
                day + 1
            ] * (day < 36)

    # ---- what is due

    async def test_L7_due_are_merchants_to_whom_time_did_something_longest_due_first(self, store: Engine):
        await write(store, writes(account(1, merchant(1), next_due_at=T0 + 3), account(2, merchant(2))))
        await write(store, writes(account(3, merchant(3), next_due_at=T0 + 1)))
        await write(
            store,
            writes(
                account(4, merchant(4)),
                parked=[values.FULL_PARKED._replace(key=f"{until}", until=T0 + until) for until in (9, 2)],
            ),
        )
        assert await Accounts(store).due(T0, 10) == []
        assert await Accounts(store).due(T0 + 2, 10) == [merchant(3), merchant(4)]
        assert await Accounts(store).due(T0 + 9, 10) == [merchant(3), merchant(4), merchant(1)]
        assert await Accounts(store).due(T0 + 9, 2) == [merchant(3), merchant(4)]
        assert await Accounts(store).due(T0 + 9, 1) == [merchant(3)]

    async def test_L7_what_a_posting_settled_is_due_no_more(self, harness: Harness, store: Engine):
        await posted(store, payment("P", 5, expires_at=days(30)))
        await tell(store, told_refund("R", "unknown", credits=1))
        harness.clock.now = days(40)
        assert await Accounts(store).due(days(40), 10) == [MERCHANT]
        await tell(store, sweep())
        assert await Accounts(store).due(days(40), 10) == []
        assert [row[2] for row in await harness.rows("dead_letters")] == ["order_unknown"]
        assert await harness.rows("parked") == []

    # ---- books

    async def test_books_hold_all_of_each_account_by_merchant(self, store: Engine, history: list[Transaction]):
        books = [(one.account, one.grants, list(one.transactions), one.faults) async for one in store.books()]
        assert [entry[0].merchant_id for entry in books] == [OTHER, MERCHANT]
        for found, grants, transactions, faults in books:
            assert transactions == [one for one in history if one.account == found.number]
            assert [one.number for one in grants] == list(range(1, found.granted + 1))
            assert list(faults) == []
            assert list(verify(found, grants, transactions)) == []

    async def test_books_of_some_merchants_leave_out_the_rest_and_name_each_once(
        self, store: Engine, history: list[Transaction]
    ):
        async def of_these(*merchants: UUID) -> list[UUID]:
            return [books.account.merchant_id async for books in store.books(merchants)]

        assert await of_these(MERCHANT, merchant(99), MERCHANT) == [MERCHANT]
        assert await of_these(MERCHANT, OTHER) == [OTHER, MERCHANT]
        assert await of_these() == []

    async def test_books_are_of_one_moment_whatever_is_posted_meanwhile(
        self, store: Engine, history: list[Transaction]
    ):
        counted = []
        async for books in store.books():
            await posted(store, use(1), of(OTHER, use(1)))
            counted.append(len(list(books.transactions)))
        assert counted == [8, 12]

    async def test_books_can_be_put_down_half_read(self, store: Engine, history: list[Transaction]):
        reading = store.books()
        books = await anext(reading)
        assert next(iter(books.transactions)) == history[1]
        await reading.aclose()  # type: ignore[attr-defined]  # an async generator, as its users know it

    # ---- the audit

    async def test_accounts_that_postings_made_do_not_drift(self, harness: Harness, store: Engine):
        await tell(store, opening(), payment("P", 5, expires_at=days(30)), order("1", 200), told_refund("R", "2"))
        await posted(store, of(OTHER, payment("P", 9)), of(OTHER, use(3)))
        await write(store, writes(account(3, merchant(50))))  # opened, and nothing posted yet
        assert await Accounts(store).drifting(None, 10) == ([], None)
        harness.clock.now = days(40)
        await tell(store, sweep())
        assert await Accounts(store).drifting(None, 10) == ([], None)

    DRIFTED: dict[str, Writes] = {  # noqa: RUF012 - a table, never written to
        "a transaction that is missing": writes(account(sequence=1)),
        "a transaction too many": writes(account(), transactions=[transaction(amount=0, balance_after=0)]),
        "another balance": writes(account(sequence=1), transactions=[transaction()], grants=[grant(remaining=0)]),
        "another hash": writes(
            account(sequence=1, balance=5, total_increases=5, last_hash=b"x" * 32),
            transactions=[transaction()],
            grants=[grant()],
        ),
        "a grant that was drawn": writes(
            account(sequence=1, balance=5, total_increases=5), transactions=[transaction()], grants=[grant(remaining=4)]
        ),
        "a grant too many": writes(account(), grants=[grant()]),
        "a debt that is not owed": writes(account(debt=5, pending=5), grants=[grant(remaining=0)]),
    }

    @pytest.mark.parametrize("what", DRIFTED)
    async def test_an_account_that_disagrees_with_what_it_rests_on_is_drifting(self, store: Engine, what: str):
        await write(store, writes(account(1, OTHER)))
        await write(store, self.DRIFTED[what])
        assert await Accounts(store).drifting(None, 10) == ([MERCHANT], None)

    async def test_drift_is_looked_for_page_by_page_by_merchant(self, store: Engine):
        await write(store, writes(*(account(9 - index, merchant(index), sequence=index % 2) for index in range(5))))
        assert await Accounts(store).drifting(None, 2) == ([merchant(1)], merchant(1))
        assert await Accounts(store).drifting(merchant(1), 2) == ([merchant(3)], merchant(3))
        assert await Accounts(store).drifting(merchant(3), 2) == ([], None)
        assert await Accounts(store).drifting(merchant(4), 2) == ([], None)

    async def test_parked_refunds_are_counted(self, store: Engine):
        assert await Accounts(store).parked_count() == 0
        await write(store, writes(account(), parked=[values.FULL_PARKED, values.FULL_PARKED._replace(key="other")]))
        assert await Accounts(store).parked_count() == 2
        await write(store, writes(account(), unparked=["other"]))
        assert await Accounts(store).parked_count() == 1

    async def test_parked_refunds_are_listed_by_the_end_of_their_wait_with_their_merchant(self, store: Engine):
        def entry(key: str, until: int) -> Parked:
            return values.FULL_PARKED._replace(key=key, until=until)

        await write(store, writes(account(1), parked=[entry("late", T0 + 9), entry("b", T0), entry("a", T0)]))
        await write(store, writes(account(2, OTHER), parked=[entry("b", T0), values.PARKED_PAYMENT_REFUND]))
        found = await Accounts(store).parked(None, 10)
        assert [one.parked.until for one in found] == [T0, T0, T0, T0, T0 + 9]
        assert sorted((one.merchant_id, one.parked.key) for one in found) == sorted(
            [(MERCHANT, "late"), (MERCHANT, "b"), (MERCHANT, "a"), (OTHER, "b"), (OTHER, values.PAYMENT_REFUND.key)]
        )
        assert values.PARKED_PAYMENT_REFUND in [one.parked for one in found]
        paged, position = [], None
        while page := await Accounts(store).parked(position, 2):
            paged += page
            position = page[-1].position
        assert paged == found

    # ---- dead letters

    async def test_an_event_put_aside_comes_back_exactly(self, store: Engine):
        assert await Letters(store).put_aside([values.FULL_UNDELIVERABLE]) == 1
        (kept,) = await Letters(store).page(LetterQuery(), None, 10)
        whole = values.FULL_UNDELIVERABLE
        assert kept == Letter(kept.id, whole.code, whole.reason, whole.at, None, whole.subject, whole.original)
        assert await Letters(store).get(kept.id) == kept
        assert await Letters(store).get(kept.id + 1) is None

    async def test_what_the_ledger_put_aside_comes_back_with_its_fact(self, store: Engine):
        facts = (values.FULL_REFUND, values.PAYMENT_REFUND)
        letters = [DeadLetter("order_unknown", "It never came.", T0, fact) for fact in facts]
        await write(store, writes(account(), dead_letters=letters))
        kept = await Letters(store).page(LetterQuery(), None, 10)
        assert [one.fact for one in reversed(kept)] == [*facts]
        assert {one[1:4] for one in kept} == {("order_unknown", "It never came.", T0)}
        assert {one[5:] for one in kept} == {(None, None, None, None)}

    async def test_an_event_that_is_delivered_again_is_no_second_dead_letter(self, store: Engine):
        first = values.FULL_UNDELIVERABLE
        assert await Letters(store).put_aside([first, first, first._replace(code="other", at=T0 + 1)]) == 1
        assert await Letters(store).put_aside([first]) == 0
        other = [first._replace(subject="other"), first._replace(original=b"other")]
        assert await Letters(store).put_aside(other) == 2
        assert await Letters(store).put_aside([]) == 0
        assert [one.code for one in await Letters(store).page(LetterQuery(), None, 10)] == [first.code] * 3

    async def test_events_put_aside_at_the_same_time_by_several_are_kept_once(self, store: Engine):
        events = [values.FULL_UNDELIVERABLE._replace(subject=str(number)) for number in range(5)]
        counts = await asyncio.gather(*[Letters(store).put_aside(events) for _ in range(8)])
        assert sum(counts) == await Letters(store).count(LetterQuery()) == 5

    async def test_dead_letters_are_listed_newest_first_by_filters_and_cursor(self, store: Engine):
        plain = values.FULL_UNDELIVERABLE
        for number in range(4):
            await Letters(store).put_aside(
                [plain._replace(subject=f"s{number % 2}", original=b"%d" % number, code=f"c{number}")]
            )
        letter = DeadLetter("c1", "It never came.", T0, values.FULL_REFUND)
        await write(store, writes(account(), dead_letters=[letter]))
        every = await Letters(store).page(LetterQuery(), None, 10)
        assert [one.code for one in every] == ["c1", "c3", "c2", "c1", "c0"]
        assert await Letters(store).page(LetterQuery(), every[1].id, 2) == every[2:4]
        assert await Letters(store).mark_replayed(every[3].id, T0 + 5)

        async def codes(query: LetterQuery) -> list[str]:
            found = await Letters(store).page(query, None, 10)
            assert await Letters(store).count(query) == len(found)
            return [one.code for one in found]

        assert await codes(LetterQuery(code="c1")) == ["c1", "c1"]
        assert await codes(LetterQuery(subject="s1")) == ["c3", "c1"]
        assert await codes(LetterQuery(subject="s1", kind="order_refunded")) == ["c1", "c3", "c1"]
        assert await codes(LetterQuery(subject="s1", code="c3")) == ["c3"]
        assert await codes(LetterQuery(unreplayed=True)) == ["c1", "c3", "c2", "c0"]

    async def test_dead_letters_are_published_oldest_first_and_once(self, store: Engine):
        for number in range(3):
            await Letters(store).put_aside([values.FULL_UNDELIVERABLE._replace(subject=str(number))])
        unpublished = await Letters(store).unpublished(10)
        assert [one.subject for one in unpublished] == ["0", "1", "2"]
        assert await Letters(store).unpublished(2) == unpublished[:2]
        await Letters(store).mark_published([one.id for one in unpublished[:2]], T0 + 1)
        await Letters(store).mark_published([], T0)
        assert await Letters(store).unpublished(10) == unpublished[2:]
        assert await Letters(store).get(unpublished[0].id) == unpublished[0]._replace(published_at=T0 + 1)

    async def test_a_dead_letter_knows_when_it_was_replayed(self, store: Engine):
        await Letters(store).put_aside([values.FULL_UNDELIVERABLE])
        (kept,) = await Letters(store).page(LetterQuery(), None, 1)
        assert await Letters(store).mark_replayed(kept.id, T0 + 2)
        assert await Letters(store).get(kept.id) == kept._replace(replayed_at=T0 + 2)
        assert not await Letters(store).mark_replayed(kept.id + 1, T0)

    @pytest.mark.parametrize("wrong", [{"message_hash": bytes(15)}, {"subject": None}, {"original": None}])
    async def test_the_database_refuses_a_dead_letter_that_could_not_be_replayed(self, store: Any, wrong: Any):
        whole = {**values.FULL_UNDELIVERABLE._asdict(), "message_hash": bytes(16)}
        assert await store.write([Ask(letters.PUT_ASIDE, whole)]) == 1
        with pytest.raises(BadRow, match="ck_dead_letters_"):
            await store.write([Ask(letters.PUT_ASIDE, whole | {"message_hash": b"another 16 bytes"} | wrong)])

    # ---- shops, and what was delivered of them

    async def test_a_shop_is_linked_to_one_merchant_at_a_time(self, store: Engine):
        assert await Shops(store).get(SHOP) is None
        await Shops(store).link(SHOP, MERCHANT, T0)
        assert await Shops(store).get(SHOP) == Shop(SHOP, MERCHANT, T0)
        assert await Shops(store).uninstall(SHOP, T0 + 1)
        assert await Shops(store).get(SHOP) == Shop(SHOP, MERCHANT, T0, None, T0 + 1)
        await Shops(store).link(SHOP, OTHER, T0 + 2)
        assert await Shops(store).get(SHOP) == Shop(SHOP, OTHER, T0 + 2)
        assert await Shops(store).get("other.myshopify.com") is None

    async def test_an_unlinked_shop_is_remembered_and_nothing_more_is_noted_of_it(self, store: Engine):
        assert not await Shops(store).unlink(SHOP, T0)
        await Shops(store).link(SHOP, MERCHANT, T0)
        assert not await Shops(store).uninstall(SHOP, T0 - 1)  # told late, of an earlier time
        assert await Shops(store).unlink(SHOP, T0 + 1)
        assert not await Shops(store).unlink(SHOP, T0 + 2)
        assert not await Shops(store).uninstall(SHOP, T0 + 2)
        assert await Shops(store).get(SHOP) == Shop(SHOP, MERCHANT, T0, T0 + 1)

    async def test_a_delivery_is_kept_once_until_it_is_dropped(self, store: Engine):
        kept = values.KEPT_ORDER
        assert await Shops(store).keep(kept)
        assert not await Shops(store).keep(kept._replace(received_at=T0 + 1))
        for other in (kept._replace(topic="t"), kept._replace(shop=SHOP), kept._replace(body="{}", received_at=T0 - 1)):
            assert await Shops(store).keep(other)
        found = await Shops(store).kept(kept.shop)
        assert [one._replace(digest=b"") for one in found] == [
            kept._replace(body="{}", received_at=T0 - 1),
            *sorted([kept, kept._replace(topic="t")], key=lambda one: found[1].topic != one.topic),
        ]
        await Shops(store).drop(found)
        await Shops(store).drop([])
        assert await Shops(store).kept(kept.shop) == []
        assert len(await Shops(store).kept(SHOP)) == 1

    async def test_purchase_is_claimed_by_the_first_merchant(self, store: Engine):
        shops, another = Shops(store), "another.myshopify.com"
        assert await shops.claim("gid", "period 1", MERCHANT, SHOP)
        assert await shops.claim("gid", "period 1", MERCHANT, another), "the shop may have another domain now"
        assert not await shops.claim("gid", "period 2", OTHER, another)
        assert await shops.claim("gid", "period 2", MERCHANT, SHOP), "the refused claim left nothing"
        assert not await shops.claim("gid", "period 2", OTHER, SHOP)
        assert await shops.claim("gid", "period 3", OTHER, SHOP), "the shop may have another merchant now"
        racing = [shops.claim("raced", "raced", merchant(number), f"{number}") for number in range(8)]
        assert sorted(await asyncio.gather(*racing)) == [False] * 7 + [True]

    async def test_deliveries_are_due_when_their_shop_is_linked_or_they_have_waited_for_long_enough(
        self, store: Engine
    ):
        order = values.KEPT_ORDER._replace(shop=SHOP)
        erasure, asked = order._replace(topic="r", awaits="merchant"), order._replace(topic="q", awaits=None)
        late = order._replace(body="late", received_at=T0 + 9)
        for one in (late, order, erasure, asked):
            await Shops(store).keep(one)

        async def due(before: int = T0 - 1, limit: int = 10) -> list[tuple[str, UUID | None]]:
            return [(one.topic, merchant) for one, merchant in await Shops(store).due(before, limit)]

        assert await due() == []
        assert sorted(await due(T0)) == [("orders/paid", None), ("r", None)]
        await Shops(store).link(SHOP, MERCHANT, T0)
        assert sorted(await due()) == [("orders/paid", MERCHANT)] * 2 + [("r", MERCHANT)]
        assert [one.received_at for one, _ in await Shops(store).due(T0, 10)] == [T0, T0, T0 + 9]
        assert len(await due(limit=2)) == 2
        await Shops(store).unlink(SHOP, T0)
        assert await due() == [("r", MERCHANT)]  # whose data has to be erased is known still
        assert sorted(await due(T0)) == [("orders/paid", None), ("r", MERCHANT)]

    # ---- erasing

    @pytest.mark.parametrize("at_once", [1, 2, 1000])
    async def test_L15_metadata_is_erased_and_the_chain_verifies(
        self, store: Engine, at_once: int, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(erasing, "AT_ONCE", at_once)
        personal: dict[str, Any] = {"metadata": '{"email":"a@b.c"}', "salt": bytes(16)}
        told = [
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
        await tell(store, *told, *[of(OTHER, fact) for fact in told])

        async def erase(merchant_id: UUID, orders: set[str] | None) -> int:
            erasing_ = Erasing(store)
            parked = await erasing_.erase_parked(merchant_id, orders)
            return parked + await erasing_.erase_transactions(merchant_id, orders)

        assert await erase(UUID(int=99), None) == 0

        async def kept(merchant_id: UUID = MERCHANT) -> list[str]:
            history: list[Transaction] = []
            async for books in store.books([merchant_id]):
                history = list(books.transactions)
                assert [*books.faults, *verify(books.account, books.grants, history)] == []
            assert all((one.metadata is None) == (one.salt is None) for one in history)
            parked = [one.parked for one in await Accounts(store).parked(None, 9) if one.merchant_id == merchant_id]
            assert all((one.fact.metadata is None) == (one.fact.salt is None) for one in parked)
            return sorted(
                [one.key for one in history if one.metadata is not None]
                + [one.key for one in parked if one.fact.metadata is not None]
            )

        every = sorted(fact.key for fact in told)
        assert await kept() == every
        assert await erase(MERCHANT, {"1", "3", "unknown"}) == 3
        left = ["billing:payment:P", "shopify:order:2", "shopify:refund:later"]
        assert await kept() == left
        assert await erase(MERCHANT, {"1", "3"}) == 0
        assert await erase(MERCHANT, None) == 3
        assert await kept() == []
        assert await kept(OTHER) == every
        # A repeat replays, and what waited is applied without what was erased.
        assert all(isinstance(outcome, Replayed | Waiting) for outcome in await tell(store, *told))
        await tell(store, order("3", 10))
        assert await kept() == []

    async def test_a_dead_letter_is_rewritten(self, store: Engine):
        await Letters(store).put_aside([values.FULL_UNDELIVERABLE])
        await write(store, writes(account(), dead_letters=[DeadLetter("c", "r", T0, values.FULL_REFUND)]))
        fact, event = await Letters(store).page(LetterQuery(), None, 10)
        for letter in (event._replace(original=b""), fact._replace(fact=erasing.without(values.FULL_REFUND))):
            await Letters(store).rewrite(letter)
            assert await Letters(store).get(letter.id) == letter
        assert await Letters(store).put_aside([values.FULL_UNDELIVERABLE]) == 1  # no hash of the old text is kept (L15)

    # ---- API keys

    async def test_a_key_is_kept_exactly_and_found_by_its_id(self, store: Engine):
        plain = ApiKey("plain", "n", "read", bytes(32), T0)
        await Keys(store).add(values.FULL_KEY)
        await Keys(store).add(plain)
        assert await Keys(store).get("id") == values.FULL_KEY
        assert await Keys(store).get("plain") == plain
        assert await Keys(store).get("ID") is None

    async def test_keys_are_listed_newest_first(self, store: Engine):
        keys = [ApiKey(id_, "n", "read", bytes(32), at) for id_, at in (("a", 2), ("c", 1), ("b", 1), ("d", 3))]
        for key in keys:
            await Keys(store).add(key)
        assert [key.id for key in await Keys(store).all()] == ["d", "a", "b", "c"]

    async def test_a_key_id_is_given_once_and_its_scope_is_one_of_four(self, store: Engine):
        await Keys(store).add(values.FULL_KEY)
        for wrong in (
            values.FULL_KEY,
            values.FULL_KEY._replace(id="x", scope="root"),
            values.FULL_KEY._replace(id="y", secret_hash=b"short"),
        ):
            with pytest.raises(BadRow):
                await Keys(store).add(wrong)
        assert await Keys(store).all() == [values.FULL_KEY]

    async def test_a_key_is_revoked_once(self, store: Engine):
        await Keys(store).add(ApiKey("id", "n", "read", bytes(32), T0))
        assert not await Keys(store).revoke("other", T0 + 1)
        assert await Keys(store).revoke("id", T0 + 2)
        assert await Keys(store).revoke("id", T0 + 3)
        found = await Keys(store).get("id")
        assert found is not None
        assert found.revoked_at == T0 + 2

    async def test_the_last_use_of_keys_is_noted(self, store: Engine):
        for id_ in ("a", "b", "c"):
            await Keys(store).add(ApiKey(id_, "n", "read", bytes(32), T0))
        await Keys(store).note_uses({"a": T0 + 1, "b": T0 + 2, "gone": T0 + 3})
        await Keys(store).note_uses({})
        assert {key.id: key.last_used_at for key in await Keys(store).all()} == {"a": T0 + 1, "b": T0 + 2, "c": None}

    # ---- the gate

    async def test_a_merchant_has_one_fail_policy_of_its_own_or_none(self, store: Engine):
        await FailPolicies(store).set(MERCHANT, "open")
        await FailPolicies(store).set(OTHER, "open")
        await FailPolicies(store).set(OTHER, "closed")
        assert await FailPolicies(store).all() == {MERCHANT: "open", OTHER: "closed"}
        await FailPolicies(store).set(MERCHANT, None)
        await FailPolicies(store).set(MERCHANT, None)
        with pytest.raises(BadRow):
            await FailPolicies(store).set(OTHER, "ajar")
        assert await FailPolicies(store).all() == {OTHER: "closed"}

    # ---- housekeeping

    async def test_a_store_that_works_passes_its_check_and_writes_nothing_for_it(self, harness: Harness, store: Engine):
        await store.check()
        assert await self._all_rows(harness) == {name: [] for name in TABLES}

    async def test_closing_finishes_what_is_under_way(self, harness: Harness):
        store = await harness.fresh()
        under_way = [
            asyncio.create_task(write(store, writes(account(index + 1, merchant(index))))) for index in range(5)
        ]
        await asyncio.sleep(0)
        store = await harness.reopened(store)
        await asyncio.gather(*under_way)
        assert len(await harness.rows("accounts")) == 5
        await store.close()

    async def _all_rows(self, harness: Harness) -> dict[str, list[tuple[Any, ...]]]:
        return {name: await harness.rows(name) for name in TABLES}
