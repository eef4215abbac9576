"""A gate whose store, shared level, channel and clock a test controls."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from credit_service.gate.answers import StatusAnswer
from credit_service.gate.status import Gate
from credit_service.ledger.account import Account, Grant
from credit_service.ledger.policy import Policy
from credit_service.storage.accounts import LoadedAccount
from credit_service.storage.engine import StorageUnavailable

SECOND = 1_000_000
NOW = 1_000 * SECOND
MERCHANT = "6f1c2a54-8d0e-4c0b-9c55-0c7a8c1f2b11"


def account(available: int, settled_at: int = NOW - SECOND, merchant_id: str = MERCHANT, **more: Any) -> Account:
    return Account(1, merchant_id, opened_at=0, settled_at=settled_at, balance=available, sequence=1)._replace(**more)


class FakeStore:
    """Accounts and fail policies; it holds accounts, counts questions, and answers when it is told to."""

    def __init__(self, *accounts: Account) -> None:
        self.accounts = {account.merchant_id: account for account in accounts}
        self.grants: dict[str, tuple[Grant, ...]] = {}
        self.policies: dict[str, str] = {}
        self.asked: list[list[str]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.read = asyncio.Event()
        self.away = False

    async def load(self, merchant_ids: Sequence[str], at: int) -> dict[str, LoadedAccount]:
        """What is asked is read at once; the answer comes when the store is open."""
        self.asked.append(list(merchant_ids))
        found = {
            merchant: LoadedAccount(self.accounts[merchant], self.grants.get(merchant, ()))
            for merchant in merchant_ids
            if merchant in self.accounts
        }
        self.read.set()
        await self.open.wait()
        if self.away:
            raise StorageUnavailable("gone")
        return found

    async def all(self) -> dict[str, str]:
        if self.away:
            raise StorageUnavailable("gone")
        return self.policies


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


class FakeLevel:
    """A shared level that keeps the latest version, as Redis does, and answers when it is told to."""

    def __init__(self) -> None:
        self.kept: dict[str, StatusAnswer] = {}
        self.asked: list[list[str]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.read = asyncio.Event()

    async def get(self, merchant_ids: Collection[str], now: int) -> Mapping[str, StatusAnswer]:
        self.asked.append(list(merchant_ids))
        found = {merchant: self.kept[merchant] for merchant in merchant_ids if merchant in self.kept}
        self.read.set()
        await self.open.wait()
        return {merchant: one._replace(source="redis") for merchant, one in found.items() if one.until > now}

    async def put(self, answers: Collection[StatusAnswer]) -> None:
        for answer in answers:
            if answer.merchant_id not in self.kept or self.kept[answer.merchant_id].version <= answer.version:
                self.kept[answer.merchant_id] = answer


class FakeChannel:
    """A channel that writes down what is told, and over which a test tells."""

    def __init__(self) -> None:
        self.told: list[list[StatusAnswer]] = []
        self.joined: Callable[[], None]
        self.heard: Callable[[str], None]
        self.is_joined = asyncio.Event()
        self.lose = asyncio.Event()
        self.broken = False
        self.telling = asyncio.Event()

    async def tell(self, answers: Collection[StatusAnswer]) -> None:
        if self.broken:
            raise ConnectionError
        self.told.append(list(answers))
        self.telling.set()

    async def listen(self, joined: Callable[[], None], heard: Callable[[str], None]) -> None:
        self.joined, self.heard = joined, heard
        joined()
        self.is_joined.set()
        await self.lose.wait()
        self.lose.clear()
        raise ConnectionError


class Setting:
    """A gate over a store that the test controls."""

    def __init__(self, *accounts: Account, **settings: Any) -> None:
        self.store = FakeStore(*accounts)
        self.clock = Clock()
        store: Any = self.store
        self.gate = Gate(store, store, Policy(), clock=self.clock, **settings)

    async def told(self, merchant_id: str = MERCHANT) -> tuple[str, str]:
        known = self.gate.cached(merchant_id)
        answer = known or await self.gate.ask(merchant_id)
        return answer.status, answer.reason

    def commit(self, *accounts: Account) -> None:
        """Accounts are written, and the gate is told."""
        self.store.accounts |= {account.merchant_id: account for account in accounts}
        self.gate.committed(accounts)
