"""Outbound webhooks: each event becomes a delivery to every endpoint that subscribes to it.

Each endpoint has its own position in the outbox, so a slow one does not delay the others, and its later events stay in
the outbox. One process at a time sends webhooks. Another takes over when it stops, or is silent for longer than its
lease; deliveries under way are then sent again (docs/decisions/0021-webhooks.md).
"""

import asyncio
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from secrets import token_hex
from typing import TYPE_CHECKING, Final, NoReturn

from credit_service.ledger.account import DAY, MICROSECONDS
from credit_service.outlets.reader import LEASE_SECONDS, position_after
from credit_service.outlets.targets import Targets
from credit_service.outlets.wake import Signal
from credit_service.rounds import keep_doing
from credit_service.storage.engine import StorageError
from credit_service.storage.outbox import Claim, Outbox, Position, StoredEvent
from credit_service.storage.webhooks import Backlog, WebhookDelivery, WebhookEndpoint, WebhookEndpoints

if TYPE_CHECKING:
    from credit_service.outlets.webhook_queue import Means, Queue

READER: Final = "webhooks"
"""The name of the cursor whose lease decides which process sends."""
LOG_DAYS: Final = 30
"""How long a finished delivery is kept."""
MOST_PENDING: Final = 1000
"""With so many pending deliveries an endpoint gets no more; its later events stay in the outbox."""
_PAGE: Final = 200
_POLL_SECONDS: Final = 1.0  # for events of other processes, and for retries
_IDLE_SECONDS: Final = 5.0  # for endpoints that another process registered
_GATHER_SECONDS: Final = 0.1  # to get many events into one page, because each page is a commit
_PRUNE_SECONDS: Final = 3600
_PRUNED_AT_ONCE: Final = 1000


class Webhooks:
    """See the module. `told` receives every attempt; `source` is the service's own name (SERVICE_SOURCE)."""

    def __init__(
        self,
        endpoints: WebhookEndpoints,
        outbox: Outbox,
        targets: Targets,
        source: str,
        told: Callable[[WebhookDelivery], None] = lambda _: None,
    ) -> None:
        self.pending = 0  # deliveries, if this process sends
        self.disabled = 0  # endpoints
        self._endpoints = endpoints
        self._outbox = outbox
        self._targets = targets
        self._source = source
        self._told = told
        self._wake = Signal()
        self._seen = 0
        self._has_endpoints = False
        self._owner = f"{socket.gethostname()}/{os.getpid()}/{token_hex(4)}"
        self._claim: Claim | None = None
        self._means: Means | None = None
        self._queues: dict[str, Queue] = {}
        self._sending: dict[str, asyncio.Task[None]] = {}
        self._prune_at = 0

    async def check_target(self, url: str) -> None:
        """Raise NotAllowed unless webhooks may go to a URL."""
        await self._targets.check(url)

    def committed(self) -> None:
        """Look for new events after a commit."""
        if self._claim is not None:
            self._wake.send()

    def changed(self) -> None:
        """Look again after an endpoint or one of its deliveries changed."""
        self._wake.send()

    async def run(self) -> NoReturn:
        """Send for ever. When cancelled, let another process take over at once."""
        try:
            await keep_doing(self.once, "webhooks_failed", _POLL_SECONDS, rest=self._rest)
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Stop sending. The process that takes over sends the deliveries under way again."""
        await self._let_go()
        if self._means is not None:
            await self._means.client.close()
            self._means = None

    async def once(self) -> bool:
        """Make deliveries of new events, and start sending the due ones. True if there is more."""
        self._seen = self._wake.count
        more = await self._prune()
        endpoints = await self._endpoints.all()
        self._has_endpoints = bool(endpoints)
        self.disabled = sum([one.disabled_at is not None for one in endpoints])
        if not endpoints or not await self._holds(endpoints):
            await self._let_go()
            return more
        backlogs = await self._endpoints.backlogs()
        made, more_events = await self._make(endpoints, backlogs)
        if made:
            backlogs = await self._endpoints.backlogs()
        self.pending = sum([one.pending for one in backlogs.values()])
        failure = self._ended()
        await self._send(endpoints, backlogs)
        if failure is not None:
            raise failure
        return more or more_events

    async def _rest(self, seconds: float) -> None:
        if self._claim is not None:
            await asyncio.sleep(_GATHER_SECONDS)
        await self._wake.wait(self._seen, seconds if self._has_endpoints else _IDLE_SECONDS)

    async def _holds(self, endpoints: Sequence[WebhookEndpoint]) -> bool:
        """Whether this process sends."""
        now, claim = await self._outbox.now(), self._claim
        if claim is None:
            self._claim = await self._outbox.claim(READER, self._owner, now, LEASE_SECONDS)
        elif claim.leased_until - now < LEASE_SECONDS * MICROSECONDS / 2:
            behind = [one.position for one in endpoints if one.disabled_at is None]
            position = tuple(map(min, zip(*behind, strict=True))) if behind else claim.position
            self._claim = await self._outbox.advance(claim, position, now, LEASE_SECONDS)
        return self._claim is not None

    async def _make(self, endpoints: Sequence[WebhookEndpoint], backlogs: Mapping[str, Backlog]) -> tuple[bool, bool]:
        """Make deliveries of each endpoint's next page; whether any were made, and whether there may be more."""
        pages: dict[Position, list[StoredEvent]] = {}  # most endpoints have the same position
        made = more = False
        for endpoint in endpoints:
            has = backlogs.get(endpoint.id)
            if endpoint.disabled_at is not None or (has is not None and has.pending >= MOST_PENDING):
                continue
            if endpoint.position not in pages:
                pages[endpoint.position] = await self._outbox.events(endpoint.position, _PAGE)
            if page := pages[endpoint.position]:
                deliveries = _deliveries(endpoint, page, await self._outbox.now())
                # Does nothing if the endpoint was changed meanwhile; the next round makes them.
                done = await self._endpoints.add_deliveries(
                    endpoint, deliveries, position_after(endpoint.position, page)
                )
                made |= done and bool(deliveries)
                more |= not done or len(page) == _PAGE
        return made, more

    async def _send(self, endpoints: Sequence[WebhookEndpoint], backlogs: Mapping[str, Backlog]) -> None:
        """Let the queues send due deliveries, and end the queues of deleted endpoints."""
        # Slow to import, and many services have no endpoint.
        from credit_service.outlets.webhook_client import Client
        from credit_service.outlets.webhook_queue import Means, Notes, Queue

        if self._means is None:
            client, notes = Client(self._targets), Notes(self._endpoints)
            self._means = Means(self._endpoints, client, notes, self._source, self._told)
        now = await self._outbox.now()
        for gone in self._queues.keys() - {one.id for one in endpoints}:
            del self._queues[gone]
            if gone in self._sending:
                self._sending[gone].cancel()
        for endpoint in endpoints:
            queue = self._queues.setdefault(endpoint.id, Queue(endpoint, self._means))
            queue.endpoint = endpoint
            next_at = backlogs[endpoint.id].next_at if endpoint.id in backlogs else None
            if next_at is not None and next_at <= now and endpoint.id not in self._sending:
                self._sending[endpoint.id] = asyncio.create_task(queue.send_due(), name=f"webhook {endpoint.id}")

    def _ended(self) -> BaseException | None:
        """Forget the finished senders; returns the first failure, if any."""
        failure = None
        for endpoint_id, task in list(self._sending.items()):
            if task.done():
                del self._sending[endpoint_id]
                failure = failure or (None if task.cancelled() else task.exception())
        return failure

    async def _prune(self) -> bool:
        now = await self._outbox.now()
        if now < self._prune_at:
            return False
        more = await self._endpoints.prune(now - LOG_DAYS * DAY, _PRUNED_AT_ONCE)
        self._prune_at = now if more else now + _PRUNE_SECONDS * MICROSECONDS
        return more

    async def _let_go(self) -> None:
        """Stop sending, and let another process take over."""
        for task in self._sending.values():
            task.cancel()
        await asyncio.gather(*self._sending.values(), return_exceptions=True)
        self._sending.clear()
        self._queues.clear()
        self.pending = 0
        claim, self._claim = self._claim, None
        if claim is not None:
            with suppress(StorageError):  # then it expires
                await self._outbox.release(claim)


def _deliveries(endpoint: WebhookEndpoint, page: Sequence[StoredEvent], now: int) -> list[WebhookDelivery]:
    """A delivery of each event that the endpoint subscribes to, in their order."""
    wanted = [
        event for event in page if endpoint.event_types is None or event.announcement.type in endpoint.event_types
    ]
    return [
        WebhookDelivery(
            endpoint.id, number, event.announcement.type, event.account, event.announcement.number, now, now
        )
        for number, event in enumerate(wanted, endpoint.deliveries + 1)
    ]
