"""Faults of the SQLite file and of the process. No fault loses an answered posting.

The order is: a busy, read-only, full, foreign or damaged database; a failed commit; a second process; a killed process;
a truncated write-ahead log.
"""
# ruff: noqa: ASYNC240 - no other task runs in these event loops

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from credit_service.ledger.decide import Replayed
from credit_service.ledger.draft import Posted
from credit_service.ledger.policy import Policy
from credit_service.ledger.proof import verify
from credit_service.posting import Posting
from credit_service.storage.accounts import Accounts
from credit_service.storage.engine import Conflict, OutcomeUnknown, StorageUnavailable
from credit_service.storage.keys import Keys
from credit_service.storage.migrations import migrate
from credit_service.storage.sqlite.engine import SQLiteEngine
from credit_service.storage.transactions import TransactionQuery, Transactions
from tests.faults import poster
from tests.ledger.telling import MERCHANT, T0, payment, use
from tests.storage.files import new_file
from tests.storage.values import FULL_KEY, of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return new_file(tmp_path / "ledger.db")


@asynccontextmanager
async def at_work(path: Path, deadline_seconds: float = 5) -> AsyncIterator[tuple[SQLiteEngine, Posting]]:
    """Open a store and the posting path in front of it."""
    store = SQLiteEngine(path, busy_seconds=0.01)
    posting = Posting(store, Policy(), deadline_seconds=deadline_seconds)
    posting.start()
    try:
        yield store, posting
    finally:
        await posting.drain()
        await store.close()


async def books(store: SQLiteEngine) -> dict[str, list[str]]:
    """Verify the books, and return the keys of each merchant's transactions in order."""
    found = {}
    async for one in store.books():
        transactions = list(one.transactions)
        assert [*verify(one.account, one.grants, transactions), *one.faults] == []
        assert [transaction.sequence for transaction in transactions] == list(range(1, len(transactions) + 1))
        found[one.account.merchant_id] = [transaction.key for transaction in transactions]
    assert await Transactions(store).strays() == []
    return found


async def keys(store: SQLiteEngine) -> list[str]:
    """Return the keys of the merchant's transactions in order."""
    return (await books(store)).get(MERCHANT, [])


# ---- a database that is unusable for a while


@contextmanager
def locked(store: SQLiteEngine, path: Path) -> Iterator[None]:
    """Let another program hold the write lock."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@contextmanager
def read_only(store: SQLiteEngine, path: Path) -> Iterator[None]:
    """Make the database read-only. File modes would not stop root."""
    store._writer.execute("PRAGMA query_only = 1")
    yield
    store._writer.execute("PRAGMA query_only = 0")


@contextmanager
def full(store: SQLiteEngine, path: Path) -> Iterator[None]:
    """Make the disk full."""
    (pages,) = store._writer.execute("PRAGMA page_count").fetchone()
    store._writer.execute(f"PRAGMA max_page_count = {pages}")
    yield
    store._writer.execute("PRAGMA max_page_count = 1000000")


@pytest.mark.parametrize("trouble", [locked, read_only])
async def test_reads_work_while_writes_fail(path: Path, trouble: Any):
    async with at_work(path) as (store, posting):
        await posting.submit(payment("P", 9))
        with trouble(store, path):
            assert (await Accounts(store).load([MERCHANT], T0))[MERCHANT].account.balance == 9
            assert await Transactions(store).count(TransactionQuery()) == 1
            assert await keys(store) == ["billing:payment:P"]


async def test_locked_database_is_a_conflict_until_the_deadline(path: Path):
    async with at_work(path, deadline_seconds=0.2) as (store, posting):
        await posting.submit(payment("P", 9))
        with locked(store, path):
            with pytest.raises(Conflict, match=r"^The database is locked by something else\.$"):
                await store.check()
            with pytest.raises(Conflict):
                await Keys(store).add(FULL_KEY)
            # At the deadline the posting is between two attempts, or in an attempt with an unknown outcome.
            with pytest.raises((StorageUnavailable, OutcomeUnknown), match=r"locked|did not answer"):
                await posting.submit(use(1, "a"))
            assert await keys(store) == ["billing:payment:P"]
        await store.check()
        assert isinstance(
            await posting.submit(use(1, "a")), Posted | Replayed
        )  # the last attempt may have got the lock
        assert await keys(store) == ["billing:payment:P", "a"]


async def test_posting_waits_for_a_briefly_locked_database(path: Path):
    async with at_work(path) as (store, posting):
        await posting.submit(payment("P", 9))
        with locked(store, path):
            waiting = asyncio.create_task(posting.submit(use(1, "a")))
            await asyncio.sleep(0.05)
            assert not waiting.done()
        assert isinstance(await waiting, Posted)


async def test_read_only_database_is_unavailable_and_loses_nothing(path: Path):
    async with at_work(path) as (store, posting):
        await posting.submit(payment("P", 9))
        with read_only(store, path):
            for asked in (store.check(), posting.submit(use(1, "a")), Keys(store).add(FULL_KEY)):
                with pytest.raises(
                    StorageUnavailable,
                    match=r"^The database cannot be used: attempt to write a readonly database\.$",
                ):
                    await asked
        await store.check()
        assert isinstance(await posting.submit(use(1, "a")), Posted)
        assert await keys(store) == ["billing:payment:P", "a"]


async def test_full_disk_is_unavailable_and_keeps_answered_postings(path: Path):
    async with at_work(path) as (store, posting):
        await posting.submit(payment("P", 10_000))
        answered = ["billing:payment:P"]
        with full(store, path):
            with pytest.raises(StorageUnavailable, match=r"database or disk is full"):
                await _spend_until_error(posting, answered)
            assert not store._writer.in_transaction
            with pytest.raises(StorageUnavailable):
                await posting.submit_many([use(1, f"m{index}") for index in range(500)])
            assert await keys(store) == answered
        assert isinstance(await posting.submit(use(1, "after")), Posted)
        assert await keys(store) == [*answered, "after"]


async def _spend_until_error(posting: Posting, answered: list[str]) -> None:
    while True:
        key = f"k{len(answered)}"
        await posting.submit(use(1, key))
        answered.append(key)


# ---- foreign and damaged files


async def test_file_that_is_not_a_database_is_refused_unchanged(path: Path):
    path.write_bytes(b"Dear diary, " * 1_000)
    for _ in range(2):  # the second attempt gives the same error, so the first released the lock
        with pytest.raises(StorageUnavailable, match=r"^The database cannot be used: file is not a database\.$"):
            SQLiteEngine(path)
    assert path.read_bytes() == b"Dear diary, " * 1_000


@pytest.mark.parametrize("table", ["accounts", "transactions", "grants", "events"])
async def test_damaged_page_is_unavailable_and_repair_restores_all(path: Path, table: str):
    async with at_work(path) as (store, posting):
        await posting.submit_many([payment("P", 9), use(1, "a")])
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    whole = path.read_bytes()
    damaged = whole[: (page - 1) * size] + b"\xa5" * size + whole[page * size :]

    path.write_bytes(damaged)
    async with at_work(path) as (store, posting):
        with pytest.raises(StorageUnavailable, match="malformed"):
            await posting.submit(use(1, "b"))
        assert not store._writer.in_transaction
        if table != "events":
            with pytest.raises(StorageUnavailable, match="malformed"):
                await keys(store)

    path.write_bytes(whole)
    async with at_work(path) as (store, posting):
        assert await keys(store) == ["billing:payment:P", "a"]
        assert isinstance(await posting.submit(use(1, "b")), Posted)


# ---- a commit that fails


class Faulty:
    """A connection on which one statement fails once, before or after its execution."""

    def __init__(self, connection: sqlite3.Connection, statement: str, code: int, *, done: bool = False) -> None:
        self.connection = connection
        self.statement = statement
        self.code = code
        self.done = done

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)

    def execute(self, statement: str, *parameters: Any) -> Any:
        return self._run(self.connection.execute, statement, *parameters)

    def executemany(self, statement: str, *parameters: Any) -> Any:
        return self._run(self.connection.executemany, statement, *parameters)

    def _run(self, run: Any, statement: str, *parameters: Any) -> Any:
        if not statement.startswith(self.statement):
            return run(statement, *parameters)
        self.statement = "never again"
        if self.done:
            run(statement, *parameters)
        error = sqlite3.OperationalError(f"{statement.split()[0]} failed")
        error.sqlite_errorcode = self.code
        raise error


def make_faulty(store: SQLiteEngine, statement: str, code: int, *, done: bool = False) -> None:
    store._writer = Faulty(store._writer, statement, code, done=done)  # type: ignore[assignment]  # it has every method that the engine uses


@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE])
async def test_unwritable_commit_changes_nothing(path: Path, code: int):
    async with at_work(path) as (store, posting):
        await posting.submit(payment("P", 9))
        make_faulty(store, "COMMIT", code)
        with pytest.raises(StorageUnavailable, match=r"^The database cannot be used: COMMIT failed\.$"):
            await posting.submit(use(1, "a"))
        assert await keys(store) == ["billing:payment:P"]
        assert isinstance(await posting.submit(use(1, "a")), Posted)


@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_ERROR])
@pytest.mark.parametrize("done", [True, False], ids=["done", "not done"])
async def test_next_attempt_resolves_the_outcome_of_a_failed_commit(path: Path, code: int, done: bool):
    async with at_work(path) as (store, posting):
        await posting.submit(payment("P", 9))
        make_faulty(store, "COMMIT", code, done=done)
        with pytest.raises(OutcomeUnknown):
            await Keys(store).add(FULL_KEY)
        assert len(await Keys(store).all()) == done
        make_faulty(store, "COMMIT", code, done=done)
        outcome = await posting.submit(use(1, "a"))
        assert isinstance(outcome, Posted)
        assert isinstance(await posting.submit(use(1, "a")), Replayed)
        assert await keys(store) == ["billing:payment:P", "a"]


async def test_commit_on_a_busy_database_changes_nothing(path: Path):
    async with at_work(path) as (store, posting):
        await posting.submit(payment("P", 9))
        make_faulty(store, "COMMIT", sqlite3.SQLITE_BUSY)
        with pytest.raises(Conflict):
            await Keys(store).add(FULL_KEY)
        assert await Keys(store).all() == []
        make_faulty(store, "COMMIT", sqlite3.SQLITE_BUSY)
        assert isinstance(await posting.submit(use(1, "a")), Posted)
        assert await keys(store) == ["billing:payment:P", "a"]


@pytest.mark.parametrize("statement", ["BEGIN", "WITH", "INSERT INTO transactions", "INSERT INTO events"])
async def test_failed_statement_rolls_back_only_its_batch(path: Path, statement: str):
    async with at_work(path) as (store, posting):
        await posting.submit(payment("P", 9))
        make_faulty(store, statement, sqlite3.SQLITE_IOERR)
        with pytest.raises(StorageUnavailable, match="failed"):
            await posting.submit_many([use(1, "a"), use(1, "b")])
        assert await keys(store) == ["billing:payment:P"]
        await posting.submit_many([use(1, "a"), use(1, "b")])
        assert await keys(store) == ["billing:payment:P", "a", "b"]


async def test_caller_gets_the_error_after_sqlites_own_rollback(path: Path):
    async with at_work(path) as (store, posting):
        await posting.submit(payment("P", 9))

        class RolledBack(Faulty):
            def _run(self, run: Any, statement: str, *parameters: Any) -> Any:
                if statement.startswith(self.statement):
                    self.connection.execute("ROLLBACK")
                return super()._run(run, statement, *parameters)

        store._writer = RolledBack(store._writer, "INSERT INTO events", sqlite3.SQLITE_FULL)  # type: ignore[assignment]
        with pytest.raises(StorageUnavailable, match="INSERT failed"):
            await posting.submit(use(1, "a"))
        assert isinstance(await posting.submit(use(1, "a")), Posted)


# ---- processes


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a Python process, and kill it at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


HOLD = """
import sys
from pathlib import Path
from credit_service.storage.sqlite.engine import SQLiteEngine
store = SQLiteEngine(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


def test_second_process_is_refused_until_the_first_ends(path: Path):
    with started("-c", HOLD, str(path)) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "open\n"
        with pytest.raises(StorageUnavailable) as refused:
            SQLiteEngine(path)
        assert str(refused.value) == f"{path} is in use by another credit-service process (pid {first.pid})."
        first.send_signal(signal.SIGKILL)
        first.wait()
        asyncio.run(SQLiteEngine(path).close())


def _keys_of(lines: Iterable[str]) -> tuple[set[str], set[str]]:
    """Return the keys that a poster submitted and the keys that it got answers for, from its output."""
    asked: set[str] = set()
    answered: set[str] = set()
    for line in lines:
        words = line.split()
        if not line.endswith("\n"):
            words.pop()  # the kill may have cut this word
        if words[:1] == ["asks"]:
            asked |= set(words[1:])
        else:
            answered |= set(words)
    return asked, answered


@pytest.mark.slow
def test_L4_killed_process_keeps_answered_postings_and_posts_no_halves(path: Path):
    seed = int(os.environ.get("CRASH_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
    print(f"CRASH_SEED={seed}")
    chance = random.Random(seed)
    asked = answered = asyncio.run(_open_accounts(path))
    for life in range(4):
        with started("-m", "tests.faults.poster", str(path), f"{life}", str(seed + life)) as process:
            assert process.stdout is not None
            beginning = process.stdout.readline()
            threading.Timer(chance.uniform(0.05, 0.4), process.kill).start()
            now_asked, now_answered = _keys_of([beginning, *process.stdout])
            process.wait()
            assert process.returncode == -signal.SIGKILL
        asked = asked | now_asked
        answered = answered | now_answered
        asyncio.run(_check_after_crash(path, asked, answered))
    assert len(answered) > 50
    asyncio.run(_repeat_all(path, asked))


async def _open_accounts(path: Path) -> set[str]:
    opened = [of(merchant_id, payment(str(merchant_id), 1_000)) for merchant_id in poster.MERCHANTS]
    async with at_work(path) as (_, posting):
        await posting.submit_many(opened)
    return {command.key for command in opened}


async def _check_after_crash(path: Path, asked: set[str], answered: set[str]) -> None:
    assert migrate(path) is False
    store = SQLiteEngine(path)
    try:
        there = [key for found in (await books(store)).values() for key in found]
        assert len(there) == len(set(there))
        assert answered <= set(there) <= asked
    finally:
        await store.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        numbers = connection.execute("SELECT id FROM events ORDER BY id").fetchall()
        assert numbers == [(number,) for number in range(1, len(numbers) + 1)]
        own = connection.execute("SELECT count(*) FROM events WHERE sequence IS NOT NULL").fetchone()
        assert own >= connection.execute("SELECT count(*) FROM transactions").fetchone()


async def _repeat_all(path: Path, asked: set[str]) -> None:
    """Repeat all keys, as callers without an answer do. Each command then has one posting or a refusal."""
    async with at_work(path) as (store, posting):
        before = await books(store)
        owners = {key: merchant_id for merchant_id, found in before.items() for key in found}
        again = sorted(key for key in asked if not key.startswith("billing:"))
        commands = [poster.command(key) for key in again]
        outcomes = await posting.submit_many(
            [of(owners.get(command.key, command.merchant_id), command) for command in commands]
        )
        assert [isinstance(outcome, Replayed) for outcome in outcomes] == [key in owners for key in again]
        after = await books(store)
        for merchant_id, found in before.items():
            assert after[merchant_id][: len(found)] == found


# ---- a truncated write-ahead log


async def test_truncated_log_leaves_whole_postings(path: Path, tmp_path: Path):
    copy = tmp_path / "copy.db"
    wal = Path(f"{path}-wal")
    async with at_work(path) as (store, posting):
        store._writer.execute("PRAGMA wal_autocheckpoint = 0")
        await posting.submit(payment("P", 900))
        for index in range(12):
            await posting.submit_many([use(1, f"{index}-{item}") for item in range(index)])
        everything = await keys(store)
        log = wal.read_bytes()
        shutil.copy(path, copy)
    chance = random.Random(1)
    lengths = set()
    for cut in [0, len(log), *(chance.randrange(len(log)) for _ in range(12))]:
        shutil.copy(copy, path)
        wal.write_bytes(log[:cut])
        store = SQLiteEngine(path)
        try:
            found = await keys(store)
        finally:
            await store.close()
        assert found == everything[: len(found)]
        lengths.add(len(found))
    whole = {0, *(1 + sum(range(index + 1)) for index in range(12))}
    assert {0, len(everything)} <= lengths <= whole
