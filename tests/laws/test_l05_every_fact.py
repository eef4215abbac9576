"""L5 Every fact leaves one transaction, whatever its worth; a command posts its whole amount or is refused."""

from collections import Counter
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from credit_service.ledger.commands import Fact, OpenAccount, OrderPaid, Post
from credit_service.ledger.decide import Replayed
from credit_service.ledger.draft import Posted
from credit_service.ledger.policy import Policy
from credit_service.ledger.refusals import Refusal, Refused
from credit_service.ledger.types import ORDER_REFUNDED, PAYMENT_DISPUTED, PAYMENT_REFUNDED, SUBSCRIPTION
from tests.laws.stories import THAWED, Step, amounts, play, policies, stories
from tests.ledger.book import Book
from tests.ledger.telling import add, days, opening, order, sweep, terms, trial, use


@given(policies, stories)
def test_L5_a_posted_fact_leaves_one_transaction_of_its_own(policy: Policy, story: list[Step]) -> None:
    book = Book(policy)
    for step in story:
        book.wait(micros=step.wait)
        if isinstance(step.tell, Policy):
            book.policy = step.tell
            continue
        waiting = {parked.key for parked in book.parked.values() if parked.waits_for == step.tell.key}
        outcome = book.do(step.tell)
        if not isinstance(outcome, Posted) or not isinstance(step.tell, Fact | Post):
            continue
        told = Counter(done.key for done in outcome.transactions if done.type != "EXPIRY")
        nothing = isinstance(step.tell, OpenAccount) and not book.policy.trial_credits
        assert told.pop(step.tell.key, 0) == (0 if nothing else 1)
        assert (outcome.transaction is None) == nothing
        assert outcome.transaction is None or outcome.transaction.key == step.tell.key
        # All other transactions of the posting are refunds that waited for this fact.
        assert set(told) <= waiting
        assert all(done.amount >= 0 and done.shortfall >= 0 for done in outcome.transactions)


@given(policies, stories, amounts)
def test_L5_a_spend_posts_everything_or_is_refused(policy: Policy, story: list[Step], amount: int) -> None:
    book = play(Book(policy), [*story, Step(0, opening()), *THAWED])
    if book.account is None:
        return
    available = book.standing().account.available
    outcome = book.do(use(amount))
    if available < amount:
        assert outcome == Refused(Refusal.INSUFFICIENT_CREDITS, {"available": available, "required": amount})
    else:
        assert isinstance(outcome, Posted)
        spent = outcome.transactions[-1]
        assert (spent.amount, spent.shortfall) == (amount, 0)
        assert outcome.account.available == available - amount


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
@example(have=0, owe=0, price=1)
def test_L5_an_uncovered_order_follows_the_policy(have: int, owe: int, price: int) -> None:
    """Each policy posts its expected amount, even if the available credits are negative."""
    available = have - owe
    for policy, expected in (
        ("overdraft", price),
        ("partial", min(price, max(available, 0))),
        ("reject", price if price <= max(available, 0) else 0),
    ):
        book = Book(Policy(trial_credits=0))
        book.tell(opening(), trial(have), order("debt", owe), terms(when_insufficient=policy))
        posted = book.tell(order("1", price))
        done = posted.transaction
        assert done is not None
        assert (done.amount, done.shortfall) == (expected, price - expected)
        assert posted.account.available == available - expected
        rejected = policy == "reject" and price > expected
        assert posted.announcements[0].type == ("order_rejected" if rejected else "consumed")


@pytest.mark.parametrize(
    ("limit", "price", "posted"),
    [
        (0, 10, 10),  # all available credits
        (0, 11, 0),
        (5, 15, 15),  # exactly the limit
        (5, 16, 0),
        (None, 16, 16),
    ],
)
def test_L5_an_order_beyond_the_overdraft_limit_is_rejected(limit: int | None, price: int, posted: int) -> None:
    book = Book(Policy(trial_credits=10))
    book.tell(opening())
    book.do(terms(overdraft_limit=limit))
    done = book.tell(order("1", price)).transaction
    assert done is not None
    assert (done.amount, done.shortfall) == (posted, price - posted)


def test_L5_the_accounts_policy_overrides_the_settings() -> None:
    book = Book(Policy(trial_credits=10, when_insufficient="reject"))
    book.tell(opening(), terms(when_insufficient="partial"), order("1", 12))
    assert book.transactions[-1].amount == 10
    book.tell(terms(), order("2", 3))
    assert book.transactions[-1].amount == 0


def test_L5_pending_credits_cover_no_order() -> None:
    book = Book(Policy(trial_credits=0, when_insufficient="partial"))
    book.tell(opening(), add(50, effective_at=days(1)), order("1", 5))
    assert (book.transactions[-1].amount, book.transactions[-1].shortfall) == (0, 5)
    book.wait(days=1).tell(order("2", 5))
    assert book.transactions[-1].amount == 5


@pytest.mark.parametrize("policy", ["overdraft", "partial", "reject"])
def test_L5_an_order_worth_zero_is_always_covered(policy: str) -> None:
    book = Book(Policy(trial_credits=0, order_fixed=Decimal(0)))
    book.tell(opening(), order("debt", 5), terms(when_insufficient=policy, overdraft_limit=0))
    posted = book.tell(order("1"))
    assert posted.transaction is not None
    assert (posted.transaction.amount, posted.transaction.shortfall) == (0, 0)
    assert [told.type for told in posted.announcements] == ["consumed"]


@pytest.mark.parametrize("fact", [trial(0), order("1", 0)])
def test_L5_a_fact_worth_zero_leaves_one_transaction(fact: Fact) -> None:
    book = Book()
    posted = book.tell(fact)
    assert [done.amount for done in posted.transactions] == [0]
    assert book.do(fact) == Replayed(posted.transaction)


@given(policies, stories)
def test_L5_amount_and_shortfall_sum_to_the_worth(policy: Policy, story: list[Step]) -> None:
    book = Book(policy)
    for step in story:
        book.wait(micros=step.wait)
        if isinstance(step.tell, Policy):
            continue
        outcome = book.do(step.tell)
        if isinstance(outcome, Posted) and isinstance(step.tell, OrderPaid) and step.tell.credits is not None:
            assert outcome.transaction is not None
            assert outcome.transaction.amount + outcome.transaction.shortfall == step.tell.credits
    may_fall_short = ("ORDER_PAID", "REVERSAL", ORDER_REFUNDED, PAYMENT_REFUNDED, PAYMENT_DISPUTED, SUBSCRIPTION)
    assert all(done.shortfall == 0 for done in book.transactions if done.type not in may_fall_short)


def test_L5_a_sweep_with_nothing_due_posts_nothing() -> None:
    book = Book()
    book.tell(opening())
    assert book.do(sweep()) == Replayed(None)
