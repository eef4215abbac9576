"""Which grant pays first, and how a debt is paid (L6)."""

from credit_service.ledger.account import Grant
from credit_service.ledger.draft import Draft


def spend(draft: Draft, amount: int) -> None:
    """Take `amount` credits from the effective grants in burn-down order; what they cannot cover becomes debt."""
    draft.debt += amount - _draw(draft, amount)


def pay_debt(draft: Draft) -> None:
    """Pay the debt from whatever credits are free: an account never has both a debt and spendable credits."""
    if draft.debt:
        draft.debt -= _draw(draft, draft.debt)


def _draw(draft: Draft, amount: int) -> int:
    """Draw up to `amount` and return what was drawn."""
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
