"""The schema's history, and the one function that brings a database up to date.

Alembic runs it without a configuration file. On SQLite all of it happens inside one BEGIN IMMEDIATE, since a migration
that dies half-way would otherwise leave half its tables.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, NullPool, create_engine, event, inspect
from sqlalchemy.exc import DBAPIError

from credit_service.storage import tables
from credit_service.storage.base import SchemaError
from credit_service.storage.sqlite import locked, translated

HERE = Path(__file__).parent


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
    with locked(path), _begun(path, "BEGIN IMMEDIATE") as connection:
        if is_current(connection, str(path)):
            return False
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return True


def is_migrated(path: Path) -> bool:
    """Whether the SQLite file at `path` has the schema of this release; changes nothing. Raises as `migrate`."""
    with _begun(path, "BEGIN") as connection:
        return is_current(connection, str(path))


@contextmanager
def _begun(path: Path, begin: str) -> Iterator[Connection]:
    engine = create_engine(URL.create("sqlite", database=str(path)), poolclass=NullPool)
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
