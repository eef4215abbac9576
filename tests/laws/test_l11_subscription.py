"""L11 Subscription: every period counts, exactly once, and changes no earlier grant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit_service.ledger.commands import SubscriptionRenewed
from credit_service.ledger.policy import Policy
from tests.laws.stories import Step, grant_stories, play, worths
from tests.ledger.book import Book
from tests.ledger.telling import days, opening, order, renewal

periods = st.lists(st.tuples(st.sampled_from("AB"), st.sampled_from(["2026-01", "2026-02", "2026-03"])), max_size=12)


@given(periods, st.integers(1, 30))
def test_L11_each_period_of_each_subscription_counts_once(told: list[tuple[str, str]], credits: int) -> None:
    book = Book(Policy(trial_credits=0))
    book.tell(opening())
    for subscription, period in told:
        book.wait(days=1).do(renewal(subscription, period, credits))
    assert book.account is not None
    assert book.account.balance == credits * len(set(told))


@given(grant_stories, worths)
def test_L11_a_renewal_touches_no_other_grant(story: list[Step], credits: int) -> None:
    book = play(Book(Policy(trial_credits=0)), story)
    standing = book.standing()
    before = {grant.number: grant.remaining for grant in standing.grants}
    posted = book.tell(renewal("A", "2026-01", credits))
    mine = posted.account.granted if credits else None
    assert {number: left for number, left in book.remaining().items() if number != mine} == before
    # Its own credits pay the debt first.
    left = max(0, credits - standing.account.debt)
    assert book.remaining().get(mine or 0, 0) == left


def test_L11_earlier_periods_keep_their_credits_until_expiry() -> None:
    book = Book(Policy(trial_credits=0))
    book.tell(renewal("A", "2026-01", 10, expires_at=days(40)), order("1", 4))
    book.wait(days=30).tell(renewal("A", "2026-02", 10, expires_at=days(70)))
    assert book.remaining() == {1: 6, 2: 10}
    assert book.wait(days=10).standing().account.available == 10


@given(st.lists(st.tuples(st.integers(0, 29), st.integers(0, 500)), min_size=1, max_size=8))
def test_L11_plans_of_one_billing_window_give_the_best_of_them(switches: list[tuple[int, int]]) -> None:
    book = Book(Policy(trial_credits=0))
    best = 0
    for number, (day, credits) in enumerate([(0, 100), *sorted(switches)]):
        told = book.tell(switch(f"s{number}", day, credits)).transaction
        assert told is not None
        assert (told.amount, told.shortfall) == (max(credits - best, 0), min(credits, best))
        best = max(best, credits)
    assert book.account is not None
    assert book.account.balance == best


def switch(subscription: str, day: int, credits: int) -> SubscriptionRenewed:
    """A period of 30 days that begins on this day."""
    return renewal(subscription, str(day), credits, window=(days(day), days(day + 30)))


@pytest.mark.parametrize(
    ("told", "given"),
    [
        ([("A", 0, 100), ("A", 30, 100)], [100, 100]),  # the next window
        ([("A", 0, 100), ("B", 29, 100), ("B", 59, 100)], [100, 0, 100]),  # a switch on the last day
        ([("A", 0, 100), ("B", 29, 100), ("C", 30, 100)], [100, 0, 100]),  # it does not make the window longer
        ([("B", 10, 500), ("A", 0, 100)], [500, 0]),  # the wrong way round
        ([("B", 30, 500), ("A", 0, 100), ("C", 31, 600)], [500, 100, 100]),  # one of the window before comes late
        ([("A", 0, 0), ("B", 1, 100), ("C", 2, 40)], [0, 100, 0]),
    ],
)
def test_L11_windows_that_do_not_overlap_give_all(told: list[tuple[str, int, int]], given: list[int]) -> None:
    book = Book(Policy(trial_credits=0))
    posted = [book.tell(switch(*one)).transaction for one in told]
    assert [one.amount for one in posted if one] == given


def test_L11_a_renewal_without_a_window_gives_all() -> None:
    book = Book(Policy(trial_credits=0))
    book.tell(switch("A", 0, 100), renewal("B", "x", 50), switch("C", 1, 100))
    assert book.account is not None
    assert book.account.balance == 150
