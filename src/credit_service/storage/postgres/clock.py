"""The database's clock, estimated from the steady clock of this machine between two answers of the server."""

from collections.abc import Callable
from typing import Final

from credit_service.ledger.account import MICROSECONDS
from credit_service.storage import clock

TRUSTED_SECONDS: Final = 10
"""How long an estimate holds before the server is asked again."""
_ROUND_TRIP_MICROS: Final = 50_000
"""The time of a slower answer is not used for estimates, because its age is unknown."""


class DatabaseClock(clock.Clock):
    """The clock of a database, in microseconds since 1970. `fixed` replaces it in tests."""

    def __init__(self, whose: str, fixed: Callable[[], int] | None = None) -> None:
        super().__init__(whose, fixed)
        self._measured_at: int | None = None  # by the steady clock

    @property
    def is_known(self) -> bool:
        """Whether the server reported its clock lately."""
        if self.fixed is not None:
            return True
        measured_at = self._measured_at
        return measured_at is not None and clock.steady_micros() - measured_at < TRUSTED_SECONDS * MICROSECONDS

    def measured(self, now: int, asked_at: int) -> int:
        """Use the server's time, asked for at `asked_at` (steady); returns the time of a posting. Raises ClockMoved."""
        if self.fixed is not None:
            return self.fixed()
        is_exact = clock.steady_micros() - asked_at < _ROUND_TRIP_MICROS
        self.checked(now, exact=is_exact)
        if is_exact:
            self._measured_at = clock.steady_micros()
        return now
