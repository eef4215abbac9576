"""Spending in burn-down order, and paying a debt (L6)."""

from credit_service.ledger.account import Grant
from credit_service.ledger.draft import Draft


def spend(draft: Draft, amount: int) -> None:
    """Take `amount` credits from the effective grants in burn-down order; the uncovered part becomes debt."""
    draft.debt += amount - _draw(draft, amount)


def pay_debt(draft: Draft) -> None:
    """Pay the debt from the free credits, because no account may have both a debt and spendable credits."""
    if draft.debt:
        draft.debt -= _draw(draft, draft.debt)


def _draw(draft: Draft, amount: int) -> int:
    """Draw up to `amount` credits; return the number drawn."""
    left = amount
    while left:
        for grant in draft.grants:
            if _is_spendable(grant, draft.at):
                break
        else:
            break
        share = min(left, grant.remaining)
        draft.change_grant(grant, -share)
        left -= share
    return amount - left


def _is_spendable(grant: Grant, at: int) -> bool:
    return grant.effective_at <= at and (grant.expires_at is None or grant.expires_at > at)
