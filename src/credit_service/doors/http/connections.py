"""How many connections may be open at once, in all and of each address."""

from collections import Counter
from collections.abc import Callable

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
        self._open -= 1
        caller = bucket(address)
        self._of_address[caller] -= 1
        if not self._of_address[caller]:
            del self._of_address[caller]

    @property
    def may_tell(self) -> bool:
        """Whether a connection without room is told so, which takes a moment."""
        return self._open <= self._most + _TOLD
