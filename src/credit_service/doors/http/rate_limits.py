"""A token bucket for each caller, in this process.

The generic cell rate algorithm: for each caller it stores only the instant at which the bucket will be full again.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from math import ceil

from credit_service.doors.http.problems import Problem


class RateLimit:
    """`per_second` requests a second for each caller, `burst` of them at once; it remembers the last `size` callers.

    `name` is the policy's name in the headers of draft-ietf-httpapi-ratelimit-headers-10.
    """

    def __init__(
        self,
        name: str,
        per_second: float,
        burst: int,
        *,
        size: int = 100_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._interval = 1 / per_second
        self._per_second = per_second
        self._burst = burst
        self._burst_seconds = burst / per_second
        self._size = size
        self._clock = clock
        self._full_at: OrderedDict[str, float] = OrderedDict()
        self._name = name.encode()
        self._policy = (b"ratelimit-policy", b'"%b";q=%d;w=%d' % (self._name, burst, ceil(burst / per_second)))

    def count(self, caller: str) -> float:
        """Count one request; returns the seconds until the bucket is full. Raises Problem if the bucket is empty."""
        now = self._clock()
        known = self._full_at.get(caller)
        full_in = self._interval if known is None or known < now else known - now + self._interval
        wait = full_in - self._burst_seconds
        if wait > 1e-9:
            raise self._refused(wait)
        self._full_at[caller] = now + full_in
        if known is not None:
            self._full_at.move_to_end(caller)
        elif len(self._full_at) > self._size:
            self._full_at.popitem(last=False)
        return full_in

    def give_back(self, caller: str) -> None:
        """Undo one `count`: the request belongs to another caller."""
        if caller in self._full_at:
            self._full_at[caller] -= self._interval

    def headers(self, full_in_seconds: float) -> list[tuple[bytes, bytes]]:
        """The headers that say what is left, from the result of `count`."""
        remaining = int(self._burst - full_in_seconds * self._per_second + 1e-6)
        return [self._policy, (b"ratelimit", b'"%b";r=%d;t=%d' % (self._name, remaining, ceil(full_in_seconds)))]

    def _refused(self, wait: float) -> Problem:
        detail = f"No more than {self._per_second:g} requests a second, {self._burst} at once. Wait a moment."
        left = f'"{self._name.decode()}";r=0;t={ceil(wait)}'
        told = {self._policy[0].decode(): self._policy[1].decode(), "ratelimit": left}
        return Problem("rate_limited", detail, headers={**told, "Retry-After": str(max(1, ceil(wait)))})
