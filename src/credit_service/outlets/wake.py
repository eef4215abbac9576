"""Signals that end the waits of readers as soon as something was posted.

A signal may be lost, and other processes post as well, so readers also poll.
"""

import asyncio
from typing import Final

from credit_service.ledger.announcements import BALANCE_EXHAUSTED, PLUGIN_STATUS_CHANGED
from credit_service.outlets.fresh import Fresh
from credit_service.storage.engine import Committed

URGENT: Final = frozenset({PLUGIN_STATUS_CHANGED, BALANCE_EXHAUSTED})
"""Announcements that must reach their receivers soon: a plugin runs that may not, or the other way round."""


class Signal:
    """Counts how often it was sent, and wakes all tasks that wait for the next time. Of one event loop."""

    def __init__(self) -> None:
        self.count = 0
        self._next: asyncio.Future[None] | None = None

    def send(self) -> None:
        """Wake all waiting tasks."""
        self.count += 1
        if self._next is not None:
            self._next.set_result(None)
            self._next = None

    async def wait(self, seen: int, seconds: float) -> bool:
        """Wait until the count is above `seen`, at most `seconds`; False if it is not.

        Take `count` as `seen` before you read: whatever is posted while you read then wakes you at once.
        """
        if self.count == seen:
            if self._next is None:
                self._next = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._next], timeout=seconds)
        return self.count != seen


class Wake(Signal):
    """Sent with each commit of this process. Keeps what the commits announced in `fresh`.

    `urgent` is sent when an announcement must leave soon, by this process or by another one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.urgent = Signal()
        self.elsewhere = 0  # urgent announcements of other processes
        self.fresh = Fresh()

    def committed(self, committed: Committed) -> None:
        """Keep the announcements of a commit, and wake the readers."""
        self.fresh.keep(committed)
        self.send()
        if any(announcement.type in URGENT for _, announcement in committed.writes.announcements):
            self.urgent.send()

    def committed_elsewhere(self) -> None:
        """Wake the readers for an urgent announcement of another process, which only the outbox has."""
        self.elsewhere += 1
        self.send()
        self.urgent.send()
