"""Shared by all benchmarks of postings: a ledger on disk with a thousand merchants, and spends to post."""

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
from uuid import uuid4

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
CALLERS, SUBMITTED = 8, 1_000
POLICY = Policy(trial_credits=10**12)  # no account runs out of credits during a benchmark

_numbers = count(1)


@contextmanager
def folder() -> Iterator[Path]:
    """Make a folder on the disk, and delete it at the end."""
    DATA.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DATA) as path:
        yield Path(path)


@contextmanager
def database() -> Iterator[Path]:
    """Make an empty, migrated database."""
    with folder() as path:
        migrate(path / "ledger.db")
        yield path / "ledger.db"


class Ledger:
    """A store with open accounts, and the posting path in front of it."""

    def __init__(self, store: Engine, merchants: Sequence[str]) -> None:
        self.store = store
        self.merchants = merchants

    @asynccontextmanager
    async def posting(self, max_batch: int) -> AsyncIterator[Posting]:
        """Open the posting path with batches of at most `max_batch` commands."""
        # The deadline is long, because callers submit thousands of spends at once and the last ones wait.
        posting = Posting(self.store, POLICY, max_batch=max_batch, max_queue=10**6, deadline_seconds=600)
        posting.start()
        try:
            yield posting
        finally:
            await posting.drain()

    async def rate(self, max_batch: int, commands: Sequence[Command]) -> float:
        """Return postings per second, in batches of at most `max_batch` commands.

        Eight callers each submit a thousand commands at a time, check the outcomes and drop them. A single caller would
        keep tens of thousands of outcomes, and garbage collection would take a tenth of the time.
        """
        submissions = iter([commands[at : at + SUBMITTED] for at in range(0, len(commands), SUBMITTED)])
        async with self.posting(max_batch) as posting:

            async def call() -> None:
                for some in submissions:
                    assert all(isinstance(outcome, Posted) for outcome in await posting.submit_many(some))

            started = time.perf_counter()
            await asyncio.gather(*[call() for _ in range(CALLERS)])
            return len(commands) / (time.perf_counter() - started)

    async def lone(self, number: int) -> float:
        """Return the median wait in µs of a single caller that posts one command at a time."""
        took = []
        async with self.posting(max_batch=1_000) as posting:
            for command in self.uniform(number):
                started = time.perf_counter()
                await posting.submit(command)
                took.append(time.perf_counter() - started)
        return median(took) * 1e6

    def uniform(self, number: int, prefix: str = "usage") -> list[Post]:
        """Return spends of all merchants in turn, in a new random order each time.

        Each process needs its own `prefix` for its keys.
        """
        merchants: list[str] = []
        while len(merchants) < number:
            merchants += random.sample(self.merchants, len(self.merchants))
        return [spend(merchant, prefix) for merchant in merchants[:number]]

    def hot(self, number: int) -> list[Post]:
        """Return spends of one merchant."""
        return [spend(self.merchants[0]) for _ in range(number)]


def spend(merchant: str, prefix: str = "usage") -> Post:
    """Return a spend of one credit as a door makes it, under a new key."""
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
    """Open a new ledger in an SQLite file. Every merchant has an account and credits."""
    with database() as path:
        async with with_accounts(SQLiteEngine(path), MERCHANTS) as ledger:
            yield ledger


@asynccontextmanager
async def with_accounts(store: Engine, number: int) -> AsyncIterator[Ledger]:
    """Open `number` new accounts in a store, and close the store at the end."""
    try:
        ledger = Ledger(store, [str(uuid4()) for _ in range(number)])
        await ledger.rate(MERCHANTS, [OpenAccount(merchant_id=m, key=trial_key(m)) for m in ledger.merchants])
        yield ledger
    finally:
        await store.close()
