"""What the service does by itself, round after round, whatever goes wrong in one of them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NoReturn

import structlog

from credit_service.posting import DeadlineExceeded, Overloaded
from credit_service.storage.base import StorageError

_log = structlog.get_logger()


async def keep_doing(once: Callable[[], Awaitable[bool]], failed: str, seconds: float) -> NoReturn:
    """Do something for ever. `once` returns whether more is left to be done at once; else there is this pause.

    A round that fails is told to the log as `failed`; what the database says again and again is told once.
    """
    told = None
    while True:
        more = False
        try:
            more = await once()
            told = None
        except (StorageError, Overloaded, DeadlineExceeded) as error:
            reason = str(error) or type(error).__name__
            if reason != told:
                _log.warning(failed, reason=reason)
            told = reason
        except Exception as error:  # if it died, nobody would miss it for long
            _log.error(failed, exc_info=error)
        if not more:
            await asyncio.sleep(seconds)
