"""Circuit breakers: after failures in a row, calls stop for a pause; then a single one tries whether it works again."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Literal

import structlog

PAUSE_SECONDS: Final = 1.0
"""The pause of a `ProbedBreaker`."""
_log = structlog.get_logger()


class Breaker:
    """Opens after so many `failures` in a row. Pure: times come in, in seconds.

    `pauses_seconds`: how long it is open after the failure that opened it, and after each later one; the last pause
    also counts for all that follow.
    """

    def __init__(self, failures: int, pauses_seconds: Sequence[float]) -> None:
        self._most = failures
        self._pauses = pauses_seconds
        self._failures = 0
        self._open_until = float("-inf")

    def state(self, now: float) -> Literal["closed", "open", "half-open"]:
        """Whether calls may be made: all, none, or one at a time."""
        if now < self._open_until:
            return "open"
        return "closed" if self._failures < self._most else "half-open"

    def succeed(self) -> None:
        self._failures, self._open_until = 0, float("-inf")

    def fail(self, now: float, *, wait: float = 0.0) -> None:
        """A call failed. `wait`: the receiver asked for a pause, or none is too short."""
        # A call that was under way when it opened says nothing new.
        if not (self._failures >= self._most and now < self._open_until):
            self._failures += 1
            if (beyond := self._failures - self._most) >= 0:
                wait = max(wait, self._pauses[min(beyond, len(self._pauses) - 1)])
        if wait:
            self._open_until = max(self._open_until, now + wait)


class ProbedBreaker:
    """A breaker that opens at the first failure, and sends a probe instead of letting a caller try.

    A pause after it opened, the next question sends out `probe`. The breaker closes when the probe returns, and starts
    the pause anew when it raises. `name` stands in the log. `clock` gives seconds.
    """

    def __init__(
        self, name: str, probe: Callable[[], Awaitable[object]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._probe = probe
        self._clock = clock
        self._breaker = Breaker(1, [PAUSE_SECONDS])
        self._probing: asyncio.Task[None] | None = None

    def is_open(self) -> bool:
        """Whether to make no call."""
        state = self._breaker.state(self._clock())
        if state == "half-open" and self._probing is None:
            self._probing = asyncio.get_running_loop().create_task(self._try(), name=f"probe of {self._name}")
        return state != "closed"

    def open(self, reason: str) -> None:
        """Note a call without an answer in time."""
        now = self._clock()
        if self._breaker.state(now) == "closed":
            _log.warning("gate_breaker_opened", of=self._name, reason=reason)
        self._breaker.fail(now, wait=PAUSE_SECONDS)

    def close(self) -> None:
        """Note an answer."""
        if self._breaker.state(self._clock()) != "closed":
            _log.info("gate_breaker_closed", of=self._name)
        self._breaker.succeed()

    async def stop(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)

    async def _try(self) -> None:
        try:
            await self._probe()
        except Exception as error:
            self.open(type(error).__name__)
        else:
            self.close()
        finally:
            self._probing = None
