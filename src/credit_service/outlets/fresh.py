"""What this process itself announced last, at hand for whoever brings it to others.

To read an event from the outbox costs more than to send it. So a reader is given what it follows directly from here,
and asks the outbox for the rest: what was announced before anybody read, or was let go since, and what others announce.
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from itertools import islice
from typing import Final

from credit_service.storage.engine import Committed
from credit_service.storage.outbox import Position, StoredEvent, merged

_MOST: Final = 10_000
"""So many events are kept, of one or two kilobytes each; who is farther behind reads the outbox until he caught up."""


class Fresh:
    """Events of commits of this process, lane by lane without a gap, from when somebody first asks for some."""

    def __init__(self) -> None:
        self._lanes: defaultdict[int, deque[StoredEvent]] = defaultdict(deque)
        self._wanted = False

    def keep(self, committed: Committed) -> None:
        """Keep what was committed. Of a lane to which others wrote meanwhile, what was kept before is let go."""
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
        """What follows a position, and may not be all; nothing where the outbox has something that comes before.

        As `Outbox.events`: each lane in its order, and lanes merged by time. What is not after it is let go.
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
