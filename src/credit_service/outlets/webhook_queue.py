"""What is sent to one endpoint: a few at once, each account's in their order, and hardly anything while it fails.

An endpoint has a queue of its own, so that one that is slow holds up nobody else. What was sent is noted afterwards: a
crash in between sends it again with the same id, by which receivers know it.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import structlog

from credit_service.breaker import Breaker
from credit_service.ledger.account import DAY
from credit_service.messages import webhooks as messages
from credit_service.outlets import retries
from credit_service.outlets.webhook_client import Answered, Client, headers
from credit_service.storage.outbox import StoredEvent
from credit_service.storage.webhooks import DueDeliveries, WebhookDelivery, WebhookEndpoint, WebhookEndpoints

AT_ONCE: Final = 10
"""Deliveries under way to one endpoint."""
BATCH: Final = 100
GONE: Final = 410
FAILING_DAYS: Final = 5
"""After so long without a delivery that arrived, but some that failed, an endpoint is disabled."""
_log = structlog.get_logger()
Due = tuple[WebhookDelivery, StoredEvent | None]


class Means(NamedTuple):
    """What every queue sends with. `told` hears of each attempt; `luck` draws from -1 to 1."""

    endpoints: WebhookEndpoints
    client: Client
    notes: "Notes"
    source: str
    told: Callable[[WebhookDelivery], None]
    luck: Callable[[], float] = lambda: random.uniform(-1, 1)  # noqa: S311 - jitter, not a secret


class Notes:
    """Notes what came of deliveries, all that wait in one transaction: each alone would be a commit of its own."""

    def __init__(self, endpoints: WebhookEndpoints) -> None:
        self._endpoints = endpoints
        self._waiting: list[WebhookDelivery] = []
        self._turn = asyncio.Lock()

    async def note(self, delivery: WebhookDelivery) -> None:
        """Return once it is noted. Raises StorageError, and notes it with the next."""
        self._waiting.append(delivery)
        async with self._turn:
            some, self._waiting = self._waiting, []
            if some:
                try:
                    await self._endpoints.note_attempts(some)
                except BaseException:
                    self._waiting = some + self._waiting
                    raise


class Queue:
    """Sends to one endpoint. `endpoint` is brought up to date by whoever keeps the queues."""

    def __init__(self, endpoint: WebhookEndpoint, means: Means) -> None:
        self.endpoint = endpoint
        self._means = means
        self._breaker = Breaker(retries.FAILURES, retries.PROBE_SECONDS)

    async def send_due(self) -> None:
        """Send what is due, until nothing is, or the endpoint had better be left alone. Raises StorageError."""
        endpoints = self._means.endpoints
        while True:
            now = await endpoints.now()
            room = 0 if self.endpoint.disabled_at is not None else retries.room(self._breaker, now, AT_ONCE)
            limit = BATCH if room > 1 else 1
            found = await endpoints.due_deliveries(self.endpoint.id, now, limit, requested=not room)
            if found is None or not found.due:
                return
            await self._send(found, room)

    async def _send(self, found: DueDeliveries, room: int) -> None:
        """Send these, so many at once; those of one account one after the other."""
        by_account: dict[Any, list[Due]] = {}
        for delivery, event in found.due:
            by_account.setdefault(delivery.account or (delivery.number,), []).append((delivery, event))
        waiting = list(by_account.values())[::-1]

        async def send_on() -> None:
            while waiting:
                for delivery, event in waiting.pop():
                    if await self._may_go(delivery, room):
                        await self._send_one(found, delivery, event)

        ended = await asyncio.gather(*[send_on() for _ in waiting[: room or 1]], return_exceptions=True)
        for failure in ended:
            if failure is not None:
                raise failure

    async def _may_go(self, delivery: WebhookDelivery, room: int) -> bool:
        """Whether nothing has happened meanwhile that leaves a delivery for later: it stays due."""
        if delivery.is_requested:
            return True
        return (
            self.endpoint.disabled_at is None
            and retries.room(self._breaker, await self._means.endpoints.now(), AT_ONCE) >= room
        )

    async def _send_one(self, found: DueDeliveries, delivery: WebhookDelivery, event: StoredEvent | None) -> None:
        means = self._means
        message_id, body = messages.message(delivery, event, means.source)
        signed = headers(message_id, body, found.secrets, await means.endpoints.now())
        answered = await means.client.send(found.url, body, signed)
        now = await means.endpoints.now()
        retries.note(self._breaker, answered, now)
        tried = retries.after(delivery, answered, now, means.luck())
        means.told(tried)
        await means.notes.note(tried)
        await self._judge(tried, answered, now)

    async def _judge(self, tried: WebhookDelivery, answered: Answered, now: int) -> None:
        """Note since when the endpoint fails, and disable it where it is gone, or has failed for too long."""
        since = self.endpoint.failing_since
        if answered.status == GONE:
            await self._disable("It answered 410: it is gone.", now)
        elif tried.account is None:  # a test says nothing about what is sent otherwise
            return
        elif answered.error is None:
            if since is not None:
                await self._change(failing_since=None)
        elif since is None:
            await self._change(failing_since=now)
        elif now - since > FAILING_DAYS * DAY:
            await self._disable(f"Nothing that was sent to it in {FAILING_DAYS} days arrived.", now)

    async def _disable(self, reason: str, now: int) -> None:
        if self.endpoint.disabled_at is None:
            await self._change(disabled_at=now, disabled_reason=reason)
            _log.warning("webhook_endpoint_disabled", endpoint=self.endpoint.id, reason=reason)

    async def _change(self, **changed: Any) -> None:
        self.endpoint = self.endpoint._replace(**changed)
        await self._means.endpoints.change(self.endpoint.id, **changed)
