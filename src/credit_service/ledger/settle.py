"""Settling: grants expire and begin, and a warning announces grants that expire soon (L7).

Each posting first settles its account, in the same commit. A read answers as if it had done so: `standing_at`.
"""

from typing import NamedTuple

from credit_service.ledger import addresses
from credit_service.ledger.account import Account, Grant, Reference, Status
from credit_service.ledger.announcements import EXPIRING_SOON, announce_level, status_of
from credit_service.ledger.burn_down import pay_debt
from credit_service.ledger.commands import RESERVED_KEY_PREFIX, Settle
from credit_service.ledger.draft import Draft, warning_at
from credit_service.ledger.policy import Policy
from credit_service.ledger.types import DECREASE, EXPIRY

# The order of events at one instant.
_EXPIRES, _BEGINS, _WARNS = 1, 2, 3


def settle(draft: Draft) -> None:
    """Apply all expiries, beginnings and warnings since the account's last posting, in order of the instants."""
    account = draft.account
    if draft.threshold != account.threshold:  # the default moved in the settings since the last posting
        # Before the instants, so that settling more often makes no difference.
        announce_level(draft, threshold_moved=True)
    if account.next_due_at is not None and account.next_due_at <= draft.now:
        since = account.settled_at
        instants = {
            (instant, rank, number)
            for grant in draft.grants
            for instant, rank, number in (
                (grant.expires_at, _EXPIRES, grant.number),
                (grant.effective_at, _BEGINS, 0),  # grants of one instant begin together
                (warning_at(grant), _WARNS, grant.number),
            )
            if instant is not None and since < instant <= draft.now
        }
        for instant, rank, number in sorted(instants):
            draft.at = instant
            if rank == _BEGINS:
                _begin(draft)
                continue
            grant = draft.grant(number)
            if grant.remaining == 0:  # it paid a debt at an earlier instant
                continue
            if rank == _EXPIRES:
                lapse(draft, grant, instant)
            else:
                _warn(draft, grant)
        draft.at = draft.now


def lapse(draft: Draft, grant: Grant, instant: int) -> None:
    """Take the remaining credits of an expired grant by one EXPIRY transaction that occurred at `instant`."""
    identifier = addresses.text(draft.account.number, addresses.GRANT, grant.number)
    draft.remove(grant, grant.remaining, lapses=1)
    command = Settle(
        merchant_id=draft.account.merchant_id,
        key=f"{RESERVED_KEY_PREFIX}{identifier}:{grant.lapses + 1}",
        occurred_at=instant,
    )
    draft.record(DECREASE, EXPIRY, grant.remaining, command, reference=Reference("grant", identifier))


def _begin(draft: Draft) -> None:
    # All beginning grants leave `pending` before any of them pays a debt.
    draft.pending -= sum(grant.remaining for grant in draft.grants if grant.effective_at == draft.at)
    pay_debt(draft)
    announce_level(draft)


def _warn(draft: Draft, grant: Grant) -> None:
    draft.announce(
        EXPIRING_SOON,
        None,
        {
            "grant_id": addresses.text(draft.account.number, addresses.GRANT, grant.number),
            "remaining": grant.remaining,
            "expires_at": grant.expires_at,
        },
    )


class Standing(NamedTuple):
    """An account at an instant. Without postings it stays so until `account.next_due_at`."""

    account: Account
    grants: tuple[Grant, ...]
    status: Status
    threshold: int


def standing_at(account: Account, grants: tuple[Grant, ...], policy: Policy, at: int) -> Standing:
    """The account as a posting at `at` would find it; posts nothing (L7).

    `grants`: the open grants in burn-down order. They may be left out if nothing is due by `at` and the caller needs
    only the sums.
    """
    draft = Draft(account, grants, {}, policy, max(at, account.settled_at))
    settle(draft)
    posted = draft.finish()
    return Standing(posted.account, posted.grants, status_of(draft.available, draft.threshold), draft.threshold)
