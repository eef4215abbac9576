"""Background work in rounds: a failed round is logged and followed by another one."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import NoReturn

import structlog

from credit_service.backoff import pauses
from credit_service.posting import DeadlineExceeded, Overloaded
from credit_service.storage.engine import StorageError

_log = structlog.get_logger()


class NotNow(Exception):
    """A round could not do its work, for a reason outside the service; the message is one sentence."""


async def keep_doing(
    once: Callable[[], Awaitable[bool]],
    failed: str,
    seconds: float,
    *,
    longest_seconds: float | None = None,
    rest: Callable[[float], Awaitable[object]] | None = None,
    **context: str,
) -> NoReturn:
    """Run rounds for ever. `once` returns whether the next round follows at once; otherwise there is a pause.

    A failed round is logged as `failed`, with `context`; a reason that repeats is logged once. With `longest_seconds`
    the pauses after failures in a row grow up to that, with jitter. `rest` may end a pause early, but not one after a
    failure.
    """
    told = None
    backoff: Iterator[float] | None = None
    while True:
        try:
            more = await once()
            told, backoff = None, None
            if not more:
                await (rest or asyncio.sleep)(seconds)
            continue
        except (StorageError, Overloaded, DeadlineExceeded, NotNow) as error:
            reason = str(error) or type(error).__name__
            if reason != told:
                _log.warning(failed, reason=reason, **context)
            told = reason
        except Exception as error:  # the next round may go well, so the task goes on
            _log.error(failed, exc_info=error, **context)
        backoff = backoff or pauses(seconds, longest_seconds or seconds)
        await asyncio.sleep(seconds if longest_seconds is None else next(backoff))
