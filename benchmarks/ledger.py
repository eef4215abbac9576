"""What the benchmarks of postings share: a ledger on disk with a thousand merchants, and spends to post."""

import asyncio
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from statistics import median
from uuid import UUID

from benchmarks.machine import DATA
from credit_service.ledger.account import Reference
from credit_service.ledger.commands import Command, OpenAccount, Post, trial_key
from credit_service.ledger.draft import Posted
from credit_service.ledger.policy import Policy
from credit_service.ledger.types import DECREASE, USAGE
from credit_service.posting import Posting
from credit_service.storage.engine import Engine
from credit_service.storage.migrations import migrate
from credit_service.storage.sqlite.engine import SQLiteEngine

MERCHANTS = 1_000
CALLERS, HANDED_OVER = 8, 1_000
POLICY = Policy(trial_credits=10**12)  # no account runs dry while it is measured

_numbers = count(1)


@contextmanager
def folder() -> Iterator[Path]:
    """A folder on the disk, gone afterwards."""
    DATA.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DATA) as path:
        yield Path(path)


@contextmanager
def database() -> Iterator[Path]:
    """An empty, migrated database."""
    with folder() as path:
        migrate(path / "ledger.db")
        yield path / "ledger.db"


class Ledger:
    """A store with open accounts, and postings in front of it."""

    def __init__(self, store: Engine, merchants: Sequence[UUID]) -> None:
        self.store = store
        self.merchants = merchants

    @asynccontextmanager
    async def posting(self, max_batch: int) -> AsyncIterator[Posting]:
        """The one way in, with batches of at most this size."""
        # The deadline is not what is measured: thousands of spends that are handed over at once wait for their turn.
        posting = Posting(self.store, POLICY, max_batch=max_batch, max_queue=10**6, deadline_seconds=600)
        posting.start()
        try:
            yield posting
        finally:
            await posting.drain()

    async def rate(self, max_batch: int, commands: Sequence[Command]) -> float:
        """Postings per second, in batches of at most this size.

        Handed over by eight callers, each a thousand at a time, who look at the outcomes and let them go. Where one
        hands over all, he keeps tens of thousands of them, and a tenth of the time is garbage collection.
        """
        handed = iter([commands[at : at + HANDED_OVER] for at in range(0, len(commands), HANDED_OVER)])
        async with self.posting(max_batch) as posting:

            async def call() -> None:
                for some in handed:
                    assert all(isinstance(outcome, Posted) for outcome in await posting.submit_many(some))

            begun = time.perf_counter()
            await asyncio.gather(*[call() for _ in range(CALLERS)])
            return len(commands) / (time.perf_counter() - begun)

    async def lone(self, number: int) -> float:
        """The median of the microseconds that a caller waits for a posting who posts one at a time, and alone."""
        took = []
        async with self.posting(max_batch=1_000) as posting:
            for command in self.uniform(number):
                begun = time.perf_counter()
                await posting.submit(command)
                took.append(time.perf_counter() - begun)
        return median(took) * 1e6

    def uniform(self, number: int, prefix: str = "usage") -> list[Post]:
        """Spends of all merchants in turn, in an order of their own each time round; other processes, other keys."""
        merchants: list[UUID] = []
        while len(merchants) < number:
            merchants += random.sample(self.merchants, len(self.merchants))
        return [spend(merchant, prefix) for merchant in merchants[:number]]

    def hot(self, number: int) -> list[Post]:
        """Spends of a single merchant."""
        return [spend(self.merchants[0]) for _ in range(number)]


def spend(merchant: UUID, prefix: str = "usage") -> Post:
    """A spend of one credit, as a door makes it, under a key of its own."""
    number = next(_numbers)
    return Post(
        merchant_id=merchant,
        key=f"{prefix}-{number:012}",
        content=os.urandom(16),
        actor="key:abcdefghijkl",
        correlation_id=f"{number:032x}",
        operation=DECREASE,
        type=USAGE,
        amount=1,
        reference=Reference("message", str(number)),
    )


@asynccontextmanager
async def open_ledger() -> AsyncIterator[Ledger]:
    """A new ledger in an SQLite file in which every merchant has an account and credits."""
    with database() as path:
        async with with_accounts(SQLiteEngine(path), MERCHANTS) as ledger:
            yield ledger


@asynccontextmanager
async def with_accounts(store: Engine, number: int) -> AsyncIterator[Ledger]:
    """The ledger of a store, with so many new accounts; the store is closed in the end."""
    try:
        ledger = Ledger(store, [UUID(bytes=os.urandom(16), version=4) for _ in range(number)])
        await ledger.rate(MERCHANTS, [OpenAccount(merchant_id=m, key=trial_key(m)) for m in ledger.merchants])
        yield ledger
    finally:
        await store.close()
