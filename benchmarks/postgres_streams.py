"""PostgreSQL: postings per second by the number of streams, by the number of processes, and through a pooler.

The figures are only informative. They show the effect of POSTING_STREAMS and of more workers on a machine. Every
variant posts to its own accounts in one shared database.
"""

import asyncio
import multiprocessing
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack
from functools import partial

import uvloop

from benchmarks import group_commit
from benchmarks.ledger import MERCHANTS, Ledger, with_accounts
from benchmarks.measure import Figure, figure, interleaved
from benchmarks.postgres import STREAMS, opened, server
from credit_service.service import quieten_garbage_collection
from tests.servers.pgbouncer import PgBouncer
from tests.servers.processes import Missing

CALLERS = 64
Variant = Callable[[], Awaitable[float]]


async def run(quick: bool) -> list[Figure]:
    """Measure batches and 64 callers by streams, batches by processes, and both through PgBouncer, if installed."""
    rounds, batched, each = (3, 8_000, 50) if quick else (5, 24_000, 500)
    variants: dict[str, Variant] = {}
    with server() as databases, databases.database() as url:
        async with AsyncExitStack() as stack:

            async def add(name: str, place: str, streams: int, *, pooled: bool = False) -> None:
                store = await opened(place, streams=streams, pooled=pooled)
                ledger = await stack.enter_async_context(with_accounts(store, MERCHANTS))
                variants[f"N=1000, {name}"] = partial(_batches, ledger, batched)
                variants[f"{CALLERS} callers, {name}"] = partial(_callers, ledger, each)
                variants[f"{CALLERS} callers, one hot account, {name}"] = partial(_hot_callers, ledger, each)

            for streams in (1, 2, 4, 8):
                await add(f"{streams} streams" if streams > 1 else "1 stream", url, streams)
            try:
                pooler = stack.enter_context(PgBouncer(url, pool_size=20))
            except Missing as missing:
                print(f"skipped PgBouncer: {missing}")
            else:
                await add(f"{STREAMS} streams, PgBouncer", pooler.url, STREAMS, pooled=True)
            processes = stack.enter_context(ProcessPoolExecutor(4, multiprocessing.get_context("spawn"), _prepare))
            ledger = await stack.enter_async_context(with_accounts(await opened(url), MERCHANTS))
            for number in (1, 2, 4):
                what = f"N=1000, {number} process{'es' if number > 1 else ''} with {STREAMS} streams"
                variants[what] = partial(_side_by_side, processes, number, url, ledger.merchants, batched)
            rates = await interleaved(rounds, variants)
    return [figure(name, taken, "/s") for name, taken in rates.items()]


async def _batches(ledger: Ledger, number: int) -> float:
    return await ledger.rate(1_000, ledger.uniform(number))


async def _callers(ledger: Ledger, each: int) -> float:
    return await group_commit.rate(ledger, 1_000, ledger.uniform, each, [])


async def _hot_callers(ledger: Ledger, each: int) -> float:
    return await group_commit.rate(ledger, 1_000, ledger.hot, each, [])


async def _side_by_side(
    processes: ProcessPoolExecutor, number: int, url: str, merchants: Sequence[str], postings: int
) -> float:
    """Return postings per second of `number` processes together. They start at the same moment, after all connected."""
    loop = asyncio.get_running_loop()
    begin_at = time.time() + 2
    work = partial(_elsewhere, url, merchants, postings // number, begin_at)
    took = await asyncio.gather(*[loop.run_in_executor(processes, work, index) for index in range(number)])
    return postings // number * number / (max(end for _, end in took) - min(started for started, _ in took))


def _prepare() -> None:
    quieten_garbage_collection()


def _elsewhere(url: str, merchants: Sequence[str], number: int, begin_at: float, process: int) -> tuple[float, float]:
    """Post in this process. Returns the times of its start and its end."""

    async def post() -> tuple[float, float]:
        store = await opened(url)
        try:
            ledger = Ledger(store, merchants)
            commands = ledger.uniform(number, f"{process}-{begin_at:.6f}")
            await asyncio.sleep(max(begin_at - time.time(), 0))
            started = time.time()
            await ledger.rate(1_000, commands)
            return started, time.time()
        finally:
            await store.close()

    return uvloop.run(post())
