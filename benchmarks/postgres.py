"""A PostgreSQL that keeps what it has committed, and ledgers in it."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from benchmarks.ledger import MERCHANTS, Ledger, with_accounts
from credit_service.storage.databases import PostgresDatabase
from credit_service.storage.engine import Engine
from tests.servers.postgres import Databases, Postgres, databases

STREAMS: Final = 4
"""As many as a service has that is told nothing of it."""

SETTINGS: Final = {
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "max_connections": 250,
}
"""What everybody sets who runs PostgreSQL for writing; all that is compared runs on the same server."""


@contextmanager
def server() -> Iterator[Databases]:
    """The server of TEST_POSTGRES_URL, else one of our own with fsync. Raises Missing where none can be had."""
    if "TEST_POSTGRES_URL" in os.environ:
        with databases("benchmark") as given:
            yield given
    else:
        with Postgres(fsync=True, settings=SETTINGS) as started:
            yield started


@asynccontextmanager
async def open_ledger(url: str, *, merchants: int = MERCHANTS, streams: int = STREAMS) -> AsyncIterator[Ledger]:
    """A ledger in an empty database in which every merchant has an account and credits."""
    async with with_accounts(await opened(url, streams=streams), merchants) as ledger:
        yield ledger


async def opened(url: str, *, streams: int = STREAMS, pooled: bool = False) -> Engine:
    """The store of a database as the service opens it, which refuses a server that may lose what it has committed."""
    return await PostgresDatabase(url, streams, 10, timeout_seconds=60, pooled=pooled, allow_unsafe=False).opened()
