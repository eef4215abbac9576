"""L18 Reversal: an administrator undoes a transaction, all or part, at most the whole in sum."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit_service.ledger.commands import Command
from credit_service.ledger.decide import Replayed
from credit_service.ledger.policy import Policy
from credit_service.ledger.refusals import Refusal
from tests.ledger.book import Book
from tests.ledger.telling import (
    add,
    closed,
    days,
    disputed,
    opening,
    order,
    payment,
    payment_refund,
    post,
    refund,
    renewal,
    reversal,
    state,
    sweep,
    trial,
    use,
    void,
)


def book_of(*commands: Command, **settings: Any) -> Book:
    """An account without a trial after these commands."""
    book = Book(Policy(trial_credits=0, **settings))
    book.tell(opening(), *commands)
    return book


def last(book: Book) -> tuple[str, int, int, int | None]:
    """The last transaction: operation, amount, shortfall, and what it reverses."""
    done = book.transactions[-1]
    assert done.type == "REVERSAL"
    assert done.reference == book.transactions[(done.reverses or 0) - 1].reference
    return done.operation, done.amount, done.shortfall, done.reverses


# ---- of a decrease


@pytest.mark.parametrize("spend", [use(30), order("1", 30), post("DECREASE", "MANUAL", 30)])
def test_L18_a_reversed_spend_returns_to_its_grants(spend: Command) -> None:
    book = book_of(add(20, priority=1, expires_at=days(9)), add(50))
    before = book.open_grants
    posted = book.tell(spend, reversal(3))
    assert last(book) == ("INCREASE", 30, 0, 3)
    assert (book.open_grants, posted.announcements[-1].type, book.faults()) == (before, "reversed", [])


@given(st.lists(st.integers(1, 12), max_size=6))
def test_L18_parts_reverse_at_most_the_whole(parts: list[int]) -> None:
    book, left = book_of(add(100), use(30)), 30
    for part in parts:
        if part > left:
            refused = book.refused(reversal(2, part))
            assert (refused.refusal, refused.detail) == (Refusal.ALREADY_REVERSED, {"left": left})
        else:
            book.tell(reversal(2, part))
            left -= part
    assert book.remaining() == {1: 100 - left}


def test_L18_refunds_and_reversals_of_an_order_share_its_credits() -> None:
    book = book_of(add(100), order("1", 10, total=10), refund("r", "1", money=4), reversal(2))
    assert last(book) == ("INCREASE", 6, 0, 2)
    assert book.refused(reversal(2)).detail == {"left": 0}
    book.tell(refund("s", "1", money=6))
    assert [done.amount for done in book.transactions[-2:]] == [6, 0]


def test_L18_a_reversed_order_pays_the_debt_that_it_made() -> None:
    book = book_of(order("1", 10), reversal(1))
    assert book.account is not None
    assert (book.account.balance, book.account.debt, book.open_grants) == (0, 0, ())


def test_L18_credits_of_an_expired_grant_return_for_the_days_of_grace() -> None:
    book = book_of(add(10, expires_at=days(1)), use(10))
    book.wait(days=2).tell(reversal(2))
    assert [(grant.remaining, grant.expires_at) for grant in book.open_grants] == [(10, days(32))]


# ---- of a void


def test_L18_a_reversed_void_is_as_if_it_had_not_been() -> None:
    book = book_of(add(20), add(30, effective_at=days(2)))
    before = dict(book.grants)
    book.tell(void(1, 15), void(2), reversal(3), reversal(4, 1), reversal(4, 29))
    assert (book.grants, book.faults()) == (before, [])


def test_L18_a_void_of_a_grant_that_has_expired_returns_for_the_days_of_grace() -> None:
    book = book_of(add(20, expires_at=days(1)), void(1, 15))
    book.wait(days=2).tell(reversal(2))
    assert (book.remaining(), book.grants[1].gone, book.faults()) == ({2: 15}, 20, [])


def test_L18_a_void_is_reversed_whole_while_the_account_is_in_debt() -> None:
    book = book_of(order("1", 5), add(9, effective_at=days(2)), void(1, 9), reversal(3))
    assert book.account is not None
    assert (book.account.debt, book.remaining(), book.faults()) == (5, {1: 9}, [])


def test_L18_a_forfeit_is_reversed_into_every_grant() -> None:
    book = book_of(add(20), add(30), state("closed", forfeit=True))
    assert book.refused(reversal(3)).refusal == Refusal.ACCOUNT_CLOSED
    book.tell(order("1", 0), reversal(3))
    assert (book.remaining(), book.faults()) == ({1: 20, 2: 30}, [])


# ---- of an increase


@pytest.mark.parametrize("increase", [add(50), payment("P", 50), renewal("A", "1", 50), trial(50)])
def test_L18_the_unspent_credits_of_an_increase_go_first(increase: Command) -> None:
    book = book_of(add(5, priority=1), increase, reversal(2, 20))
    assert (last(book), book.remaining()) == (("DECREASE", 20, 0, 2), {1: 5, 2: 30})
    book.tell(reversal(2))
    assert (last(book), book.remaining()) == (("DECREASE", 30, 0, 2), {1: 5})
    assert book.refused(reversal(2)).refusal == Refusal.ALREADY_REVERSED


@pytest.mark.parametrize(
    ("policy", "amount", "debt", "state_after"),
    [("debt", 50, 10, "open"), ("clamp", 40, 0, "open"), ("freeze", 50, 10, "frozen")],
)
def test_L18_spent_credits_follow_the_policy(policy: str, amount: int, debt: int, state_after: str) -> None:
    book = book_of(add(50), use(10), reversal(1), clawback=policy)
    assert book.account is not None
    assert last(book) == ("DECREASE", amount, 50 - amount, 1)
    assert (book.account.debt, book.account.state) == (debt, state_after)


def test_L18_a_payment_is_refunded_or_reversed_once() -> None:
    book = book_of(payment("P", 100), reversal(1, 60), payment_refund("r", "P", 100))
    assert [done.amount for done in book.transactions[1:]] == [60, 40]
    assert book.refused(reversal(1)).detail == {"left": 0}


def test_L18_a_won_dispute_returns_no_reversed_credits() -> None:
    book = book_of(payment("P", 100), disputed("d", "P", 60), reversal(1), closed("d", "P", "won"), reversal(1))
    assert [(done.operation, done.amount) for done in book.transactions[1:]] == [
        ("DECREASE", 60),
        ("DECREASE", 40),
        ("INCREASE", 60),
        ("DECREASE", 60),
    ]


def test_L18_expired_credits_are_shortfall() -> None:
    book = book_of(add(50, expires_at=days(1)), use(20))
    book.wait(days=2).tell(reversal(1))
    assert last(book) == ("DECREASE", 20, 30, 1)
    assert book.refused(reversal(1)).refusal == Refusal.ALREADY_REVERSED


# ---- what cannot be reversed


@pytest.mark.parametrize(
    ("story", "sequence"),
    [
        ([payment("P", 10), payment_refund("r", "P", 5)], 2),
        ([payment("P", 10), disputed("d", "P")], 2),
        ([order("1", 5), refund("r", "1", credits=5)], 2),
        ([add(5), use(2), reversal(2)], 3),
    ],
)
def test_L18_some_types_cannot_be_reversed(story: list[Command], sequence: int) -> None:
    assert book_of(*story).refused(reversal(sequence)).refusal == Refusal.NOT_REVERSIBLE


def test_L18_an_expiry_cannot_be_reversed() -> None:
    book = book_of(add(5, expires_at=days(1)))
    book.wait(days=2).tell(sweep())
    assert book.refused(reversal(2)).refusal == Refusal.NOT_REVERSIBLE


@pytest.mark.parametrize("sequence", [2, 99])
def test_L18_an_unknown_transaction_is_named(sequence: int) -> None:
    assert book_of(add(5)).refused(reversal(sequence)).refusal == Refusal.TRANSACTION_NOT_FOUND


def test_L18_a_transaction_worth_nothing_has_nothing_to_reverse() -> None:
    assert book_of(order("1", 0)).refused(reversal(1)).refusal == Refusal.ALREADY_REVERSED


def test_L18_a_repeated_reversal_replays() -> None:
    book = book_of(add(5), use(2))
    first = book.tell(reversal(2, key="k")).transaction
    assert book.do(reversal(2, key="k")) == Replayed(first)


def test_L18_a_frozen_account_takes_reversals() -> None:
    book = book_of(add(5), use(2), state("frozen"), reversal(2))
    assert book.remaining() == {1: 5}


def test_L18_out_of_range_is_refused() -> None:
    most = 2**53 - 1
    book = book_of(add(5), use(5), payment("P", most))
    assert book.refused(reversal(2)).refusal == Refusal.OUT_OF_RANGE
    owing = book_of(add(5), use(5), order("1", most))
    assert owing.refused(reversal(1)).refusal == Refusal.OUT_OF_RANGE
