"""PostgreSQL: postings a thousand to a transaction, over the same work done row by row, and over COPY alone."""

import asyncio
import multiprocessing
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from typing import Any
from unittest.mock import patch
from uuid import UUID

import asyncpg
import uvloop

from benchmarks.ledger import Ledger
from benchmarks.measure import Figure, figure, interleaved, ratio
from benchmarks.opponents import one_statement, row_by_row
from benchmarks.opponents.pools import pool
from benchmarks.postgres import STREAMS, open_ledger, opened, server
from credit_service.ledger import proof
from credit_service.service import quieten_garbage_collection
from credit_service.storage import tables
from credit_service.storage.engine import Committed
from credit_service.storage.postgres import statements as sql
from credit_service.storage.postgres.batch import DecidedBatch, TableRows
from credit_service.storage.postgres.engine import PostgresEngine
from credit_service.storage.questions import Row
from tests.servers.postgres import Databases

BATCH = 1_000
CLIENTS = 8
Written = Sequence[TableRows]
"""What a batch wrote, table by table, and how."""


async def run(quick: bool) -> list[Figure]:
    """Batched posting, uniform over 1,000 and over 10,000 merchants, and on one hot account."""
    figures = []
    with server() as databases:
        for name, merchants, owed, aim in (
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
                    figures += await _over_rows(name, ledger, rows, plain, statements, owed, aim, quick)
        for name, merchants in (("1,000 merchants", 1_000), ("one hot account", 1)):
            figures += await _over_copy(name, merchants, databases, quick)
    return figures


async def _over_rows(
    name: str,
    ledger: Ledger,
    rows: "asyncpg.Pool[Any]",
    plain: Ledger,
    statements: "asyncpg.Pool[Any]",
    owed: float,
    aim: float,
    quick: bool,
) -> list[Figure]:
    """Row by row on the same accounts, in turn: what the one has written the other goes on from.

    And beside what is owed, one autocommit statement for each, which does a part of the work and keeps no chain, so in
    a database of its own.
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
        ratio(f"N=1000 over row by row, {name}", rates["batched"], rates["row by row"], owed=owed, aim=aim),
        ratio(f"N=1000 over one statement each, {name}", rates["batched"], rates["statement"]),
        figure(f"N=1000, {name}", rates["batched"], "/s"),
        figure(f"row by row with {CLIENTS} clients, {name}", rates["row by row"], "/s"),
        figure(f"one statement each with {CLIENTS} clients, {name}", rates["statement"], "/s"),
    ]


async def _over_copy(name: str, merchants: int, databases: Databases, quick: bool) -> list[Figure]:
    """COPY into a database of its own, of rows that batches like ours wrote into another.

    Transactions, events and new grants by COPY; accounts and grants that were there by the UPDATE that ours sends. As
    many to a transaction as ours has, over as many connections. No lock, no look-up, no decision, and no making of
    rows: those are made before. In a process of its own, so that they do not lie about in the memory of ours.
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
        ratio(f"N=1000 over COPY of ready-made rows, {name}", rates["batched"], rates["copy"], owed=0.3, aim=0.6),
        figure(f"COPY of ready-made rows, {name}", rates["copy"], "/s"),
    ]


def _copied_beside(
    made: str, copy: str, merchants: int, known: Sequence[UUID] | None, number: int
) -> tuple[Sequence[UUID], float]:
    """Post so many spends in one database, and then copy what they wrote into the other: the accounts, and the rate.

    `known`: the accounts, where they were opened before.
    """

    async def run() -> tuple[Sequence[UUID], float]:
        async with AsyncExitStack() as stack:
            connections = await stack.enter_async_context(pool(copy, STREAMS))
            if known is None:
                await (await opened(copy)).close()  # which makes the tables
                with _noting() as opening:
                    ledger = await stack.enter_async_context(open_ledger(made, merchants=merchants))
                await _copies(connections, opening)
            else:
                store = await opened(made)
                stack.push_async_callback(store.close)
                ledger = Ledger(store, known)
            with _noting() as written:
                await ledger.rate(BATCH, ledger.uniform(number, f"{time.time_ns()}"))
            return ledger.merchants, await _copies(connections, written)

    return uvloop.run(run())


@contextmanager
def _noting() -> Iterator[list[Written]]:
    """Note what every batch writes; not what is decided and comes to nothing."""
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
    """Transactions per second, by a connection for each stream. A batch of several streams goes alone, as it did."""
    begun = time.perf_counter()
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
    return sum([len(_rows(batch, tables.transactions)) for batch in written]) / (time.perf_counter() - begun)


async def _copied(connections: "asyncpg.Pool[Any]", batches: Sequence[Written]) -> None:
    async with connections.acquire() as connection:
        for batch in batches:
            async with connection.transaction():
                for table, how, some in batch:
                    part = sql.Part(table, how)
                    if how == "insert":
                        columns = sql.columns_of(part.table)
                        await connection.copy_records_to_table(table.name, records=some, columns=columns)
                    else:
                        await connection.execute(sql.write((part,)), *sql.values_of(part, some))


def _rows(batch: Written, wanted: object) -> Sequence[Row]:
    return next(some for table, _, some in batch if table is wanted)
