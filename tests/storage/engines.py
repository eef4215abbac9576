"""Empty ledgers on both engines: a test that asks for `ledgers`, or for what is made of them, runs once on each.

A test that looks beneath the surface of one of them says so: `@only_on("sqlite")`.
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

pytest.register_assert_rewrite("tests.storage.contract")  # so that its assertions show their values
T = TypeVar("T")
ENGINES = ("sqlite", "postgres")
_SQLITE = "sqlite:///"


def only_on(engine: str) -> pytest.MarkDecorator:
    """Marks a test that is about one engine."""
    return pytest.mark.parametrize("engine_name", [engine], indirect=True)


def template(databases: Databases) -> str:
    """The name of an empty ledger to copy, made once in a run."""

    def migrated(url: str) -> None:
        migrate_postgres(url)

    return databases.template("migrated", migrated)


class Ledgers:
    """Makes ledgers of one engine."""

    def __init__(self, databases: Databases | None) -> None:
        self._databases = databases
        self._template = None if databases is None else template(databases)

    @contextmanager
    def new(self, folder: Path) -> Iterator[str]:
        """The URL of an empty ledger: a file in this folder, or a database that lasts as long as the block."""
        if self._databases is None:
            yield f"{_SQLITE}{new_file(folder / 'ledger.db')}"
        else:
            with self._databases.database(self._template) as url:
                yield url


@pytest.fixture(scope="session", params=ENGINES)
def engine_name(request: pytest.FixtureRequest) -> str:
    """Which engine a test runs on."""
    return str(request.param)


@pytest.fixture(scope="session")
def ledgers(engine_name: str, request: pytest.FixtureRequest) -> Ledgers:
    """Makes ledgers of the engine."""
    return Ledgers(request.getfixturevalue("postgres") if engine_name == "postgres" else None)


@pytest.fixture
def new_ledger(ledgers: Ledgers, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Makes ledgers for one test; returns their URLs."""
    folders = (tmp_path / f"ledger {number}" for number in count(1))
    with ExitStack() as stack:

        def made() -> str:
            folder = next(folders)
            folder.mkdir()
            return stack.enter_context(ledgers.new(folder))

        yield made


def place(url: str) -> Path | str:
    """A ledger as `served` takes it: the file, or the URL on a server."""
    return Path(url.removeprefix(_SQLITE)) if url.startswith(_SQLITE) else url


def opened(url: str, **options: Any) -> Engine:
    """An engine of this ledger."""
    found = place(url)
    return SQLiteEngine(found, **options) if isinstance(found, Path) else PostgresEngine(found, **options)


# ---- straight to the database, past the service; parameters of statements are written as ?


def rows(url: str, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """The rows of a statement."""
    if url.startswith(_SQLITE):
        with closing(sqlite3.connect(f"file:{url.removeprefix(_SQLITE)}?mode=ro", uri=True)) as connection:
            return connection.execute(statement, values).fetchall()
    return list(map(tuple, _on_server(url, lambda server: server.fetch(_numbered(statement), *values))))


def change(url: str, statement: str, *values: Any) -> None:
    """Change one row as the service never does, also against the database's own checks."""
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
    """Inside, a connection of its own stays open as these statements leave it."""
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
    """Run something on a connection of its own, also from a test with an event loop."""

    async def connected() -> T:
        server = await _connected(url)
        try:
            return await do(server)
        finally:
            await server.close()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, connected()).result()
