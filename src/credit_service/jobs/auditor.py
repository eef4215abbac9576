"""The auditor compares each account with its transactions and grants, one account after the other, for ever.

`credit-service verify` recomputes everything. The audit only makes a few look-ups for each account, so it can always
run beside the service.
"""

from typing import NoReturn

import structlog

from credit_service.rounds import keep_doing
from credit_service.storage.accounts import Accounts

_log = structlog.get_logger()


class Auditor:
    """Visits all accounts by merchant id, and remembers those that disagree with their transactions or grants."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        self._after: str | None = None
        self._before: set[str] = set()  # found in the last complete pass
        self._found: set[str] = set()  # found so far in this pass

    @property
    def drifting(self) -> int:
        """How many accounts disagree: in the last complete pass or so far in this one, whichever is more."""
        return max(len(self._before), len(self._found))

    async def audit(self, accounts: int) -> None:
        """Check the next accounts, as many as asked for. Raises StorageError."""
        drifting, self._after = await self._accounts.drifting(self._after, accounts)
        for merchant_id in drifting:
            if merchant_id not in self._before:  # the last pass has logged the others
                _log.error("ledger_drift", merchant_id=merchant_id)
        self._found.update(drifting)
        if self._after is None:
            self._before, self._found = self._found, set()

    async def keep_auditing(self, accounts_per_second: int) -> NoReturn:
        """Audit for ever, this many accounts a second."""

        async def once() -> bool:
            await self.audit(accounts_per_second)
            return False

        await keep_doing(once, "audit_failed", seconds=1)
