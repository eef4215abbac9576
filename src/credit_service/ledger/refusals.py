"""Every refusal of the ledger, in the order of the checks, each with its code and one sentence.

The order is part of the contract (L3): the doors check the syntax, then the ledger checks account, key, existence,
state, time, balance, range. A refusal writes nothing and leaves its key free.
"""

from enum import Enum
from typing import Any, NamedTuple


class Refusal(Enum):
    """A reason to refuse, as (code, sentence). Members stand in order of precedence."""

    # account
    ACCOUNT_NOT_FOUND = ("account_not_found", "This merchant has no account.")
    # key
    KEY_REUSED = ("idempotency_key_reused", "This idempotency key was used before, with other content.")
    # existence; the last two are for a refund whose wait is over
    TRANSACTION_NOT_FOUND = ("transaction_not_found", "There is no transaction of this id.")
    GRANT_NOT_FOUND = ("grant_not_found", "This merchant has no such grant.")
    ORDER_UNKNOWN = ("order_unknown", "The refund waited for an order that never arrived.")
    PAYMENT_UNKNOWN = ("payment_unknown", "The refund waited for a payment that never arrived.")
    # state
    ACCOUNT_CLOSED = ("account_closed", "This account is closed.")
    ACCOUNT_FROZEN = ("account_frozen", "This account is frozen: nothing can be spent until it is thawed.")
    ACCOUNT_NOT_EMPTY = ("account_not_empty", "The account has credits or a debt. Credits can be forfeited.")
    NOT_REVERSIBLE = ("not_reversible", "A transaction of this type cannot be reversed.")
    ALREADY_REVERSED = ("already_reversed", "The transaction has fewer credits left to reverse, or none.")
    TRIAL_ALREADY_GRANTED = ("trial_already_granted", "A merchant has one trial, and this one was granted before.")
    CURRENCY_MISMATCH = ("currency_mismatch", "The refund is in another currency than the order it refunds.")
    ORDER_HAS_NO_TOTAL = (
        "validation_failed",
        "The order came without a total, so its refund must say order_total or credits.",
    )
    # time
    GRANT_ALREADY_EXPIRED = ("validation_failed", "expires_at lies in the past, so the credits could never be spent.")
    GRANT_NEVER_EFFECTIVE = ("validation_failed", "expires_at must be later than effective_at.")
    # balance
    INSUFFICIENT_CREDITS = ("insufficient_credits", "Not enough credits are available.")
    # range
    OUT_OF_RANGE = ("amount_out_of_range", "The posting would take the account beyond 2^53-1 credits.")

    @property
    def code(self) -> str:
        """The name of this refusal for callers; the list of codes is closed."""
        return self.value[0]

    @property
    def sentence(self) -> str:
        """The reason, for a person."""
        return self.value[1]


class Refused(NamedTuple):
    """An outcome: the ledger posted nothing. `detail` has the numbers for a program (available, required)."""

    refusal: Refusal
    detail: dict[str, Any] = {}  # noqa: RUF012 - a NamedTuple default is never written to

    @property
    def pointer(self) -> str | None:
        """The wrong part of the request, as a JSON Pointer (RFC 6901), if it is one part."""
        return self.detail.get("pointer")
