"""L2 Chained: each transaction continues the one before it, and time never goes back."""

from itertools import pairwise

from hypothesis import given

from credit_service.ledger.policy import Policy
from tests.laws.stories import Step, policies, stories
from tests.ledger.book import Book
from tests.ledger.telling import add, days, opening, use


@given(policies, stories)
def test_L2_sequences_and_balances_have_no_gap(policy: Policy, story: list[Step]) -> None:
    book = Book(policy)
    clock = 0
    for step in story:
        book.wait(micros=step.wait)
        if isinstance(step.tell, Policy):
            continue
        before = len(book.transactions)
        book.do(step.tell)
        if book.account is not None and book.account.settled_at != clock:
            # t = max(the clock, the account's last t): the time stands still if the clock goes back.
            clock = max(clock, book.now)
            assert book.account.settled_at == clock
        assert all(done.created_at == clock for done in book.transactions[before:])
    assert [done.sequence for done in book.transactions] == list(range(1, len(book.transactions) + 1))
    assert [told.number for told in book.announcements] == list(range(1, len(book.announcements) + 1))
    for previous, done in pairwise(book.transactions):
        assert done.balance_before == previous.balance_after
        assert done.created_at >= previous.created_at
    if book.transactions and book.account is not None:
        first, last = book.transactions[0], book.transactions[-1]
        assert first.balance_before == 0
        assert (book.account.sequence, book.account.balance) == (last.sequence, last.balance_after)
        assert (book.account.last_transaction_at, book.account.last_hash) == (last.created_at, last.hash)


def test_L2_the_ledgers_time_never_goes_back() -> None:
    book = Book()
    book.tell(opening())
    book.wait(days=-2)
    spent = book.tell(use(1)).transactions[-1]
    assert spent.created_at == days(0)


def test_L2_occurred_at_does_not_backdate_a_posting() -> None:
    book = Book()
    book.tell(opening())
    expiring = book.tell(add(5, expires_at=days(3))).account.granted
    book.wait(days=4)
    # The grant was alive when the work occurred, but it has expired at the time of the posting.
    spent = book.tell(use(1, occurred_at=days(1))).transactions[-1]
    assert (spent.occurred_at, spent.created_at) == (days(1), days(4))
    assert expiring not in {number for number, _ in spent.draws}
