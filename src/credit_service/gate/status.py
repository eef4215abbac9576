"""Plugin status from a near cache, with the store behind it.

A cached answer lives until its TTL or the account's next due instant, whichever is sooner. A posting in this process
replaces it at once. Concurrent misses of one merchant ask the store once. With the store away, the last known answer
counts for a while, then the fail policy; `reason` says `unavailable`.
"""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple
from uuid import UUID

from credit_service.ledger.account import MICROSECONDS, Account
from credit_service.ledger.announcements import plugin_status
from credit_service.ledger.policy import Policy
from credit_service.ledger.settle import standing_at
from credit_service.storage.base import StorageError, Store

Reason = Literal["available", "exhausted", "unknown_merchant", "unavailable"]


class Answer(NamedTuple):
    """A merchant's plugin status. `as_of` is when it was known, `until` when it must be asked again (microseconds)."""

    merchant_id: UUID
    status: str
    reason: Reason
    as_of: int
    until: int
    version: int  # the account's settled_at: a later posting has a higher one
    rendered: bytes = b""


class Gate:
    """Answers plugin status.

    `render` turns an answer into the bytes that a door sends, once for each answer and not for each question. Spans in
    seconds; `clock` gives microseconds since 1970.
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
        render: Callable[[Answer], bytes] = lambda answer: b"",
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
        self._asking: dict[UUID, asyncio.Task[Answer]] = {}
        self._loading: Counter[UUID] = Counter()

    def cached(self, merchant_id: UUID) -> Answer | None:
        """The answer, if it is known and still good."""
        known = self._known.get(merchant_id)
        return known if known is not None and known.until > self._clock() else None

    async def ask(self, merchant_id: UUID) -> Answer:
        """The answer for one merchant, whatever is away."""
        known = self.cached(merchant_id)
        if known is not None:
            return known
        asking = self._asking.get(merchant_id)
        if asking is None:
            asking = asyncio.get_running_loop().create_task(self._ask_one(merchant_id))
            self._asking[merchant_id] = asking
            asking.add_done_callback(lambda _: self._asking.pop(merchant_id, None))
        return await asyncio.shield(asking)

    async def ask_many(self, merchant_ids: Sequence[UUID]) -> list[Answer]:
        """The answers for many merchants, in their order; those not known are asked of the store in one question."""
        known = {merchant_id: self.cached(merchant_id) for merchant_id in merchant_ids}
        missing = [merchant_id for merchant_id, answer in known.items() if answer is None]
        fresh = await self._load(missing) if missing else {}
        return [known[merchant_id] or fresh[merchant_id] for merchant_id in merchant_ids]

    def committed(self, accounts: Iterable[Account]) -> None:
        """Postings were committed: bring the answers up to date that are remembered, or being asked for."""
        now = self._clock()
        for account in accounts:
            if account.merchant_id in self._known or account.merchant_id in self._loading:
                self._remember(self._of_account(account, now))

    async def _ask_one(self, merchant_id: UUID) -> Answer:
        return (await self._load([merchant_id]))[merchant_id]

    async def _load(self, merchant_ids: Sequence[UUID]) -> dict[UUID, Answer]:
        now = self._clock()
        self._loading.update(merchant_ids)
        try:
            held = await self._store.held(merchant_ids, now)
        except StorageError:
            return {merchant_id: self._unavailable(merchant_id, now) for merchant_id in merchant_ids}
        finally:
            self._loading.subtract(merchant_ids)
            self._loading += Counter()  # forgets those at zero
        found = {}
        for merchant_id in merchant_ids:
            entry = held.get(merchant_id)
            if entry is None:
                answer = Answer(merchant_id, "disabled", "unknown_merchant", now, now + self._ttl, -1)
            else:
                standing = standing_at(entry.account, entry.grants, self._policy, now)
                answer = self._of_account(standing.account, now)._replace(version=entry.account.settled_at)
            found[merchant_id] = self._remember(answer)
        return found

    def _of_account(self, account: Account, now: int) -> Answer:
        until = now + self._ttl if account.next_due_at is None else min(now + self._ttl, account.next_due_at)
        available = account.available
        reason: Reason = "available" if available > 0 else "exhausted"
        return Answer(account.merchant_id, plugin_status(available), reason, now, until, account.settled_at)

    def _remember(self, answer: Answer) -> Answer:
        """Keep an answer, unless a later one is known: a late fill must not undo what a posting told."""
        known = self._known.get(answer.merchant_id)
        if known is not None and known.version > answer.version:
            return known
        answer = self._rendered(answer)
        self._known[answer.merchant_id] = answer
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
            answer = Answer(merchant_id, self._fail_status, "unavailable", now, now, -1)
        return self._rendered(answer)


def shape(answer: Answer) -> dict[str, Any]:
    """What a batch of questions is told of one merchant."""
    return {"status": answer.status, "reason": answer.reason}
