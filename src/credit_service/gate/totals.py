"""All merchants in sum, without asking the database more often than it can bear.

Nothing on the way of a posting counts merchants: a counter would be a row that all postings wait for. So they are
counted when somebody asks, which takes the longer the more there are. Where there are many, the sums are told for a
multiple of the time it took, and whoever asks meanwhile is told the last ones.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

from credit_service.ledger.policy import Policy
from credit_service.ledger.settle import standing_at
from credit_service.storage.accounts import Accounts
from credit_service.storage.engine import StorageUnavailable

MANY: Final = 100_000
"""Fewer merchants are counted each time that somebody asks."""
PATIENCE_SECONDS: Final = 5.0
"""How long somebody who asks waits, where there are no sums of a while ago."""
SHARE: Final = 30
"""The sums of many are told for so many times as long as counting took: a thirtieth of one of the database's cores."""


class Totals(NamedTuple):
    """All merchants in sum. `low` are those that are enabled, and at or below their threshold."""

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
        self._good_until: float | None = None  # where there are many
        self._counting: asyncio.Task[Totals] | None = None

    async def totals(self) -> Totals:
        """The sums: of just now, or of a while ago where there are many merchants. Raises StorageError."""
        if self._last is not None and self._good_until is not None:
            if self._timer() >= self._good_until:
                self._begun()
            return self._last
        # Whoever has just posted wants to see it: only the first count is shared with those who ask later.
        counting = self._begun() if self._last is None else asyncio.get_running_loop().create_task(self._count())
        done, _ = await asyncio.wait([counting], timeout=PATIENCE_SECONDS)
        if done:
            return counting.result()
        if counting is not self._counting:
            counting.cancel()
            self._good_until = self._timer()  # from now on it is counted in the background
        raise StorageUnavailable("The database is still counting the merchants.")

    async def stop(self) -> None:
        """End a count that is under way."""
        if self._counting is not None:
            self._counting.cancel()
            await asyncio.gather(self._counting, return_exceptions=True)

    def _begun(self) -> asyncio.Task[Totals]:
        """The count that is under way, whoever began it."""
        if self._counting is None:
            self._counting = asyncio.get_running_loop().create_task(self._count(), name="totals")
            self._counting.add_done_callback(self._ended)
        return self._counting

    def _ended(self, counting: asyncio.Task[Totals]) -> None:
        self._counting = None
        if not counting.cancelled():
            counting.exception()  # nobody may have waited for it

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
        average = balances / count if count else 0
        self._last = Totals(count, count - exhausted, exhausted, settled.low + statuses["LOW"], average)
        ended = self._timer()
        self._good_until = ended + SHARE * (ended - begun) if count >= MANY else None
        return self._last
