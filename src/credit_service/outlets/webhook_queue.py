"""The queue of one webhook endpoint: a few deliveries at once, in order for each account, few while it fails.

Each endpoint has its own queue, so a slow one does not delay the others. The result of a delivery is stored after
it was sent; after a crash in between it is sent again with the same id, by which receivers recognise it.
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
"""Concurrent deliveries to one endpoint."""
BATCH: Final = 100
GONE: Final = 410
FAILING_DAYS: Final = 5
"""An endpoint is disabled after so many days with failures and no success."""
_log = structlog.get_logger()
Due = tuple[WebhookDelivery, StoredEvent | None]


class Means(NamedTuple):
    """The parts that all queues share. `told` receives each attempt; `luck` draws from -1 to 1."""

    endpoints: WebhookEndpoints
    client: Client
    notes: "Notes"
    source: str
    told: Callable[[WebhookDelivery], None]
    luck: Callable[[], float] = lambda: random.uniform(-1, 1)  # noqa: S311 - jitter, not a secret


class Notes:
    """Stores the results of deliveries, all pending ones in one transaction to save commits."""

    def __init__(self, endpoints: WebhookEndpoints) -> None:
        self._endpoints = endpoints
        self._waiting: list[WebhookDelivery] = []
        self._turn = asyncio.Lock()

    async def note(self, delivery: WebhookDelivery) -> None:
        """Return once the result is stored. Raises StorageError, and stores it with the next one."""
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
    """Sends to one endpoint. The owner of the queues keeps `endpoint` up to date."""

    def __init__(self, endpoint: WebhookEndpoint, means: Means) -> None:
        self.endpoint = endpoint
        self._means = means
        self._breaker = Breaker(retries.FAILURES, retries.PROBE_SECONDS)

    async def send_due(self) -> None:
        """Send all due deliveries, unless the endpoint must be left alone. Raises StorageError."""
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
        """Send these, `room` at once; those of one account one after the other."""
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
        """Whether a delivery may still be sent; if not, it stays due."""
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
        """Store since when the endpoint fails; disable it if it is gone or has failed for too long."""
        since = self.endpoint.failing_since
        if answered.status == GONE:
            await self._disable("It answered 410 (gone).", now)
        elif tried.account is None:  # a test delivery does not count
            return
        elif answered.error is None:
            if since is not None:
                await self._change(failing_since=None)
        elif since is None:
            await self._change(failing_since=now)
        elif now - since > FAILING_DAYS * DAY:
            await self._disable(f"All deliveries of the last {FAILING_DAYS} days failed.", now)

    async def _disable(self, reason: str, now: int) -> None:
        if self.endpoint.disabled_at is None:
            await self._change(disabled_at=now, disabled_reason=reason)
            _log.warning("webhook_endpoint_disabled", endpoint=self.endpoint.id, reason=reason)

    async def _change(self, **changed: Any) -> None:
        self.endpoint = self.endpoint._replace(**changed)
        await self._means.endpoints.change(self.endpoint.id, **changed)
