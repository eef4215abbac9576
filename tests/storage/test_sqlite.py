"""Tests of the SQLite engine: the contract of all engines, and the features that only SQLite has."""

import asyncio
import os
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import ClauseElement

from credit_service.ledger.decide import Replayed, needs
from credit_service.storage import accounts, books, keys, tables, transactions
from credit_service.storage.accounts import Accounts
from credit_service.storage.engine import Engine, InUse, Loaded, StorageUnavailable, Writes
from credit_service.storage.keys import Keys
from credit_service.storage.questions import Ask, Find, Question, Read
from credit_service.storage.sqlite import engine as sqlite_engine
from credit_service.storage.sqlite import statements as sql
from credit_service.storage.sqlite.engine import SQLiteEngine
from tests.ledger.telling import MERCHANT, T0, payment, use
from tests.storage import values
from tests.storage.contract import Clock, EngineContract, tell
from tests.storage.files import new_file


class HaltingEngine(SQLiteEngine):
    """An engine that can halt its next posting before the commit."""

    goes_on: threading.Event | None = None
    has_stopped = threading.Event()

    def _write_rows(self, writes: Writes, *more: Any) -> list[tuple[int, int]]:
        places = super()._write_rows(writes, *more)
        if self.goes_on is not None:
            self.has_stopped.set()
            assert self.goes_on.wait(20)
        return places


class SQLiteHarness:
    """See `tests.storage.contract.Harness`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = count(1)
        self.clock = Clock()

    async def fresh(self) -> HaltingEngine:
        self.path = new_file(self.folder / f"{next(self.files)}.db")
        self.clock.now = Clock().now
        return self.open()

    def open(self) -> HaltingEngine:
        numbers = count(1)
        engine = HaltingEngine(self.path, clock=self.clock, draw_number=lambda: next(numbers))
        engine._writer.execute("PRAGMA synchronous = OFF")  # these tests need no safety against a power failure
        return engine

    async def renewed(self, engine: Engine) -> HaltingEngine:
        await engine.close()
        return await self.fresh()

    async def reopened(self, engine: Engine) -> HaltingEngine:
        await engine.close()
        return self.open()

    async def rows(self, table: str) -> list[tuple[Any, ...]]:
        order = ", ".join(column.name for column in tables.metadata.tables[table].primary_key)
        with closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(f"SELECT * FROM {table} ORDER BY {order}").fetchall()

    @asynccontextmanager
    async def halfway(self, engine: Engine) -> AsyncIterator[None]:
        assert isinstance(engine, HaltingEngine)
        engine.has_stopped = threading.Event()
        engine.goes_on = threading.Event()
        try:
            yield
            assert await asyncio.to_thread(engine.has_stopped.wait, 20)
        finally:
            engine.goes_on.set()

    async def close(self) -> None:
        pass


@pytest.fixture
def harness(tmp_path: Path) -> SQLiteHarness:
    return SQLiteHarness(tmp_path)


class TestSQLite(EngineContract):
    """The contract of all engines, on SQLite."""


@pytest.fixture
async def engine(harness: SQLiteHarness) -> AsyncIterator[HaltingEngine]:
    engine = await harness.fresh()
    yield engine
    await engine.close()


def below(harness: SQLiteHarness, *statements: str) -> None:
    """Change the file without the engine, as a database tool does."""
    with closing(sqlite3.connect(harness.path, isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = 1")
        for statement in statements:
            connection.execute(statement)


# ---- query plans


def _asked() -> dict[str, str]:
    """Return the statements whose cost must not grow with the ledger."""
    asked = {
        f"{table.name} by {', '.join(columns)}": sql._rows_at(table, columns, condition, 2)
        for table, columns, condition in (
            (tables.accounts, ("merchant_id",), "true"),
            (tables.accounts, ("number",), "true"),
            (tables.transactions, ("account", "key"), "true"),
            (tables.transactions, ("account", "sequence"), "true"),
            (tables.grants, ("account",), tables.OPEN),
            (tables.grants, ("account", "number"), "true"),
            (tables.given_back, ("account", "key"), "true"),
            (tables.parked, ("account",), "true"),
        )
    }
    page = {"limit", "offset"}
    some: dict[str, ClauseElement] = {
        "a transaction": transactions.ONE_TRANSACTION,
        "a whole history": books.HISTORY,
        "an account's grants": books.ALL_GRANTS,
        "a key": keys.KEY,
        "due": accounts.DUE,
        "overdue": accounts.OVERDUE,
        "drift": accounts.DRIFT,
        "an account's history": transactions._history(frozenset()),
        "an account's orders": transactions._history(frozenset({"type"})),
        "an account's orders, counted": transactions._history(frozenset({"type"}), counted=True),
        "the last sequence": transactions.LAST_SEQUENCE,
        "the last transaction up to an instant": transactions.LAST_BY,
        "what is late": transactions.LATE,
        "the history of all accounts": transactions._listing(frozenset(page), 1),
        "accounts": accounts._listing(frozenset({"after", "at", "limit"})),
    }
    asked |= {name: sql._compiled(statement).sql for name, statement in some.items()}
    asked["the last event"] = sql.LAST_EVENT
    return asked


@pytest.mark.parametrize("name", _asked())
async def test_frequent_questions_scan_no_table(harness: SQLiteHarness, engine: HaltingEngine, name: str):
    statement = _asked()[name]
    with closing(sqlite3.connect(harness.path)) as connection:
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", [1] * statement.count("?"))]
    not_tables = {"SCAN place", "SCAN halving", "SCAN CONSTANT ROW", "SCAN 2 CONSTANT ROWS"}
    assert {step for step in plan if step.startswith("SCAN")} <= not_tables
    sorts = any("TEMP B-TREE" in step for step in plan)
    assert sorts == (name == "what is late")  # it groups the few rows that one posting settled


async def test_deep_page_costs_no_more_steps_than_first_page(harness: SQLiteHarness, engine: HaltingEngine):
    statement = sql._compiled(transactions._history(frozenset()))
    long = values.writes(values.account(1), transactions=[values.transaction(n, 1) for n in range(1, 2_001)])
    await engine.post([], lambda loaded: long)
    steps = []
    with closing(sqlite3.connect(harness.path)) as connection:
        for offset in (0, 0, 1_900):
            seen: list[None] = []
            connection.set_progress_handler(lambda seen=seen: seen.append(None), 1)  # type: ignore[misc]  # a default
            found = connection.execute(
                statement.sql,
                statement.bound({"account": 1, "after": 0, "before": 2_001, "limit": 5, "offset": offset}),
            )
            assert len(found.fetchall()) == 5
            steps.append(len(seen))
    assert steps[1] == steps[2]  # the first read also loads the schema


async def test_read_of_several_statements_sees_one_commit(
    harness: SQLiteHarness, engine: HaltingEngine, monkeypatch: pytest.MonkeyPatch
):
    due = values.account(1, granted=1, balance=5, total_increases=5, next_due_at=T0)
    await engine.post([], lambda loaded: values.writes(due, grants=[values.grant(expires_at=T0 + 1)]))
    original = sqlite_engine._answer

    def late(connection: sqlite3.Connection, question: Question) -> Any:
        if isinstance(question, Find) and question.table is tables.grants:
            below(harness, "UPDATE grants SET remaining = 1", "UPDATE accounts SET balance = 1, total_decreases = 4")
        return original(connection, question)

    monkeypatch.setattr(sqlite_engine, "_answer", late)
    held = (await Accounts(engine).load([MERCHANT], T0))[MERCHANT]
    assert (held.account.balance, held.grants[0].remaining) == (5, 5)
    held = (await Accounts(engine).load([MERCHANT], T0))[MERCHANT]
    assert (held.account.balance, held.grants[0].remaining) == (1, 1)


async def test_every_commit_is_on_disk_before_its_answer(tmp_path: Path):
    engine = SQLiteEngine(new_file(tmp_path / "a.db"))
    (mode,) = engine._writer.execute("PRAGMA journal_mode").fetchone()
    (synchronous,) = engine._writer.execute("PRAGMA synchronous").fetchone()
    await engine.close()
    assert (mode, synchronous) == ("wal", 2)  # 2 is FULL: the log is synced at each commit


async def test_reading_connections_cannot_write(engine: HaltingEngine):
    def write() -> Read[None]:
        yield Ask(keys.INSERT_KEY, values.FULL_KEY._asdict())

    with pytest.raises(StorageUnavailable):
        await engine.read(write)


async def test_unknown_error_is_raised_unchanged(harness: SQLiteHarness, engine: HaltingEngine):
    below(harness, "DROP TABLE grants")
    with pytest.raises(sqlite3.OperationalError, match="no such table: grants"):
        await Accounts(engine).with_grants(MERCHANT)


async def test_books_are_read_outside_the_event_loop(engine: HaltingEngine, monkeypatch: pytest.MonkeyPatch):
    await engine.post([], lambda loaded: values.writes(values.account(1)))
    threads = []
    original = books.books_of

    def spied(*arguments: Any) -> Any:
        threads.append(threading.current_thread())
        return original(*arguments)

    monkeypatch.setattr(books, "books_of", spied)
    assert [one.account.number async for one in engine.books()] == [1]
    assert threads
    assert threading.main_thread() not in threads


async def test_cancelled_reader_of_books_releases_the_database(engine: HaltingEngine):
    await engine.post([], lambda loaded: values.writes(values.account(1)))

    async def read() -> None:
        async for _ in engine.books():
            await asyncio.Event().wait()

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await engine.check()


# ---- damaged rows


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("UPDATE transactions SET draws = '[1]' WHERE sequence = 2", (2, "the row cannot be read")),
        ("UPDATE transactions SET draws = 'oops' WHERE sequence = 2", (2, "the row cannot be read")),
        ("UPDATE accounts SET carried = '{'", (None, "the account's row cannot be read")),
    ],
)
async def test_books_report_an_impossible_row_and_continue(
    harness: SQLiteHarness, engine: HaltingEngine, change: str, fault: tuple[int | None, str]
):
    made = values.writes(values.account(1), transactions=[values.transaction(n, 1) for n in (1, 2, 3)])
    await engine.post([], lambda loaded: made)
    below(harness, change)
    ((faults, read),) = [(books.faults, list(books.transactions)) async for books in engine.books()]
    ((sequence, sentence),) = faults
    assert (sequence, sentence[: len(fault[1])]) == fault
    unreadable = {sequence} if "the row cannot be read" in sentence else set()
    assert {one.sequence for one in read} == {1, 2, 3} - unreadable


# ---- one process


async def test_second_engine_on_a_file_is_refused_in_one_line(harness: SQLiteHarness, engine: HaltingEngine):
    with pytest.raises(StorageUnavailable, match=rf"is in use by another credit-service process \(pid {os.getpid()}\)"):
        SQLiteEngine(harness.path)


async def test_link_to_a_ledger_is_refused(harness: SQLiteHarness, engine: HaltingEngine, tmp_path: Path):
    link = tmp_path / "link.db"
    link.symlink_to(harness.path)
    with pytest.raises(StorageUnavailable, match=f"^{link} is a symbolic link: name the file that it leads to.$"):
        SQLiteEngine(link)


async def test_another_path_to_the_folder_uses_the_same_lock(
    harness: SQLiteHarness, engine: HaltingEngine, tmp_path: Path
):
    (tmp_path / "folder").symlink_to(harness.path.parent)
    with pytest.raises(InUse):
        SQLiteEngine(tmp_path / "folder" / harness.path.name)


async def test_closed_engine_releases_the_file(harness: SQLiteHarness):
    first = await harness.fresh()
    await first.close()
    second = harness.open()
    await second.check()
    await second.close()


async def test_missing_file_is_an_error_and_is_not_created(tmp_path: Path):
    with pytest.raises(StorageUnavailable, match="unable to open database file"):
        SQLiteEngine(tmp_path / "none.db")
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(StorageUnavailable, match=r"none.db.lock cannot be opened: No such file or directory"):
        SQLiteEngine(tmp_path / "no folder" / "none.db")


async def test_path_may_contain_any_character(tmp_path: Path):
    path = new_file(tmp_path / "a?b#c %41&mode=memory.db")
    engine = SQLiteEngine(path)
    await Keys(engine).add(values.FULL_KEY)
    await engine.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM api_keys").fetchone() == (1,)


async def test_recent_accounts_are_not_loaded_unless_the_file_changed(tmp_path: Path):
    harness = SQLiteHarness(tmp_path)
    engine = await harness.fresh()
    asked: list[str] = []
    try:
        await tell(engine, payment("P", 100))
        engine._writer.set_trace_callback(asked.append)
        await tell(engine, use(1, "k"))
        assert [one for one in asked if "JOIN accounts" in one] == []
        assert isinstance((await tell(engine, use(1, "k")))[0], Replayed)
        with closing(sqlite3.connect(harness.path)) as beneath, beneath:
            beneath.execute("UPDATE accounts SET settled_at = settled_at + 1")
        asked.clear()
        await tell(engine, use(1))
        assert len([one for one in asked if "JOIN accounts" in one]) == 1
    finally:
        await engine.close()


async def test_failed_posting_leaves_no_recent_account(tmp_path: Path):
    engine = await SQLiteHarness(tmp_path).fresh()

    def fail(loaded: Loaded) -> Writes:
        raise ArithmeticError

    try:
        await tell(engine, payment("P", 100))
        assert engine._recent.find([needs(use(1))]) != {}
        with pytest.raises(ArithmeticError):
            await engine.post([needs(use(1))], fail)
        assert engine._recent.find([needs(use(1))]) == {}
    finally:
        await engine.close()
