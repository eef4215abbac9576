"""Which grant pays first, told by pairs of grants that differ in one thing, and how a debt is paid."""

from typing import Any

import pytest

from credit_service.ledger.policy import Policy
from tests.ledger.book import Book
from tests.ledger.telling import add, days, opening, order, use

NO_TRIAL = Policy(trial_credits=0)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        # a lower number of priority, before all else
        ({"priority": 1, "category": "paid"}, {"priority": 2, "expires_at": days(1), "category": "promotional"}),
        ({"priority": 99, "category": "paid"}, {"category": "promotional"}),
        # what expires sooner, and what never does last
        ({"expires_at": days(1), "category": "paid"}, {"expires_at": days(2), "category": "promotional"}),
        ({"expires_at": days(9000), "category": "paid"}, {"category": "promotional"}),
        # promotional before paid
        ({"category": "promotional", "effective_at": days(0)}, {"category": "paid", "effective_at": days(-9)}),
        # what became effective earlier
        ({"effective_at": days(-2)}, {"effective_at": days(-1)}),
        # the older one
        ({}, {}),
    ],
    ids=["priority", "default priority", "expiry", "no expiry", "category", "effect", "sequence"],
)
def test_the_first_of_two_grants_pays_first_whichever_came_first(first: dict[str, Any], second: dict[str, Any]) -> None:
    orders = [(1, 2), (2, 1)] if first != second else [(1, 2)]
    for payer, other in orders:
        book = Book(NO_TRIAL)
        book.tell(opening(), *(add(10, **terms) for terms in ((first, second) if payer == 1 else (second, first))))
        (spent,) = book.tell(use(13)).transactions
        assert spent.draws == ((payer, -10), (other, -3))
        assert book.remaining() == {other: 7}


def test_a_decrease_draws_across_as_many_grants_as_it_needs() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), add(3, priority=3), add(2, priority=2), add(1, priority=1))
    (spent,) = book.tell(use(6)).transactions
    assert spent.draws == ((3, -1), (2, -2), (1, -3))
    assert book.open_grants == ()


def test_grants_that_have_not_begun_pay_nothing_however_early_their_turn() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), add(10, priority=1, effective_at=days(1)), add(2, priority=200))
    (spent,) = book.tell(order("1", 5)).transactions
    assert (spent.draws, spent.debt_after) == (((2, -2),), 3)


def test_an_increase_lists_its_grant_and_then_what_of_it_paid_the_debt() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), order("1", 4))
    (added,) = book.tell(add(10)).transactions
    assert (added.draws, added.debt_after, added.balance_after) == (((1, 10), (1, -4)), 0, 6)


def test_a_debt_is_paid_in_burn_down_order_and_not_by_what_came_last() -> None:
    book = Book(NO_TRIAL)
    book.tell(
        opening(), order("1", 4), add(10, effective_at=days(1), priority=7), add(10, effective_at=days(1), priority=3)
    )
    assert [(grant.number, grant.remaining) for grant in book.wait(days=1).standing().grants] == [(2, 6), (1, 10)]


def test_a_debt_that_is_paid_in_part_stays_in_part() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), order("1", 10))
    account = book.tell(add(4)).account
    assert (account.debt, account.balance, account.available, book.open_grants) == (6, -6, -6, ())


@pytest.mark.parametrize(
    ("type_", "category"),
    [
        ("TRIAL", "promotional"),
        ("MANUAL", "promotional"),
        ("SUBSCRIPTION", "paid"),
        ("PAYMENT", "paid"),
        ("ORDER_REFUNDED", "paid"),
    ],
)
def test_what_a_grant_does_not_say_takes_the_default_of_its_type(type_: Any, category: str) -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), add(5, type_=type_))
    (grant,) = book.open_grants
    assert (grant.category, grant.priority, grant.effective_at, grant.expires_at) == (category, 100, days(0), None)
    book.tell(add(5, type_="MANUAL", category="paid", priority=1, effective_at=days(-5), expires_at=days(5)))
    said = book.open_grants[0]
    assert (said.category, said.priority, said.effective_at, said.expires_at) == ("paid", 1, days(-5), days(5))
