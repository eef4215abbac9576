"""The recent events of this process, in memory for its reader.

Reading an event from the outbox costs more than sending it. So a reader takes the events that directly follow its
position from memory. It reads all others from the outbox: older ones, dropped ones, and those of other processes.
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from itertools import islice
from typing import Final

from credit_service.storage.engine import Committed
from credit_service.storage.outbox import Position, StoredEvent, merged

_MOST: Final = 10_000
"""The most events in memory, of one or two kilobytes each; a reader farther behind reads the outbox."""


class Fresh:
    """The events of this process, lane by lane without a gap, from the first request on."""

    def __init__(self) -> None:
        self._lanes: defaultdict[int, deque[StoredEvent]] = defaultdict(deque)
        self._wanted = False

    def keep(self, committed: Committed) -> None:
        """Keep the events of a commit. If other processes wrote to a lane meanwhile, drop its earlier events."""
        if not self._wanted:
            return
        writes, places = committed
        transactions = {(one.account, one.sequence): one for one in writes.transactions}
        for (lane, id_), (account, told) in zip(places, writes.announcements, strict=False):
            kept = self._lanes[lane]
            if kept and kept[-1].id != id_ - 1:
                kept.clear()
            cause = None if told.sequence is None else transactions[account, told.sequence]
            kept.append(StoredEvent(lane, id_, account, writes.accounts[account].merchant_id, told, cause))
        if sum(map(len, self._lanes.values())) > _MOST:
            self._lanes.clear()

    def after(self, position: Position, limit: int) -> Sequence[StoredEvent]:
        """The known events after a position; none if the outbox has events that come before them.

        Like `Outbox.events`: each lane in its order, and lanes merged by time. Drops all events up to the position.
        """
        self._wanted = True
        found = []
        for lane, kept in self._lanes.items():
            while kept and kept[0].id <= position[lane]:
                kept.popleft()
            if kept:
                if kept[0].id != position[lane] + 1:
                    return []
                found.append(islice(kept, limit))
        return merged(found, lambda event: event.announcement.at, limit)

    def forget(self) -> None:
        """Nobody asks any more; until somebody does again."""
        self._wanted = False
        self._lanes.clear()
