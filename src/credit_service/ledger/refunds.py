"""Refunds: how many credits return, and to which grants (L8)."""

from collections.abc import Iterator

from credit_service.ledger.account import MAX_MONEY_MICROS, Draw, GivenBack, Reference, Transaction
from credit_service.ledger.burn_down import pay_debt, spend
from credit_service.ledger.commands import OrderRefunded, PaymentRefunded
from credit_service.ledger.draft import Draft
from credit_service.ledger.refusals import Refusal, Refused
from credit_service.ledger.types import DECREASE, INCREASE, ORDER_REFUNDED, PAID, PAYMENT_REFUNDED


def refund_order(draft: Draft, fact: OrderRefunded, order: Transaction, given: GivenBack) -> Transaction | Refused:
    """Return credits of an order, never more than the order posted.

    Refunds of money return their share of the order's total. The share of all of them together is rounded down, and the
    credits of the earlier ones are subtracted. So many small refunds return as much as one large refund.
    """
    left = order.amount - given.credits
    if fact.credits is not None:
        wanted = fact.credits
        amount = min(wanted, left)
        given = given._replace(credits=given.credits + amount)
    else:
        if order.currency and fact.currency and order.currency != fact.currency:
            return Refused(Refusal.CURRENCY_MISMATCH, {"order": order.currency, "refund": fact.currency})
        total = order.total_micros if order.total_micros is not None else fact.order_total_micros
        if total is None:
            return Refused(Refusal.ORDER_HAS_NO_TOTAL, {"pointer": "/order_total"})
        refunded = given.money_micros + (fact.refund_amount_micros or 0)
        due = order.amount if refunded >= total else order.amount * refunded // total
        wanted = max(0, due - given.by_money)
        amount = min(wanted, left)
        # No total exceeds MAX_MONEY_MICROS, so the record need not either.
        remembered = min(refunded, MAX_MONEY_MICROS)
        given = GivenBack(given.key, remembered, given.by_money + amount, given.credits + amount)
    if not draft.fits(INCREASE, amount):
        return Refused(Refusal.OUT_OF_RANGE)
    # Nothing can fail any more.
    return_credits(draft, order, order.amount - left, amount)
    draft.given_back[given.key] = given
    return draft.record(
        INCREASE,
        ORDER_REFUNDED,
        amount,
        fact,
        shortfall=wanted - amount,
        reference=order.reference,
        total_micros=fact.refund_amount_micros,
        currency=fact.currency,
    )


def return_credits(draft: Draft, decrease: Transaction, returned_before: int, amount: int) -> None:
    """Return credits of a decrease to its grants, after earlier returns of `returned_before`, and pay the debt."""
    for grant_number, share in _segments(decrease, returned_before, amount):
        if grant_number is None:
            _return_uncovered(draft, share)
        else:
            _return_to_grant(draft, grant_number, share)
    pay_debt(draft)


def _segments(order: Transaction, skip: int, amount: int) -> Iterator[tuple[int | None, int]]:
    """The parts of an order that receive `amount` credits after earlier refunds of `skip`: (grant or None, credits).

    First comes the part that no grant covered, then the order's draws from the last to the first.
    """
    uncovered, draws = own_draws(order)
    for number, share in [(None, uncovered), *((number, -change) for number, change in reversed(draws))]:
        skipped = min(skip, share)
        skip -= skipped
        part = min(share - skipped, amount)
        amount -= part
        if part:
            yield number, part


def own_draws(decrease: Transaction) -> tuple[int, tuple[Draw, ...]]:
    """The uncovered credits of a decrease, and its own draws.

    The draws of a transaction begin with the changes since the transaction before it. Its own draws are the last ones;
    they sum to the covered part of its amount. An account in debt has no credits to draw, so after a decrease the debt
    equals the uncovered part, or it exceeds the amount.
    """
    uncovered = min(decrease.amount, decrease.debt_after)
    covered = decrease.amount - uncovered
    first = len(decrease.draws)
    while covered:
        first -= 1
        _, change = decrease.draws[first]
        covered += change
    return uncovered, decrease.draws[first:]


def _return_uncovered(draft: Draft, share: int) -> None:
    paid = min(share, draft.debt)
    draft.debt -= paid
    if share > paid:
        draft.new_grant(share - paid, PAID, 100, draft.now, None)


def _return_to_grant(draft: Draft, number: int, share: int) -> None:
    grant = draft.grant(number)
    if grant.expires_at is not None and grant.expires_at <= draft.now:
        draft.new_grant(share, grant.category, grant.priority, draft.now, draft.now + draft.policy.refund_grace)
    else:
        draft.change_grant(grant, share)


def refund_payment(
    draft: Draft, fact: PaymentRefunded, payment: Transaction, given: GivenBack
) -> Transaction | Refused:
    """Take back the credits of a payment, never more than it gave."""
    amount = min(fact.credits, payment.amount - given.credits)
    if not draft.fits(DECREASE, amount):
        return Refused(Refusal.OUT_OF_RANGE)
    # Nothing can fail any more.
    take_back(draft, payment, amount)
    draft.given_back[given.key] = given._replace(credits=given.credits + amount)
    return draft.record(
        DECREASE,
        PAYMENT_REFUNDED,
        amount,
        fact,
        shortfall=fact.credits - amount,
        reference=Reference("payment", fact.payment_id),
    )


def take_back(draft: Draft, increase: Transaction, amount: int) -> None:
    """Take credits of an increase: first the unspent ones of its own grant, then others, if necessary into debt."""
    # Its grant is the one that received credits. The other draws paid debts, or come from expiries before it.
    own = next((draft.grant(number) for number, change in increase.draws if change > 0), None)
    unspent = min(own.remaining, amount) if own else 0
    if own and unspent:
        draft.change_grant(own, -unspent)
    spend(draft, amount - unspent)
