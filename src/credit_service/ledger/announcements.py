"""What a posting tells the world: each transaction's own announcement, and the episodes of low credits (L9)."""

from typing import TYPE_CHECKING, Final

from credit_service.ledger.account import (
    EXHAUSTED_ANNOUNCED,
    EXPIRY,
    LOW_ANNOUNCED,
    MANUAL,
    NO_EPISODE,
    ORDER_PAID,
    ORDER_REFUNDED,
    PAYMENT,
    PAYMENT_REFUNDED,
    SUBSCRIPTION,
    TRIAL,
    USAGE,
    Status,
    TransactionType,
)

if TYPE_CHECKING:
    from credit_service.ledger.draft import Draft

ACCOUNT_CREATED: Final = "account.created"
RECHARGED: Final = "recharged"
CONSUMED: Final = "consumed"
REFUNDED: Final = "refunded"
ADJUSTED: Final = "adjusted"
PAYMENT_TAKEN_BACK: Final = "payment_refunded"
EXPIRED: Final = "expired"
EXPIRING_SOON: Final = "expiring_soon"
LOW_BALANCE_REACHED: Final = "low_balance_reached"
BALANCE_EXHAUSTED: Final = "balance_exhausted"
BALANCE_RESTORED: Final = "balance_restored"
PLUGIN_STATUS_CHANGED: Final = "plugin_status_changed"
ORDER_REJECTED: Final = "order_rejected"

OWN: Final[dict[TransactionType, str]] = {
    TRIAL: RECHARGED,
    SUBSCRIPTION: RECHARGED,
    PAYMENT: RECHARGED,
    ORDER_PAID: CONSUMED,
    USAGE: CONSUMED,
    ORDER_REFUNDED: REFUNDED,
    MANUAL: ADJUSTED,
    PAYMENT_REFUNDED: PAYMENT_TAKEN_BACK,
    EXPIRY: EXPIRED,
}
"""The announcement each transaction has of its own; a rejected order says order_rejected instead of consumed."""

OF_A_TRANSACTION: Final = frozenset({*OWN.values(), ORDER_REJECTED})
"""The announcements of which every transaction has exactly one."""


def status_of(available: int, threshold: int) -> Status:
    """An account's status, from its available and its low threshold."""
    if available <= 0:
        return "EXHAUSTED"
    return "LOW" if available <= threshold else "ACTIVE"


def plugin_status(available: int) -> str:
    """Whether the plugin may run."""
    return "enabled" if available > 0 else "disabled"


def announce_level(draft: "Draft", cause: int | None = None, *, threshold_moved: bool = False) -> None:
    """Announce what the last change did to the level of available credits (L9).

    `cause` is the sequence of the transaction that changed it, None where time or a setting did.

    An episode begins when a change lowers available, or moves the threshold, and leaves available at or below it; it
    ends when available is above. In between, low and exhausted are announced at most once each.
    """
    before, available = draft.announced_available, draft.available
    if available > draft.threshold:
        if draft.episode != NO_EPISODE:
            draft.episode = NO_EPISODE
            draft.announce(BALANCE_RESTORED, cause, {"low_threshold": draft.threshold})
    elif draft.episode != NO_EPISODE or available < before or threshold_moved:
        if draft.episode < LOW_ANNOUNCED:
            draft.episode = LOW_ANNOUNCED
            draft.announce(LOW_BALANCE_REACHED, cause, {"low_threshold": draft.threshold})
        if available <= 0 and draft.episode < EXHAUSTED_ANNOUNCED:
            draft.episode = EXHAUSTED_ANNOUNCED
            draft.announce(BALANCE_EXHAUSTED, cause)
    if (before > 0) != (available > 0):
        draft.announce(
            PLUGIN_STATUS_CHANGED,
            cause,
            {
                "previous_status": plugin_status(before),
                "current_status": plugin_status(available),
                "reason": "available" if available > 0 else "exhausted",
            },
        )
    draft.announced_available = available
