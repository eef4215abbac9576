"""Plugin status from a near cache, with the store behind it.

A cached answer lives until its TTL or the account's next due instant, whichever is sooner. A posting in this process
replaces it at once. Concurrent misses of one merchant ask the store once. With the store away, the last known answer
counts for a while, then the fail policy; `reason` says `unavailable`.
"""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple
from uuid import UUID

from credit_service.ledger.account import MICROSECONDS, Account
from credit_service.ledger.announcements import plugin_status
from credit_service.ledger.policy import Policy
from credit_service.ledger.settle import standing_at
from credit_service.storage.base import Held, StorageError, Store

Reason = Literal["available", "exhausted", "unknown_merchant", "unavailable"]


Version = tuple[int, int, int]
"""Of an account: when it was settled, its sequence, the number of its last announcement; each posting has a higher."""

_NO_ACCOUNT: Version = (-1, 0, 0)


class Answer(NamedTuple):
    """A merchant's plugin status. `as_of` is when it was known, `until` when it must be asked again (microseconds)."""

    merchant_id: UUID
    status: str
    reason: Reason
    as_of: int
    until: int
    version: Version
    rendered: Any = None


class Totals(NamedTuple):
    """All merchants in sum. `low` are those that are enabled, and at or below their threshold."""

    merchants: int
    enabled: int
    exhausted: int
    low: int
    average_balance: float


class Gate:
    """Answers plugin status.

    `render` turns an answer into what a door sends, once for each answer and not for each question. Spans in seconds;
    `clock` gives microseconds since 1970.
    """

    def __init__(
        self,
        store: Store,
        policy: Policy,
        *,
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
        ttl_seconds: float = 15,
        stale_seconds: float = 300,
        fail_open: bool = False,
        size: int = 100_000,
        render: Callable[[Answer], Any] = lambda answer: None,
    ) -> None:
        self._store = store
        self._policy = policy
        self._clock = clock
        self._ttl = int(ttl_seconds * MICROSECONDS)
        self._stale = int(stale_seconds * MICROSECONDS)
        self._fail_status = "enabled" if fail_open else "disabled"
        self._size = size
        self._render = render
        self._known: OrderedDict[UUID, Answer] = OrderedDict()
        self._asking: dict[UUID, asyncio.Task[dict[UUID, Answer]]] = {}

    def cached(self, merchant_id: UUID) -> Answer | None:
        """The answer, if it is known and still good."""
        known = self._known.get(merchant_id)
        return known if known is not None and known.until > self._clock() else None

    async def ask(self, merchant_id: UUID) -> Answer:
        """The answer for one merchant, whatever is away."""
        (answer,) = await self.ask_many([merchant_id])
        return answer

    async def ask_many(self, merchant_ids: Sequence[UUID]) -> list[Answer]:
        """The answers for many merchants, in their order; those not known are asked of the store in one question."""
        known = {merchant_id: self.cached(merchant_id) for merchant_id in merchant_ids}
        unknown = [merchant_id for merchant_id, answer in known.items() if answer is None]
        missing = [merchant_id for merchant_id in unknown if merchant_id not in self._asking]
        if missing:
            # A task, so that nobody's answer is lost when the one who asked first gives up.
            asking = asyncio.get_running_loop().create_task(self._load(missing))
            self._asking |= dict.fromkeys(missing, asking)
        tasks = {self._asking[merchant_id] for merchant_id in unknown}
        found = {merchant_id: answer for task in tasks for merchant_id, answer in (await asyncio.shield(task)).items()}
        return [known[merchant_id] or found[merchant_id] for merchant_id in merchant_ids]

    async def totals(self) -> Totals:
        """How many merchants' plugins may run, and what they have; straight from the store."""
        now = self._clock()
        threshold = self._policy.default_threshold
        settled = await self._store.all_accounts(now, threshold)
        due = [
            standing_at(held.account, held.grants, self._policy, now) for held in await self._store.due_accounts(now)
        ]
        count = settled.accounts + len(due)
        balances = settled.average_balance * settled.accounts + sum(standing.account.balance for standing in due)
        statuses = Counter(standing.status for standing in due)
        exhausted = settled.exhausted + statuses["EXHAUSTED"]
        return Totals(
            count, count - exhausted, exhausted, settled.low + statuses["LOW"], balances / count if count else 0
        )

    def committed(self, accounts: Iterable[Account]) -> None:
        """Postings were committed: bring the answers up to date that are remembered, or being asked for."""
        now = self._clock()
        for account in accounts:
            if account.merchant_id in self._known or account.merchant_id in self._asking:
                self._remember(self._of_account(account, now))

    async def _load(self, merchant_ids: Sequence[UUID]) -> dict[UUID, Answer]:
        now = self._clock()
        try:
            held = await self._store.held(merchant_ids, now)
        except StorageError:
            return {merchant_id: self._unavailable(merchant_id, now) for merchant_id in merchant_ids}
        else:
            return {merchant_id: self._remember(self._found(merchant_id, held, now)) for merchant_id in merchant_ids}
        finally:
            # Up to here a posting that is committed meanwhile tells its own answer, and that is the one to keep.
            for merchant_id in merchant_ids:
                del self._asking[merchant_id]

    def _found(self, merchant_id: UUID, held: Mapping[UUID, Held], now: int) -> Answer:
        entry = held.get(merchant_id)
        if entry is None:
            return Answer(merchant_id, "disabled", "unknown_merchant", now, now + self._ttl, _NO_ACCOUNT)
        standing = standing_at(entry.account, entry.grants, self._policy, now)
        return self._of_account(standing.account, now)._replace(version=_version(entry.account))

    def _of_account(self, account: Account, now: int) -> Answer:
        until = now + self._ttl if account.next_due_at is None else min(now + self._ttl, account.next_due_at)
        available = account.available
        reason: Reason = "available" if available > 0 else "exhausted"
        return Answer(account.merchant_id, plugin_status(available), reason, now, until, _version(account))

    def _remember(self, answer: Answer) -> Answer:
        """Keep an answer, unless a later one is known: a late fill must not undo what a posting told."""
        known = self._known.get(answer.merchant_id)
        if known is not None and known.version > answer.version:
            return known
        answer = self._known[answer.merchant_id] = self._rendered(answer)
        self._known.move_to_end(answer.merchant_id)
        if len(self._known) > self._size:
            self._known.popitem(last=False)
        return answer

    def _rendered(self, answer: Answer) -> Answer:
        return answer._replace(rendered=self._render(answer))

    def _unavailable(self, merchant_id: UUID, now: int) -> Answer:
        known = self._known.get(merchant_id)
        if known is not None and now - known.as_of <= self._stale:
            answer = known._replace(reason="unavailable")
        else:
            answer = Answer(merchant_id, self._fail_status, "unavailable", now, now, _NO_ACCOUNT)
        return self._rendered(answer)


def _version(account: Account) -> Version:
    return (account.settled_at, account.sequence, account.announced)


def shape(answer: Answer) -> dict[str, Any]:
    """What a batch of questions is told of one merchant."""
    return {"status": answer.status, "reason": answer.reason}
