"""The sweep: posts nothing to every account to which time has done something, so that it is settled and announced.

Answers are right without it (a read settles what it reads, L7); it makes the world be told in time, and ends the wait
of parked refunds.
"""

import asyncio
from typing import NoReturn

import structlog

from credit_service.ledger.commands import Settle
from credit_service.posting import DeadlineExceeded, Overloaded, Posting
from credit_service.storage.base import StorageError, Store

AT_ONCE = 500
_log = structlog.get_logger()


async def sweep(store: Store, posting: Posting) -> int:
    """Settle what is due now, and return how many accounts that were."""
    due = await store.due(await store.now(), AT_ONCE)
    if due:
        await posting.submit_many([Settle(merchant_id=merchant_id, key="") for merchant_id in due])
    return len(due)


async def keep_sweeping(store: Store, posting: Posting, seconds: float) -> NoReturn:
    """Sweep for ever, with this pause where nothing was left to do. What fails again and again is told once."""
    told = None
    while True:
        swept = 0
        try:
            swept = await sweep(store, posting)
            told = None
        except (StorageError, Overloaded, DeadlineExceeded) as error:
            reason = str(error) or type(error).__name__
            if reason != told:
                _log.warning("sweep_failed", reason=reason)
            told = reason
        except Exception as error:  # a sweeper that is dead would be missed by nobody for long
            _log.error("sweep_failed", exc_info=error)
        if swept < AT_ONCE:
            await asyncio.sleep(seconds)
