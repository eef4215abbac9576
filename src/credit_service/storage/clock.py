"""The time of postings, protected from a wall clock that jumps.

The wall clock decides what expires, and an expiry is for good. So each reading is compared with the steady clock of
this machine: nobody can set that one. A reading that differs from it by more than a minute is refused, until the wall
clock is right again or the service is restarted (docs/decisions/0034-a-clock-that-jumps.md).
"""

import time
from collections.abc import Callable
from typing import Final

import structlog

from credit_service.ledger.account import MICROSECONDS
from credit_service.storage.engine import StorageUnavailable

MOST_SECONDS: Final = 60
"""A larger difference from the steady clock is a jump."""
_DRIFT: Final = 1_000
"""Two clocks may drift apart by one part in so many, which is no jump."""
_STEADY: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # the first one also counts while asleep
_log = structlog.get_logger()


class ClockMoved(StorageUnavailable):
    """The wall clock jumped, so nothing is posted: nothing was done."""


def steady_micros() -> int:
    """Microseconds by a clock that cannot be set."""
    return time.clock_gettime_ns(_STEADY) // 1000


def wall_micros() -> int:
    """Microseconds since 1970 by the clock of this machine."""
    return time.time_ns() // 1000


class Clock:
    """A clock in microseconds since 1970 whose readings are checked; `whose` names it in messages.

    `fixed` replaces it in tests, unchecked. `fault` says how far it jumped, if it did.
    """

    def __init__(self, whose: str, fixed: Callable[[], int] | None = None) -> None:
        self.fixed = fixed
        self.fault: str | None = None
        self._whose = whose
        self._reference: int | None = None  # difference from the steady clock that later readings should have
        self._offset = wall_micros() - steady_micros()  # the same of the last good reading
        self._checked_at = 0

    def estimate(self) -> int:
        """The time now, by the steady clock since the last good reading: it never jumps."""
        return self.fixed() if self.fixed is not None else steady_micros() + self._offset

    def read(self) -> int:
        """The time of this machine. Raises ClockMoved."""
        return self.fixed() if self.fixed is not None else self.checked(wall_micros())

    def checked(self, now: int, *, exact: bool = True) -> int:
        """Return a reading of the clock. Raises ClockMoved if it jumped. `exact`: estimates may rest on it."""
        steady = steady_micros()
        offset = now - steady
        if self._reference is None:
            self._reference = offset
        else:
            moved = offset - self._reference
            if abs(moved) > MOST_SECONDS * MICROSECONDS:
                raise ClockMoved(self._moved(moved / MICROSECONDS))
            drift = (steady - self._checked_at) // _DRIFT
            self._reference += max(-drift, min(moved, drift))
        self._checked_at = steady
        if exact:
            self._offset = offset
        if self.fault is not None:
            _log.warning("clock_is_back", clock=self._whose)
            self.fault = None
        return now

    def _moved(self, seconds: float) -> str:
        if self.fault is None:
            _log.error("clock_moved", clock=self._whose, seconds=round(seconds))
        where = "ahead of" if seconds > 0 else "behind"
        self.fault = f"The clock of {self._whose} jumped: it is {abs(seconds):.0f} seconds {where} its steady time."
        return f"{self.fault} Nothing is posted until it is back, or the service is restarted."
