"""Supervision: a background task that dies is logged, restarted with backoff, and visible until it is healthy."""

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from structlog.testing import capture_logs

from credit_service import supervision
from credit_service.supervision import Supervisor
from tests.posting.desk import now, timeless


@pytest.fixture(autouse=True)
def _no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("credit_service.backoff.random.uniform", lambda low, high: high)


def dying(*lives: float, error: Exception | None = None) -> tuple[Callable[[], Any], list[float]]:
    """Return a task and its start times. It dies after each of these numbers of seconds, and then keeps running."""
    left, started = iter(lives), []

    async def run() -> None:
        started.append(now())
        seconds = next(left, None)
        if seconds is None:
            await asyncio.Event().wait()
            return
        await asyncio.sleep(seconds)
        raise error or KeyError("a bug")

    return run, started


@timeless
async def test_dead_task_is_logged_and_restarted_with_backoff() -> None:
    run, started = dying(*[0] * 9)
    with capture_logs() as logged:
        task = Supervisor().start("sweeper", run)
        await asyncio.sleep(60)
    task.cancel()
    pauses = [later - earlier for earlier, later in pairwise(started)]
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10])
    assert [(line["event"], line["task"], line["log_level"]) for line in logged] == [
        ("background_task_died", "sweeper", "error")
    ] * 9
    assert isinstance(logged[0]["exc_info"], KeyError)


@timeless
async def test_fault_is_shown_until_the_task_is_healthy() -> None:
    supervisor = Supervisor()
    run, _ = dying(1)
    task = supervisor.start("publisher", run)
    await asyncio.sleep(0.5)
    assert supervisor.faults == {}
    await asyncio.sleep(0.6)
    assert supervisor.faults == {"publisher": "KeyError"}
    await asyncio.sleep(supervision.SETTLED_SECONDS + 0.1)
    assert (supervisor.faults, supervisor.failures) == ({}, 1)
    task.cancel()


@timeless
async def test_backoff_starts_anew_after_a_healthy_run() -> None:
    run, started = dying(0, 0, 6, 0)
    task = Supervisor().start("broker", run)
    await asyncio.sleep(20)
    task.cancel()
    assert started == pytest.approx([0, 0.1, 0.3, 6.4, 6.6])


@timeless
async def test_only_critical_faults_count_for_readiness() -> None:
    supervisor = Supervisor()
    tasks = [
        supervisor.start("sweeper", dying(0)[0]),
        supervisor.start("posting 0", dying(0)[0], critical=True),
    ]
    await asyncio.sleep(1)
    assert set(supervisor.faults) == {"sweeper", "posting 0"}
    assert supervisor.critical_faults == {"posting 0": "KeyError"}
    for task in tasks:
        task.cancel()


@timeless
async def test_task_that_awaits_a_cancelled_task_is_restarted() -> None:
    cancelled = asyncio.get_running_loop().create_future()
    cancelled.cancel()
    started = []

    async def run() -> None:
        started.append(now())
        if len(started) == 1:
            await cancelled

    await Supervisor().start("webhooks", run)
    assert len(started) == 2


@timeless
async def test_task_that_returns_or_is_cancelled_ends() -> None:
    supervisor = Supervisor()
    ended, _ = dying()
    task = supervisor.start("auditor", ended)
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert supervisor.faults == {}
