"""Webhooks out: each event becomes a delivery to every endpoint that wants it, and endpoints are sent theirs.

Each endpoint has its own place in the outbox: one that does not keep up makes nobody else wait, and what it has not
been sent yet stays where it is. One process at a time does this; another takes over when it stops, or has been silent
for longer than its lease. What was under way then is sent once more (docs/decisions/0021-webhooks.md).
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
"""The name of the cursor whose lease says which process sends."""
LOG_DAYS: Final = 30
"""How long a delivery that has ended is remembered."""
MOST_PENDING: Final = 1000
"""With so many pending an endpoint is given no more: what comes stays in the outbox until it takes some."""
_PAGE: Final = 200
_POLL_SECONDS: Final = 1.0  # for what another process has posted, and for what is to be sent again
_IDLE_SECONDS: Final = 5.0  # for an endpoint that another process has registered
_GATHER_SECONDS: Final = 0.1  # so that under load a page is many events, since each is a commit of its own
_PRUNE_SECONDS: Final = 3600
_PRUNED_AT_ONCE: Final = 1000


class Webhooks:
    """See the module. `told` hears of every attempt; `source` is the service's own name (SERVICE_SOURCE)."""

    def __init__(
        self,
        endpoints: WebhookEndpoints,
        outbox: Outbox,
        targets: Targets,
        source: str,
        told: Callable[[WebhookDelivery], None] = lambda _: None,
    ) -> None:
        self.pending = 0  # deliveries, while it is this process that sends
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
        """Something was posted."""
        if self._claim is not None:
            self._wake.send()

    def changed(self) -> None:
        """An endpoint was registered or changed, or something is to be sent to it."""
        self._wake.send()

    async def run(self) -> NoReturn:
        """Send for ever. Cancelled, it lets another process go on at once."""
        try:
            await keep_doing(self.once, "webhooks_failed", _POLL_SECONDS, rest=self._rest)
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Send nothing more. What is under way is given up, and sent again by whoever goes on."""
        await self._let_go()
        if self._means is not None:
            await self._means.client.close()
            self._means = None

    async def once(self) -> bool:
        """Make deliveries of what is new, and see to it that those that are due are sent. True where there is more."""
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
        """Whether it is this process that sends."""
        now, claim = await self._outbox.now(), self._claim
        if claim is None:
            self._claim = await self._outbox.claim(READER, self._owner, now, LEASE_SECONDS)
        elif claim.leased_until - now < LEASE_SECONDS * MICROSECONDS / 2:
            behind = [one.position for one in endpoints if one.disabled_at is None]
            position = tuple(map(min, zip(*behind, strict=True))) if behind else claim.position
            self._claim = await self._outbox.advance(claim, position, now, LEASE_SECONDS)
        return self._claim is not None

    async def _make(self, endpoints: Sequence[WebhookEndpoint], backlogs: Mapping[str, Backlog]) -> tuple[bool, bool]:
        """Make deliveries of the next page of events for each endpoint; whether any were made, and may be left to."""
        pages: dict[Position, list[StoredEvent]] = {}  # most endpoints stand at the same place
        made = more = False
        for endpoint in endpoints:
            has = backlogs.get(endpoint.id)
            if endpoint.disabled_at is not None or (has is not None and has.pending >= MOST_PENDING):
                continue
            if endpoint.position not in pages:
                pages[endpoint.position] = await self._outbox.events(endpoint.position, _PAGE)
            if page := pages[endpoint.position]:
                deliveries = _deliveries(endpoint, page, await self._outbox.now())
                # Where it was changed meanwhile nothing is done, and the next round makes them.
                done = await self._endpoints.add_deliveries(
                    endpoint, deliveries, position_after(endpoint.position, page)
                )
                made |= done and bool(deliveries)
                more |= not done or len(page) == _PAGE
        return made, more

    async def _send(self, endpoints: Sequence[WebhookEndpoint], backlogs: Mapping[str, Backlog]) -> None:
        """Let the queues send what is due, and end those of endpoints that were deleted."""
        # Takes long to import, and a service may never have an endpoint.
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
        """Forget who has sent all that was due; what one of them failed with, if any did."""
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
        """Stop sending, and let another process go on."""
        for task in self._sending.values():
            task.cancel()
        await asyncio.gather(*self._sending.values(), return_exceptions=True)
        self._sending.clear()
        self._queues.clear()
        self.pending = 0
        claim, self._claim = self._claim, None
        if claim is not None:
            with suppress(StorageError):  # then it runs out by itself
                await self._outbox.release(claim)


def _deliveries(endpoint: WebhookEndpoint, page: Sequence[StoredEvent], now: int) -> list[WebhookDelivery]:
    """A delivery of each event that the endpoint wants, in their order."""
    wanted = [
        event for event in page if endpoint.event_types is None or event.announcement.type in endpoint.event_types
    ]
    return [
        WebhookDelivery(
            endpoint.id, number, event.announcement.type, event.account, event.announcement.number, now, now
        )
        for number, event in enumerate(wanted, endpoint.deliveries + 1)
    ]
