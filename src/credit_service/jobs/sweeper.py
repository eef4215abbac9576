"""The sweeper settles every account that time has changed, so that its events are announced in time.

A read settles what it reads (L7), so answers are right without the sweeper. Without it, however, an expiry would only
be announced with the account's next posting, and a parked refund would wait for longer than it may.
"""

from typing import NoReturn

from credit_service.ledger.commands import Settle
from credit_service.posting import Posting
from credit_service.rounds import keep_doing
from credit_service.storage.accounts import Accounts

AT_ONCE = 500
"""The most accounts that one sweep settles."""


async def sweep(accounts: Accounts, posting: Posting) -> int:
    """Settle the accounts that are due, at most `AT_ONCE`; returns how many. Raises StorageError and as `submit`."""
    due = await accounts.due(await accounts.now(), AT_ONCE)
    if due:
        await posting.submit_many([Settle(merchant_id=merchant_id, key="") for merchant_id in due])
    return len(due)


async def keep_sweeping(accounts: Accounts, posting: Posting, seconds: float) -> NoReturn:
    """Sweep for ever; pause this many seconds when nothing is left to do."""

    async def once() -> bool:
        return await sweep(accounts, posting) == AT_ONCE

    await keep_doing(once, "sweep_failed", seconds)
