"""What the service does by itself, round after round, whatever goes wrong in one of them."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import NoReturn

import structlog

from credit_service.posting import DeadlineExceeded, Overloaded
from credit_service.storage.engine import StorageError

_log = structlog.get_logger()


class NotNow(Exception):
    """A round could not do its work, for a reason outside of the service; its message is one sentence."""


async def keep_doing(
    once: Callable[[], Awaitable[bool]],
    failed: str,
    seconds: float,
    *,
    longest_seconds: float | None = None,
    rest: Callable[[float], Awaitable[object]] | None = None,
    **context: str,
) -> NoReturn:
    """Do something for ever. `once` returns whether more is left to be done at once; else there is this pause.

    A round that fails is told to the log as `failed`, with `context`; what is said again and again is told once. With
    `longest_seconds` the pauses after rounds that fail in a row grow up to that, and none is as long as another's.
    `rest` may end a pause early, but not one after a failure.
    """
    told = None
    failures = 0
    while True:
        try:
            more = await once()
            told, failures = None, 0
            if not more:
                await (rest or asyncio.sleep)(seconds)
            continue
        except (StorageError, Overloaded, DeadlineExceeded, NotNow) as error:
            reason = str(error) or type(error).__name__
            if reason != told:
                _log.warning(failed, reason=reason, **context)
            told = reason
        except Exception as error:  # if it died, nobody would miss it for long
            _log.error(failed, exc_info=error, **context)
        await asyncio.sleep(_pause(seconds, failures, longest_seconds))
        failures += 1


def _pause(seconds: float, failures: int, longest_seconds: float | None) -> float:
    if longest_seconds is None:
        return seconds
    # Together they would all come back at once.
    return min(longest_seconds, seconds * 2.0 ** min(failures, 30)) * random.uniform(0.5, 1)  # noqa: S311
