"""L12 Trial: a merchant has one trial; the first event or command that grants it counts."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit_service.ledger.commands import Command
from credit_service.ledger.decide import Replayed
from credit_service.ledger.policy import Policy
from credit_service.ledger.refusals import Refusal, Refused
from tests.laws.stories import Step, play, policies, stories, worths
from tests.ledger.book import Book
from tests.ledger.telling import add, fresh_key, opening, order, payment, trial


@given(policies, stories)
def test_L12_a_merchant_has_at_most_one_trial(policy: Policy, story: list[Step]) -> None:
    book = play(Book(policy), story)
    trials = [done.sequence for done in book.transactions if done.type == "TRIAL"]
    assert len(trials) <= 1
    if book.account is not None:
        assert book.account.trial == (trials[0] if trials else None)


ways = st.one_of(
    st.just(opening()),
    st.builds(lambda: replace(opening(), key=fresh_key())),
    st.builds(trial, worths),
    st.builds(lambda credits: replace(trial(credits), key=fresh_key()), worths),
    st.builds(lambda amount: add(amount, type_="TRIAL"), st.integers(1, 30)),
)


@given(st.lists(ways, min_size=1, max_size=6))
def test_L12_later_trials_replay_the_first(told: list[Command]) -> None:
    book = Book(Policy(trial_credits=100))
    book.tell(payment("1", 1), told[0])
    first = book.transactions[-1]
    for later in told[1:]:
        outcome = book.do(later)
        # A fact replays; a command for a second trial is refused.
        assert outcome in (
            Replayed(first, conflicting=False),
            Replayed(first, conflicting=True),
            Refused(Refusal.TRIAL_ALREADY_GRANTED),
        )
        assert isinstance(outcome, Refused) == (getattr(later, "operation", None) is not None)
    assert book.transactions[-1] == first


def test_L12_an_account_opened_by_an_order_has_no_trial() -> None:
    book = Book(Policy(trial_credits=100))
    assert [done.type for done in book.tell(order("1", 3)).transactions] == ["ORDER_PAID"]
    granted = book.tell(opening())
    assert [(done.type, done.amount) for done in granted.transactions] == [("TRIAL", 100)]
    assert not granted.opened
    assert granted.account.balance == 97


def test_L12_trial_started_grants_the_trial_if_trial_credits_is_zero() -> None:
    book = Book(Policy(trial_credits=0))
    assert book.tell(opening()).transactions == ()
    assert book.do(opening()) == Replayed(None)
    granted = book.tell(trial(30, "T1"))
    assert granted.transaction is not None
    assert (granted.transaction.amount, granted.transaction.reference) == (30, ("trial", "T1"))
    assert book.do(opening()) == Replayed(granted.transaction, conflicting=True)


def test_L12_a_trial_of_zero_is_the_one_trial() -> None:
    book = Book(Policy(trial_credits=100))
    first = book.tell(trial(0)).transaction
    assert book.do(opening()) == Replayed(first, conflicting=True)


@pytest.mark.parametrize("known", [False, True], ids=["unknown merchant", "known merchant"])
def test_L12_trial_credits_are_promotional_and_do_not_expire(known: bool) -> None:
    book = Book(Policy(trial_credits=5))
    if known:
        book.tell(payment("1", 1))
    book.tell(opening())
    (grant,) = [grant for grant in book.open_grants if grant.amount == 5]
    assert (grant.category, grant.priority, grant.expires_at, grant.effective_at) == (
        "promotional", 100, None, book.now,
    )  # fmt: skip
