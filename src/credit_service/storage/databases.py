"""Where a ledger is kept, before there is a store: is it there, is its schema this release's, open it.

Alembic takes long to import and is rarely needed, so it is imported only where something has to be migrated.
"""

import asyncio
import time
from pathlib import Path
from typing import NamedTuple, Protocol

import asyncpg

from credit_service.storage.engine import Engine, SchemaError, StorageUnavailable
from credit_service.storage.postgres import statements as sql
from credit_service.storage.postgres.connections import connector, name_of
from credit_service.storage.postgres.engine import PostgresEngine
from credit_service.storage.postgres.errors import translated
from credit_service.storage.sqlite.engine import SQLiteEngine, revision
from credit_service.storage.tables import REVISION

MAX_SKEW_SECONDS = 60


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
        """Whether there is a ledger, of whatever release."""
        ...

    def is_migrated(self) -> bool:
        """Whether its schema is the one of this release; changes nothing. Raises StorageError."""
        ...

    def migrate(self) -> bool:
        """Bring it up to date; returns whether anything was done. Raises StorageError."""
        ...

    async def opened(self) -> Engine:
        """An engine that serves it. Raises StorageError, with one line for an operator."""
        ...


class SQLiteDatabase(NamedTuple):
    """A ledger in a file. It is created and migrated as it is opened: nobody else has it then."""

    path: Path

    @property
    def shared(self) -> bool:
        """See `Database.shared`: a file is locked."""
        return False

    @property
    def name(self) -> str:
        """See `Database.name`."""
        return str(self.path)

    async def exists(self) -> bool:
        """See `Database.exists`."""
        return self.path.exists()

    def is_migrated(self) -> bool:
        """See `Database.is_migrated`."""
        from credit_service.storage import migrations

        return migrations.is_migrated(self.path)

    def migrate(self) -> bool:
        """See `Database.migrate`."""
        from credit_service.storage import migrations

        return migrations.migrate(self.path)

    async def opened(self) -> Engine:
        """See `Database.opened`."""
        if revision(self.path) != REVISION:
            self.migrate()
        return SQLiteEngine(self.path)


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
        """See `Database.shared`."""
        return True

    def __repr__(self) -> str:
        return f"PostgresDatabase({self.name})"

    @property
    def name(self) -> str:
        """See `Database.name`."""
        return name_of(self.url)

    async def exists(self) -> bool:
        """See `Database.exists`."""
        return await self._revision() is not None

    def is_migrated(self) -> bool:
        """See `Database.is_migrated`."""
        from credit_service.storage import migrations

        return migrations.is_migrated_postgres(self.url, pooled=self.pooled)

    def migrate(self) -> bool:
        """See `Database.migrate`."""
        from credit_service.storage import migrations

        return migrations.migrate_postgres(self.url, pooled=self.pooled)

    async def opened(self) -> Engine:
        """See `Database.opened`. Also refuses a server that could lose what it has committed, or whose clock is off."""
        found = await self._revision()
        if found is None:
            await asyncio.to_thread(self.migrate)
        elif found != REVISION and not await asyncio.to_thread(self.is_migrated):  # which knows whether it is newer
            raise SchemaError(
                f"{self.name} has schema {found}, and this release works with {REVISION}: run credit-service migrate."
            )
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
