"""Refunds of orders: how many credits return, and to which grants (L8). Claw-back of payments: what is taken (L19)."""

from collections.abc import Iterator
from dataclasses import replace

from credit_service.ledger.account import FROZEN, MAX_MONEY_MICROS, Dispute, Draw, GivenBack, Grant, Transaction
from credit_service.ledger.burn_down import pay_debt, spend
from credit_service.ledger.commands import (
    ClawBack,
    DisputeClosed,
    OrderRefunded,
    PaymentDisputed,
    PaymentRefunded,
    Reverse,
)
from credit_service.ledger.draft import Draft
from credit_service.ledger.proof import own_draws
from credit_service.ledger.refusals import Refusal, Refused
from credit_service.ledger.types import DECREASE, INCREASE, ORDER_REFUNDED, PAID, VOID

DEBT = 0
"""Stands for debt where a grant is named: grants are numbered from 1."""


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
        elif decrease.type == VOID and not _is_over(draft, grant := draft.grant(grant_number)):
            draft.restore(grant, share)
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


def _return_uncovered(draft: Draft, share: int) -> None:
    paid = min(share, draft.debt)
    draft.debt -= paid
    if share > paid:
        draft.new_grant(share - paid, PAID, 100, draft.now, None)


def _is_over(draft: Draft, grant: Grant) -> bool:
    return grant.expires_at is not None and grant.expires_at <= draft.now


def _return_to_grant(draft: Draft, number: int, share: int) -> None:
    grant = draft.grant(number)
    if _is_over(draft, grant):
        draft.new_grant(share, grant.category, grant.priority, draft.now, draft.now + draft.policy.refund_grace)
    else:
        draft.change_grant(grant, share)


def reverse(draft: Draft, command: Reverse, target: Transaction, given: GivenBack) -> Transaction | Refused:
    """Undo a transaction, all or part, at most the whole together with its refunds (L18).

    The credits of a decrease return as those of a refund do; those of an increase are taken back as those of a payment.
    """
    back = given.credits if target.operation == DECREASE else _demanded(given, target)
    left = target.amount - back
    amount = left if command.amount is None else command.amount
    if not 0 < amount <= left:
        return Refused(Refusal.ALREADY_REVERSED, {"left": left})
    if target.operation == INCREASE:
        return claw_back(draft, replace(command, amount=amount), target, given)
    if not draft.fits(INCREASE, amount):
        return Refused(Refusal.OUT_OF_RANGE)
    # Nothing can fail any more.
    return_credits(draft, target, given.credits, amount)
    draft.given_back[given.key] = given._replace(credits=given.credits + amount)
    return draft.record(INCREASE, command.type, amount, command, reference=target.reference, reverses=target.sequence)


def claw_back(draft: Draft, fact: ClawBack | Reverse, paid: Transaction, given: GivenBack) -> Transaction | Refused:
    """Take back what is now demanded for a payment or renewal, or return what is demanded no more (L19).

    Its refunds, and its disputes that are open or lost, demand credits: together at most what it gave. So the order,
    number and repetition of these facts make no difference.
    """
    after, said = _heard(fact, paid, given)
    demanded = _demanded(after, paid)
    amount = given.credits - demanded
    if amount > 0 or (isinstance(fact, DisputeClosed) and fact.outcome == "won"):
        return _return_demanded(draft, fact, paid, after, max(amount, 0))
    own = _grant_of(draft, paid)
    unspent, gone = (own.remaining, own.gone) if own else (0, 0)
    # What expired of its grant, or was voided, is gone: nobody else's credits pay for it.
    waived = min(given.waived, demanded - given.credits)
    amount = min(demanded - given.credits - waived, max(paid.amount - gone - given.credits, 0))
    if draft.policy.clawback == "clamp":
        waived += max(amount - unspent, 0)
        amount = min(amount, unspent)
    if not draft.fits(DECREASE, amount):
        return Refused(Refusal.OUT_OF_RANGE)
    # Nothing can fail any more.
    if draft.policy.clawback == "freeze" and amount > unspent and draft.state != FROZEN:
        draft.change_state(FROZEN, "A payment was taken back whose credits were spent.", fact.actor)
    taken = take_back(draft, own, amount)
    draft.given_back[given.key] = after._replace(
        credits=given.credits + amount, waived=waived, taken=given.taken + taken
    )
    return draft.record(
        DECREASE,
        fact.type,
        amount,
        fact,
        shortfall=max(said - amount, 0),
        reference=paid.reference,
        reverses=paid.sequence if isinstance(fact, Reverse) else None,
    )


def _heard(fact: ClawBack | Reverse, paid: Transaction, given: GivenBack) -> tuple[GivenBack, int]:
    """What is known of a payment after one more fact, and the credits that this fact alone demands."""
    if isinstance(fact, PaymentRefunded | Reverse):
        asked = fact.credits if isinstance(fact, PaymentRefunded) else fact.amount
        assert asked is not None  # `reverse` says how many
        return given._replace(refunded=min(given.refunded + asked, paid.amount)), asked
    assert isinstance(fact, PaymentDisputed | DisputeClosed)
    known = next((one for one in given.disputes if one.id == fact.dispute_id), None)
    others = tuple([one for one in given.disputes if one is not known])
    if isinstance(fact, DisputeClosed):  # its outcome stands, also if it comes before its opening
        credits = fact.credits if fact.credits is not None or known is None else known.credits
        dispute = Dispute(fact.dispute_id, credits, fact.outcome)
    elif known is None:
        dispute = Dispute(fact.dispute_id, fact.credits, None)
    else:
        dispute = known._replace(credits=fact.credits if known.credits is None else known.credits)
    said = _disputed(dispute, paid) - (0 if known is None else _disputed(known, paid))
    return given._replace(disputes=(*others, dispute)), said


def _disputed(dispute: Dispute, paid: Transaction) -> int:
    if dispute.outcome == "won":
        return 0
    return paid.amount if dispute.credits is None else dispute.credits


def _demanded(given: GivenBack, paid: Transaction) -> int:
    return min(given.refunded + sum([_disputed(one, paid) for one in given.disputes]), paid.amount)


def _grant_of(draft: Draft, increase: Transaction) -> Grant | None:
    # It is the one that received credits. The other draws paid debts, or come from expiries before it.
    return next((draft.grant(number) for number, change in increase.draws if change > 0), None)


def take_back(draft: Draft, own: Grant | None, amount: int) -> tuple[Draw, ...]:
    """Take credits: first the unspent ones of this grant, then others, if necessary into debt. Returns each taking."""
    first, debt = len(draft.draws), draft.debt
    unspent = min(own.remaining, amount) if own else 0
    if own and unspent:
        draft.change_grant(own, -unspent)
    spend(draft, amount - unspent)
    taken = [(number, -change) for number, change in draft.draws[first:]]
    return tuple([one for one in (*taken, (DEBT, draft.debt - debt)) if one[1]])


def _return_demanded(
    draft: Draft, fact: ClawBack | Reverse, paid: Transaction, given: GivenBack, amount: int
) -> Transaction | Refused:
    """Return credits that were taken back, to where they were taken, the last taken first."""
    if not draft.fits(INCREASE, amount):
        return Refused(Refusal.OUT_OF_RANGE)
    # Nothing can fail any more.
    taken, left = list(given.taken), amount
    while left:
        number, credits = taken.pop()
        share = min(credits, left)
        left -= share
        if share < credits:
            taken.append((number, credits - share))
        if number == DEBT:
            _return_uncovered(draft, share)
        else:
            _return_to_grant(draft, number, share)
    pay_debt(draft)
    kept = given.credits - amount
    waived = min(given.waived, _demanded(given, paid) - kept)
    draft.given_back[given.key] = given._replace(credits=kept, waived=waived, taken=tuple(taken))
    return draft.record(INCREASE, fact.type, amount, fact, reference=paid.reference)
