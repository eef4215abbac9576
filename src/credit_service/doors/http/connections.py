"""Limits on connections: how many at once, in all and of each address, and how long a client may read nothing."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import Protocol

from credit_service.doors.http.addresses import bucket

_TOLD = 64
"""Connections beyond the limit that are told why they are closed; more would need a limit of their own."""


class Connections:
    """Counts open connections. Connections of trusted proxies count in all, but not for their address."""

    def __init__(self, most: int, most_of_address: int, is_trusted: Callable[[str], bool] = lambda _: False) -> None:
        self._most = most
        self._most_of_address = most_of_address
        self._is_trusted = is_trusted
        self._of_address: Counter[str] = Counter()
        self._open = 0

    def open(self, address: str) -> str | None:
        """Count a new connection. Returns None if there is room for it, else why there is none."""
        self._open += 1
        caller = bucket(address)
        self._of_address[caller] += 1
        if self._open > self._most:
            return "Too many connections are open. Try again in a moment."
        if self._of_address[caller] > self._most_of_address and not self._is_trusted(address):
            return "Too many connections of this address are open. Use those that are open again."
        return None

    def close(self, address: str) -> None:
        """Count the end of a connection."""
        self._open -= 1
        caller = bucket(address)
        self._of_address[caller] -= 1
        if not self._of_address[caller]:
            del self._of_address[caller]

    @property
    def may_tell(self) -> bool:
        """Whether a connection without room is told so, which takes a moment."""
        return self._open <= self._most + _TOLD


class Writing(Protocol):
    """A connection, as far as `close_unread` looks at it."""

    def unsent_bytes(self) -> int:
        """Bytes that wait for the client to read, 0 unless the server waits for it."""
        ...

    def abort(self) -> None:
        """Close the connection and drop what was not sent."""
        ...


async def close_unread(connections: Collection[Writing], seconds: float) -> None:
    """Abort each connection whose client reads nothing for `seconds` while the server waits for it; until cancelled."""
    waiting: dict[Writing, tuple[int, float]] = {}  # bytes, and since when they are so many
    while True:
        await asyncio.sleep(seconds / 4)
        now = time.monotonic()
        before, waiting = waiting, {}
        for connection in list(connections):
            unsent = connection.unsent_bytes()
            if not unsent:
                continue
            known, since = before.get(connection, (0, now))
            if unsent != known:
                since = now
            if now - since >= seconds:
                connection.abort()
            waiting[connection] = (unsent, since)
