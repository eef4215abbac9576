"""The audit: compares accounts, one after the other and round after round, with the transactions and grants below them.

`credit-service verify` recomputes everything; this costs a few look-ups for each account, so that it can always run.
"""

from typing import NoReturn
from uuid import UUID

import structlog

from credit_service.rounds import keep_doing
from credit_service.storage.accounts import Accounts

_log = structlog.get_logger()


class Auditor:
    """Goes round all accounts by merchant id, and remembers those that do not agree."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        self._after: UUID | None = None
        self._before: set[UUID] = set()  # found in the last whole round
        self._found: set[UUID] = set()  # found so far in this one

    @property
    def drifting(self) -> int:
        """How many accounts do not agree: in the last whole round or so far in this one, whichever are more."""
        return max(len(self._before), len(self._found))

    async def audit(self, accounts: int) -> None:
        """Look at the next accounts, so many of them. Raises StorageError."""
        drifting, self._after = await self._accounts.drifting(self._after, accounts)
        for merchant_id in drifting:
            if merchant_id not in self._before:  # else it was told of already
                _log.error("ledger_drift", merchant_id=str(merchant_id))
        self._found.update(drifting)
        if self._after is None:
            self._before, self._found = self._found, set()

    async def keep_auditing(self, accounts_per_second: int) -> NoReturn:
        """Audit for ever, this many accounts each second."""

        async def once() -> bool:
            await self.audit(accounts_per_second)
            return False

        await keep_doing(once, "audit_failed", seconds=1)
