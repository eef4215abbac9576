"""The grants that a refund returns credits to: tables of the draws of an order and of its refunds."""

import pytest

from credit_service.ledger.account import Draw, GivenBack
from credit_service.ledger.commands import Command
from credit_service.ledger.policy import Policy
from credit_service.ledger.proof import own_draws
from tests.ledger.book import Book
from tests.ledger.telling import add, days, opening, order, payment, payment_refund, refund, sweep, use

NO_TRIAL = Policy(trial_credits=0)


def opened(*commands: object) -> Book:
    """A book with an account without a trial."""
    book = Book(NO_TRIAL)
    book.tell(opening(), *commands)  # type: ignore[arg-type]
    return book


@pytest.mark.parametrize(
    ("before", "price", "uncovered", "own"),
    [
        ([add(10)], 4, 0, ((1, -4),)),
        ([add(3), add(4)], 7, 0, ((1, -3), (2, -4))),
        ([add(3), add(4)], 9, 2, ((1, -3), (2, -4))),
        ([], 9, 9, ()),
        ([order("debt", 5)], 9, 9, ()),
        ([add(3)], 0, 0, ()),
    ],
)
def test_own_draws_separates_draws_from_the_uncovered_part(
    before: list[object], price: int, uncovered: int, own: tuple[Draw, ...]
) -> None:
    (done,) = opened(*before).tell(order("1", price)).transactions
    assert own_draws(done) == (uncovered, own)


def test_own_draws_excludes_draws_that_paid_an_earlier_debt() -> None:
    book = opened(order("debt", 5), add(9, effective_at=days(1)), add(4, effective_at=days(1), priority=200))
    (done,) = book.wait(days=1).tell(order("1", 6)).transactions
    assert done.draws == ((1, -5), (1, -4), (2, -2))
    assert own_draws(done) == (0, ((1, -4), (2, -2)))


def test_own_draws_of_an_order_in_debt_are_none() -> None:
    book = opened(order("debt", 9), add(4, effective_at=days(1)))
    (done,) = book.wait(days=1).tell(order("1", 5)).transactions
    assert done.draws == ((1, -4),)
    assert own_draws(done) == (5, ())


@pytest.mark.parametrize(
    ("parts", "draws"),
    [
        ([9], [((2, 4), (1, 3))]),  # two of them paid the debt
        ([2, 7], [(), ((2, 4), (1, 3))]),
        ([1, 3, 3, 2], [(), ((2, 2),), ((2, 2), (1, 1)), ((1, 2),)]),
        ([0, 9, 5], [(), ((2, 4), (1, 3)), ()]),
    ],
)
def test_each_refund_continues_where_the_last_one_stopped(parts: list[int], draws: list[tuple[Draw, ...]]) -> None:
    book = opened(add(3), add(4), order("1", 9))
    for number, (part, expected) in enumerate(zip(parts, draws, strict=True)):
        (done,) = book.tell(refund(str(number), "1", credits=part)).transactions
        assert done.draws == expected


def test_returned_credits_pay_the_debt_of_other_orders() -> None:
    book = opened(add(6), order("1", 6), order("2", 5))
    (done,) = book.tell(refund("1", "1", credits=6)).transactions
    assert (done.draws, done.debt_after, book.remaining()) == (((1, 6), (1, -5)), 0, {1: 1})


def test_expired_grants_of_an_order_return_as_separate_grants() -> None:
    book = opened(
        add(3, expires_at=days(1), category="promotional"),
        add(4, expires_at=days(2), category="paid", priority=150),
        add(5),
        order("1", 12),
    )
    (done,) = book.wait(days=2).tell(refund("1", "1", credits=12)).transactions
    # The last to pay was the second, for its priority; the third lives, and takes its own back.
    assert done.draws == ((4, 4), (3, 5), (5, 3))
    grace = days(2 + 30)
    back = {grant.number: (grant.category, grant.priority, grant.expires_at) for grant in book.open_grants}
    assert back[4] == ("paid", 150, grace)
    assert back[5] == ("promotional", 100, grace)


def test_a_grant_that_lapses_in_the_refunds_commit_is_expired() -> None:
    book = opened(add(10, expires_at=days(1)), order("1", 4))
    told = book.wait(days=1).tell(refund("1", "1", credits=4))
    assert [(done.type, done.draws) for done in told.transactions] == [
        ("EXPIRY", ((1, -6),)),
        ("ORDER_REFUNDED", ((2, 4),)),
    ]
    assert book.grants[1].remaining == 0


def test_parked_refunds_share_their_order_in_order_of_arrival() -> None:
    book = opened(add(10))
    book.do(refund("b", "1", credits=4))
    book.do(refund("a", "1", money=10))
    told = book.tell(order("1", 6, total=10))
    assert [(done.key, done.amount, done.shortfall) for done in told.transactions] == [
        ("shopify:order:1", 6, 0),
        ("shopify:refund:b", 4, 0),
        ("shopify:refund:a", 2, 4),
    ]
    assert told.transaction == told.transactions[0]
    assert book.given["shopify:order:1"] == GivenBack("shopify:order:1", 10_000_000, 2, 6)


@pytest.mark.parametrize("command", [refund("1", "1", money=5), payment_refund("1", "1", 5)])
def test_a_refund_is_the_only_transaction_of_its_posting(command: Command) -> None:
    told = opened(payment("1", 9), order("1", 8, total=10)).tell(command)
    assert told.transactions == (told.transaction,)


@pytest.mark.parametrize(
    ("total", "money", "gives"),
    [
        ("10", ["5", "5"], [(4, 0), (4, 0)]),
        ("10", ["5", "9"], [(4, 0), (4, 0)]),
        ("10", ["10", "5"], [(8, 0), (0, 0)]),
        ("0", ["0"], [(8, 0)]),  # a total of 0 is fully refunded
    ],
)
def test_each_refund_of_money_subtracts_the_earlier_ones(
    total: str, money: list[str], gives: list[tuple[int, int]]
) -> None:
    book = opened(add(9), order("1", 8, total=total))
    done = [book.tell(refund(str(number), "1", money=part)).transactions[0] for number, part in enumerate(money)]
    assert [(one.amount, one.shortfall) for one in done] == gives


def test_an_overdue_parked_refund_does_not_block_the_next_one() -> None:
    book = opened(add(10))
    book.do(refund("early", "1", credits=1))
    book.wait(days=1).do(refund("late", "1", credits=2))
    told = book.wait(days=6).tell(order("1", 6))
    assert [done.key for done in told.transactions] == ["shopify:order:1", "shopify:refund:late"]
    assert [letter.code for letter in told.dead_letters] == ["order_unknown"]
    assert book.parked == {}


def test_a_refund_of_zero_credits_leaves_no_grant() -> None:
    (done,) = opened().tell(refund("1", credits=0)).transactions
    assert (done.amount, done.shortfall, done.draws) == (0, 0, ())


def test_a_payment_refund_takes_from_the_payments_own_grant_first() -> None:
    book = opened(payment("1", 10), add(5, priority=1), use(7))
    # The other grant paid first, so the payment's own grant has eight left.
    (done,) = book.tell(payment_refund("1", "1", 9)).transactions
    assert (done.draws, done.debt_after) == (((1, -8),), 1)


def test_a_payment_of_one_credit_is_refunded_from_its_grant() -> None:
    book = opened(payment("1", 1), add(5, priority=1))
    assert book.tell(payment_refund("1", "1", 1)).transactions[0].draws == ((1, -1),)


def test_refunding_a_spent_payment_draws_on_other_grants_only() -> None:
    book = opened(payment("1", 4), use(4), add(3))
    assert book.tell(payment_refund("1", "1", 4)).transactions[0].draws == ((2, -3),)


def test_refunding_a_payment_that_paid_debt_draws_on_its_grant() -> None:
    book = opened(order("1", 4), payment("1", 10), payment("2", 10))
    (done,) = book.tell(payment_refund("1", "1", 6)).transactions
    assert done.draws == ((1, -6),)


def test_a_second_payment_refund_subtracts_the_first() -> None:
    book = opened(payment("1", 10))
    first, second = (book.tell(payment_refund(number, "1", 7)).transactions[-1] for number in "ab")
    assert [(done.amount, done.shortfall) for done in (first, second)] == [(7, 0), (3, 4)]
    assert second.reference == ("payment", "1")
    assert book.given["billing:payment:1"].credits == 10


def test_a_parked_payment_refund_needs_no_earlier_spent_grant() -> None:
    book = opened(order("1", 5), add(5, effective_at=days(1)))
    book.do(payment_refund("1", "1", 6))
    book.wait(days=1).tell(sweep())  # the grant pays the debt; the payment's draws list it
    told = book.tell(payment("1", 8))
    assert [done.draws for done in told.transactions] == [((1, -5), (2, 8)), ((2, -6),)]
    worthless = opened(order("1", 5), add(5, effective_at=days(1)))
    worthless.do(payment_refund("1", "1", 6))
    worthless.wait(days=1).tell(sweep())
    told = worthless.tell(payment("1", 0))
    assert worthless.faults() == []
    assert [(done.amount, done.shortfall, done.draws) for done in told.transactions] == [(0, 0, ((1, -5),)), (0, 6, ())]


def test_a_payments_own_grant_is_found_among_earlier_draws() -> None:
    """A payment's draws begin with the debt paid before it; only the grant that it created is its own."""
    book = opened(order("1", 5), add(5, effective_at=days(1)))
    book.wait(days=1).tell(payment("1", 10))
    assert book.transactions[-1].draws == ((1, -5), (2, 10))
    (done,) = book.tell(payment_refund("1", "1", 10)).transactions
    assert (done.draws, done.debt_after) == (((2, -10),), 0)
