"""The burn-down order, by pairs of grants that differ in one field, and the payment of a debt."""

from typing import Any

import pytest

from credit_service.ledger.policy import Policy
from tests.ledger.book import Book
from tests.ledger.telling import add, days, opening, order, use

NO_TRIAL = Policy(trial_credits=0)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        # a lower priority number, before everything else
        ({"priority": 1, "category": "paid"}, {"priority": 2, "expires_at": days(1), "category": "promotional"}),
        ({"priority": 99, "category": "paid"}, {"category": "promotional"}),
        # an earlier expiry; no expiry comes last
        ({"expires_at": days(1), "category": "paid"}, {"expires_at": days(2), "category": "promotional"}),
        ({"expires_at": days(9000), "category": "paid"}, {"category": "promotional"}),
        # promotional before paid
        ({"category": "promotional", "effective_at": days(0)}, {"category": "paid", "effective_at": days(-9)}),
        # an earlier effective_at
        ({"effective_at": days(-2)}, {"effective_at": days(-1)}),
        # the older grant
        ({}, {}),
    ],
    ids=["priority", "default priority", "expiry", "no expiry", "category", "effect", "sequence"],
)
def test_the_first_grant_in_burn_down_order_pays_first(first: dict[str, Any], second: dict[str, Any]) -> None:
    orders = [(1, 2), (2, 1)] if first != second else [(1, 2)]
    for payer, other in orders:
        book = Book(NO_TRIAL)
        book.tell(opening(), *(add(10, **terms) for terms in ((first, second) if payer == 1 else (second, first))))
        (spent,) = book.tell(use(13)).transactions
        assert spent.draws == ((payer, -10), (other, -3))
        assert book.remaining() == {other: 7}


def test_a_decrease_draws_on_as_many_grants_as_necessary() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), add(3, priority=3), add(2, priority=2), add(1, priority=1))
    (spent,) = book.tell(use(6)).transactions
    assert spent.draws == ((3, -1), (2, -2), (1, -3))
    assert book.open_grants == ()


def test_a_grant_pays_nothing_before_it_is_effective() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), add(10, priority=1, effective_at=days(1)), add(2, priority=200))
    (spent,) = book.tell(order("1", 5)).transactions
    assert (spent.draws, spent.debt_after) == (((2, -2),), 3)


def test_an_increase_lists_its_grant_then_the_paid_debt() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), order("1", 4))
    (added,) = book.tell(add(10)).transactions
    assert (added.draws, added.debt_after, added.balance_after) == (((1, 10), (1, -4)), 0, 6)


def test_grants_pay_a_debt_in_burn_down_order() -> None:
    book = Book(NO_TRIAL)
    book.tell(
        opening(), order("1", 4), add(10, effective_at=days(1), priority=7), add(10, effective_at=days(1), priority=3)
    )
    assert [(grant.number, grant.remaining) for grant in book.wait(days=1).standing().grants] == [(2, 6), (1, 10)]


def test_a_partly_paid_debt_leaves_the_rest() -> None:
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
def test_missing_grant_terms_take_the_defaults_of_the_type(type_: Any, category: str) -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), add(5, type_=type_))
    (grant,) = book.open_grants
    assert (grant.category, grant.priority, grant.effective_at, grant.expires_at) == (category, 100, days(0), None)
    book.tell(add(5, type_="MANUAL", category="paid", priority=1, effective_at=days(-5), expires_at=days(5)))
    said = book.open_grants[0]
    assert (said.category, said.priority, said.effective_at, said.expires_at) == ("paid", 1, days(-5), days(5))
