"""The sweep: posts nothing to every account to which time has done something, so that it is settled and announced.

Answers are right without it (a read settles what it reads, L7); it makes the world be told in time, and ends the wait
of parked refunds.
"""

from typing import NoReturn

from credit_service.ledger.commands import Settle
from credit_service.posting import Posting
from credit_service.rounds import keep_doing
from credit_service.storage.accounts import Accounts

AT_ONCE = 500


async def sweep(accounts: Accounts, posting: Posting) -> int:
    """Settle what is due now, and return how many accounts that were."""
    due = await accounts.due(await accounts.now(), AT_ONCE)
    if due:
        await posting.submit_many([Settle(merchant_id=merchant_id, key="") for merchant_id in due])
    return len(due)


async def keep_sweeping(accounts: Accounts, posting: Posting, seconds: float) -> NoReturn:
    """Sweep for ever, with this pause where nothing was left to do."""

    async def once() -> bool:
        return await sweep(accounts, posting) == AT_ONCE

    await keep_doing(once, "sweep_failed", seconds)
