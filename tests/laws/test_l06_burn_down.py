"""L6 Burn-down: the order in which grants pay; no account has both a debt and spendable credits."""

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given

from credit_service.ledger.account import Grant
from credit_service.ledger.commands import Command
from credit_service.ledger.policy import Policy
from tests.laws.stories import Step, amounts, grant_stories, play, policies, stories
from tests.ledger.book import Book
from tests.ledger.telling import add, days, opening, order, refund, sweep, trial

NO_TRIAL = Policy(trial_credits=0)


def contract_order(grant: Grant) -> tuple[object, ...]:
    """The burn-down order as the contract states it."""
    return (
        grant.priority,
        grant.expires_at is None,
        grant.expires_at,
        grant.category != "promotional",
        grant.effective_at,
        grant.sequence,
    )


def effective(book: Book) -> list[Grant]:
    """The grants that can pay now, in burn-down order."""
    standing = book.standing()
    able = [grant for grant in standing.grants if grant.effective_at <= standing.account.settled_at]
    return sorted(able, key=contract_order)


@given(policies, stories | grant_stories)
def test_L6_draws_and_debt_recompute_every_grant(policy: Policy, story: list[Step]) -> None:
    """After each transaction. The account carries the later draws for the next transaction."""
    book = play(Book(policy), story)
    if book.account is None:
        return
    remaining: Counter[int] = Counter()
    for done in book.transactions:
        for grant, change in done.draws:
            remaining[grant] += change
            assert remaining[grant] >= 0
        assert remaining.total() - done.debt_after == done.balance_after
    carried = book.account.carried
    for grant, change in carried:
        remaining[grant] += change
    assert remaining == Counter({grant.number: grant.remaining for grant in book.grants.values()})
    last_debt = book.transactions[-1].debt_after if book.transactions else 0
    assert book.account.debt == last_debt + sum(change for _, change in carried)


@given(policies, stories | grant_stories)
def test_L6_no_account_has_both_a_debt_and_spendable_credits(policy: Policy, story: list[Step]) -> None:
    book = Book(policy)
    for step in story:
        play(book, [step])
        if book.account is None:
            continue
        assert book.account.debt >= 0
        if book.account.debt:
            assert effective(book) == [] or book.standing().account.debt == 0
            assert not [grant for grant in book.open_grants if grant.effective_at <= book.account.settled_at]


@given(grant_stories, amounts)
def test_L6_a_decrease_draws_in_burn_down_order(story: list[Step], amount: int) -> None:
    book = play(Book(NO_TRIAL), [*story, Step(0, sweep())])
    expected = []
    left = min(amount, sum(grant.remaining for grant in effective(book)))
    for grant in effective(book):
        if left:
            expected.append((grant.number, -min(left, grant.remaining)))
            left -= min(left, grant.remaining)
    assert book.account is not None
    carried = len(book.account.carried)
    (done,) = book.tell(order("the one", amount)).transactions
    assert list(done.draws[carried:]) == expected


@given(grant_stories, amounts)
def test_L6_many_small_spends_equal_one_large_spend(story: list[Step], amount: int) -> None:
    small = play(Book(NO_TRIAL), story)
    large = small.copy()
    for number in range(amount):
        small.tell(order(f"small {number}", 1))
    large.tell(order("large", amount))
    assert small.remaining() == large.remaining()


@given(grant_stories)
def test_L6_open_grants_are_in_burn_down_order(story: list[Step]) -> None:
    book = play(Book(NO_TRIAL), story)
    assert list(book.open_grants) == sorted(book.open_grants, key=contract_order)


def _by_an_increase(book: Book) -> Command:
    return add(30)


def _by_a_grant_that_begins(book: Book) -> Command:
    book.tell(add(30, effective_at=days(1)))
    book.wait(days=1)
    return sweep()


def _by_grants_that_begin_at_one_instant(book: Book) -> Command:
    book.tell(add(4, effective_at=days(1)), add(26, effective_at=days(1), priority=1))
    book.wait(days=1)
    return sweep()


def _by_a_refund(book: Book) -> Command:
    book.tell(trial(30), order("covered in part", 30), order("2", 25))
    return refund("1", "covered in part", credits=30)


@pytest.mark.parametrize(
    "frees", [_by_an_increase, _by_a_grant_that_begins, _by_grants_that_begin_at_one_instant, _by_a_refund]
)
def test_L6_free_credits_pay_a_debt_at_once(frees: Callable[[Book], Command]) -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), order("1", 10))
    command = frees(book)
    owed = book.account.debt if book.account else 0
    after = book.tell(command).account
    assert owed > 0
    assert after.debt == max(0, owed - 30)
    assert after.pending == 0
    assert after.available == 30 - owed


def test_L6_a_refund_pays_an_existing_debt_first() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), add(10), order("1", 10), order("2", 4))
    book.tell(refund("1", "1", credits=10))
    assert book.account is not None
    assert (book.account.debt, book.remaining()) == (0, {1: 6})


def test_L6_a_read_shows_the_debt_paid_by_a_beginning_grant() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), order("1", 10), add(30, effective_at=days(1)))
    book.wait(days=1)
    standing = book.standing()
    assert (standing.account.debt, standing.account.available) == (0, 20)
    assert standing.account.carried == ((1, -10),)


def test_L6_earlier_draws_in_a_transaction_are_not_its_own() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), order("1", 10), add(5, effective_at=days(1)), add(30))
    book.tell(order("2", 25), add(12, effective_at=days(2)))
    book.wait(days=2)
    (done,) = book.tell(order("3", 5)).transactions
    (next_one,) = book.tell(order("4", 1)).transactions
    assert (done.draws, next_one.draws) == (((1, -5), (3, -5)), ((3, -1),))
    # Its refund returns its own five credits, and not the five that paid a debt before it.
    (back,) = book.tell(refund("1", "3", credits=9)).transactions
    assert (back.amount, back.draws) == (5, ((3, 5),))
