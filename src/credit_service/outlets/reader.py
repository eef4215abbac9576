"""A reader of the outbox: takes what was announced, page after page, to somebody outside.

Any number of processes may run the same reader; one of them holds its cursor and delivers, the others wait for it to
let go or to die (docs/decisions/0012-cursors-into-the-outbox.md). How events reach their receiver is left to `deliver`;
that none is lost on the way is kept here: the cursor moves only behind what was delivered. After a crash, or a pause
longer than the lease, the same events are delivered again.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from secrets import token_hex
from typing import Any, NoReturn

from credit_service.ledger.account import MICROSECONDS
from credit_service.outlets.wake import Wake
from credit_service.rounds import NotNow, keep_doing
from credit_service.storage.engine import StorageError
from credit_service.storage.outbox import Claim, Outbox, Position, StoredEvent

LEASE_SECONDS = 5.0
"""How long a reader that died keeps others from its cursor."""

_POLL_SECONDS = 1.0  # for what another process has posted
_GATHER_SECONDS = 0.02  # so that many small postings are one page
_GATHER_MORE_SECONDS = 0.5  # while they come in without end: a page costs as much as dozens of its events
_MANY = 50  # events that were just posted, and gathered for so short: there will be more
_COMPARED = 50  # events of the outbox, where all seems to be at hand: what others posted and nobody read comes first
_REST_FOR_WORK = 14.0  # of reading: so that where this process posts, well over nine tenths of the time are for that
_LATE_SECONDS = 10.0  # of the oldest event: from then on half of the time, so that who must know is told
_LONGEST_REST_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 5.0  # so that what waited is published as soon as the receiver is back
_LET_GO_SECONDS = 2.0

Deliver = Callable[[Sequence[StoredEvent]], Coroutine[Any, Any, None]]
"""Brings events to their receiver, in this order; it may be cancelled. Raises Undelivered where it cannot."""


class Undelivered(NotNow):
    """The receiver did not take all events. `delivered`: how many it took, from the first one on."""

    def __init__(self, reason: str, delivered: int = 0) -> None:
        super().__init__(reason)
        self.delivered = delivered


class _Lost(NotNow):
    """The claim is another's now."""


class Reader:
    """Reads as `name`; see `run`.

    `begin` is called each time before it starts anew, which is after a claim and after each failure, and may ask the
    receiver what it has; after it the claim is renewed, so that what it learnt is not older than our right to deliver.
    Spans in seconds; `page`: how many events are delivered at once.
    """

    def __init__(
        self,
        outbox: Outbox,
        name: str,
        deliver: Deliver,
        *,
        wake: Wake | None = None,
        begin: Callable[[], Coroutine[Any, Any, None]] | None = None,
        page: int = 500,
        lease_seconds: float = LEASE_SECONDS,
        poll_seconds: float = _POLL_SECONDS,
        longest_pause_seconds: float = _LONGEST_PAUSE_SECONDS,
    ) -> None:
        self.name = name
        self._outbox = outbox
        self._deliver = deliver
        self._wake = wake or Wake()
        self._begin = begin
        self._page = page
        self._lease_seconds = lease_seconds
        self._poll_seconds = poll_seconds
        self._longest_pause_seconds = longest_pause_seconds
        self.fault: str | None = None  # why nothing is delivered, where that is so
        self._owner = f"{socket.gethostname()}/{os.getpid()}/{token_hex(4)}"
        self._claim: Claim | None = None
        self._reached: Position = ()  # up to here all was delivered; the claim may not know yet
        self._seen = 0  # commits of this process before the page was read
        self._look_at = 0.0  # when the outbox is asked, whatever this process has at hand
        self._rest_seconds = 0.0
        self._was_full = False  # the last page, so that there may be more

    @property
    def holds(self) -> bool:
        """Whether it is this one that delivers."""
        return self._claim is not None

    async def run(self) -> NoReturn:
        """Read for ever. Cancelled, it lets another have the cursor at once."""
        try:
            await keep_doing(
                self.once,
                "outbox_reader_failed",
                self._poll_seconds,
                longest_seconds=self._longest_pause_seconds,
                rest=self._rest,
                reader=self.name,
            )
        finally:
            await self._let_go()

    async def once(self) -> bool:
        """Deliver the next page; True where there may be more. Raises Undelivered and StorageError."""
        try:
            more = (self._claim is not None or await self._claimed()) and await self._next_page()
        except _Lost:
            self._wake.fresh.forget()
            return False
        except BaseException as error:
            self.fault = str(error) or type(error).__name__
            # Whoever else can reach the receiver may try, and what was under way is unknown: so begin anew.
            await self._let_go()
            raise
        self.fault = None
        return more

    async def lag_seconds(self) -> float:
        """How long the oldest event has waited that was not delivered, by whatever process. Raises StorageError."""
        positions = {cursor.reader: cursor.position for cursor in await self._outbox.cursors()}
        position = self._reached if self.holds else positions.get(self.name, (0,) * self._outbox.lanes)
        oldest = await self._outbox.events(position, 1)
        return max(0, await self._outbox.now() - oldest[0].announcement.at) / MICROSECONDS if oldest else 0.0

    async def _claimed(self) -> bool:
        now = await self._outbox.now()
        self._claim = await self._outbox.claim(self.name, self._owner, now, self._lease_seconds)
        if self._claim is None:
            return False
        self._reached = self._claim.position
        if self._begin is not None:
            await self._holding(self._begin())
            await self._renew()
        return True

    async def _next_page(self) -> bool:
        before, self._seen, began = self._seen, self._wake.commits, time.perf_counter()
        events, at_hand = await self._next_events()
        self._was_full = len(events) == self._page
        if events:
            await self._holding(self._delivered(events))
        is_quiet = self._wake.commits == self._seen
        behind = sum(self._reached) - sum(self._held().position)
        now = await self._outbox.now()
        left = (self._held().leased_until - now) / MICROSECONDS
        # To move the cursor is a commit: while postings come in, not for each of many small pages. What is left of the
        # lease must last for a rest, and for the beginning of the next page.
        enough = self._lease_seconds / 2 if is_quiet else self._lease_seconds * 2 / 3
        if behind >= (1 if is_quiet else self._page) or left < enough:
            await self._renew()
        if is_quiet and not (at_hand and len(events) >= _MANY and before != self._seen):
            self._rest_seconds = _GATHER_SECONDS
            return self._was_full
        # Postings go first; and after a rest the next page is of many events.
        spent_seconds = time.perf_counter() - began
        oldest_at = min([event.announcement.at for event in events], default=None)
        is_late = oldest_at is not None and now - oldest_at > _LATE_SECONDS * MICROSECONDS
        rest_seconds = spent_seconds * (1.0 if at_hand or is_late else _REST_FOR_WORK)
        least = _GATHER_MORE_SECONDS if at_hand and not is_late else _GATHER_SECONDS
        self._rest_seconds = min(max(least, rest_seconds), _LONGEST_REST_SECONDS)
        return False

    async def _next_events(self) -> tuple[Sequence[StoredEvent], bool]:
        """What follows, and whether it is at hand; now and then the outbox is asked all the same: others post, too."""
        now = asyncio.get_running_loop().time()
        if at_hand := self._wake.fresh.after(self._reached, self._page):
            if now >= self._look_at:
                first = await self._outbox.events(self._reached, _COMPARED)
                known = {event[:2]: event for event in at_hand}
                if all(known.get(event[:2]) == event for event in first):
                    self._look_at = now + self._poll_seconds
            if now < self._look_at:
                return at_hand, True
        return await self._outbox.events(self._reached, self._page), False

    async def _delivered(self, events: Sequence[StoredEvent]) -> None:
        """Deliver, and note at once how far: a stop may come at any moment."""
        try:
            await self._deliver(events)
        except Undelivered as failure:
            self._reached = position_after(self._reached, events[: failure.delivered])
            raise
        self._reached = position_after(self._reached, events)

    async def _holding(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait for what may take long, and renew the claim meanwhile; the work ends where it is another's now."""
        task = asyncio.create_task(work)
        try:
            while not (await asyncio.wait([task], timeout=self._lease_seconds / 3))[0]:
                await self._renew()
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _renew(self) -> None:
        """Note how far everything was delivered, and go on holding the claim. Raises _Lost where it is another's."""
        now = await self._outbox.now()
        self._claim = await self._outbox.advance(self._held(), self._reached, now, self._lease_seconds)
        if self._claim is None:
            raise _Lost

    def _held(self) -> Claim:
        assert self._claim is not None
        return self._claim

    async def _let_go(self) -> None:
        self._wake.fresh.forget()
        if self._claim is not None:
            with suppress(StorageError, _Lost, TimeoutError):  # then it runs out by itself
                async with asyncio.timeout(_LET_GO_SECONDS):
                    await self._renew()  # what was delivered before it came to this
                    await self._outbox.release(self._held())
            self._claim = None

    async def _rest(self, seconds: float) -> None:
        if self._claim is None:
            await asyncio.sleep(seconds)
        else:
            await asyncio.sleep(self._rest_seconds)
            if not self._was_full:
                await self._wake.wait(self._seen, seconds)


def position_after(position: Position, events: Sequence[StoredEvent]) -> Position:
    """Where the outbox is read on after these events, which were read from a position."""
    reached = list(position)
    for event in events:
        reached[event.lane] = event.id
    return tuple(reached)
