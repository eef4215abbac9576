"""PostgreSQL: postings in transactions of 1,000, compared with the same work row by row and with COPY alone."""

import asyncio
import multiprocessing
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import asyncpg
import uvloop

from benchmarks.baselines import one_statement, row_by_row
from benchmarks.baselines.pools import pool
from benchmarks.ledger import Ledger
from benchmarks.measure import Figure, figure, interleaved, ratio
from benchmarks.postgres import STREAMS, open_ledger, opened, server
from credit_service.ledger import proof
from credit_service.service import quieten_garbage_collection
from credit_service.storage import tables
from credit_service.storage.engine import Committed
from credit_service.storage.postgres import statements as sql
from credit_service.storage.postgres.batch import DecidedBatch
from credit_service.storage.postgres.engine import PostgresEngine
from credit_service.storage.questions import Row
from credit_service.storage.rows import TableRows, columns_of
from tests.servers.postgres import Databases

BATCH = 1_000
CLIENTS = 8
Written = Sequence[TableRows]
"""The rows that a batch wrote, by table and kind of write."""


async def run(quick: bool) -> list[Figure]:
    """Measure batched postings over 1,000 and 10,000 merchants, and on one hot account."""
    figures = []
    with server() as databases:
        for name, merchants, required, aim in (
            ("1,000 merchants", 1_000, 4, 8),
            ("10,000 merchants", 10_000, 4, 8),
            ("one hot account", 1, 20, 40),
        ):
            with databases.database() as url, databases.database() as other:
                async with (
                    open_ledger(url, merchants=merchants) as ledger,
                    open_ledger(other, merchants=merchants) as plain,
                    pool(url, CLIENTS) as rows,
                    pool(other, CLIENTS) as statements,
                ):
                    figures += await _over_rows(name, ledger, rows, plain, statements, required, aim, quick)
        for name, merchants in (("1,000 merchants", 1_000), ("one hot account", 1)):
            figures += await _over_copy(name, merchants, databases, quick)
    return figures


async def _over_rows(
    name: str,
    ledger: Ledger,
    rows: "asyncpg.Pool[Any]",
    plain: Ledger,
    statements: "asyncpg.Pool[Any]",
    required: float,
    aim: float,
    quick: bool,
) -> list[Figure]:
    """Compare batches with postings row by row, in turn on the same accounts.

    A third, informative variant posts each spend by one autocommit statement. That statement does only part of the work
    and keeps no hash chain, so it has a separate database.
    """
    rounds, batches, singles = (3, 8, 800) if quick else (7, 24, 4_000)
    await rows.execute(row_by_row.SEQUENCE)
    await ledger.rate(BATCH, ledger.uniform(2_000))
    await row_by_row.rate(rows, ledger.uniform(200), CLIENTS)
    rates = await interleaved(
        rounds,
        {
            "batched": lambda: ledger.rate(BATCH, ledger.uniform(batches * BATCH)),
            "row by row": lambda: row_by_row.rate(rows, ledger.uniform(singles), CLIENTS),
            "statement": lambda: one_statement.rate(statements, plain.uniform(singles), CLIENTS),
        },
    )
    async for account, grants, transactions, faults in ledger.store.books(ledger.merchants[:10]):
        found = [*faults, *proof.verify(account, grants, transactions)]
        assert not found, f"the books are wrong: {found[:3]}"
    return [
        ratio(f"N=1000 over row by row, {name}", rates["batched"], rates["row by row"], required=required, aim=aim),
        ratio(f"N=1000 over one statement each, {name}", rates["batched"], rates["statement"]),
        figure(f"N=1000, {name}", rates["batched"], "/s"),
        figure(f"row by row with {CLIENTS} clients, {name}", rates["row by row"], "/s"),
        figure(f"one statement each with {CLIENTS} clients, {name}", rates["statement"], "/s"),
    ]


async def _over_copy(name: str, merchants: int, databases: Databases, quick: bool) -> list[Figure]:
    """Compare batches with COPY of the same rows into a separate database.

    The COPY side writes transactions, events and new grants by COPY. It writes existing accounts and grants by the
    UPDATE of our engine. Its transactions have the same size, and it uses as many connections. It takes no lock, looks
    nothing up, decides nothing, and gets ready-made rows. It runs in a separate process, so that its rows do not fill
    our memory.
    """
    rounds, batches = (3, 8) if quick else (7, 24)
    with (
        databases.database() as url,
        databases.database() as made,
        databases.database() as copy,
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), quieten_garbage_collection) as process,
    ):
        loop = asyncio.get_running_loop()
        theirs, _ = await loop.run_in_executor(process, _copied_beside, made, copy, merchants, None, BATCH)
        async with open_ledger(url, merchants=merchants) as ledger:

            async def batched() -> float:
                return await ledger.rate(BATCH, ledger.uniform(batches * BATCH))

            async def copied() -> float:
                _, rate = await loop.run_in_executor(
                    process, _copied_beside, made, copy, merchants, theirs, batches * BATCH
                )
                return rate

            rates = await interleaved(rounds, {"batched": batched, "copy": copied})
    return [
        ratio(f"N=1000 over COPY of ready-made rows, {name}", rates["batched"], rates["copy"], required=0.3, aim=0.6),
        figure(f"COPY of ready-made rows, {name}", rates["copy"], "/s"),
    ]


def _copied_beside(
    made: str, copy: str, merchants: int, known: Sequence[str] | None, number: int
) -> tuple[Sequence[str], float]:
    """Post `number` spends in one database, and copy their rows into the other. Returns the merchants and the rate.

    `known`: the merchants, if an earlier call opened their accounts.
    """

    async def run() -> tuple[Sequence[str], float]:
        async with AsyncExitStack() as stack:
            connections = await stack.enter_async_context(pool(copy, STREAMS))
            if known is None:
                await (await opened(copy)).close()  # this creates the tables
                with _recording() as opening:
                    ledger = await stack.enter_async_context(open_ledger(made, merchants=merchants))
                await _copies(connections, opening)
            else:
                store = await opened(made)
                stack.push_async_callback(store.close)
                ledger = Ledger(store, known)
            with _recording() as written:
                await ledger.rate(BATCH, ledger.uniform(number, f"{time.time_ns()}"))
            return ledger.merchants, await _copies(connections, written)

    return uvloop.run(run())


@contextmanager
def _recording() -> Iterator[list[Written]]:
    """Record the rows of every committed batch. Batches that fail leave no record."""
    written: list[Written] = []
    made: dict[int, Written] = {}
    post, decide = PostgresEngine.post, DecidedBatch.__init__

    def decided(batch: DecidedBatch, *arguments: Any) -> None:
        decide(batch, *arguments)
        made[id(batch.writes)] = batch.parts

    async def posted(*arguments: Any) -> Committed:
        committed: Committed = await post(*arguments)
        written.append(made.pop(id(committed.writes)))
        return committed

    with patch.object(PostgresEngine, "post", posted), patch.object(DecidedBatch, "__init__", decided):
        yield written


async def _copies(connections: "asyncpg.Pool[Any]", written: Sequence[Written]) -> float:
    """Return transactions per second over one connection per stream. A batch of several streams runs alone."""
    started = time.perf_counter()
    beside: dict[int, list[Written]] = defaultdict(list)
    for batch in written:
        streams = {row[0] % STREAMS for row in _rows(batch, tables.events)}
        if len(streams) == 1:
            beside[streams.pop()].append(batch)
        else:
            await asyncio.gather(*[_copied(connections, some) for some in beside.values()])
            beside.clear()
            await _copied(connections, [batch])
    await asyncio.gather(*[_copied(connections, some) for some in beside.values()])
    return sum([len(_rows(batch, tables.transactions)) for batch in written]) / (time.perf_counter() - started)


async def _copied(connections: "asyncpg.Pool[Any]", batches: Sequence[Written]) -> None:
    async with connections.acquire() as connection:
        for batch in batches:
            async with connection.transaction():
                for table, how, some in batch:
                    part = sql.Part(table, how)
                    if how == "insert":
                        columns = columns_of(part.table)
                        await connection.copy_records_to_table(table.name, records=some, columns=columns)
                    else:
                        await connection.execute(sql.write((part,)), *sql.values_of(part, some))


def _rows(batch: Written, wanted: object) -> Sequence[Row]:
    return next(some for table, _, some in batch if table is wanted)
