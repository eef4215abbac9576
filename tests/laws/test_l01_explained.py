"""L1 Explained: a balance is the sum of its transactions and nothing else."""

from hypothesis import given

from credit_service.ledger.policy import Policy
from credit_service.ledger.types import INCREASE
from tests.laws.stories import Step, play, policies, stories
from tests.ledger.book import Book
from tests.ledger.telling import opening, sweep


@given(policies, stories)
def test_L1_the_balance_is_all_increases_less_all_decreases(policy: Policy, story: list[Step]) -> None:
    book = play(Book(policy), story)
    if book.account is None:
        return
    increases = sum(done.amount for done in book.transactions if done.operation == INCREASE)
    decreases = sum(done.amount for done in book.transactions if done.operation != INCREASE)
    assert book.account.balance == increases - decreases
    assert (book.account.total_increases, book.account.total_decreases) == (increases, decreases)
    for type_ in {done.type for done in book.transactions}:
        mine = [done for done in book.transactions if done.type == type_]
        added = sum(done.amount for done in mine if done.operation == INCREASE)
        assert book.account.by_type[type_] == (len(mine), added, sum(done.amount for done in mine) - added)
    assert sum(count for count, _, _ in book.account.by_type.values()) == len(book.transactions)


@given(policies, stories)
def test_L1_the_balance_is_the_open_grants_less_the_debt(policy: Policy, story: list[Step]) -> None:
    book = play(Book(policy), story)
    if book.account is None:
        return
    account, grants = book.account, book.open_grants
    assert account.balance == sum(grant.remaining for grant in grants) - account.debt
    assert account.pending == sum(grant.remaining for grant in grants if grant.effective_at > account.settled_at)
    assert account.available == account.balance - account.held - account.pending


def test_L1_an_account_opens_at_zero_before_its_trial() -> None:
    book = Book(Policy(trial_credits=100))
    (trial,) = book.tell(opening()).transactions
    assert (trial.type, trial.amount, trial.balance_before, trial.balance_after) == ("TRIAL", 100, 0, 100)


def test_L1_time_alone_changes_no_balance() -> None:
    book = Book(Policy(trial_credits=0))
    book.tell(opening())
    before = book.written()
    book.wait(days=400).do(sweep())
    assert book.written() == before
