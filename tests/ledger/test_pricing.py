"""The price of an order: max(fixed, percent of its total, minimum), rounded half up once."""

from decimal import Decimal, localcontext
from fractions import Fraction
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit_service.ledger.policy import Policy
from credit_service.ledger.pricing import order_price
from tests.ledger.book import Book
from tests.ledger.telling import micros, opening, order


def price(fixed: str, percent: str, minimum: str, total: str | None) -> int:
    """The price of one order under these settings."""
    policy = Policy(order_fixed=Decimal(fixed), order_percent=Decimal(percent), order_minimum=Decimal(minimum))
    return order_price(policy, micros(total))


@pytest.mark.parametrize(
    ("fixed", "percent", "minimum", "total", "credits"),
    [
        # the defaults: one credit for each order
        ("1", "0", "0", None, 1),
        ("1", "0", "0", "99999", 1),
        # percent 5 is 5 % of the total, in the unit of its sender
        ("0", "5", "0", "100", 5),
        # 10000 gives one credit per penny
        ("0", "10000", "0", "19.99", 1999),
        # the largest of the three counts
        ("3", "5", "2", "40", 3),
        ("1", "5", "2", "40", 2),
        ("1", "5", "2", "100", 5),
        # pricing by percent alone needs fixed = 0
        ("1", "5", "0", "10", 1),
        ("0", "5", "0", "9", 0),
        ("0", "5", "4", None, 4),
        ("0", "100000000", "0", None, 0),  # without a total the percentage adds nothing
        # half up, and once only: 2.49999 does not become 2.5 first
        ("0", "5", "0", "10", 1),
        ("0", "5", "0", "9.999999", 0),
        ("0", "5", "0", "50", 3),
        ("0", "5", "0", "49.999999", 2),
        ("2.5", "0", "0", None, 3),
        ("2.4999999", "0", "0", None, 2),
        ("0.5", "0", "0", None, 1),
        # exact for the largest total with the smallest unit of money
        ("0", "100", "0", "999999999999.5", 1_000_000_000_000),
        ("0", "100", "0", "999999999999.499999", 999_999_999_999),
        ("0", "33.333333", "0", "1000000000000", 333_333_330_000),
        ("0", "99.999999", "0", "999950000100.000001", 999_949_990_100),  # …100.49999999999999
    ],
)
def test_the_price_is_the_largest_part_rounded_half_up_once(
    fixed: str, percent: str, minimum: str, total: str | None, credits: int
) -> None:
    assert price(fixed, percent, minimum, total) == credits


settings_numbers = st.decimals(0, 10**6, places=6)


@given(settings_numbers, settings_numbers, settings_numbers, st.none() | st.integers(0, 10**18))
def test_a_price_is_exact(fixed: Decimal, percent: Decimal, minimum: Decimal, total_micros: int | None) -> None:
    policy = Policy(order_fixed=fixed, order_percent=percent, order_minimum=minimum)
    share = Fraction(percent) / 100 * Fraction(total_micros or 0, 10**6)
    exact = max(Fraction(fixed), share, Fraction(minimum))
    assert order_price(policy, total_micros) == floor(exact + Fraction(1, 2))


def test_a_price_ignores_the_decimal_context_of_its_caller() -> None:
    policy = Policy(order_fixed=Decimal(0), order_percent=Decimal(100))
    with localcontext(prec=3):
        assert order_price(policy, 123_456_500_000) == 123_457


def test_an_order_with_credits_is_not_priced() -> None:
    book = Book(Policy(order_fixed=Decimal(7)))
    book.tell(opening(), order("1", 2, total=50), order("2", 0), order("3", total=50))
    assert [done.amount for done in book.transactions[1:]] == [2, 0, 7]
    assert [done.total_micros for done in book.transactions[1:]] == [50_000_000, None, 50_000_000]


def test_an_order_without_credits_is_priced_from_its_total() -> None:
    book = Book(Policy(order_percent=Decimal(10)))
    book.tell(opening(), order("1", total=50), order("2"))
    assert [done.amount for done in book.transactions[1:]] == [5, 1]


def test_the_default_policy() -> None:
    assert Policy() == Policy(
        trial_credits=100,
        order_fixed=Decimal(1),
        order_percent=Decimal(0),
        order_minimum=Decimal(0),
        low_balance_percent=Decimal(20),
        when_insufficient="overdraft",
        refund_grace_days=30,
        refund_wait_days=7,
        auto_create=True,
    )


@pytest.mark.parametrize(
    ("trial", "percent", "threshold"),
    [(100, "20", 20), (5, "20", 1), (4, "20", 0), (0, "20", 0), (7, "33.3", 2), (100, "0", 0), (10, "150", 15)],
)
def test_the_default_threshold_is_rounded_down(trial: int, percent: str, threshold: int) -> None:
    assert Policy(trial_credits=trial, low_balance_percent=Decimal(percent)).default_threshold == threshold
