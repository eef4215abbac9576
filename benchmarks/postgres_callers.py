"""PostgreSQL: callers that wait for each posting, compared with callers of one autocommit statement per posting."""

import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from statistics import median
from typing import Any

import asyncpg

from benchmarks import group_commit
from benchmarks.baselines import one_statement
from benchmarks.baselines.pools import pool
from benchmarks.ledger import Ledger
from benchmarks.measure import Figure, figure, interleaved, percentile, ratio
from benchmarks.postgres import open_ledger, server
from credit_service.ledger.commands import Post

CALLERS = 64
POOLS = (8, 16, 64)
"""Numbers of connections that the baseline's callers share. The ratio uses the best of them."""


async def run(quick: bool) -> list[Figure]:
    """Measure 64 callers on one hot account and over 1,000 merchants, and a single caller."""
    figures = []
    with server() as databases, databases.database() as url, databases.database() as other:
        # Two databases, because the rows of the statement would break the hash chain.
        async with open_ledger(url) as ledger, open_ledger(other) as plain, AsyncExitStack() as stack:
            pools = {size: await stack.enter_async_context(pool(other, size)) for size in POOLS}
            for name, required, aim in (("one hot account", 10, 20), ("1,000 merchants", None, None)):
                ours, theirs = ((each.hot if required else each.uniform) for each in (ledger, plain))
                figures += await _many(name, ledger, ours, pools, theirs, required, aim, quick)
            figures += await _lone(ledger, pools[POOLS[0]], plain, quick)
    return figures


async def _many(
    name: str,
    ledger: Ledger,
    ours: Callable[[int], Sequence[Post]],
    pools: dict[int, "asyncpg.Pool[Any]"],
    theirs: Callable[[int], Sequence[Post]],
    required: float | None,
    aim: float | None,
    quick: bool,
) -> list[Figure]:
    rounds, grouped, single = (3, 4_000, 400) if quick else (7, 32_000, 4_000)
    waits: dict[int, list[float]] = {size: [] for size in (0, *pools)}
    variants = {size: partial(_plain, connections, theirs, single, waits[size]) for size, connections in pools.items()}
    rates = await interleaved(
        rounds,
        {
            "grouped": lambda: group_commit.rate(ledger, 1_000, ours, grouped // CALLERS, waits[0]),
            **{str(size): variant for size, variant in variants.items()},
        },
    )
    best = max(pools, key=lambda size: median(rates[str(size)]))
    what = f"{CALLERS} callers, {name}"
    return [
        ratio(
            f"group commit over one statement each, {what}",
            rates["grouped"],
            rates[str(best)],
            required=required,
            aim=aim,
        ),
        figure(f"group commit, {what}", rates["grouped"], "/s"),
        figure(f"p99 wait of a caller, {what}", [percentile(waits[0], 99) * 1e3], "ms"),
        *[figure(f"one statement each, {size} connections, {what}", rates[str(size)], "/s") for size in pools],
        figure(f"p99 wait of a caller for the statement, {what}", [percentile(waits[best], 99) * 1e3], "ms"),
    ]


async def _plain(
    connections: "asyncpg.Pool[Any]", spends: Callable[[int], Sequence[Post]], number: int, waits: list[float]
) -> float:
    return await one_statement.rate(connections, spends(number), CALLERS, waits)


async def _lone(ledger: Ledger, connections: "asyncpg.Pool[Any]", plain: Ledger, quick: bool) -> list[Figure]:
    rounds, number = (5, 100) if quick else (9, 1_000)

    async def statements() -> float:
        took = []
        async with connections.acquire() as connection:
            for command in plain.uniform(number):
                started = time.perf_counter()
                await connection.fetchval(one_statement.SPEND, *one_statement.values(command))
                took.append(time.perf_counter() - started)
        return median(took) * 1e6

    waits = await interleaved(rounds, {"submit": lambda: ledger.lone(number), "statement": statements})
    return [
        ratio(
            "p50 of a lone posting over one statement",
            waits["submit"],
            waits["statement"],
            required=1.6,
            aim=1.2,
            less_is_better=True,
        ),
        figure("p50 of a lone posting", waits["submit"], "µs"),
        figure("p50 of one statement", waits["statement"], "µs"),
    ]
