"""A breaker: whether something that was silent is worth waiting for again."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

PAUSE_SECONDS: Final = 1.0
_log = structlog.get_logger()


class Breaker:
    """Closed while all is well; opened by whoever waited in vain. Nobody waits while it is open.

    Half-open: a pause after it was opened the next one who asks sends a `probe` out, which closes it by returning, and
    begins the pause anew by raising. `name` is what the log calls the thing. `clock` gives seconds.
    """

    def __init__(
        self, name: str, probe: Callable[[], Awaitable[object]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._probe = probe
        self._clock = clock
        self._open = False
        self._probe_at = 0.0
        self._probing: asyncio.Task[None] | None = None

    def is_open(self) -> bool:
        """Whether not to ask."""
        if self._open and self._probing is None and self._clock() >= self._probe_at:
            self._probing = asyncio.get_running_loop().create_task(self._try(), name=f"probe of {self._name}")
        return self._open

    def open(self, reason: str) -> None:
        """It did not answer, or not in time."""
        if not self._open:
            _log.warning("gate_breaker_opened", of=self._name, reason=reason)
        self._open = True
        self._probe_at = self._clock() + PAUSE_SECONDS

    def close(self) -> None:
        """It has answered."""
        if self._open:
            _log.info("gate_breaker_closed", of=self._name)
        self._open = False

    async def stop(self) -> None:
        """End a probe that is out."""
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
