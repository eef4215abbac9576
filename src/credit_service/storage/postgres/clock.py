"""The database's clock, estimated from this process's clock between two answers of the server."""

import time
from collections.abc import Callable
from typing import Final

TRUSTED_SECONDS: Final = 10.0
"""How long an estimate holds before the server is asked again."""
_DRIFT_SECONDS: Final = 0.1
"""If two clocks of this process drift apart by more, one of them was set or stood still."""
_ROUND_TRIP_SECONDS: Final = 0.05
"""An answer that took longer is no measurement: how old it is cannot be known."""


class DatabaseClock:
    """The clock of a database, in microseconds since 1970. `fixed` replaces it in tests."""

    def __init__(self, fixed: Callable[[], int] | None = None) -> None:
        self.fixed = fixed
        self._offset = 0  # of the database's clock from this process's
        self._measured_at = float("-inf")  # by a clock that cannot be set
        self._measured_at_time = float("-inf")  # and by the one from which the estimate is made

    @property
    def is_known(self) -> bool:
        """Whether the server told its clock lately, and this process's clock was not set since."""
        if self.fixed is not None:
            return True
        since = time.monotonic() - self._measured_at
        return since < TRUSTED_SECONDS and abs(time.time() - self._measured_at_time - since) < _DRIFT_SECONDS

    def estimate(self) -> int:
        """The database's time now, from this process's clock."""
        return self.fixed() if self.fixed is not None else time.time_ns() // 1000 + self._offset

    def measured(self, now: int, asked_at: float) -> int:
        """Take an answer of the server, asked for at `asked_at` (monotonic); returns the time of what is done then."""
        answered_at, local = time.monotonic(), time.time_ns() // 1000
        if answered_at - asked_at < _ROUND_TRIP_SECONDS:
            self._offset = now - local
            self._measured_at, self._measured_at_time = answered_at, local / 1e6
        return now if self.fixed is None else self.fixed()
