"""Announcements of accounts, grants and episodes of low credits (L9). `types.py` has those of transaction types."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal

from credit_service.ledger.account import (
    CLOSED,
    EXHAUSTED_ANNOUNCED,
    FROZEN,
    LOW_ANNOUNCED,
    NO_EPISODE,
    OPEN,
    AccountState,
    Status,
)
from credit_service.ledger.types import ANNOUNCED

if TYPE_CHECKING:
    from credit_service.ledger.draft import Draft

PluginReason = Literal["available", "exhausted", "frozen"]

ACCOUNT_CREATED: Final = "account.created"
ACCOUNT_FROZEN: Final = "account.frozen"
ACCOUNT_THAWED: Final = "account.thawed"
ACCOUNT_CLOSED: Final = "account.closed"
EXPIRING_SOON: Final = "expiring_soon"
LOW_BALANCE_REACHED: Final = "low_balance_reached"
BALANCE_EXHAUSTED: Final = "balance_exhausted"
BALANCE_RESTORED: Final = "balance_restored"
PLUGIN_STATUS_CHANGED: Final = "plugin_status_changed"

OF_A_STATE: Final[Mapping[AccountState, str]] = {FROZEN: ACCOUNT_FROZEN, OPEN: ACCOUNT_THAWED, CLOSED: ACCOUNT_CLOSED}
"""The announcement of each state that an account may change to (L22)."""

OF_A_TRANSACTION: Final = frozenset(ANNOUNCED)
"""Every transaction has exactly one of these announcements."""


def status_of(available: int, threshold: int) -> Status:
    """The status of an account with these available credits and this low threshold."""
    if available <= 0:
        return "EXHAUSTED"
    return "LOW" if available <= threshold else "ACTIVE"


def plugin_reason(available: int, state: AccountState) -> PluginReason:
    """Why the plugin may run (`available`), or why not: it runs while there are credits and the account is open."""
    if state != OPEN:
        return "frozen"
    return "available" if available > 0 else "exhausted"


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
    draft.announced_available = available
    announce_plugin_status(draft, cause)


def announce_plugin_status(draft: "Draft", cause: int | None = None) -> None:
    """Announce the plugin status if it has changed."""
    before, running = draft.announced_running, draft.available > 0 and draft.state == OPEN
    if running != before:
        detail = {
            "previous_status": "enabled" if before else "disabled",
            "current_status": "enabled" if running else "disabled",
            "reason": plugin_reason(draft.available, draft.state),
        }
        draft.announce(PLUGIN_STATUS_CHANGED, cause, detail)
        draft.announced_running = running
