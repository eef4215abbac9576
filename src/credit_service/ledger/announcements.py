"""Announcements of accounts, grants and episodes of low credits (L9). `types.py` has those of transaction types."""

from typing import TYPE_CHECKING, Final

from credit_service.ledger.account import EXHAUSTED_ANNOUNCED, LOW_ANNOUNCED, NO_EPISODE, Status
from credit_service.ledger.types import ANNOUNCED

if TYPE_CHECKING:
    from credit_service.ledger.draft import Draft

ACCOUNT_CREATED: Final = "account.created"
EXPIRING_SOON: Final = "expiring_soon"
LOW_BALANCE_REACHED: Final = "low_balance_reached"
BALANCE_EXHAUSTED: Final = "balance_exhausted"
BALANCE_RESTORED: Final = "balance_restored"
PLUGIN_STATUS_CHANGED: Final = "plugin_status_changed"

OF_A_TRANSACTION: Final = frozenset(ANNOUNCED)
"""Every transaction has exactly one of these announcements."""


def status_of(available: int, threshold: int) -> Status:
    """The status of an account with these available credits and this low threshold."""
    if available <= 0:
        return "EXHAUSTED"
    return "LOW" if available <= threshold else "ACTIVE"


def plugin_status(available: int) -> str:
    """Whether the plugin may run."""
    return "enabled" if available > 0 else "disabled"


def announce_level(draft: "Draft", cause: int | None = None, *, threshold_moved: bool = False) -> None:
    """Announce the effect of the last change on the level of available credits (L9).

    `cause`: sequence of the transaction that made the change; None if time or a setting made it.

    An episode begins when a change lowers available credits or moves the threshold, and they are then at or below the
    threshold. It ends when they are above it. An episode announces low and exhausted at most once each.
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
