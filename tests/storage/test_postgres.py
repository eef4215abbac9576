"""The PostgreSQL store: the contract of all stores, and what only PostgreSQL has."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import asyncpg
import pytest

from credit_service.storage import tables
from credit_service.storage.base import Store
from credit_service.storage.migrations import migrate_postgres
from credit_service.storage.postgres import PostgresStore
from tests.servers.postgres import Databases
from tests.storage.contract import Clock, StoreContract


class HaltingStore(PostgresStore):
    """A store whose next posting can be made to stop before its commit."""

    goes_on: asyncio.Event | None = None
    has_stopped = asyncio.Event()

    async def _commit(self, connection: Any) -> None:
        if self.goes_on is not None:
            self.has_stopped.set()
            await self.goes_on.wait()
        await super()._commit(connection)


class PostgresEngine:
    """See `tests.storage.contract.Engine`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.clock = Clock()

    async def fresh(self) -> HaltingStore:
        connection = await asyncpg.connect(self.url)
        # Not TRUNCATE, which makes new files: for the few rows of a test that takes far longer.
        await connection.execute("".join([f"DELETE FROM {name};" for name in tables.metadata.tables]))
        await connection.close()
        self.clock.now = Clock().now
        return self.open()

    def open(self) -> HaltingStore:
        numbers = count(1)
        return HaltingStore(self.url, clock=self.clock, draw_number=lambda: next(numbers), timeout_seconds=20)

    async def reopened(self, store: Store) -> HaltingStore:
        await store.close()
        return self.open()

    async def rows(self, table: str) -> list[tuple[Any, ...]]:
        order = ", ".join(column.name for column in tables.metadata.tables[table].primary_key)
        connection = await asyncpg.connect(self.url)
        try:
            return list(map(tuple, await connection.fetch(f"SELECT * FROM {table} ORDER BY {order}")))
        finally:
            await connection.close()

    @asynccontextmanager
    async def halfway(self, store: Store) -> AsyncIterator[None]:
        assert isinstance(store, HaltingStore)
        store.has_stopped = asyncio.Event()
        store.goes_on = asyncio.Event()
        try:
            yield
            await store.has_stopped.wait()
        finally:
            store.goes_on.set()


@pytest.fixture(scope="module")
def database(postgres: Databases) -> Any:
    def migrated(url: str) -> None:
        migrate_postgres(url)

    with postgres.database(postgres.template("migrated", migrated)) as url:
        yield url


@pytest.fixture
def engine(database: str) -> PostgresEngine:
    return PostgresEngine(database)


class TestPostgres(StoreContract):
    """The contract, on PostgreSQL."""
