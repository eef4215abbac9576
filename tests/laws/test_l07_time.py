"""L7 Time: expiries and beginnings apply in order of their instants, however often the account is settled."""

from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from credit_service.ledger.account import DAY, Account, transaction_time
from credit_service.ledger.decide import Outcome
from credit_service.ledger.draft import Posted
from credit_service.ledger.policy import Policy
from credit_service.ledger.refusals import Refusal, Refused
from credit_service.ledger.types import INCREASE
from tests.laws.model import Model
from tests.laws.stories import Step, grant_stories, play, policies, stories
from tests.ledger.book import Book
from tests.ledger.telling import MERCHANT, add, days, opening, order, payment, sweep, use

NO_TRIAL = Policy(trial_credits=0)

spans = st.integers(0, 50 * DAY) | st.integers(0, 50).map(lambda number: number * DAY)


def lasting(account: Account) -> Account:
    """An account without the fields that depend on the times of its postings."""
    return account._replace(settled_at=0, last_transaction_at=None, last_hash=b"")


@given(policies, stories | grant_stories, spans, spans)
def test_L7_one_settle_over_a_period_equals_two_over_halves(
    policy: Policy, story: list[Step], first: int, second: int
) -> None:
    once = play(Book(policy), story)
    if once.account is None:
        return
    once.wait(micros=max(once.account.settled_at - once.now, 0))
    twice = once.copy()
    once.wait(micros=first + second).do(sweep())
    twice.wait(micros=first).do(sweep())
    twice.wait(micros=second).do(sweep())
    assert lasting(once.account) == lasting(twice.account)  # type: ignore[arg-type]
    assert once.grants == twice.grants
    assert [_what(done) for done in once.transactions] == [_what(done) for done in twice.transactions]
    assert [told[:4] for told in once.announcements] == [told[:4] for told in twice.announcements]


def test_L7_a_moved_default_threshold_counts_before_expiries() -> None:
    book = Book(Policy(trial_credits=5, low_balance_percent=Decimal(0)))
    book.tell(opening(), add(10, effective_at=days(1)), use(4))
    book.policy = Policy(trial_credits=5, low_balance_percent=Decimal(20))
    often = book.copy()
    book.wait(2).do(sweep())
    often.wait(0.5).do(sweep())
    often.wait(1.5).do(sweep())
    told = [one.type for one in book.announcements]
    assert told == [one.type for one in often.announcements]
    assert told[-2:] == ["low_balance_reached", "balance_restored"]


def _what(done: Any) -> Any:
    return done._replace(created_at=0, hash=b"")


@given(policies, stories | grant_stories, spans)
def test_L7_a_read_shows_the_account_as_a_posting_would(policy: Policy, story: list[Step], span: int) -> None:
    book = play(Book(policy), story)
    if book.account is None:
        return
    standing = book.wait(micros=span).standing()
    assert standing.account.settled_at == max(book.now, book.account.settled_at)
    outcome: Outcome = book.do(sweep())
    if isinstance(outcome, Posted):
        assert standing.account._replace(last_hash=b"") == outcome.account._replace(last_hash=b"")
        assert standing.grants == outcome.grants
    else:
        assert standing.account._replace(settled_at=book.account.settled_at) == book.account


@given(policies, stories | grant_stories, spans)
def test_L7_a_read_of_the_future_agrees_with_the_model(policy: Policy, story: list[Step], span: int) -> None:
    book, judge = Book(policy), Model(policy)
    for step in story:
        book.wait(micros=step.wait)
        if isinstance(step.tell, Policy):
            book.policy = judge.settings = step.tell
        else:
            book.do(step.tell)
            judge.judge(step.tell, book.now)
    if book.account is None:
        return
    standing = book.wait(micros=span).standing()
    later = judge.at(book.now)
    assert (standing.account.balance, standing.account.pending, standing.account.debt, standing.status) == (
        later.balance,
        later.pending,
        later.debt,
        later.status,
    )
    assert standing.threshold == later.threshold
    assert {grant.number: grant.remaining for grant in standing.grants} == {
        pot.number: pot.credits for pot in later.pots if pot.credits
    }


@given(policies, stories | grant_stories, spans)
def test_L7_nothing_changes_before_the_next_due_instant(policy: Policy, story: list[Step], span: int) -> None:
    """So a cache may keep an account until then, and the sweep may skip it."""
    book = play(Book(policy), [*story, Step(0, sweep())])
    if book.account is None:
        return
    due = book.standing().account.next_due_at
    last_quiet = book.now + span if due is None else min(book.now + span, due - 1)
    before = book.written()
    book.now = max(book.now, last_quiet)
    book.do(sweep())
    assert book.written()[2:4] == before[2:4]
    if due is not None and due > book.account.settled_at:
        book.now = due
        assert isinstance(book.do(sweep()), Posted)


@given(policies, stories, st.data())
def test_L7_a_past_balance_is_the_sum_dated_until_then(policy: Policy, story: list[Step], data: st.DataObject) -> None:
    """`?at=` dates by created_at, an EXPIRY by occurred_at, so it equals a read at that time."""
    book = Book(policy)
    said: list[tuple[int, int]] = []
    for step in story:
        step = step._replace(wait=max(step.wait, 0))  # if the clock went back, later postings could change the past
        if step.wait and book.account is not None:
            asked = data.draw(st.integers(book.now, book.now + step.wait - 1), label="asked at")
            ago = book.copy()
            ago.now = asked
            if asked >= book.account.settled_at:
                said.append((asked, ago.standing().account.balance))
        play(book, [step])
    play(book, [Step(0, sweep())])
    for asked, balance in said:
        counted = [done for done in book.transactions if transaction_time(done) <= asked]
        assert balance == sum(done.amount if done.operation == INCREASE else -done.amount for done in counted)


def test_L7_a_credit_expires_at_the_instant_of_expires_at() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), add(5, expires_at=days(10)))
    book.wait(days=10, micros=-1).tell(use(1))
    book.wait(micros=1)
    assert book.refused(use(1)) == Refused(Refusal.INSUFFICIENT_CREDITS, {"available": 0, "required": 1})
    assert book.standing().account.available == 0


def test_L7_a_credit_is_spendable_from_the_instant_of_effective_at() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), add(5, effective_at=days(10)))
    book.wait(days=10, micros=-1)
    assert book.refused(use(1)).refusal == Refusal.INSUFFICIENT_CREDITS
    book.wait(micros=1).tell(use(5))


def test_L7_a_posting_first_posts_one_expiry_per_expired_grant() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), add(5, expires_at=days(2)), add(7, expires_at=days(1)), add(9))
    one, two, spent = book.wait(days=3).tell(use(4)).transactions
    assert [(done.type, done.amount, done.occurred_at, done.created_at) for done in (one, two, spent)] == [
        ("EXPIRY", 7, days(1), days(3)),
        ("EXPIRY", 5, days(2), days(3)),
        ("USAGE", 4, days(3), days(3)),
    ]
    grant_id = one.key.split(":")[1]
    assert one.key == f"expiry:{grant_id}:1"
    assert one.reference == ("grant", grant_id)
    assert one.merchant_id == MERCHANT


def test_L7_a_fact_with_expired_credits_posts_and_lapses_at_once() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), order("1", 3))
    told = book.tell(payment("1", 10, expires_at=days(-1)))
    assert [(done.type, done.amount, done.occurred_at) for done in told.transactions] == [
        ("PAYMENT", 10, days(0)),
        ("EXPIRY", 10, days(0)),
    ]
    # They could never pay, so they change neither the debt nor the level.
    assert (told.account.debt, told.account.balance) == (3, -3)
    assert [announcement.type for announcement in told.announcements] == ["recharged", "expired"]


def test_L7_credits_that_expire_on_arrival_pay_no_debt() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), order("1", 3))
    told = book.tell(payment("1", 10, expires_at=days(0)))
    assert [done.type for done in told.transactions] == ["PAYMENT", "EXPIRY"]
    assert (told.account.debt, told.account.balance) == (3, -3)


def test_L7_beginning_grants_pay_debt_in_order_of_their_instants() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), order("1", 10))
    book.tell(add(10, effective_at=days(1), expires_at=days(2)), add(10, effective_at=days(3)))
    # The first paid the debt on day 1, before it could expire; the second is whole.
    assert book.wait(days=30).standing().account.available == 10
    assert [done.type for done in book.tell(sweep()).transactions] == []
