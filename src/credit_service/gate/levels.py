"""The levels behind the near cache, asked one after the other, and the channel to other processes."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import Final, Protocol

from credit_service.breaker import ProbedBreaker
from credit_service.gate.answers import StatusAnswer, of_account, of_unknown, version_of
from credit_service.ledger.policy import Policy
from credit_service.ledger.settle import standing_at
from credit_service.storage.accounts import Accounts
from credit_service.storage.engine import StorageUnavailable

PATIENCE_SECONDS: Final = 2.0
"""The longest wait for the store: after that, the page has given up."""
_NOBODY: Final = ""
"""No merchant has this id."""


class Level(Protocol):
    """A cache that may know the answers."""

    async def get(self, merchant_ids: Collection[str], now: int) -> Mapping[str, StatusAnswer]:
        """The known answers that are good at `now` (microseconds)."""
        ...

    async def put(self, answers: Collection[StatusAnswer]) -> None:
        """Keep these answers, unless a later one is known. Ignores failures."""
        ...


class Channel(Protocol):
    """Messages between processes about changed answers. Messages may get lost."""

    async def tell(self, answers: Collection[StatusAnswer]) -> None:
        """Send answers to all processes. Raises an error if that is impossible."""
        ...

    async def listen(self, joined: Callable[[], None], heard: Callable[[str], None]) -> None:
        """Call `heard` with each message (`answers.line_of`) until the connection is lost, which raises an error.

        `joined` is called as soon as no later message can be missed.
        """
        ...


class Storage:
    """The last level, which knows every merchant: the accounts in the store. `ttl` in microseconds."""

    def __init__(self, accounts: Accounts, policy: Policy, ttl: int) -> None:
        self._accounts = accounts
        self._policy = policy
        self._ttl = ttl
        self.breaker = ProbedBreaker("storage", lambda: accounts.load([_NOBODY], 0))

    async def get(self, merchant_ids: Collection[str], now: int) -> Mapping[str, StatusAnswer]:
        """The answers for all of these merchants. Raises StorageError."""
        if self.breaker.is_open():
            raise StorageUnavailable("The database did not answer a moment ago.")
        silent = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self.breaker.open, "it was silent")
        try:
            held = await self._accounts.load(list(merchant_ids), now)
        finally:
            silent.cancel()
        self.breaker.close()
        found: dict[str, StatusAnswer] = {}
        for merchant_id in merchant_ids:
            entry = held.get(merchant_id)
            if entry is None:
                found[merchant_id] = of_unknown(merchant_id, now, self._ttl)
                continue
            standing = standing_at(entry.account, entry.grants, self._policy, now)
            found[merchant_id] = of_account(standing.account, now, self._ttl, version_of(entry.account))
        return {merchant_id: answer._replace(source="storage") for merchant_id, answer in found.items()}
