"""Empty ledgers on both engines. A test that uses `ledgers`, or a fixture made of it, runs once on each engine.

A test of the internals of one engine has the mark `@only_on("sqlite")`.
"""

import asyncio
import re
import sqlite3
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import pytest

from credit_service.storage.engine import Engine
from credit_service.storage.migrations import migrate_postgres
from credit_service.storage.postgres.engine import PostgresEngine
from credit_service.storage.sqlite.engine import SQLiteEngine
from tests.servers.postgres import Databases
from tests.storage.files import new_file

pytest.register_assert_rewrite("tests.storage.contract")  # so that its failed assertions show their values
T = TypeVar("T")
ENGINES = ("sqlite", "postgres")
_SQLITE = "sqlite:///"


def only_on(engine: str) -> pytest.MarkDecorator:
    """Mark a test for one engine only."""
    return pytest.mark.parametrize("engine_name", [engine], indirect=True)


def template(databases: Databases) -> str:
    """Return the name of an empty ledger to copy. The first call of a run makes it."""

    def migrated(url: str) -> None:
        migrate_postgres(url)

    return databases.template("migrated", migrated)


class Ledgers:
    """Makes empty ledgers on one engine."""

    def __init__(self, databases: Databases | None) -> None:
        self._databases = databases
        self._template = None if databases is None else template(databases)

    @contextmanager
    def new(self, folder: Path) -> Iterator[str]:
        """Yield the URL of an empty ledger: a file in the folder, or a database that ends with the block."""
        if self._databases is None:
            yield f"{_SQLITE}{new_file(folder / 'ledger.db')}"
        else:
            with self._databases.database(self._template) as url:
                yield url


@pytest.fixture(scope="session", params=ENGINES)
def engine_name(request: pytest.FixtureRequest) -> str:
    """Return the engine of this run of the test."""
    return str(request.param)


@pytest.fixture(scope="session")
def ledgers(engine_name: str, request: pytest.FixtureRequest) -> Ledgers:
    """Return a maker of ledgers on the engine."""
    return Ledgers(request.getfixturevalue("postgres") if engine_name == "postgres" else None)


@pytest.fixture
def new_ledger(ledgers: Ledgers, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Yield a function that makes a ledger for this test and returns its URL."""
    folders = (tmp_path / f"ledger {number}" for number in count(1))
    with ExitStack() as stack:

        def made() -> str:
            folder = next(folders)
            folder.mkdir()
            return stack.enter_context(ledgers.new(folder))

        yield made


def place(url: str) -> Path | str:
    """Return a ledger in the form that `served` takes: the path of the file, or the URL on a server."""
    return Path(url.removeprefix(_SQLITE)) if url.startswith(_SQLITE) else url


def opened(url: str, **options: Any) -> Engine:
    """Return an engine on this ledger."""
    found = place(url)
    return SQLiteEngine(found, **options) if isinstance(found, Path) else PostgresEngine(found, **options)


# ---- direct access to the database; statements write their parameters as ?


def rows(url: str, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """Return the rows of a statement."""
    if url.startswith(_SQLITE):
        with closing(sqlite3.connect(f"file:{url.removeprefix(_SQLITE)}?mode=ro", uri=True)) as connection:
            return connection.execute(statement, values).fetchall()
    return list(map(tuple, _on_server(url, lambda server: server.fetch(_numbered(statement), *values))))


def change(url: str, statement: str, *values: Any) -> None:
    """Change one row directly, even against the database's CHECK constraints."""
    if url.startswith(_SQLITE):
        with closing(sqlite3.connect(url.removeprefix(_SQLITE))) as connection, connection:
            connection.execute("PRAGMA ignore_check_constraints = 1")
            changed = connection.execute(statement, values).rowcount
    else:

        async def unchecked(server: Any) -> str:
            for table, name in await server.fetch(_CHECKS):
                await server.execute(f'ALTER TABLE {table} DROP CONSTRAINT "{name}"')
            return str(await server.execute(_numbered(statement), *values))

        changed = int(_on_server(url, unchecked).rpartition(" ")[2])
    assert changed == 1


@contextmanager
def on_server(url: str, *statements: str) -> Iterator[None]:
    """Run statements on a separate connection, and keep it open until the end of the block."""
    with ThreadPoolExecutor(1) as thread, asyncio.Runner() as runner:

        def run(awaited: Coroutine[Any, Any, T]) -> T:
            return thread.submit(runner.run, awaited).result()

        server: Any = run(_connected(url))
        try:
            for statement in statements:
                run(server.execute(statement))
            yield
        finally:
            run(server.close())


async def _connected(url: str) -> Any:
    return await asyncpg.connect(url)


_CHECKS = "SELECT conrelid::regclass::text, conname FROM pg_constraint WHERE contype = 'c' AND conrelid <> 0"


def _numbered(statement: str) -> str:
    numbers = count(1)
    return re.sub(r"\?", lambda _: f"${next(numbers)}", statement)


def _on_server(url: str, do: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    """Run a function on a separate connection, from tests with and without an event loop."""

    async def connected() -> T:
        server = await _connected(url)
        try:
            return await do(server)
        finally:
            await server.close()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, connected()).result()
