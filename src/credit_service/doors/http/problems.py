"""Errors as RFC 9457 problems. `CODES` is the closed list of codes; a test fails on any other code."""

from collections import Counter
from collections.abc import Sequence
from time import perf_counter
from typing import Any, NamedTuple

import structlog

from credit_service.ledger.refusals import Refused
from credit_service.messages.faults import Fault, Invalid
from credit_service.messages.shapes import encode
from credit_service.posting import DeadlineExceeded, Overloaded
from credit_service.storage.clock import ClockMoved
from credit_service.storage.engine import Conflict, OutcomeUnknown, StorageError

MEDIA_TYPE = b"application/problem+json"
ERRORS = "/docs/errors"
"""The page that explains each code; the `type` of a problem links to it."""

SELDOM_SECONDS = 10.0
"""Least time between two warnings of one kind, for warnings that every request would cause."""
_log = structlog.get_logger()


class Code(NamedTuple):
    """The status and the title of a code."""

    status: int
    title: str


CODES: dict[str, Code] = {
    # the request
    "bad_request": Code(400, "The request is not valid HTTP"),
    "validation_failed": Code(422, "The request is not valid"),
    "cursor_invalid": Code(422, "The cursor belongs to another query"),
    "event_type_unknown": Code(422, "The event type is unknown"),
    "idempotency_key_missing": Code(400, "The Idempotency-Key is missing"),
    "idempotency_key_invalid": Code(400, "The Idempotency-Key is not valid"),
    "unauthenticated": Code(401, "A valid API key is required"),
    "scope_missing": Code(403, "The API key lacks the scope"),
    "not_found": Code(404, "The route does not exist"),
    "method_not_allowed": Code(405, "The method is not allowed"),
    "request_timeout": Code(408, "The request arrived too slowly"),
    "body_too_large": Code(413, "The body is too large"),
    "unsupported_media_type": Code(415, "The media type is not supported"),
    "headers_too_large": Code(431, "The headers are too large"),
    # what was asked of the ledger
    "account_not_found": Code(404, "The account does not exist"),
    "transaction_not_found": Code(404, "The transaction does not exist"),
    "grant_not_found": Code(404, "The grant does not exist"),
    "endpoint_not_found": Code(404, "The webhook endpoint does not exist"),
    "key_not_found": Code(404, "The API key does not exist"),
    "shop_not_found": Code(404, "The shop is not linked"),
    "idempotency_key_reused": Code(422, "The Idempotency-Key was used before"),
    "trial_already_granted": Code(409, "The trial was granted before"),
    "currency_mismatch": Code(422, "The currencies differ"),
    "order_unknown": Code(422, "The order never arrived"),
    "payment_unknown": Code(422, "The payment never arrived"),
    "not_reversible": Code(409, "The transaction cannot be reversed"),
    "already_reversed": Code(409, "The transaction is reversed already"),
    "account_frozen": Code(403, "The account is frozen"),
    "account_closed": Code(403, "The account is closed"),
    "account_not_empty": Code(409, "The account is not empty"),
    "insufficient_credits": Code(402, "Not enough credits"),
    "amount_out_of_range": Code(422, "The amount is out of range"),
    # the service
    "rate_limited": Code(429, "Too many requests"),
    "overloaded": Code(503, "The service is busy"),
    "storage_unavailable": Code(503, "The database is unavailable"),
    "deadline_exceeded": Code(503, "The deadline has passed"),
    "outcome_unknown": Code(503, "The outcome is unknown"),
    "internal": Code(500, "Internal error"),
}


class Problem(Exception):
    """The error that answers a request. `detail` is one sentence; `more` are fields for programs."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: Sequence[Fault] = (),
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.status = CODES[code].status
        self.detail = detail
        self.errors = errors
        self.more = more
        self.headers = dict(headers or {})
        if self.status == 503:
            self.headers.setdefault("Retry-After", "1")

    def shape(self, request_id: str | None) -> dict[str, Any]:
        return {
            "type": f"{ERRORS}#{self.code}",
            "title": CODES[self.code].title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "request_id": request_id,
            **self.more,
            "errors": [fault._asdict() for fault in self.errors],
        }

    def body(self, request_id: str | None) -> bytes:
        """The problem as the body of an answer."""
        return encode(self.shape(request_id))


def of_refusal(refused: Refused, prefix: str = "") -> Problem:
    """The problem for a refusal by the ledger. `prefix` points at the item of a batch."""
    refusal = refused.refusal
    detail = dict(refused.detail)
    pointer = detail.pop("pointer", None)
    errors = [Fault(prefix + pointer, "not_allowed", refusal.sentence)] if pointer is not None else []
    more = {**detail, **({"pointer": prefix} if prefix else {})}
    return Problem(refusal.code, refusal.sentence, errors=errors, **more)


def of_faults(faults: Sequence[Fault]) -> Problem:
    """The problem that lists the faults of a request."""
    count = len(faults)
    detail = faults[0].message if count == 1 else f"The request has {count} faults; errors lists them."
    return Problem("validation_failed", detail, errors=faults)


class _Seldom:
    """Logs one warning of each kind in a while, with the number of warnings it left out.

    While the database is away every request causes a warning. A log that fills the disk would be an outage of its own.
    """

    def __init__(self) -> None:
        self._next_at: dict[str, float] = {}
        self._left_out: Counter[str] = Counter()

    def warn(self, event: str, reason: str) -> None:
        """Log a warning, unless one of its kind was logged lately."""
        now = perf_counter()
        if now < self._next_at.get(event, now):
            self._left_out[event] += 1
        else:
            _log.warning(event, reason=reason, untold_before=self._left_out.pop(event, 0))
            self._next_at[event] = now + SELDOM_SECONDS


_seldom = _Seldom()


def of_exception(error: Exception) -> Problem:
    """The problem for an exception. An unexpected one is logged, and its answer says nothing about its inside."""
    match error:
        case Problem():
            return error
        case Invalid():
            return of_faults(error.faults)
        case Overloaded():
            return Problem("overloaded", "Too many postings are waiting. Try again in a moment.")
        case DeadlineExceeded():
            return Problem(
                "deadline_exceeded", "The posting waited too long in the queue. Repeat it with the same key."
            )
        case OutcomeUnknown():
            _seldom.warn("outcome_unknown", str(error))
            detail = "It is unknown whether this was posted. Repeat the request with the same key to find out."
            return Problem("outcome_unknown", detail)
        case ClockMoved():  # logged where it was noticed
            detail = "The clock of the ledger jumped, and nothing is posted until it is back. Repeat it later."
            return Problem("storage_unavailable", detail)
        case Conflict() | StorageError():
            _seldom.warn("storage_unavailable", str(error))
            return Problem(
                "storage_unavailable",
                "The database cannot be used now. Repeat the request later, a posting with the same key.",
            )
    _log.error("internal_error", exc_info=error)
    return Problem("internal", "The service failed. Its log has this request_id.")
