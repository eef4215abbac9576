"""Replace `asyncio.sleep` in the event loop of one test. Services of other tests may sleep in other loops."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

Sleep = Callable[[float], Awaitable[Any]]


def rest_by(monkeypatch: pytest.MonkeyPatch, rest: Sleep) -> Sleep:
    """Replace `asyncio.sleep` in the running loop by `rest`. Returns the original `asyncio.sleep`."""
    sleep, here = asyncio.sleep, asyncio.get_running_loop()

    async def resting(seconds: float, *more: Any) -> Any:
        if asyncio.get_running_loop() is here:
            return await rest(seconds)
        return await sleep(seconds, *more)

    monkeypatch.setattr("asyncio.sleep", resting)
    return sleep
