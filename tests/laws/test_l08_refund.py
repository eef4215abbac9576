"""L8 Refund: refunds never return more than was posted, in any number of parts and any order."""

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import accumulate
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit_service.ledger.account import Transaction
from credit_service.ledger.commands import Command, OrderRefunded
from credit_service.ledger.decide import Waiting
from credit_service.ledger.policy import Policy
from credit_service.ledger.refusals import Refusal
from tests.laws.stories import Step, grant_stories, play, policies, stories
from tests.ledger.book import Book
from tests.ledger.telling import (
    add,
    days,
    micros,
    opening,
    order,
    payment,
    payment_refund,
    refund,
    sweep,
    trial,
    use,
)

NO_TRIAL = Policy(trial_credits=0)

prices = st.integers(0, 60)
totals = st.decimals(0, 100, places=2)
# The money of refunds; their sum may exceed the total.
parts = st.lists(st.decimals(0, 60, places=2), min_size=1, max_size=8)


def shopped(price: int, total: Decimal | None, have: int) -> Book:
    """A book with `have` credits and one order."""
    book = Book(NO_TRIAL)
    book.tell(opening(), trial(have // 2), payment("1", have - have // 2))
    book.tell(order("1", price, total=None if total is None else str(total)))
    return book


def refunded(book: Book) -> list[Transaction]:
    """The refunds of orders so far."""
    return [done for done in book.transactions if done.type == "ORDER_REFUNDED"]


@given(prices, totals, st.integers(0, 80), parts)
def test_L8_refunds_of_money_return_their_share_rounded_down_once(
    price: int, total: Decimal, have: int, money: list[Decimal]
) -> None:
    book = shopped(price, total, have)
    for number, part in enumerate(money):
        book.tell(refund(str(number), "1", money=str(part)))
    given_back = list(accumulate(done.amount for done in refunded(book)))
    expected = [
        price if so_far >= total else floor(Fraction(price) * Fraction(so_far) / Fraction(total))
        for so_far in accumulate(money)
    ]
    assert given_back == expected
    assert all(done.shortfall == 0 for done in refunded(book))


@given(prices, totals, st.integers(0, 80), parts)
def test_L8_small_refunds_equal_one_large_refund(price: int, total: Decimal, have: int, money: list[Decimal]) -> None:
    small, large = shopped(price, total, have), shopped(price, total, have)
    for number, part in enumerate(money):
        small.tell(refund(str(number), "1", money=str(part)))
    large.tell(refund("all", "1", money=str(sum(money))))
    assert _by_origin(small) == _by_origin(large)
    assert sum(done.amount for done in refunded(small)) == sum(done.amount for done in refunded(large))


def _by_origin(book: Book) -> dict[str, int]:
    """The remaining credits of each grant; all grants that refunds created count together."""
    left: dict[str, int] = {}
    for grant in book.open_grants:
        made_by = book.transactions[grant.sequence - 1].type
        name = "refunds" if made_by == "ORDER_REFUNDED" else str(grant.number)
        left[name] = left.get(name, 0) + grant.remaining
    return left


@given(policies, stories | grant_stories)
def test_L8_refunds_never_exceed_the_posted_amount(policy: Policy, story: list[Step]) -> None:
    book = play(Book(policy), story)
    posted = {done.key: done.amount for done in book.transactions}
    for key, given_back in book.given.items():
        assert 0 <= given_back.by_money <= given_back.credits <= posted[key]


credit_parts = st.lists(st.one_of(st.decimals(0, 60, places=2), st.integers(0, 40)), min_size=1, max_size=8)


@given(prices, totals, st.integers(0, 80), credit_parts)
def test_L8_refunds_of_money_and_credits_stay_within_the_order(
    price: int, total: Decimal, have: int, some: Sequence[Decimal | int]
) -> None:
    book = shopped(price, total, have)
    for number, part in enumerate(some):
        worth = {"credits": part} if isinstance(part, int) else {"money": str(part)}
        book.tell(refund(str(number), "1", **worth))
    credits = sum(part for part in some if isinstance(part, int))
    money = [part for part in some if isinstance(part, Decimal)]
    due = 0
    if money:
        due = price if sum(money) >= total else floor(Fraction(price) * Fraction(sum(money)) / Fraction(total))
    assert sum(done.amount for done in refunded(book)) == min(price, credits + due)


@given(prices, st.integers(0, 80))
def test_L8_a_full_refund_restores_every_grant(price: int, have: int) -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), trial(have), add(5, expires_at=days(100)), add(7, priority=1))
    before = book.remaining()
    book.tell(order("1", price, total=10), refund("1", "1", money=10))
    assert book.remaining() == before
    assert book.account is not None
    assert book.account.debt == 0


@given(prices, st.integers(0, 80), parts)
def test_L8_refunds_before_their_order_return_the_same_credits(price: int, have: int, money: list[Decimal]) -> None:
    before, after = Book(NO_TRIAL), Book(NO_TRIAL)
    refunds = [refund(str(number), "1", money=str(part)) for number, part in enumerate(money)]
    for book in (before, after):
        book.tell(opening(), trial(have))
    for early in refunds:
        assert isinstance(before.do(early), Waiting)
    told = before.tell(order("1", price, total=20))
    after.tell(order("1", price, total=20), *refunds)
    # They are part of the order's own commit, in order of arrival.
    assert [done.key for done in told.transactions] == ["shopify:order:1", *(early.key for early in refunds)]
    assert before.parked == {}
    assert before.remaining() == after.remaining()
    assert before.given == after.given


def test_L8_a_refund_of_no_money_returns_nothing() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), trial(50), order("1", 8, total="0.000001"), refund("1", "1", money=0))
    assert [done.amount for done in refunded(book)] == [0]
    book.tell(refund("2", "1", money="0.000001"))
    assert [done.amount for done in refunded(book)] == [0, 8]


@pytest.mark.parametrize(
    ("stored", "said", "gives"),
    [
        ("10", None, 4),
        ("10", "1", 4),  # the order's own total counts
        (None, "10", 4),
        ("0", None, 8),  # any refund refunds a total of 0 fully
    ],
)
def test_L8_the_orders_total_takes_precedence_over_the_refunds(
    stored: str | None, said: str | None, gives: int
) -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), trial(50), order("1", 8, total=stored), refund("1", "1", money=5, order_total=said))
    assert [done.amount for done in refunded(book)] == [gives]


@pytest.mark.parametrize(
    ("paid", "said", "refusal"),
    [
        (order("1", 8), refund("1", "1", money=5), Refusal.ORDER_HAS_NO_TOTAL),
        (
            order("1", 8, total=10, currency="EUR"),
            refund("1", "1", money=5, currency="USD"),
            Refusal.CURRENCY_MISMATCH,
        ),
        (order("1", 8, currency="EUR"), refund("1", "1", money=5, currency="USD"), Refusal.CURRENCY_MISMATCH),
    ],
    ids=["no total", "other currency", "other currency and no total"],
)
def test_L8_a_refund_of_unknown_worth_becomes_a_dead_letter(
    paid: Command, said: OrderRefunded, refusal: Refusal
) -> None:
    late, early = Book(), Book()
    for book in (late, early):
        book.tell(opening())
    late.tell(paid)
    assert late.refused(said).refusal == refusal
    assert isinstance(early.do(said), Waiting)
    early.tell(paid)
    assert [(letter.code, letter.reason, letter.fact) for letter in early.dead_letters] == [
        (refusal.code, refusal.sentence, said)
    ]
    # The order is not held up by it, and the refund's key is free again.
    assert early.remaining() == late.remaining()
    assert early.refused(said).refusal == refusal


@pytest.mark.parametrize("currencies", [("EUR", "EUR"), (None, "EUR"), ("EUR", None)])
def test_L8_a_missing_currency_matches_any_currency(currencies: tuple[str | None, str | None]) -> None:
    book = Book()
    paid, returned = currencies
    book.tell(opening(), order("1", 8, total=10, currency=paid), refund("1", "1", money=10, currency=returned))
    assert [done.amount for done in refunded(book)] == [8]


def test_L8_a_refund_waits_exactly_seven_days() -> None:
    refunds = [refund("1", "1", money=5), payment_refund("1", "1", 5)]
    for early, source, code in zip(
        refunds, [order("1", 8, total=10), payment("1", 8)], ["order_unknown", "payment_unknown"], strict=True
    ):
        in_time, too_late = Book(), Book()
        for book in (in_time, too_late):
            book.tell(opening())
            assert isinstance(book.do(early), Waiting)
        in_time.wait(days=7, micros=-1).tell(source)
        assert (len(in_time.transactions), in_time.dead_letters) == (3, ())
        too_late.wait(days=7).tell(source)
        assert [(letter.code, letter.at) for letter in too_late.dead_letters] == [(code, days(7))]
        assert len(too_late.transactions) == 2


def test_L8_the_sweep_turns_an_overdue_refund_into_a_dead_letter() -> None:
    book = Book(Policy(refund_wait_days=2))
    book.tell(opening())
    book.do(refund("1", "1", money=5))
    book.do(payment_refund("2", "2", 5))
    book.wait(days=2).tell(sweep())
    assert [letter.code for letter in book.dead_letters] == ["order_unknown", "payment_unknown"]
    assert book.parked == {}
    # Its key is free again, so the same refund waits again.
    assert isinstance(book.do(refund("1", "1", money=5)), Waiting)


def test_L8_an_expired_grant_returns_as_a_new_grant_with_grace() -> None:
    book = Book(Policy(trial_credits=0, refund_grace_days=30))
    book.tell(opening(), add(10, priority=7, category="paid", expires_at=days(5)), order("1", 6, total=6))
    book.wait(days=5).tell(refund("1", "1", money=4))
    (grant,) = book.open_grants
    assert (grant.number, grant.remaining, grant.category, grant.priority) == (2, 4, "paid", 7)
    assert (grant.effective_at, grant.expires_at) == (days(5), days(35))
    book.wait(days=30)
    assert book.standing().account.balance == 0


def test_L8_a_refund_reopens_a_spent_grant() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), add(6, expires_at=days(5)), order("1", 6, total=6), refund("1", "1", money=6))
    assert book.remaining() == {1: 6}
    assert book.wait(days=5).standing().account.balance == 0


def test_L8_credits_return_to_the_debt_then_last_drawn_first() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), add(3, priority=1), add(4, priority=2), order("1", 10))
    back = {}
    for number in range(10):
        book.tell(refund(str(number), "1", credits=1))
        back[number] = dict(book.remaining())
    # The first three credits pay the debt, the next four return to the second grant, the last three to the first.
    assert [back[number] for number in (2, 3, 6, 7, 9)] == [{}, {2: 1}, {2: 4}, {1: 1, 2: 4}, {1: 3, 2: 4}]


def test_L8_the_uncovered_part_becomes_a_paid_grant() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), order("1", 10), add(6, category="promotional"), refund("1", "1", credits=10))
    (grant,) = book.open_grants
    assert (grant.remaining, grant.category, grant.priority, grant.expires_at) == (6, "paid", 100, None)


def test_L8_a_refund_of_credits_returns_at_most_the_rest() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), add(20), order("1", 10), refund("1", "1", credits=7), refund("2", "1", credits=7))
    assert [(done.amount, done.shortfall) for done in refunded(book)] == [(7, 0), (3, 4)]


def test_L8_a_refund_of_a_rejected_order_returns_nothing() -> None:
    book = Book(Policy(trial_credits=5, when_insufficient="reject"))
    book.tell(opening(), order("1", 9, total=9), refund("1", "1", money=9), refund("2", "1", credits=2))
    assert [(done.amount, done.shortfall) for done in refunded(book)] == [(0, 0), (0, 2)]


def test_L8_a_refund_without_an_order_is_a_plain_increase() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), order("1", 4), refund("1", credits=10))
    (grant,) = book.open_grants
    assert (grant.remaining, grant.category, grant.expires_at) == (6, "paid", None)
    assert book.transactions[-1].reference == ("refund", "1")


def test_L8_a_refund_keeps_its_order_and_money() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), order("1", 4, total=10), refund("1", "1", money="2.5", currency="EUR"))
    (done,) = refunded(book)
    assert (done.reference, done.total_micros, done.currency) == (("order", "1"), micros("2.5"), "EUR")


def test_L8_a_refund_does_not_match_a_spend_with_its_key() -> None:
    book = Book()
    book.tell(opening(), use(3, key="shopify:order:1"))
    assert isinstance(book.do(refund("1", "1", money=5)), Waiting)


def test_L8_a_parked_order_refund_does_not_match_a_payment() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening())
    assert isinstance(book.do(refund("1", "1", credits=5)), Waiting)
    book.tell(add(10, key="shopify:order:1", type_="SUBSCRIPTION"))
    assert (len(book.parked), refunded(book), book.dead_letters) == (1, [], ())
    assert book.account is not None
    assert book.account.balance == 10
