"""The schema's history, and what brings a database up to date.

Alembic runs it without a configuration file. All of it happens in one transaction, since a migration that dies half-way
would otherwise leave half its tables; on SQLite that is BEGIN IMMEDIATE.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, NullPool, create_engine, event, inspect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from credit_service.storage import tables
from credit_service.storage.engine import SchemaError
from credit_service.storage.postgres.connections import connector, name_of
from credit_service.storage.postgres.errors import translated as postgres_translated
from credit_service.storage.postgres.statements import LOCKS
from credit_service.storage.sqlite.files import locked, make, revision, translated

HERE = Path(__file__).parent
_CONNECT_SECONDS = 10
_LOCK_SECONDS = 10
"""How long the lock of a table is waited for: all that is asked of the table later queues behind."""


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(HERE))
    config.set_main_option("path_separator", "os")
    return config


def head() -> str:
    """The revision that this release works with."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None
    return revision


def migrate(path: Path) -> bool:
    """Bring the SQLite file at `path` up to date, creating it if needed. Returns whether anything was done.

    Raises SchemaError when the file was made by a newer release or holds something else, Conflict or StorageUnavailable
    when it cannot be written, InUse while a service has it: an older one cannot work with a newer schema.
    """
    revision(path)  # refuses a foreign database before anything is made beside it
    with locked(path):
        make(path)
        with _begun(path, "BEGIN IMMEDIATE") as connection:
            return _upgrade(connection, str(path))


def _upgrade(connection: Connection, name: str) -> bool:
    """Bring a database up to date in the transaction of a connection. Returns whether anything was done."""
    if is_current(connection, name):
        return False
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return True


def is_migrated(path: Path) -> bool:
    """Whether the SQLite file at `path` has the schema of this release; changes nothing. Raises as `migrate`."""
    if revision(path) is None:
        return False
    with _begun(path, "BEGIN", "ro") as connection:
        return is_current(connection, str(path))


def migrate_postgres(url: str, *, pooled: bool = False) -> bool:
    """Bring the PostgreSQL database at `url` up to date. Returns whether anything was done.

    Others that migrate it at the same time wait; a lock on a table that is in use is given up after a while, so that
    nothing queues behind it. Raises SchemaError, Conflict or StorageUnavailable, as `migrate`.
    """

    def run(connection: Connection) -> bool:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCKS}, -1)")
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_LOCK_SECONDS}s'")
        return _upgrade(connection, name_of(url))

    return _in_postgres(url, pooled, run)


def is_migrated_postgres(url: str, *, pooled: bool = False) -> bool:
    """Whether the PostgreSQL database at `url` has the schema of this release. Raises as `migrate_postgres`."""
    return _in_postgres(url, pooled, lambda connection: is_current(connection, name_of(url)))


def _in_postgres(url: str, pooled: bool, run: Callable[[Connection], bool]) -> bool:
    connecting = {
        "async_creator_fn": connector(url, timeout_seconds=_CONNECT_SECONDS, pooled=pooled, patient=True),
        # Behind a pooler others may have prepared a statement under the driver's own names on the same connection.
        "prepared_statement_name_func": lambda: f"migration_{uuid4().hex}",
    }

    async def in_transaction() -> bool:
        engine = create_async_engine("postgresql+asyncpg://", connect_args=connecting, poolclass=NullPool)
        try:
            async with engine.begin() as connection:
                return await connection.run_sync(run)
        finally:
            await engine.dispose()

    with postgres_translated(name_of(url)):
        try:
            return asyncio.run(in_transaction())
        except DBAPIError as error:
            # SQLAlchemy's error, around its dialect's, around asyncpg's own.
            cause = error.orig.__cause__ if error.orig is not None else None
            raise cause or error from None


@contextmanager
def _begun(path: Path, begin: str, mode: str = "rw") -> Iterator[Connection]:
    # SQLite is given a URI, since a plain path would create a file that is not there.
    url = URL.create("sqlite", database=path.absolute().as_uri(), query={"mode": mode, "uri": "true"})
    engine = create_engine(url, poolclass=NullPool)
    event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    try:
        with engine.begin() as connection:
            yield connection
    except DBAPIError as error:
        with translated(str(path)):
            raise error.orig or error from error


def is_current(connection: Connection, name: str) -> bool:
    """Whether a database has the schema of this release; `name` is what an error calls it.

    Raises SchemaError when its schema is newer, or of something else.
    """
    revision = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if revision is None and (others := set(inspect(connection).get_table_names()) & set(tables.metadata.tables)):
        raise SchemaError(f"{name} holds tables of something else: {', '.join(sorted(others))}.")
    if revision is not None and revision not in known:
        raise SchemaError(f"{name} was written by a newer release (schema {revision}); this one knows {head()}.")
    return revision == head()
