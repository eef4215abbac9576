"""A PostgreSQL server with durable commits, and ledgers in it."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from benchmarks.ledger import MERCHANTS, Ledger, with_accounts
from credit_service.storage.databases import PostgresDatabase
from credit_service.storage.engine import Engine
from tests.servers.postgres import Databases, Postgres, databases

STREAMS: Final = 4
"""The default of a service."""

SETTINGS: Final = {
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "max_connections": 250,
}
"""Usual settings of a PostgreSQL for many writes. Both sides of each ratio use the same server."""


@contextmanager
def server() -> Iterator[Databases]:
    """Use the server of TEST_POSTGRES_URL, or start one with fsync. Raises Missing if no server is available."""
    if "TEST_POSTGRES_URL" in os.environ:
        with databases("benchmark") as given:
            yield given
    else:
        with Postgres(fsync=True, settings=SETTINGS) as started:
            yield started


@asynccontextmanager
async def open_ledger(url: str, *, merchants: int = MERCHANTS, streams: int = STREAMS) -> AsyncIterator[Ledger]:
    """Make a ledger in an empty database. Every merchant has an account and credits."""
    async with with_accounts(await opened(url, streams=streams), merchants) as ledger:
        yield ledger


async def opened(url: str, *, streams: int = STREAMS, pooled: bool = False) -> Engine:
    """Open the store of a database as the service does. It refuses a server that may lose committed data."""
    return await PostgresDatabase(url, streams, 10, timeout_seconds=60, pooled=pooled, allow_unsafe=False).opened()
