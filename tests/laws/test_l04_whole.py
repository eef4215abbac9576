"""L4 Whole: a decision is one value. A store writes all of it or nothing, and a dropped one leaves no trace."""

import pickle

from hypothesis import given

from credit_service.ledger.announcements import OF_A_TRANSACTION
from credit_service.ledger.policy import Policy
from tests.laws.stories import Step, play, policies, stories
from tests.ledger.book import Book


@given(policies, stories)
def test_L4_decide_changes_nothing_and_is_repeatable(policy: Policy, story: list[Step]) -> None:
    book = Book(policy)
    for step in story:
        book.wait(micros=step.wait)
        if isinstance(step.tell, Policy):
            book.policy = step.tell
            continue
        state = book.state(step.tell)
        kept = pickle.dumps(state)
        outcome = book.ask(step.tell)
        assert pickle.loads(kept) == state
        assert book.do(step.tell) == outcome


@given(policies, stories, stories, stories)
def test_L4_a_dropped_unit_leaves_no_trace(
    policy: Policy, before: list[Step], dropped: list[Step], after: list[Step]
) -> None:
    book, untouched = play(Book(policy), before), play(Book(policy), before)
    play(book.copy(), dropped)
    assert play(book, after).written() == play(untouched, after).written()


@given(policies, stories)
def test_L4_every_transaction_has_one_announcement_in_order(policy: Policy, story: list[Step]) -> None:
    book = play(Book(policy), story)
    own = [told.sequence for told in book.announcements if told.type in OF_A_TRANSACTION]
    assert own == [done.sequence for done in book.transactions]
