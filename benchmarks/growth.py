"""Growth: the times on a ledger with a million transactions, compared with one of ten thousand in the same run.

Both ledgers have 10,000 merchants, so they differ only in their history. The small ledger has the trials and a hot
account with 1,000 transactions. The large ledger has 90 spends of each merchant and a hot account with 100,000
transactions. For filtered pages, every tenth transaction of a hot account has a second type, and ten have a third type.
"""

import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from uuid import uuid4

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
REQUIRED = 1.5
Variant = Callable[[], Awaitable[float]]


class Grown(Ledger):
    """A ledger with a hot account, and the operations that the benchmark measures."""

    hot_account: Account
    middle_at: int  # an instant in the middle of the hot account's history
    later_at: int  # the instant 200 transactions later

    async def load(self, each: int, hot: int) -> None:
        """Post the trial and `each` spends of each merchant, and `hot` transactions of the hot account."""
        await self.rate(1_000, [OpenAccount(merchant_id=m, key=trial_key(m)) for m in self.merchants])
        per_turn = hot // max(each, 1)
        history: list[Command] = [self.of_hot(number, hot) for number in range(hot)]
        for turn in range(each):
            # Mixed as in production, so the transactions of one merchant are far apart on the disk.
            some: list[Command] = [spend(merchant) for merchant in random.sample(self.merchants, len(self.merchants))]
            some += history[turn * per_turn : (turn + 1) * per_turn]
            random.shuffle(some)
            await self.rate(1_000, some)
        await self.rate(100, history[each * per_turn :])
        await self.rate(1_000, self.uniform(1_000))  # so both ledgers have the same kind of newest transactions

    async def look(self) -> None:
        """Load the hot account, because most operations use it."""
        (self.hot_account,) = [
            loaded.account for loaded in (await Accounts(self.store).load([self.merchants[0]], 0)).values()
        ]
        middle = self.hot_account.sequence // 2
        self.middle_at, self.later_at = [await self._instant_of(sequence) for sequence in (middle, middle + 200)]

    async def _instant_of(self, sequence: int) -> int:
        transaction = await Transactions(self.store).get(Address(self.hot_account.number, TRANSACTION, sequence))
        assert transaction is not None
        return transaction.created_at

    def of_hot(self, number: int, hot: int) -> Command:
        """Return transaction `number` of the `hot` transactions of the hot account."""
        command = spend(self.merchants[0])
        if number % (hot // 10) == 0:
            return replace(command, type=ORDER_PAID)
        return replace(command, type=MANUAL) if number % 10 == 1 else command

    # ---- operations; each method with `times` returns the microseconds of one

    async def alone(self, times: int) -> float:
        """Post one command at a time."""
        async with self.posting(max_batch=1_000) as posting:
            return await each(times, lambda: posting.submit(spend(random.choice(self.merchants))))

    async def together(self, times: int, spends: Callable[[int], Sequence[Command]]) -> float:
        """Post in batches of 1,000."""
        return 1e6 / await self.rate(1_000, spends(times))

    async def account(self) -> None:
        """Load an account. Its balance, stats and plugin status all need this."""
        await Accounts(self.store).load([random.choice(self.merchants)], await self.store.now())

    async def status(self) -> None:
        """Ask for a plugin status that is not in the cache."""
        await Gate(Accounts(self.store), FailPolicies(self.store), POLICY).ask(random.choice(self.merchants))

    async def one(self) -> None:
        """Read one transaction by its id."""
        address = Address(self.hot_account.number, TRANSACTION, random.randint(1, self.hot_account.sequence))
        assert await Transactions(self.store).get(address) is not None

    async def page(self, *, deep: bool = False, offset: int = 0, **filters: str) -> None:
        """Read a page of the hot account's history."""
        before = (self.hot_account.sequence // 2,) if deep else None
        query = TransactionQuery(account=self.hot_account.number, **filters)  # type: ignore[arg-type]  # all filters are texts
        assert await Transactions(self.store).page(query, before, PAGE, offset)

    async def count(self, **filters: str) -> None:
        """Count the transactions of a filtered history."""
        query = TransactionQuery(account=self.hot_account.number, **filters)  # type: ignore[arg-type]
        assert await Transactions(self.store).count(query)

    async def page_of_all(self) -> None:
        """Read the newest transactions of all merchants."""
        assert len(await Transactions(self.store).page(TransactionQuery(), None, PAGE)) == PAGE

    async def totals(self) -> None:
        """Count the merchants of each plugin status."""
        now = await self.store.now()
        await Accounts(self.store).summary(now, 0)
        await Accounts(self.store).due_accounts(now)

    async def accounts(self) -> None:
        """Read a page of accounts."""
        after = random.choice(self.merchants)
        await Accounts(self.store).page(AccountQuery(await self.store.now(), 0), after, PAGE)

    async def audit(self) -> None:
        """Audit 200 accounts, as the audit does in a second."""
        drifting, _ = await Accounts(self.store).drifting(random.choice(self.merchants), 200)
        assert not drifting

    async def past(self) -> None:
        """Read the hot account's balance in the middle of its history."""
        await Accounts(self.store).past(self.hot_account.number, self.middle_at)

    async def period(self) -> None:
        """Sum 200 transactions in the middle of the hot account's history."""
        number = self.hot_account.number
        period = await Transactions(self.store).totals(number, self.middle_at, self.later_at)
        assert period.totals


async def each(times: int, ask: Callable[[], Awaitable[object]]) -> float:
    took = []
    for _ in range(times):
        started = time.perf_counter()
        await ask()
        took.append(time.perf_counter() - started)
    return median(took) * 1e6


@asynccontextmanager
async def _grown(each: int, hot: int) -> AsyncIterator[Grown]:
    merchants = [str(uuid4()) for _ in range(MERCHANTS)]
    with database() as path:
        async with _opened(path, merchants) as ledger:
            await ledger.load(each, hot)
        # Close and open the file again, so that its write-ahead log is empty for both ledgers.
        async with _opened(path, merchants) as ledger:
            await ledger.look()
            yield ledger


@asynccontextmanager
async def _opened(path: Path, merchants: Sequence[str]) -> AsyncIterator[Grown]:
    store = SQLiteEngine(path)
    try:
        yield Grown(store, merchants)
    finally:
        await store.close()


def variants_of(ledger: Grown, quick: bool, slow: int) -> Mapping[str, tuple[Variant, bool]]:
    """Return the operations by name, each with whether its time must not grow with history.

    `slow`: the number of calls per round for operations that scan the history.
    """
    postings, reads = (1_000, 20) if quick else (2_000, 200)

    def read(ask: Callable[[], Awaitable[object]], times: int = reads) -> Variant:
        return partial(each, times, ask)

    return {
        "account, balance or stats": (read(ledger.account), True),
        "uncached plugin status": (read(ledger.status), True),
        "one transaction": (read(ledger.one), True),
        "history, first page": (read(ledger.page), True),
        "history, middle page": (read(partial(ledger.page, deep=True)), True),
        "history, filter that matches one in ten": (read(partial(ledger.page, type=MANUAL)), True),
        "history of all merchants, first page": (read(ledger.page_of_all), True),
        "page of accounts": (read(ledger.accounts), True),
        "totals of plugin statuses": (read(ledger.totals), True),
        "audit of 200 accounts": (read(ledger.audit), True),
        "past balance": (read(ledger.past), True),
        "stats of a period": (read(ledger.period), True),
        # These scan the history. An index would help them, but every posting would pay for it.
        "history, filter that matches ten": (read(partial(ledger.page, type=ORDER_PAID), slow), False),
        "count of a filtered history": (read(partial(ledger.count, type=MANUAL), slow), False),
        # These come after all reads, because they add to the small ledger.
        "one posting alone": (partial(ledger.alone, reads), True),
        "one posting in a batch of 1,000": (partial(ledger.together, postings, ledger.uniform), True),
        "one posting in a batch of 1,000 on the hot account": (partial(ledger.together, postings, ledger.hot), True),
    }


async def run(quick: bool) -> list[Figure]:
    """Measure every operation on the large ledger, compared with the small ledger."""
    rounds, turns, hot = (3, 2, 10_000) if quick else (7, 90, 100_000)
    async with _grown(0, 1_000) as small, _grown(turns, hot) as large:
        slow = 2 if quick else 10
        variants = {"small": variants_of(small, quick, slow), "large": variants_of(large, quick, slow)}
        figures = []
        for what, (_, is_required) in variants["small"].items():
            took = await interleaved(rounds, {size: of_size[what][0] for size, of_size in variants.items()})
            required = REQUIRED if is_required else None
            figures += [
                ratio(what, took["large"], took["small"], required=required, less_is_better=True),
                figure(f"{what}, large", took["large"], "µs"),
            ]
        count = await Transactions(large.store).count(TransactionQuery())
    return [*figures, figure("transactions in the large ledger at the end", [count], "")]
