"""Rate limits, in this process: so many requests a second for each caller, with room for a burst.

A generic cell rate algorithm: of each caller only one instant is remembered, when its burst would be whole again.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from math import ceil
from typing import NamedTuple

from credit_service.doors.http.problems import Problem
from credit_service.settings import Settings

Headers = list[tuple[bytes, bytes]]


class Allowance(NamedTuple):
    """What a caller has left: requests, and seconds until the burst is whole again or the next request is allowed."""

    allowed: bool
    remaining: int
    reset_seconds: float


class Admission:
    """Who may call how often: callers with an API key by their key, others by their address."""

    def __init__(self, settings: Settings) -> None:
        self._keys = _Policy("key", settings.rate_limit_key_per_second, settings.rate_limit_key_burst)
        self._addresses = _Policy("address", settings.rate_limit_address_per_second, settings.rate_limit_address_burst)

    def key(self, key_id: str) -> Headers:
        """Count a request with a valid key; the headers that tell what is left. Raises Problem when there is none."""
        return self._keys.headers(self._keys.count(key_id))

    def address(self, address: str) -> Headers:
        """Count a request without a valid key; as `key`."""
        return self._addresses.headers(self._addresses.count(address))

    def count(self, address: str) -> None:
        """As `address`, for an answer that does not tell what is left: making headers takes longer than counting."""
        self._addresses.count(address)


class _Policy:
    """One of the limits, and how it is told: the headers of draft-ietf-httpapi-ratelimit-headers-10."""

    def __init__(self, name: str, per_second: float, burst: int) -> None:
        self._limit = RateLimit(per_second, burst)
        self._name = name.encode()
        self._policy = (b"ratelimit-policy", b'"%b";q=%d;w=%d' % (self._name, burst, ceil(burst / per_second)))

    def count(self, caller: str) -> Allowance:
        allowance = self._limit.take(caller)
        if not allowance.allowed:
            limit = self._limit
            detail = f"No more than {limit.per_second:g} requests a second, {limit.burst} at once. Wait a moment."
            told = {name.decode(): value.decode() for name, value in self.headers(allowance)}
            wait = str(max(1, ceil(allowance.reset_seconds)))
            raise Problem("rate_limited", detail, headers={**told, "Retry-After": wait})
        return allowance

    def headers(self, allowance: Allowance) -> Headers:
        left = b'"%b";r=%d;t=%d' % (self._name, allowance.remaining, ceil(allowance.reset_seconds))
        return [self._policy, (b"ratelimit", left)]


class RateLimit:
    """`per_second` requests a second, `burst` of them at once. The callers seen last are remembered, `size` of them."""

    def __init__(
        self,
        per_second: float,
        burst: int,
        *,
        size: int = 100_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.per_second = per_second
        self.burst = burst
        self._interval = 1 / per_second
        self._size = size
        self._clock = clock
        self._whole_at: OrderedDict[str, float] = OrderedDict()

    def take(self, caller: str) -> Allowance:
        """Count one request of a caller."""
        now = self._clock()
        whole_at = max(self._whole_at.get(caller, now), now) + self._interval
        wait = whole_at - now - self.burst * self._interval
        if wait > 1e-9:
            return Allowance(False, 0, wait)
        self._whole_at[caller] = whole_at
        self._whole_at.move_to_end(caller)
        if len(self._whole_at) > self._size:
            self._whole_at.popitem(last=False)
        return Allowance(True, int(self.burst - (whole_at - now) * self.per_second + 1e-6), whole_at - now)
