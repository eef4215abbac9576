"""PostgreSQL: what a ledger of ten million transactions costs, over the same with ten thousand in one run.

As `growth`, whose ledgers and questions these are; three tenths of the transactions are of one hot account. All are
posted by the ledger itself, so that its chains and its pages are those of a ledger that has grown. That takes a quarter
of an hour and 17 GB of disk; another size by GROWTH_TRANSACTIONS.
"""

import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import UUID

import asyncpg

from benchmarks import growth
from benchmarks.growth import MERCHANTS, OWED, PAGE, Grown, Way
from benchmarks.measure import Figure, figure, interleaved, ratio
from benchmarks.postgres import opened, server

BYTES_EACH = 1_200
"""Of a transaction with its indexes and its event, on the disk; measured, and rounded up."""
MARGIN = 5 * 2**30
"""What the server's log takes beside that, and what stays free."""


async def run(quick: bool) -> list[Figure]:
    """Every way of a large ledger over the same of a small one."""
    wanted = int(os.environ.get("GROWTH_TRANSACTIONS", "100_000" if quick else "10_000_000"))
    rounds = 3 if quick else 7
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < wanted * BYTES_EACH + MARGIN:
        raise SystemExit(f"{wanted:,} transactions need {(wanted * BYTES_EACH + MARGIN) / 2**30:.0f} GiB of disk")
    with server() as databases, databases.database() as url, databases.database() as other:
        async with _grown(url, 0, 1_000, 0) as small:
            begun = time.monotonic()
            many, more = wanted // 100, wanted * 29 // 100
            async with _grown(other, (wanted - many - more) // MERCHANTS - 1, many, more) as large:
                loaded = time.monotonic() - begun
                for each in (url, other):
                    await _settled(each)
                figures = await _compared({url: small, other: large}, rounds, quick)
                count, size = await _sizes(other)
    return [
        *figures,
        figure("transactions in the large ledger at the end", [count], ""),
        figure("postings while it was loaded", [wanted / loaded], "/s"),
        figure("its size", [size / 2**20], "MB"),
    ]


def _ways(ledger: Grown, quick: bool) -> Mapping[str, tuple[Way, bool]]:
    """Those of `growth`, and a page that is asked for by its number, which is the 50,000th where there are as many."""
    offset = min(50_000 * PAGE, ledger.hot_account.sequence // 2)
    numbered = partial(growth.each, 20 if quick else 200, partial(ledger.page, offset=offset))
    return {"history, page 50,000": (numbered, True), **growth.ways_of(ledger, quick, slow=1)}


async def _compared(ledgers: Mapping[str, Grown], rounds: int, quick: bool) -> list[Figure]:
    """A small and a large ledger, by the URLs of their databases."""
    names = dict(zip(("small", "large"), ledgers, strict=True))
    ways = {size: _ways(ledgers[url], quick) for size, url in names.items()}
    figures = []
    for what, (_, owes) in ways["small"].items():
        if what == "a posting alone":  # the first that writes
            for ledger in ledgers.values():
                await _in_operation(ledger)
        took = await interleaved(rounds, {size: of_size[what][0] for size, of_size in ways.items()})
        figures += _figures(what, took, OWED if owes else None)
    what = "a posting in a batch of 1,000, right after a checkpoint"
    postings = 1_000 if quick else 2_000
    took = await interleaved(
        rounds, {size: partial(_after_a_checkpoint, url, ledgers[url], postings) for size, url in names.items()}
    )
    return figures + _figures(what, took, None)


def _figures(what: str, took: Mapping[str, Sequence[float]], owed: float | None) -> list[Figure]:
    return [
        ratio(what, took["large"], took["small"], owed=owed, aim=1.1 if owed else None, less_is_better=True),
        figure(f"{what}, large", took["large"], "µs"),
        figure(f"{what}, small", took["small"], "µs"),
    ]


async def _in_operation(ledger: Grown) -> None:
    """Post to every merchant some times, as others have by the time somebody measures.

    The first change of a page after a checkpoint writes all of it into the server's log. A ledger at work pays for that
    once in a quarter of an hour; measured right after a checkpoint it would be most of what a posting costs.
    """
    await ledger.rate(1_000, ledger.uniform(3 * MERCHANTS))


async def _after_a_checkpoint(url: str, ledger: Grown, postings: int) -> float:
    await _told(url, "CHECKPOINT")
    return await ledger.together(postings, ledger.uniform)


@asynccontextmanager
async def _grown(url: str, each: int, hot: int, more: int) -> AsyncIterator[Grown]:
    """A ledger as `growth` loads it, whose hot account then gets more."""
    store = await opened(url)
    try:
        ledger = Grown(store, [UUID(bytes=os.urandom(16), version=4) for _ in range(MERCHANTS)])
        await ledger.load(each, hot)
        for _ in range(more // 10_000):
            # In batches of 100 and of the same kinds, so that a period and a filter find as much as in the small one.
            await ledger.rate(100, [ledger.of_hot(number, 10**9) for number in range(1, 10_001)])
        await ledger.rate(1_000, ledger.uniform(1_000))
        await ledger.look()
        yield ledger
    finally:
        await store.close()


async def _settled(url: str) -> None:
    """What the server would do by itself some time after so many postings: clean up, look at its tables, write all."""
    await _told(url, "VACUUM ANALYZE")
    await _told(url, "CHECKPOINT")


async def _told(url: str, what: str) -> None:
    connection: asyncpg.Connection[Any] = await asyncpg.connect(url)
    try:
        await connection.execute(what)
    finally:
        await connection.close()


async def _sizes(url: str) -> tuple[float, float]:
    """How many transactions there are, and how many bytes the database takes."""
    connection: asyncpg.Connection[Any] = await asyncpg.connect(url)
    try:
        asked = "SELECT sum(sequence)::bigint, pg_database_size(current_database()) FROM accounts"
        return tuple(map(float, await connection.fetchrow(asked)))  # type: ignore[arg-type, return-value]
    finally:
        await connection.close()
