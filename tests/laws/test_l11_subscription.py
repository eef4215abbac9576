"""L11 Subscription: every period counts, exactly once, and changes no earlier grant."""

from hypothesis import given
from hypothesis import strategies as st

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
