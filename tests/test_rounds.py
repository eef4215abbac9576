"""Background rounds of the service: the pauses between them, and the log lines of failures."""

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from credit_service.rounds import NotNow, keep_doing
from credit_service.storage.engine import StorageUnavailable


class Enough(BaseException):
    """This error ends the endless rounds of a test."""


async def paused(monkeypatch: pytest.MonkeyPatch, rounds: list[Any], **options: Any) -> tuple[list[float], list[Any]]:
    """Run rounds with these results (a value or an error). Return the pauses and the reasons in the log."""
    monkeypatch.setattr("credit_service.backoff.random.uniform", lambda low, high: high)
    pauses: list[float] = []
    left = iter([*rounds, Enough()])

    async def once() -> bool:
        result = next(left)
        if isinstance(result, BaseException):
            raise result
        return bool(result)

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", pause)
    with capture_logs() as logs, pytest.raises(Enough):
        await keep_doing(once, "it_failed", 1, **options)
    return pauses, [line.get("reason") for line in logs if line["event"] == "it_failed"]


async def test_round_with_more_work_is_followed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await paused(monkeypatch, [True, True, False, True, False]) == ([1, 1], [])


@pytest.mark.parametrize("failure", [NotNow("Away."), StorageUnavailable("Gone.")], ids=repr)
async def test_pauses_grow_with_failures_and_reason_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    rounds = [*[failure] * 5, False, failure]
    assert await paused(monkeypatch, rounds, longest_seconds=5) == ([1, 2, 4, 5, 5, 1, 1], [str(failure)] * 2)
    assert await paused(monkeypatch, rounds) == ([1] * 7, [str(failure)] * 2)


async def test_unexpected_errors_are_logged_each_time_and_rounds_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await paused(monkeypatch, [RuntimeError("a bug")] * 3) == ([1, 1, 1], [None] * 3)
