"""What a refund gives back, and to which grant (L8)."""

from collections.abc import Iterator

from credit_service.ledger.account import MAX_MONEY_MICROS, Draw, GivenBack, Reference, Transaction
from credit_service.ledger.burn_down import pay_debt, spend
from credit_service.ledger.commands import OrderRefunded, PaymentRefunded
from credit_service.ledger.draft import Draft
from credit_service.ledger.refusals import Refusal, Refused
from credit_service.ledger.types import DECREASE, INCREASE, ORDER_REFUNDED, PAID, PAYMENT_REFUNDED


def refund_order(draft: Draft, fact: OrderRefunded, order: Transaction, given: GivenBack) -> Transaction | Refused:
    """Give credits of an order back, never more than it posted.

    A refund of money gives what its share of the total is worth, less what refunds of money gave before; rounding down
    over the sum of them, so that many small refunds give what one large one would.
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
        # No total is more than the most money there can be, so beyond it nothing need be remembered.
        remembered = min(refunded, MAX_MONEY_MICROS)
        given = GivenBack(given.key, remembered, given.by_money + amount, given.credits + amount)
    if not draft.fits(INCREASE, amount):
        return Refused(Refusal.OUT_OF_RANGE)
    # Nothing can fail any more.
    returned_before = order.amount - left
    for grant_number, share in _segments(order, returned_before, amount):
        if grant_number is None:
            _return_uncovered(draft, share)
        else:
            _return_to_grant(draft, grant_number, share)
    pay_debt(draft)
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


def _segments(order: Transaction, skip: int, amount: int) -> Iterator[tuple[int | None, int]]:
    """The parts of an order that `amount` credits go back to, when `skip` went back before: (grant or None, credits).

    First the part no grant covered, then the order's draws, last drawn first.
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
    """What a decrease left uncovered, and the draws that were its own.

    A transaction's draws begin with what happened to grants since the one before it; its own are the last ones, and
    they make up what it posted less what became debt. An account in debt has nothing to draw on, so the debt after a
    decrease is either the whole of its uncovered part or exceeds its amount.
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
    """Take back what a payment gave, never more: the unspent of its grant first, the rest like an order, into debt."""
    amount = min(fact.credits, payment.amount - given.credits)
    if not draft.fits(DECREASE, amount):
        return Refused(Refusal.OUT_OF_RANGE)
    # Nothing can fail any more.
    # Its grant is the one it put credits into; the other draws are what time did before it, and paid debts.
    own = next((draft.grant(number) for number, change in payment.draws if change > 0), None)
    unspent = min(own.remaining, amount) if own else 0
    if own and unspent:
        draft.change_grant(own, -unspent)
    spend(draft, amount - unspent)
    draft.given_back[given.key] = given._replace(credits=given.credits + amount)
    return draft.record(
        DECREASE,
        PAYMENT_REFUNDED,
        amount,
        fact,
        shortfall=fact.credits - amount,
        reference=Reference("payment", fact.payment_id),
    )
