"""A reader of the outbox delivers events to a receiver, page after page.

Any number of processes may run the same reader. One of them holds its cursor and delivers; the others wait until it
releases the cursor or dies (docs/decisions/0012-cursors-into-the-outbox.md). `deliver` knows how events reach the
receiver. The reader makes sure that no event is lost: the cursor moves only past delivered events. After a crash, or a
pause longer than the lease, the same events are delivered again.
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
"""How long the cursor of a dead reader stays locked for the other readers."""

_POLL_SECONDS = 1.0  # for the events of other processes
_GATHER_SECONDS = 0.02  # to get many small postings into one page
_BUSY_SECONDS = 0.5  # the same while postings flow without a pause: a page costs as much as dozens of its events
_URGENT_SECONDS = 0.12  # the least rest while postings flow, also if an urgent event is pending
_LONGEST_REST_SECONDS = 1.0
_MANY = 50  # events of one page that show that postings flow
_COMPARED = 50  # events of the outbox, to compare with those in memory: other processes post as well
_LONGEST_PAUSE_SECONDS = 5.0  # so that pending events leave soon after the receiver is back
_LET_GO_SECONDS = 2.0

Deliver = Callable[[Sequence[StoredEvent]], Coroutine[Any, Any, None]]
"""Brings events to their receiver, in this order; it may be cancelled. Raises Undelivered if it cannot."""


class Undelivered(NotNow):
    """The receiver did not accept all events. `delivered`: how many it accepted, from the first one on."""

    def __init__(self, reason: str, delivered: int = 0) -> None:
        super().__init__(reason)
        self.delivered = delivered


class _Lost(NotNow):
    """Another reader holds the claim now."""


class OutboxReader:
    """Reads as `name`; see `run`.

    `begin` runs after each claim and after each failure, and may ask the receiver for its state. The claim is renewed
    after it, so that this state is not older than the claim. `page`: how many events are delivered at once.
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
        timer: Callable[[], float] = time.perf_counter,
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
        self._timer = timer
        self._lease_seconds = lease_seconds
        self._poll_seconds = poll_seconds
        self._longest_pause_seconds = longest_pause_seconds
        self.fault: str | None = None  # why nothing is delivered, if so
        self._owner = f"{socket.gethostname()}/{os.getpid()}/{token_hex(4)}"
        self._claim: Claim | None = None
        self._reached: Position = ()  # all events up to here were delivered; the claim may not know yet
        self._seen = 0  # commits of this process before the page was read
        self._urged = 0  # urgent ones among them
        self._elsewhere = 0  # urgent events of other processes by then
        self._look_at = 0.0  # when to read the outbox although this process has events in memory
        self._rest_seconds = (0.0, 0.0)  # at least, and at most if no urgent event is posted
        self._was_full = False  # the last page, so there may be more events

    @property
    def holds(self) -> bool:
        """Whether this reader delivers."""
        return self._claim is not None

    async def run(self) -> NoReturn:
        """Read for ever. When cancelled, release the cursor for another reader at once."""
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
        """Deliver the next page; True if there may be more. Raises Undelivered and StorageError."""
        try:
            more = (self._claim is not None or await self._claimed()) and await self._next_page()
        except _Lost:
            self._wake.fresh.forget()
            return False
        except BaseException as error:
            self.fault = str(error) or type(error).__name__
            # Another process may be able to reach the receiver. What is under way is unknown, so begin anew.
            await self._let_go()
            raise
        self.fault = None
        return more

    async def lag_seconds(self) -> float:
        """How long the oldest undelivered event has been pending, whichever process delivers. Raises StorageError."""
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
        before, began = self._seen, self._timer()
        self._seen, self._urged = self._wake.count, self._wake.urgent.count
        events, at_hand = await self._next_events()
        self._was_full = len(events) == self._page
        if events:
            await self._holding(self._delivered(events))
        is_quiet = self._wake.count == self._seen
        behind = sum(self._reached) - sum(self._held().position)
        now = await self._outbox.now()
        left = (self._held().leased_until - now) / MICROSECONDS
        # Moving the cursor is a commit, so it is not moved for each small page while postings flow. The rest of the
        # lease must outlast a rest and the start of the next page.
        enough = self._lease_seconds / 2 if is_quiet else self._lease_seconds * 2 / 3
        if behind >= (1 if is_quiet else self._page) or left < enough:
            await self._renew()
        if is_quiet and not (at_hand and len(events) >= _MANY and before != self._seen):
            self._rest_seconds = (_GATHER_SECONDS, _GATHER_SECONDS)
            return self._was_full
        # Postings flow. A backlog gets half of the time; otherwise few, large pages cost the postings least.
        spent_seconds = min(self._timer() - began, _LONGEST_REST_SECONDS)
        if self._was_full:
            self._rest_seconds = (max(spent_seconds, _GATHER_SECONDS),) * 2
        else:
            self._rest_seconds = (max(spent_seconds, _URGENT_SECONDS), _BUSY_SECONDS)
        return False

    async def _next_events(self) -> tuple[Sequence[StoredEvent], bool]:
        """The next events, and whether they come from memory; a look at the outbox finds those of other processes."""
        now = asyncio.get_running_loop().time()
        if self._wake.elsewhere != self._elsewhere:
            self._elsewhere, self._look_at = self._wake.elsewhere, now
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
        """Deliver, and note the new position at once, because a stop may come at any moment."""
        try:
            await self._deliver(events)
        except Undelivered as failure:
            self._reached = position_after(self._reached, events[: failure.delivered])
            raise
        self._reached = position_after(self._reached, events)

    async def _holding(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait for work that may take long, and renew the claim meanwhile; cancel the work if the claim is lost."""
        task = asyncio.create_task(work)
        try:
            while not (await asyncio.wait([task], timeout=self._lease_seconds / 3))[0]:
                await self._renew()
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _renew(self) -> None:
        """Store the delivered position, and extend the claim. Raises _Lost if another reader holds it."""
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
            with suppress(StorageError, _Lost, TimeoutError):  # then it expires
                async with asyncio.timeout(_LET_GO_SECONDS):
                    await self._renew()  # stores what was delivered so far
                    await self._outbox.release(self._held())
            self._claim = None

    async def _rest(self, seconds: float) -> None:
        if self._claim is None:
            await asyncio.sleep(seconds)
        else:
            least, most = self._rest_seconds
            await asyncio.sleep(least)
            if most > least:
                await self._wake.urgent.wait(self._urged, most - least)
            if not self._was_full:
                await self._wake.wait(self._seen, seconds)


def position_after(position: Position, events: Sequence[StoredEvent]) -> Position:
    """The position after these events, which were read from `position`."""
    reached = list(position)
    for event in events:
        reached[event.lane] = event.id
    return tuple(reached)
