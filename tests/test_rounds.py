"""What the service does by itself, round after round: how it pauses, and what it tells of failures."""

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from credit_service.rounds import NotNow, keep_doing
from credit_service.storage.engine import StorageUnavailable


class Enough(BaseException):
    """The test has seen enough."""


async def paused(monkeypatch: pytest.MonkeyPatch, rounds: list[Any], **options: Any) -> tuple[list[float], list[Any]]:
    """The pauses of rounds that come to this (an answer, or an error), and what was logged of them."""
    monkeypatch.setattr("credit_service.rounds.random.uniform", lambda low, high: high)
    pauses: list[float] = []
    left = iter([*rounds, Enough()])

    async def once() -> bool:
        came = next(left)
        if isinstance(came, BaseException):
            raise came
        return bool(came)

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", pause)
    with capture_logs() as told, pytest.raises(Enough):
        await keep_doing(once, "it_failed", 1, **options)
    return pauses, [line.get("reason") for line in told if line["event"] == "it_failed"]


async def test_a_round_that_left_something_to_do_is_followed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await paused(monkeypatch, [True, True, False, True, False]) == ([1, 1], [])


@pytest.mark.parametrize("failure", [NotNow("Away."), StorageUnavailable("Gone.")], ids=repr)
async def test_pauses_grow_while_rounds_fail_in_a_row_and_the_reason_is_told_once(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    rounds = [*[failure] * 5, False, failure]
    assert await paused(monkeypatch, rounds, longest_seconds=5) == ([1, 2, 4, 5, 5, 1, 1], [str(failure)] * 2)
    assert await paused(monkeypatch, rounds) == ([1] * 7, [str(failure)] * 2)


async def test_what_nobody_foresaw_is_told_each_time_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await paused(monkeypatch, [RuntimeError("a bug")] * 3) == ([1, 1, 1], [None] * 3)
