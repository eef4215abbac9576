"""Totals over all merchants, at a bounded cost for the database.

No posting counts merchants, because all postings would wait for the row of a counter. So the totals are counted when a
caller asks, which takes longer the more merchants there are. With many merchants, a result is reused for a multiple of
the time that counting took.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

from credit_service.ledger.account import OPEN
from credit_service.ledger.policy import Policy
from credit_service.ledger.settle import standing_at
from credit_service.storage.accounts import Accounts
from credit_service.storage.engine import StorageUnavailable

MANY: Final = 100_000
"""Fewer merchants are counted at each request."""
PATIENCE_SECONDS: Final = 5.0
"""How long a caller waits if there is no earlier result."""
SHARE: Final = 30
"""A result is reused for so many times the time that counting took: a thirtieth of one of the database's cores."""


class Totals(NamedTuple):
    """Totals over all merchants. `exhausted`: with nothing available. `low`: others at or below their threshold."""

    merchants: int
    enabled: int
    exhausted: int
    low: int
    average_balance: float


class Counting:
    """Counts merchants. `clock` gives microseconds since 1970, `timer` seconds."""

    def __init__(
        self, accounts: Accounts, policy: Policy, clock: Callable[[], int], timer: Callable[[], float] = time.monotonic
    ) -> None:
        self._accounts = accounts
        self._policy = policy
        self._clock = clock
        self._timer = timer
        self._last: Totals | None = None
        self._good_until: float | None = None  # with many merchants
        self._counting: asyncio.Task[Totals] | None = None

    async def totals(self) -> Totals:
        """The totals: new ones, or earlier ones if there are many merchants. Raises StorageError."""
        if self._last is not None and self._good_until is not None:
            if self._timer() >= self._good_until:
                self._begun()
            return self._last
        # A caller that has just posted wants to see it, so only the first count is shared with later callers.
        counting = self._begun() if self._last is None else asyncio.get_running_loop().create_task(self._count())
        done, _ = await asyncio.wait([counting], timeout=PATIENCE_SECONDS)
        if done:
            return counting.result()
        if counting is not self._counting:
            counting.cancel()
            self._good_until = self._timer()  # from now on, count in the background
        raise StorageUnavailable("The database is still counting the merchants.")

    async def stop(self) -> None:
        if self._counting is not None:
            self._counting.cancel()
            await asyncio.gather(self._counting, return_exceptions=True)

    def _begun(self) -> asyncio.Task[Totals]:
        """The count that is under way, or a new one."""
        if self._counting is None:
            self._counting = asyncio.get_running_loop().create_task(self._count(), name="totals")
            self._counting.add_done_callback(self._ended)
        return self._counting

    def _ended(self, counting: asyncio.Task[Totals]) -> None:
        self._counting = None
        if not counting.cancelled():
            counting.exception()  # its caller may have given up

    async def _count(self) -> Totals:
        begun = self._timer()
        now = self._clock()
        settled = await self._accounts.summary(now, self._policy.default_threshold)
        due = [
            standing_at(held.account, held.grants, self._policy, now) for held in await self._accounts.due_accounts(now)
        ]
        count = settled.accounts + len(due)
        balances = settled.average_balance * settled.accounts + sum(standing.account.balance for standing in due)
        statuses = Counter(standing.status for standing in due)
        exhausted = settled.exhausted + statuses["EXHAUSTED"]
        open_ones = [one.account for one in due if one.account.state == OPEN]
        enabled = settled.enabled + sum([account.available > 0 for account in open_ones])
        average = balances / count if count else 0
        self._last = Totals(count, enabled, exhausted, settled.low + statuses["LOW"], average)
        ended = self._timer()
        self._good_until = ended + SHARE * (ended - begun) if count >= MANY else None
        return self._last
