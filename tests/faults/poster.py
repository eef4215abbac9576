"""A process that posts until a test kills it, and prints its requests and answers.

Run it as `python -m tests.faults.poster FILE PREFIX SEED`. It prints the line `asks KEY…` before it submits commands,
and the line `KEY…` after they are posted.
"""

import asyncio
import ctypes
import random
import signal
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from uuid import UUID

from credit_service.ledger.commands import Post
from credit_service.ledger.policy import Policy
from credit_service.posting import Posting, RefusedAt
from credit_service.storage.sqlite.engine import SQLiteEngine
from tests.ledger.telling import add, use
from tests.storage.values import of

MERCHANTS = [str(UUID(int=index)) for index in range(1, 6)]
CALLERS = 6
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Make the kernel kill this process when its parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def command(key: str) -> Post:
    """Return the command of a key. The same key always gives the same command, so a test can repeat it."""
    chance = random.Random(key)
    made = add(chance.randint(1, 50), key) if chance.random() < 0.4 else use(chance.randint(1, 5), key)
    return of(chance.choice(MERCHANTS), made)


async def _call(posting: Posting, keys: Iterator[str], chance: random.Random) -> None:
    while True:
        some = [next(keys) for _ in range(chance.choice([1, 1, 3, 40]))]
        print("asks", *some, flush=True)
        if chance.random() < 0.2:
            alike = [of(MERCHANTS[0], command(key)) for key in some]
            if isinstance(await posting.submit_atomic(alike), RefusedAt):
                continue
            print(*some, flush=True)
            continue
        outcomes = await posting.submit_many([command(key) for key in some])
        posted = [key for key, outcome in zip(some, outcomes, strict=True) if type(outcome).__name__ == "Posted"]
        print(*posted, flush=True)


async def _main(path: Path, prefix: str, seed: int) -> None:
    posting = Posting(SQLiteEngine(path), Policy())
    posting.start()
    keys = (f"{prefix}-{number}" for number in count(1))
    async with asyncio.TaskGroup() as callers:
        for caller in range(CALLERS):
            callers.create_task(_call(posting, keys, random.Random(seed + caller)))


if __name__ == "__main__":
    die_with_parent()
    asyncio.run(_main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
