"""When a webhook is sent again, and when an endpoint that fails is spared. Pure: times come in, decisions go out."""

from typing import Final

from credit_service.ledger.account import MICROSECONDS
from credit_service.outlets.webhook_client import Answered
from credit_service.storage.webhooks import WebhookDelivery

_MINUTE, _HOUR = 60, 3600
PAUSES_SECONDS: Final = (
    *(5, 30, 2 * _MINUTE, 10 * _MINUTE),
    *(1 * _HOUR, 3 * _HOUR, 6 * _HOUR, 12 * _HOUR, 24 * _HOUR, 24 * _HOUR),
)
"""How long to wait after the first attempt that failed, the second, and so on; after the last it is given up."""
JITTER: Final = 0.2
"""By how much of itself a pause is longer or shorter, so that what failed together does not come back together."""
LONGEST_WAIT_SECONDS: Final = 24 * _HOUR
"""How long an endpoint may ask us to wait (Retry-After)."""
FAILURES: Final = 5
"""After so many in a row an endpoint is only tried, with one delivery at a time, until one arrives."""
PROBE_SECONDS: Final = (10, 30, 60, 120, 300)
"""How long to wait for the next try, after each that failed; the last of them from then on."""


def after(delivery: WebhookDelivery, answered: Answered, now: int, luck: float) -> WebhookDelivery:
    """A delivery after one more attempt. `now` in microseconds; `luck` from -1 to 1 lengthens or shortens the pause.

    A test is sent once: whoever asked for it wants to know what came of it.
    """
    attempts = delivery.attempts + 1
    tried = delivery._replace(attempts=attempts, status=answered.status, error=answered.error)
    pauses = () if delivery.account is None else PAUSES_SECONDS
    if answered.error is None:
        return tried._replace(state="delivered", next_at=None, ended_at=now)
    if attempts > len(pauses):
        return tried._replace(state="failed", next_at=None, ended_at=now)
    pause = max(pauses[attempts - 1] * (1 + JITTER * luck), asked_to_wait(answered))
    return tried._replace(next_at=now + round(pause * MICROSECONDS))


def asked_to_wait(answered: Answered) -> float:
    """Seconds for which an endpoint wants nothing: Retry-After, within reason."""
    return min(answered.retry_after_seconds or 0.0, LONGEST_WAIT_SECONDS)


class Breaker:
    """Counts what failed in a row at one endpoint, and tells how much may be sent to it at once."""

    def __init__(self) -> None:
        self._failures = 0
        self._next_at = 0

    def room(self, now: int, most: int) -> int:
        """How many may be sent at once now: `most`, one as a try, or none."""
        if now < self._next_at:
            return 0
        return most if self._failures < FAILURES else 1

    def note(self, answered: Answered, now: int) -> None:
        """Learn what came of one."""
        if answered.error is None:
            self._failures, self._next_at = 0, 0
            return
        wait = asked_to_wait(answered) if answered.status in (429, 503) else 0.0
        was_under_way = self._failures >= FAILURES and now < self._next_at  # when it came to this, and says no more
        if not was_under_way:
            self._failures += 1
            if self._failures >= FAILURES:
                wait = max(wait, PROBE_SECONDS[min(self._failures - FAILURES, len(PROBE_SECONDS) - 1)])
        if wait:
            self._next_at = max(self._next_at, now + round(wait * MICROSECONDS))
