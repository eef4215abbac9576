"""Supervision: each background task runs under a name, and a task that dies is restarted.

Without it, a task that dies of an unexpected error ends in silence, while the service looks healthy. Expected failures,
such as a database that is away, are handled by the task itself.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import structlog

from credit_service.backoff import pauses

FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 10.0
SETTLED_SECONDS: Final = 5.0
"""A restarted task counts as healthy once it has run for this long."""
_log = structlog.get_logger()


class Supervisor:
    """Runs the background tasks of one event loop.

    `faults`: the tasks that died and are not healthy again, each with the type of its last error. `failures` counts
    deaths. A `critical` task is one without which requests cannot be served, so that the service is not ready.
    """

    def __init__(self) -> None:
        self.faults: dict[str, str] = {}
        self.failures = 0
        self._critical: set[str] = set()

    @property
    def critical_faults(self) -> Mapping[str, str]:
        """The `faults` of critical tasks."""
        return {name: fault for name, fault in self.faults.items() if name in self._critical}

    def start(self, name: str, run: Callable[[], Awaitable[object]], *, critical: bool = False) -> asyncio.Task[None]:
        """Run a task until it returns or is cancelled; restart it, after a growing pause, whenever it dies."""
        if critical:
            self._critical.add(name)
        return asyncio.get_running_loop().create_task(self._keep_running(name, run), name=name)

    async def _keep_running(self, name: str, run: Callable[[], Awaitable[object]]) -> None:
        loop = asyncio.get_running_loop()
        waiting = pauses(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
        while True:
            settled = loop.call_later(SETTLED_SECONDS, self.faults.pop, name, None)
            try:
                await run()
                self.faults.pop(name, None)
                return
            except (Exception, asyncio.CancelledError) as error:
                # A task also dies of a CancelledError that it was not sent itself, from a cancelled task it awaits.
                if _is_cancelled():
                    raise
                if name not in self.faults:
                    waiting = pauses(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
                self.faults[name] = type(error).__name__
                self.failures += 1
                _log.error("background_task_died", task=name, exc_info=error)
            finally:
                settled.cancel()
            await asyncio.sleep(next(waiting))


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
