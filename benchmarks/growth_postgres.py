"""PostgreSQL: the times on a ledger with ten million transactions, compared with one of ten thousand in the same run.

The ledgers and operations are those of `growth`. One hot account has three tenths of the transactions. The ledger
itself posts all transactions, so the hash chains and the pages on disk are as in a grown ledger. That takes 15 minutes
and 17 GB of disk. GROWTH_TRANSACTIONS sets another size.
"""

import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import asyncpg

from benchmarks import growth
from benchmarks.growth import MERCHANTS, PAGE, REQUIRED, Grown, Variant
from benchmarks.measure import Figure, figure, interleaved, ratio
from benchmarks.postgres import opened, server

BYTES_EACH = 1_200
"""Bytes on disk of a transaction with its indexes and its event, measured and rounded up."""
MARGIN = 5 * 2**30
"""Bytes for the server's write-ahead log and for free space."""


async def run(quick: bool) -> list[Figure]:
    """Measure every operation on the large ledger, compared with the small ledger."""
    wanted = int(os.environ.get("GROWTH_TRANSACTIONS", "100_000" if quick else "10_000_000"))
    rounds = 3 if quick else 7
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < wanted * BYTES_EACH + MARGIN:
        raise SystemExit(f"{wanted:,} transactions need {(wanted * BYTES_EACH + MARGIN) / 2**30:.0f} GiB of disk")
    with server() as databases, databases.database() as url, databases.database() as other:
        async with _grown(url, 0, 1_000, 0) as small:
            started = time.monotonic()
            many, more = wanted // 100, wanted * 29 // 100
            async with _grown(other, (wanted - many - more) // MERCHANTS - 1, many, more) as large:
                loaded = time.monotonic() - started
                for each in (url, other):
                    await _settled(each)
                figures = await _compared({url: small, other: large}, rounds, quick)
                count, size = await _sizes(other)
    return [
        *figures,
        figure("transactions in the large ledger at the end", [count], ""),
        figure("postings while loading", [wanted / loaded], "/s"),
        figure("size of the large ledger", [size / 2**20], "MB"),
    ]


def _variants(ledger: Grown, quick: bool) -> Mapping[str, tuple[Variant, bool]]:
    """Return the operations of `growth` and a page by its number: the 50,000th, or the middle of a shorter history."""
    offset = min(50_000 * PAGE, ledger.hot_account.sequence // 2)
    numbered = partial(growth.each, 20 if quick else 200, partial(ledger.page, offset=offset))
    return {"history, page 50,000": (numbered, True), **growth.variants_of(ledger, quick, slow=1)}


async def _compared(ledgers: Mapping[str, Grown], rounds: int, quick: bool) -> list[Figure]:
    """Compare a small and a large ledger. `ledgers` maps the URL of each database to its ledger."""
    names = dict(zip(("small", "large"), ledgers, strict=True))
    variants = {size: _variants(ledgers[url], quick) for size, url in names.items()}
    figures = []
    for what, (_, is_required) in variants["small"].items():
        if what == "one posting alone":  # the first operation that writes
            for ledger in ledgers.values():
                await _in_operation(ledger)
        took = await interleaved(rounds, {size: of_size[what][0] for size, of_size in variants.items()})
        figures += _figures(what, took, REQUIRED if is_required else None)
    what = "one posting in a batch of 1,000 right after a checkpoint"
    postings = 1_000 if quick else 2_000
    took = await interleaved(
        rounds, {size: partial(_after_a_checkpoint, url, ledgers[url], postings) for size, url in names.items()}
    )
    return figures + _figures(what, took, None)


def _figures(what: str, took: Mapping[str, Sequence[float]], required: float | None) -> list[Figure]:
    return [
        ratio(
            what, took["large"], took["small"], required=required, aim=1.1 if required else None, less_is_better=True
        ),
        figure(f"{what}, large", took["large"], "µs"),
        figure(f"{what}, small", took["small"], "µs"),
    ]


async def _in_operation(ledger: Grown) -> None:
    """Post to every merchant a few times, to bring the ledger into the state of normal operation.

    The first change of a page after a checkpoint writes the whole page into the server's log. A busy ledger pays for
    that once in 15 minutes. Right after a checkpoint it would be most of the time of a posting.
    """
    await ledger.rate(1_000, ledger.uniform(3 * MERCHANTS))


async def _after_a_checkpoint(url: str, ledger: Grown, postings: int) -> float:
    await _execute(url, "CHECKPOINT")
    return await ledger.together(postings, ledger.uniform)


@asynccontextmanager
async def _grown(url: str, each: int, hot: int, more: int) -> AsyncIterator[Grown]:
    """Load a ledger as `growth` does, and then post `more` transactions to its hot account."""
    store = await opened(url)
    try:
        ledger = Grown(store, [str(uuid4()) for _ in range(MERCHANTS)])
        await ledger.load(each, hot)
        for _ in range(more // 10_000):
            # Post the same kinds in batches of 100, so that a period and a filter match as much as in the small ledger.
            await ledger.rate(100, [ledger.of_hot(number, 10**9) for number in range(1, 10_001)])
        await ledger.rate(1_000, ledger.uniform(1_000))
        await ledger.look()
        yield ledger
    finally:
        await store.close()


async def _settled(url: str) -> None:
    """Vacuum, analyze and checkpoint, as the server does by itself some time after so many postings."""
    await _execute(url, "VACUUM ANALYZE")
    await _execute(url, "CHECKPOINT")


async def _execute(url: str, statement: str) -> None:
    connection: asyncpg.Connection[Any] = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def _sizes(url: str) -> tuple[float, float]:
    """Return the number of transactions and the size of the database in bytes."""
    connection: asyncpg.Connection[Any] = await asyncpg.connect(url)
    try:
        asked = "SELECT sum(sequence)::bigint, pg_database_size(current_database()) FROM accounts"
        return tuple(map(float, await connection.fetchrow(asked)))  # type: ignore[arg-type, return-value]
    finally:
        await connection.close()
