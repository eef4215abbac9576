"""The sweeper settles due accounts without delay, and goes on after a failure."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from credit_service.jobs import sweeper
from credit_service.ledger.commands import Settle
from credit_service.posting import DeadlineExceeded, Overloaded
from credit_service.storage.engine import StorageUnavailable
from tests.doors.running import Running, posting


class Setting:
    """A store with merchants that are due, and a posting path that settles them or fails."""

    def __init__(self, *due: str) -> None:
        self.merchants = list(due)
        self.settled: list[str] = []
        self.failures: list[Exception] = []
        self.sweeps = 0

    async def now(self) -> int:
        return 17

    async def due(self, at: int, limit: int) -> list[str]:
        assert at == 17
        self.sweeps += 1
        if self.failures:
            raise self.failures.pop(0)
        return self.merchants[:limit]

    async def submit_many(self, commands: Any) -> None:
        assert all(isinstance(command, Settle) for command in commands)
        self.settled += [command.merchant_id for command in commands]
        del self.merchants[: len(commands)]


async def test_sweep_settles_due_accounts() -> None:
    merchants = [str(uuid4()), str(uuid4())]
    setting: Any = Setting(*merchants)
    assert await sweeper.sweep(setting, setting) == 2
    assert setting.settled == merchants
    assert await sweeper.sweep(setting, setting) == 0


async def test_long_backlog_is_swept_without_pause() -> None:
    setting: Any = Setting(*(str(uuid4()) for _ in range(2 * sweeper.AT_ONCE + 1)))
    task = asyncio.create_task(sweeper.keep_sweeping(setting, setting, 3600))
    while setting.sweeps < 3:  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()
    assert len(setting.settled) == 2 * sweeper.AT_ONCE + 1
    assert setting.sweeps == 3


@pytest.mark.parametrize(
    "failure", [StorageUnavailable("gone"), Overloaded(), DeadlineExceeded(), RuntimeError("a bug")], ids=repr
)
async def test_failed_sweep_is_retried(failure: Exception) -> None:
    setting: Any = Setting(str(uuid4()))
    setting.failures = [failure, failure]
    task = asyncio.create_task(sweeper.keep_sweeping(setting, setting, 0.001))
    while not setting.settled:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    assert not task.done()
    task.cancel()


def test_expiry_is_posted_without_a_request(start: Callable[..., Running]) -> None:
    running = start(sweep_seconds=0.02)
    merchant = running.open()
    soon = (datetime.now(UTC) + timedelta(seconds=0.2)).isoformat(timespec="microseconds")
    body = posting(
        merchant, operation_type="INCREASE", transaction_type="SUBSCRIPTION", amount=5, grant={"expires_at": soon}
    )
    assert running.transact(body).status_code == 201
    expired: list[Any] = []
    deadline = datetime.now(UTC) + timedelta(seconds=5)
    while not expired and datetime.now(UTC) < deadline:
        params = {"merchant_id": merchant, "transaction_type": "EXPIRY"}
        expired = running.get("/credits/transactions", params=params).json()["data"]
    assert [entry["amount"] for entry in expired] == [5]
    assert expired[0]["occurred_at"] == soon.replace("+00:00", "Z")
    assert expired[0]["actor"] == "system"
