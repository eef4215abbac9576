"""Where a ledger is kept, before there is a store: is it there, is its schema this release's, open it.

Alembic takes long to import and is rarely needed, so it is imported only where something has to be migrated.
"""

import asyncio
import os
import time
from pathlib import Path
from typing import NamedTuple, Protocol

import asyncpg

from credit_service.storage.engine import Engine, SchemaError, StorageUnavailable
from credit_service.storage.postgres import statements as sql
from credit_service.storage.postgres.connections import connector, name_of
from credit_service.storage.postgres.engine import PostgresEngine
from credit_service.storage.postgres.errors import translated
from credit_service.storage.sqlite.engine import Access, SQLiteEngine
from credit_service.storage.sqlite.files import revision
from credit_service.storage.tables import REVISION

MAX_SKEW_SECONDS = 60
_BUSY_SECONDS = 5.0
"""How long a command waits for the transaction of a service, or of another command."""


class Database(Protocol):
    """A database that holds a ledger, or may."""

    @property
    def name(self) -> str:
        """What messages call it; without a password."""
        ...

    @property
    def shared(self) -> bool:
        """Whether several processes may serve it at once."""
        ...

    async def exists(self) -> bool:
        """Whether it holds a ledger of any release. Raises SchemaError if it holds something else."""
        ...

    async def is_absent(self) -> bool:
        """Whether there is nothing yet where the ledger will be."""
        ...

    def is_migrated(self) -> bool:
        """Whether its schema is the one of this release; changes nothing. Raises StorageError."""
        ...

    def migrate(self) -> bool:
        """Bring it up to date; returns whether anything was done. Raises StorageError."""
        ...

    async def opened(self, access: Access = "serve") -> Engine:
        """An engine on it. Only `serve` makes the ledger where the database is empty.

        Raises StorageError, with one line for an operator.
        """
        ...


async def _require(database: Database, found: str | None) -> None:
    """Raise SchemaError unless the schema that was found in a database is the one of this release."""
    if found is None:
        raise SchemaError(f"{database.name} holds no ledger; credit-service serve or migrate makes one.")
    if found != REVISION and not await asyncio.to_thread(database.is_migrated):  # which refuses a newer one
        raise SchemaError(
            f"{database.name} has schema {found}, and this release works with {REVISION}: run credit-service migrate."
        )


class SQLiteDatabase(NamedTuple):
    """A ledger in a file. A service creates and migrates it on its start, since no other process serves it then."""

    path: Path

    @property
    def shared(self) -> bool:
        return False

    @property
    def name(self) -> str:
        return str(self.path)

    async def exists(self) -> bool:
        return revision(self.path) is not None

    async def is_absent(self) -> bool:
        """See `Database.is_absent`: an empty file may be a backup that failed, so it is not absent."""
        return not await asyncio.to_thread(os.path.lexists, self.path)

    def is_migrated(self) -> bool:
        from credit_service.storage import migrations

        return migrations.is_migrated(self.path)

    def migrate(self) -> bool:
        if revision(self.path) == REVISION:
            return False
        from credit_service.storage import migrations

        return migrations.migrate(self.path)

    async def opened(self, access: Access = "serve") -> Engine:
        if access == "serve":
            self.migrate()
            return SQLiteEngine(self.path)
        await _require(self, revision(self.path))
        return SQLiteEngine(self.path, access, busy_seconds=_BUSY_SECONDS)


class PostgresDatabase(NamedTuple):
    """A ledger on a server. An empty database is given its schema as it is opened.

    An older schema is not migrated then, since services of the older release may be using it: `credit-service migrate`
    is for that.
    """

    url: str
    streams: int
    pool_size: int
    timeout_seconds: float
    pooled: bool
    allow_unsafe: bool

    @property
    def shared(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"PostgresDatabase({self.name})"

    @property
    def name(self) -> str:
        return name_of(self.url)

    async def exists(self) -> bool:
        return await self._revision() is not None

    async def is_absent(self) -> bool:
        return not await self.exists()

    def is_migrated(self) -> bool:
        from credit_service.storage import migrations

        return migrations.is_migrated_postgres(self.url, pooled=self.pooled)

    def migrate(self) -> bool:
        from credit_service.storage import migrations

        return migrations.migrate_postgres(self.url, pooled=self.pooled)

    async def opened(self, access: Access = "serve") -> Engine:
        """See `Database.opened`. Also refuses a server that could lose what it has committed, or whose clock is off."""
        found = await self._revision()
        if found is None and access == "serve":
            await asyncio.to_thread(self.migrate)
        else:
            await _require(self, found)
        return PostgresEngine(
            self.url,
            streams=self.streams,
            pool_size=self.pool_size,
            timeout_seconds=self.timeout_seconds,
            pooled=self.pooled,
        )

    async def _revision(self) -> str | None:
        """The migration that the schema is at, None where there is none; looks at the server's safety on the way."""
        with translated(self.name):
            connection = await connector(self.url, timeout_seconds=self.timeout_seconds, pooled=self.pooled)()
            try:
                if not self.allow_unsafe:
                    self._refuse_unsafe(*await connection.fetchrow(sql.SAFETY))
                found = await connection.fetchval("SELECT version_num FROM alembic_version")
                return None if found is None else str(found)
            except asyncpg.UndefinedTableError:
                return None
            finally:
                await connection.close(timeout=self.timeout_seconds)

    def _refuse_unsafe(self, now: int, *switches: str) -> None:
        anyway = "DATABASE_ALLOW_UNSAFE=true starts anyway"
        for name, value in zip(("fsync", "full_page_writes", "synchronous_commit"), switches, strict=True):
            if value == "off":
                lost = "a crash of the server could lose what was posted"
                raise StorageUnavailable(f"{self.name} has {name} off, so {lost}; {anyway}.")
        seconds = abs(now - time.time_ns() // 1000) / 1_000_000
        if seconds > MAX_SKEW_SECONDS:
            raise StorageUnavailable(f"{self.name} has a clock that is {seconds:.0f} seconds off ours; {anyway}.")
