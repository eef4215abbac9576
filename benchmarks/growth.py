"""Growth: what a ledger of a million transactions costs, over the same with ten thousand in one run.

Both have 10,000 merchants. The small one has their trials and a hot account of 1,000 transactions, the large one 90
spends of each merchant and a hot account of 100,000: what differs is history. Every tenth transaction of a hot account
is of another type, and ten are of a third, for pages that are filtered.
"""

import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from uuid import UUID

from benchmarks.ledger import POLICY, Ledger, database, spend
from benchmarks.measure import Figure, figure, interleaved, ratio
from credit_service.gate.status import Gate
from credit_service.ledger.account import Account
from credit_service.ledger.addresses import TRANSACTION, Address
from credit_service.ledger.commands import Command, OpenAccount, trial_key
from credit_service.ledger.types import MANUAL, ORDER_PAID
from credit_service.storage.accounts import AccountQuery, Accounts
from credit_service.storage.policies import FailPolicies
from credit_service.storage.sqlite.engine import SQLiteEngine
from credit_service.storage.transactions import TransactionQuery, Transactions

MERCHANTS = 10_000
PAGE = 50
OWED = 1.5
Way = Callable[[], Awaitable[float]]


class Grown(Ledger):
    """A ledger with a hot account, and what is asked of it."""

    hot_account: Account
    middle_at: int  # an instant in the middle of the hot account's history,
    later_at: int  # and one of 200 transactions later

    async def load(self, each: int, hot: int) -> None:
        """Give each merchant its trial and so many spends, and the hot account its history."""
        await self.rate(1_000, [OpenAccount(merchant_id=m, key=trial_key(m)) for m in self.merchants])
        per_turn = hot // max(each, 1)
        history: list[Command] = [self.of_hot(number, hot) for number in range(hot)]
        for turn in range(each):
            # Interleaved as in life: a merchant's transactions lie far from each other on the disk.
            some: list[Command] = [spend(merchant) for merchant in random.sample(self.merchants, len(self.merchants))]
            some += history[turn * per_turn : (turn + 1) * per_turn]
            random.shuffle(some)
            await self.rate(1_000, some)
        await self.rate(100, history[each * per_turn :])
        await self.rate(1_000, self.uniform(1_000))  # the newest are alike, however many there are

    async def look(self) -> None:
        """Look at the hot account, about which most is asked."""
        (self.hot_account,) = [
            held.account for held in (await Accounts(self.store).load([self.merchants[0]], 0)).values()
        ]
        middle = self.hot_account.sequence // 2
        self.middle_at, self.later_at = [await self._instant_of(sequence) for sequence in (middle, middle + 200)]

    async def _instant_of(self, sequence: int) -> int:
        transaction = await Transactions(self.store).get(Address(self.hot_account.number, TRANSACTION, sequence))
        assert transaction is not None
        return transaction.created_at

    def of_hot(self, number: int, hot: int) -> Command:
        """A spend of the hot account, of which there are to be so many."""
        command = spend(self.merchants[0])
        if number % (hot // 10) == 0:
            return replace(command, type=ORDER_PAID)
        return replace(command, type=MANUAL) if number % 10 == 1 else command

    # ---- what is asked, each so many times; in microseconds for one

    async def alone(self, times: int) -> float:
        """A posting that nobody else waits with."""
        async with self.posting(max_batch=1_000) as posting:
            return await each(times, lambda: posting.submit(spend(random.choice(self.merchants))))

    async def together(self, times: int, spends: Callable[[int], Sequence[Command]]) -> float:
        """Postings in batches of 1,000."""
        return 1e6 / await self.rate(1_000, spends(times))

    async def account(self) -> None:
        """What an account, its balance, its stats and its plugin status rest on."""
        await Accounts(self.store).load([random.choice(self.merchants)], await self.store.now())

    async def status(self) -> None:
        """A plugin status that is not remembered."""
        await Gate(Accounts(self.store), FailPolicies(self.store), POLICY).ask(random.choice(self.merchants))

    async def one(self) -> None:
        """One transaction by its id."""
        address = Address(self.hot_account.number, TRANSACTION, random.randint(1, self.hot_account.sequence))
        assert await Transactions(self.store).get(address) is not None

    async def page(self, *, deep: bool = False, offset: int = 0, **filters: str) -> None:
        """A page of the hot account's history."""
        before = (self.hot_account.sequence // 2,) if deep else None
        query = TransactionQuery(account=self.hot_account.number, **filters)  # type: ignore[arg-type]  # all are texts
        assert await Transactions(self.store).page(query, before, PAGE, offset)

    async def count(self, **filters: str) -> None:
        """How many pages there are of a filtered history."""
        query = TransactionQuery(account=self.hot_account.number, **filters)  # type: ignore[arg-type]
        assert await Transactions(self.store).count(query)

    async def page_of_all(self) -> None:
        """The newest transactions of everybody."""
        assert len(await Transactions(self.store).page(TransactionQuery(), None, PAGE)) == PAGE

    async def totals(self) -> None:
        """How many merchants there are of each plugin status."""
        now = await self.store.now()
        await Accounts(self.store).summary(now, 0)
        await Accounts(self.store).due_accounts(now)

    async def accounts(self) -> None:
        """A page of accounts."""
        after = random.choice(self.merchants)
        await Accounts(self.store).page(AccountQuery(await self.store.now(), 0), after, PAGE)

    async def audit(self) -> None:
        """What the audit looks at in a second."""
        drifting, _ = await Accounts(self.store).drifting(random.choice(self.merchants), 200)
        assert not drifting

    async def past(self) -> None:
        """The hot account's balance in the middle of its history."""
        await Accounts(self.store).past(self.hot_account.number, self.middle_at)

    async def period(self) -> None:
        """Stats of some hundred transactions in the middle of the hot account's history."""
        number = self.hot_account.number
        assert await Transactions(self.store).totals(
            TransactionQuery(number, start_at=self.middle_at, end_at=self.later_at)
        )


async def each(times: int, ask: Callable[[], Awaitable[object]]) -> float:
    took = []
    for _ in range(times):
        begun = time.perf_counter()
        await ask()
        took.append(time.perf_counter() - begun)
    return median(took) * 1e6


@asynccontextmanager
async def _grown(each: int, hot: int) -> AsyncIterator[Grown]:
    merchants = [UUID(bytes=os.urandom(16), version=4) for _ in range(MERCHANTS)]
    with database() as path:
        async with _opened(path, merchants) as ledger:
            await ledger.load(each, hot)
        # Opened anew, both are read with an empty log beside the file.
        async with _opened(path, merchants) as ledger:
            await ledger.look()
            yield ledger


@asynccontextmanager
async def _opened(path: Path, merchants: Sequence[UUID]) -> AsyncIterator[Grown]:
    store = SQLiteEngine(path)
    try:
        yield Grown(store, merchants)
    finally:
        await store.close()


def ways_of(ledger: Grown, quick: bool, slow: int) -> Mapping[str, tuple[Way, bool]]:
    """What is measured of a ledger by its name, and whether something is owed: it must not grow with history.

    `slow`: how often in a round what goes through the history is asked.
    """
    postings, reads = (1_000, 20) if quick else (2_000, 200)

    def read(ask: Callable[[], Awaitable[object]], times: int = reads) -> Way:
        return partial(each, times, ask)

    return {
        "an account, its balance or stats": (read(ledger.account), True),
        "a plugin status that is not remembered": (read(ledger.status), True),
        "one transaction": (read(ledger.one), True),
        "history, first page": (read(ledger.page), True),
        "history, page in the middle": (read(partial(ledger.page, deep=True)), True),
        "history, filtered, one in ten": (read(partial(ledger.page, type=MANUAL)), True),
        "history of all merchants, first page": (read(ledger.page_of_all), True),
        "a page of accounts": (read(ledger.accounts), True),
        "totals of plugin statuses": (read(ledger.totals), True),
        "audit of 200 accounts": (read(ledger.audit), True),
        "a balance in the past": (read(ledger.past), True),
        "stats of a period": (read(ledger.period), True),
        # Without an index, which every posting would pay for, these go through the history.
        "history, filtered, ten in all": (read(partial(ledger.page, type=ORDER_PAID), slow), False),
        "count of a filtered history": (read(partial(ledger.count, type=MANUAL), slow), False),
        # After all reads, since the small ledger grows by them.
        "a posting alone": (partial(ledger.alone, reads), True),
        "a posting in a batch of 1,000": (partial(ledger.together, postings, ledger.uniform), True),
        "the same on the hot account": (partial(ledger.together, postings, ledger.hot), True),
    }


async def run(quick: bool) -> list[Figure]:
    """Every way of a large ledger over the same of a small one."""
    rounds, turns, hot = (3, 2, 10_000) if quick else (7, 90, 100_000)
    async with _grown(0, 1_000) as small, _grown(turns, hot) as large:
        slow = 2 if quick else 10
        ways = {"small": ways_of(small, quick, slow), "large": ways_of(large, quick, slow)}
        figures = []
        for what, (_, owes) in ways["small"].items():
            took = await interleaved(rounds, {size: of_size[what][0] for size, of_size in ways.items()})
            owed = OWED if owes else None
            figures += [
                ratio(what, took["large"], took["small"], owed=owed, less_is_better=True),
                figure(f"{what}, large", took["large"], "µs"),
            ]
        count = await Transactions(large.store).count(TransactionQuery())
    return [*figures, figure("transactions in the large ledger at the end", [count], "")]
