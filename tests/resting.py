"""Sleeping in tests: as told, and only in the loop of the test, since services of other tests may sleep beside it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

Sleep = Callable[[float], Awaitable[Any]]


def rest_by(monkeypatch: pytest.MonkeyPatch, rest: Sleep) -> Sleep:
    """Let whoever sleeps in the running loop do this instead; returns how to sleep all the same."""
    sleep, here = asyncio.sleep, asyncio.get_running_loop()

    async def resting(seconds: float, *more: Any) -> Any:
        if asyncio.get_running_loop() is here:
            return await rest(seconds)
        return await sleep(seconds, *more)

    monkeypatch.setattr("asyncio.sleep", resting)
    return sleep
