"""When a webhook is sent again, and when a failing endpoint is left alone. Pure: times come in, decisions go out."""

from typing import Final

from credit_service.breaker import Breaker
from credit_service.ledger.account import MICROSECONDS
from credit_service.outlets.webhook_client import Answered
from credit_service.storage.webhooks import WebhookDelivery

_MINUTE, _HOUR = 60, 3600
PAUSES_SECONDS: Final = (
    *(5, 30, 2 * _MINUTE, 10 * _MINUTE),
    *(1 * _HOUR, 3 * _HOUR, 6 * _HOUR, 12 * _HOUR, 24 * _HOUR, 24 * _HOUR),
)
"""The pause after the first failed attempt, the second, and so on; after the last one the delivery has failed."""
JITTER: Final = 0.2
"""By which part of itself a pause is longer or shorter, so that deliveries that failed together spread out."""
LONGEST_WAIT_SECONDS: Final = 24 * _HOUR
"""The longest Retry-After that is respected."""
FAILURES: Final = 5
"""After so many failures in a row an endpoint gets one delivery at a time, until one succeeds."""
PROBE_SECONDS: Final = (10, 30, 60, 120, 300)
"""The pause after each failed try; the last one also counts for all that follow."""


def after(delivery: WebhookDelivery, answered: Answered, now: int, luck: float) -> WebhookDelivery:
    """A delivery after one more attempt. `now` in microseconds; `luck` from -1 to 1 lengthens or shortens the pause.

    A test is sent once, because its caller wants to see the result.
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
    """The seconds that an endpoint asks us to wait (Retry-After), up to a limit."""
    return min(answered.retry_after_seconds or 0.0, LONGEST_WAIT_SECONDS)


def room(breaker: Breaker, now: int, most: int) -> int:
    """How many deliveries may be sent to an endpoint at once: `most`, one as a try, or none."""
    return {"closed": most, "half-open": 1, "open": 0}[breaker.state(now / MICROSECONDS)]


def note(breaker: Breaker, answered: Answered, now: int) -> None:
    """Note the answer to one delivery in the breaker of its endpoint."""
    if answered.error is None:
        breaker.succeed()
    else:
        breaker.fail(now / MICROSECONDS, wait=asked_to_wait(answered) if answered.status in (429, 503) else 0.0)
