"""The write check: readiness writes a row, so that it notices a database that can only be read."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from credit_service.storage import write_check
from credit_service.storage.engine import StorageUnavailable
from credit_service.storage.questions import Ask
from credit_service.storage.write_check import FRESH_SECONDS, WriteCheck
from tests.storage import engines


class Database:
    """An engine that counts its writes, and fails as it is told."""

    name = "PostgreSQL db.internal:5432/credits"

    def __init__(self) -> None:
        self.writes = 0
        self.fault: str | None = None
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    async def check(self) -> None:
        """It answers, whether it can be written or not."""

    async def write(self, asks: Sequence[Ask]) -> int:
        self.writes += 1
        await self.goes_on.wait()
        if self.fault is not None:
            raise StorageUnavailable(self.fault)
        return len(asks)


class Watched:
    """A write check of such an engine, whose clock stands still."""

    def __init__(self) -> None:
        self.now = 17.0
        self.database = Database()
        engine: Any = self.database
        self.check = WriteCheck(engine, lambda: self.now)

    async def found(self) -> str | None:
        """What the check finds wrong."""
        try:
            await self.check.check()
        except StorageUnavailable as error:
            return str(error)
        return None


async def test_callers_of_one_second_share_one_write() -> None:
    watched = Watched()
    assert await asyncio.gather(*[watched.found() for _ in range(9)]) == [None] * 9
    watched.now += FRESH_SECONDS / 2
    assert await watched.found() is None
    assert watched.database.writes == 1
    watched.now += FRESH_SECONDS / 2
    assert await watched.found() is None
    assert watched.database.writes == 2


async def test_a_failed_posting_makes_the_next_caller_write() -> None:
    watched = Watched()
    assert await watched.found() is None
    watched.database.fault = "It is full."
    assert await watched.found() is None
    watched.check.doubt()
    assert await watched.found() == "It is full."


async def test_after_a_failure_the_next_caller_tries_again() -> None:
    watched = Watched()
    watched.database.fault = "It is full."
    assert await watched.found() == "It is full."
    watched.database.fault = None
    assert await watched.found() is None


async def test_the_place_of_the_database_is_logged_and_not_answered() -> None:
    watched = Watched()
    watched.database.fault = f"{Database.name} cannot be used: it did not answer in time."
    with capture_logs() as logged:
        assert await watched.found() == "The database cannot be used: it did not answer in time."
    assert [line["reason"] for line in logged] == [watched.database.fault]


async def test_an_outage_is_logged_at_its_begin_and_end() -> None:
    watched = Watched()
    with capture_logs() as logged:
        watched.database.fault = "It is full."
        for _ in range(3):
            await watched.found()
        watched.database.fault = None
        for _ in range(3):
            await watched.found()
    assert [(line["event"], line.get("reason")) for line in logged] == [
        ("ledger_not_writable", "It is full."),
        ("ledger_is_writable_again", None),
    ]


async def test_a_database_that_hangs_is_a_fault_and_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_check, "PATIENCE_SECONDS", 0.01)
    watched = Watched()
    watched.database.goes_on.clear()
    for _ in range(3):
        assert await watched.found() == "The database did not write a row within 0.01 seconds."
    assert watched.database.writes == 1
    watched.database.goes_on.set()
    assert await watched.found() is None


async def test_an_error_that_was_not_expected_is_raised() -> None:
    watched = Watched()

    async def fail(asks: Sequence[Ask]) -> int:
        raise ArithmeticError

    watched.database.write = fail  # type: ignore[method-assign]
    with pytest.raises(ArithmeticError):
        await watched.found()


async def test_a_real_database_is_written_and_nothing_stays(new_ledger: Callable[[], str]) -> None:
    url = new_ledger()
    store = engines.opened(url)
    try:
        await asyncio.gather(WriteCheck(store).check(), WriteCheck(store).check())
    finally:
        await store.close()
    assert engines.rows(url, "SELECT * FROM service_state") == []
