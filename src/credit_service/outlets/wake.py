"""Wakes those who read the outbox as soon as this process has posted something.

What other processes post is found by looking again after a while, so a wake-up may be lost; polling is the truth.
"""

import asyncio

from credit_service.outlets.fresh import Fresh
from credit_service.storage.engine import Committed


class Wake:
    """Counts the commits of this process, and keeps what they announced for who asks. Of one event loop."""

    def __init__(self) -> None:
        self.commits = 0
        self.fresh = Fresh()
        self._next: asyncio.Future[None] | None = None

    def committed(self, committed: Committed | None = None) -> None:
        """Something was posted: what, where it is known."""
        if committed is not None:
            self.fresh.keep(committed)
        self.commits += 1
        if self._next is not None:
            self._next.set_result(None)
            self._next = None

    async def wait(self, seen: int, seconds: float) -> bool:
        """Wait until there were more than `seen` commits, at most `seconds`; False where there were not.

        Take `commits` as `seen` before you read: what is posted while you do wakes you at once.
        """
        if self.commits == seen:
            if self._next is None:
                self._next = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._next], timeout=seconds)
        return self.commits != seen
