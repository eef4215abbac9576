"""Both engines keep the same rows for the same commands."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from credit_service.ledger.decide import Outcome
from credit_service.ledger.policy import Policy
from credit_service.posting import Posting, RefusedAt
from credit_service.storage import tables
from credit_service.storage.accounts import AccountQuery, Accounts
from credit_service.storage.engine import Engine
from credit_service.storage.transactions import TransactionQuery, Transactions
from tests.ledger.telling import days
from tests.servers.postgres import Databases
from tests.storage.batches import MERCHANTS, Batch, batches, policies
from tests.storage.contract import Harness
from tests.storage.engines import template
from tests.storage.test_postgres import PostgresHarness
from tests.storage.test_sqlite import SQLiteHarness


@pytest.fixture(scope="module")
def url(postgres: Databases) -> Iterator[str]:
    with postgres.database(template(postgres)) as url:
        yield url


class Side:
    """One harness and its engine. All examples use it in one event loop."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.engine: Engine | None = None

    async def post(self, some: list[Batch], policy: Policy) -> list[Any]:
        """Post batches to an empty ledger. Returns outcomes, rows, and the answers of reads."""
        harness = self.harness
        engine = self.engine = await (harness.fresh() if self.engine is None else harness.renewed(self.engine))
        # Post one command at a time, because PostgreSQL splits a batch by streams and would draw other numbers.
        posting = Posting(engine, policy)
        posting.start()
        outcomes: list[list[Outcome] | RefusedAt] = []
        try:
            for batch in some:
                harness.clock.now += batch.wait
                if batch.atomic:
                    answer = await posting.submit_atomic(batch.commands)
                    outcomes.append(answer if isinstance(answer, RefusedAt) else list(answer))
                else:
                    for command in batch.commands:
                        outcomes.append([await posting.submit(command)])
        finally:
            await posting.drain()
        return [*outcomes, *await self._rows(), *await self._read(engine)]

    async def _rows(self) -> list[tuple[str, Any]]:
        found = {name: await self.harness.rows(name) for name in tables.metadata.tables}
        # Lanes and ids differ between engines; the events of each account are in the order of their numbers.
        found["events"] = sorted(row[2:] for row in found["events"])
        found["dead_letters"] = [row[1:] for row in found["dead_letters"]]
        return [(name, row) for name, some in found.items() for row in some]

    async def _read(self, engine: Engine) -> list[Any]:
        now = self.harness.clock.now
        held = await Accounts(engine).load(MERCHANTS, now)
        # Read at the current time, as callers do.
        read: list[Any] = [
            held,
            *[await Accounts(engine).past(one.account.number, now - 1) for _, one in sorted(held.items())],
        ]
        for account in [None, *sorted(one.account.number for one in held.values())]:
            for query in (TransactionQuery(account), TransactionQuery(account, operation="DECREASE")):
                read.append(await Transactions(engine).count(query))
                if account is not None:
                    read += [
                        await Transactions(engine).page(query, None, 5, 2),
                        await Transactions(engine).totals(account),
                    ]
        for status in (None, "ACTIVE", "LOW", "EXHAUSTED"):
            read.append(await Accounts(engine).page(AccountQuery(now, 5, status, max_balance=1_000), None, 10))
        *counts, _ = await Accounts(engine).summary(now, 5)  # the engines round averages differently
        read += [counts, await Accounts(engine).due(days(100), 10)]
        read.append(sorted(await Accounts(engine).due_accounts(days(9)), key=lambda one: one.account.number))
        return [
            *read,
            await Accounts(engine).drifting(None, 10),
            await Accounts(engine).parked_count(),
            await Transactions(engine).strays(),
        ]

    async def close(self) -> None:
        if self.engine is not None:
            await self.engine.close()
        await self.harness.close()


def test_same_commands_leave_the_same_rows_on_both_engines(url: str, tmp_path: Path) -> None:
    sides = [Side(SQLiteHarness(tmp_path)), Side(PostgresHarness(url))]
    with asyncio.Runner() as runner:

        @given(some=batches, policy=policies)
        @settings(max_examples=max(10, settings().max_examples // 3))
        def agree(some: list[Batch], policy: Policy) -> None:
            sqlite, server = [runner.run(side.post(some, policy)) for side in sides]
            assert len(sqlite) == len(server)
            assert [(one, other) for one, other in zip(sqlite, server, strict=True) if one != other] == []

        try:
            agree()
        finally:
            for side in sides:
                runner.run(side.close())
