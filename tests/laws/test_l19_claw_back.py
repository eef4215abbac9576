"""L19 Claw-back: what is demanded back for a payment is taken once, whatever its refunds and disputes say, and when."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit_service.ledger.account import Reference
from credit_service.ledger.commands import Command
from credit_service.ledger.decide import Replayed, Waiting
from credit_service.ledger.policy import Policy
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
    refund,
    renewal,
    void,
)

NO_TRIAL = Policy(trial_credits=0)


def book_of(*commands: Command, **settings: Any) -> Book:
    """An account after these commands."""
    book = Book(replace(NO_TRIAL, **settings))
    book.tell(opening(), *commands)
    return book


def balance(book: Book) -> int:
    assert book.account is not None
    return book.account.balance


def posted(book: Book) -> list[tuple[str, int, int]]:
    """The transactions of refunds and disputes: operation, amount and shortfall."""
    return [
        (done.operation, done.amount, done.shortfall) for done in book.transactions if done.type.startswith("PAYMENT_")
    ]


def taken(book: Book) -> list[tuple[int, int]]:
    """Where the credits of the payment P were taken: grants (0 is debt) and credits."""
    return list(book.given["billing:payment:P"].taken)


# ---- the amount


@given(st.integers(0, 40), st.integers(0, 40), st.lists(st.integers(0, 30), min_size=1, max_size=5))
def test_L19_refunds_take_at_most_the_payment(paid: int, spent: int, asked: list[int]) -> None:
    book = book_of(payment("1", paid), order("1", spent))
    done = [book.tell(payment_refund(str(number), "1", part)).transactions[-1] for number, part in enumerate(asked)]
    assert sum(one.amount for one in done) == min(paid, sum(asked))
    assert [one.amount + one.shortfall for one in done] == asked
    assert balance(book) == paid - spent - min(paid, sum(asked))


STEPS = {
    "paid": payment("P", 100),
    "part": payment_refund("r1", "P", 30),
    "part again": payment_refund("r1", "P", 30),
    "refund": payment_refund("r2", "P", 100),
    "dispute": disputed("d1", "P"),
    "second dispute": disputed("d2", "P", 40),
    "other": order("1", 70),
}


@pytest.mark.parametrize("outcome", ["won", "lost"])
def test_L19_every_order_of_events_takes_the_same(outcome: str) -> None:
    steps: dict[str, Command] = {**STEPS, "closed": closed("d1", "P", outcome)}
    del steps["other" if outcome == "won" else "refund"]
    finals: dict[frozenset[str], int] = {}
    count = 0
    for told, book in _orders(book_of(add(50)), steps, ()):
        heard, count = frozenset(told), count + 1
        assert finals.setdefault(heard, balance(book)) == balance(book), told
        assert balance(book) == 50 - 70 * ("other" in heard) + _worth(heard, outcome), told
    assert (len(finals), count) == (2**7, 13_700)


def _orders(book: Book, steps: dict[str, Command], told: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Book]]:
    """Every order of every subset of the steps, each with the books after it."""
    yield told, book
    for name, step in steps.items():
        if name not in told:
            after = book.copy()
            after.do(step)
            yield from _orders(after, steps, (*told, name))


def _worth(heard: frozenset[str], outcome: str) -> int:
    """What the payment is worth to its merchant in the end."""
    if "paid" not in heard:
        return 0
    demanded = 30 * bool(heard & {"part", "part again"}) + 100 * ("refund" in heard) + 40 * ("second dispute" in heard)
    if heard & {"dispute", "closed"} and not (outcome == "won" and "closed" in heard):
        demanded += 100
    return 100 - min(demanded, 100)


@pytest.mark.parametrize("part", [0, 1, 60, 99, 100])
def test_L19_a_dispute_of_a_part_takes_that_part(part: int) -> None:
    book = book_of(payment("P", 100), disputed("d", "P", part))
    assert balance(book) == 100 - part
    book.tell(closed("d", "P", "won"))
    assert balance(book) == 100


@pytest.mark.parametrize(("opened", "lost", "taken"), [(None, 40, 40), (41, 40, 40), (40, 60, 60), (40, None, 40)])
@pytest.mark.parametrize("late", [True, False])
def test_L19_a_lost_dispute_takes_what_was_lost(
    opened: int | None, lost: int | None, taken: int, *, late: bool
) -> None:
    steps = [disputed("d", "P", opened), closed("d", "P", "lost", lost)]
    book = book_of(payment("P", 100), *steps[:: -1 if late else 1])
    assert balance(book) == 100 - taken
    assert [shortfall for _, _, shortfall in posted(book)] == [0, 0]


def test_L19_refund_and_dispute_of_one_payment_take_it_once() -> None:
    book = book_of(payment("P", 100), payment_refund("r", "P", 100), disputed("d", "P"))
    assert posted(book) == [("DECREASE", 100, 0), ("DECREASE", 0, 100)]
    assert balance(book) == 0


def test_L19_a_won_dispute_gives_back_once() -> None:
    book = book_of(payment("P", 100), disputed("d", "P"), closed("d", "P", "won"))
    assert isinstance(book.do(closed("d", "P", "won")), Replayed)
    assert isinstance(book.do(closed("d", "P", "lost")), Replayed)
    assert (posted(book)[-1], balance(book)) == (("INCREASE", 100, 0), 100)


def test_L19_a_won_dispute_gives_back_what_no_refund_demands() -> None:
    book = book_of(payment("P", 100), disputed("d", "P"), payment_refund("r", "P", 30), closed("d", "P", "won"))
    assert (posted(book)[-1], taken(book)) == (("INCREASE", 70, 0), [(1, 30)])


def test_L19_a_refund_after_a_won_dispute_takes_the_credits() -> None:
    book = book_of(payment("P", 100), disputed("d", "P"), closed("d", "P", "won"), payment_refund("r", "P", 100))
    assert balance(book) == 0


def test_L19_a_won_dispute_of_a_refunded_payment_gives_nothing_back() -> None:
    book = book_of(payment("P", 100), payment_refund("r", "P", 100), disputed("d", "P"), closed("d", "P", "won"))
    assert (posted(book)[-1], balance(book)) == (("INCREASE", 0, 0), 0)


def test_L19_the_closing_of_an_older_dispute_does_not_close_a_newer_one() -> None:
    book = book_of(payment("P", 100), disputed("old", "P"), disputed("new", "P"), closed("old", "P", "won"))
    assert balance(book) == 0
    book.tell(closed("new", "P", "won"))
    assert balance(book) == 100


# ---- where the credits come from, and where they return


def test_L19_the_unspent_credits_of_the_payment_are_taken_first() -> None:
    book = book_of(payment("P", 10), add(10, priority=1), payment_refund("r", "P", 4))
    assert (book.remaining(), book.transactions[-1].reverses) == ({1: 6, 2: 10}, None)


def test_L19_spent_credits_are_taken_from_others_and_then_become_debt() -> None:
    book = book_of(payment("P", 10), order("1", 8), add(3), payment_refund("r", "P", 10))
    assert book.account is not None
    assert (book.remaining(), book.account.debt) == ({}, 5)


def test_L19_a_won_dispute_gives_back_to_the_same_grants() -> None:
    book = book_of(payment("P", 10), order("1", 6), add(3, priority=7, expires_at=days(9)))
    before = book.open_grants
    book.tell(disputed("d", "P"), closed("d", "P", "won"))
    assert book.account is not None
    assert (book.open_grants, book.account.debt) == (before, 0)
    assert book.faults() == []


def test_L19_a_won_dispute_pays_the_debt_that_it_made() -> None:
    book = book_of(payment("P", 10), order("1", 15), disputed("d", "P"))
    assert balance(book) == -15
    assert taken(book) == [(0, 10)]
    book.tell(closed("d", "P", "won"))
    assert (balance(book), book.remaining()) == (-5, {})


def test_L19_a_debt_that_was_paid_meanwhile_returns_as_a_paid_grant() -> None:
    book = book_of(payment("P", 10), order("1", 10), disputed("d", "P"), add(15), closed("d", "P", "won"))
    assert [(grant.category, grant.remaining) for grant in book.open_grants] == [("promotional", 5), ("paid", 10)]


def test_L19_the_last_taken_returns_first() -> None:
    book = book_of(payment("P", 10), order("1", 10), add(5), disputed("a", "P", 3))
    book.tell(add(4, priority=1), disputed("b", "P", 4))
    assert book.remaining() == {2: 2}
    book.tell(closed("a", "P", "won"))
    assert book.remaining() == {2: 2, 3: 3}


def test_L19_two_disputes_that_are_won_give_all_back() -> None:
    book = book_of(payment("P", 100), disputed("a", "P", 60), disputed("b", "P", 60))
    assert posted(book)[-1] == ("DECREASE", 40, 20)
    book.tell(closed("b", "P", "won"))
    assert balance(book) == 40
    assert taken(book) == [(1, 60)]
    book.tell(closed("a", "P", "won"))
    assert (balance(book), book.remaining()) == (100, {1: 100})
    assert taken(book) == []
    assert [done.reference for done in book.transactions[1:]] == [Reference("payment", "P")] * 4


def test_L19_a_grant_that_expired_in_a_dispute_returns_for_the_days_of_grace() -> None:
    book = book_of(payment("P", 10, expires_at=days(1)), disputed("d", "P"))
    book.wait(days=2).tell(closed("d", "P", "won"))
    assert [(grant.remaining, grant.expires_at) for grant in book.open_grants] == [(10, days(32))]


# ---- what is gone


def test_L19_expired_credits_are_not_taken_from_others() -> None:
    book = book_of(payment("A", 100, expires_at=days(1)), payment("B", 100))
    book.wait(days=2).tell(payment_refund("r", "A", 100))
    assert (posted(book), balance(book)) == ([("DECREASE", 0, 100)], 100)


def test_L19_only_the_spent_part_of_an_expired_payment_is_taken() -> None:
    book = book_of(payment("A", 100, expires_at=days(1)), order("1", 60), add(100))
    book.wait(days=2).tell(payment_refund("r", "A", 50), payment_refund("s", "A", 50))
    assert posted(book) == [("DECREASE", 50, 0), ("DECREASE", 10, 40)]
    assert balance(book) == 40


def test_L19_voided_credits_are_not_taken_from_others() -> None:
    book = book_of(payment("A", 100), add(100), void(1, 70), payment_refund("r", "A", 100))
    assert (posted(book), balance(book)) == ([("DECREASE", 30, 70)], 100)


def test_L19_a_payment_that_expired_before_it_came_is_not_taken_back() -> None:
    book = book_of()
    book.do(payment_refund("r", "P", 5))
    told = book.tell(payment("P", 5, expires_at=days(-1)))
    assert [(done.type, done.amount) for done in told.transactions] == [
        ("PAYMENT", 5),
        ("EXPIRY", 5),
        ("PAYMENT_REFUNDED", 0),
    ]


def test_L19_a_payment_that_is_not_effective_yet_is_taken_back_whole() -> None:
    book = book_of(renewal("A", "1", 10), add(5, effective_at=days(3)), payment_refund("r", "A:1", 4))
    assert book.account is not None
    assert (book.account.balance, book.account.pending, book.remaining()) == (11, 5, {1: 6, 2: 5})


# ---- the policy


def test_L19_clamp_takes_the_unspent_credits_and_never_the_rest() -> None:
    book = book_of(payment("P", 10), order("1", 6), add(20), payment_refund("r", "P", 10), clawback="clamp")
    assert (posted(book), balance(book)) == ([("DECREASE", 4, 6)], 20)
    book.tell(refund("o", "1", credits=6), payment_refund("s", "P", 10))
    assert (posted(book)[-1], balance(book)) == (("DECREASE", 0, 10), 26)


def test_L19_clamp_adds_up_what_it_never_takes() -> None:
    book = book_of(payment("P", 10), order("1", 6), clawback="clamp")
    book.tell(payment_refund("r", "P", 7), payment_refund("s", "P", 3), refund("o", "1", credits=6))
    book.tell(payment_refund("t", "P", 10))
    assert posted(book) == [("DECREASE", 4, 3), ("DECREASE", 0, 3), ("DECREASE", 0, 10)]


def test_L19_clamp_takes_unspent_credits_part_by_part() -> None:
    book = book_of(payment("P", 10), payment_refund("r", "P", 4), payment_refund("s", "P", 6), clawback="clamp")
    assert posted(book) == [("DECREASE", 4, 0), ("DECREASE", 6, 0)]


def test_L19_clamp_keeps_what_it_waived_for_a_refund_when_a_dispute_is_won() -> None:
    book = book_of(payment("P", 10), order("1", 6), payment_refund("r", "P", 5), disputed("d", "P"), clawback="clamp")
    book.tell(closed("d", "P", "won"), refund("o", "1", credits=6), payment_refund("s", "P", 5))
    assert posted(book) == [("DECREASE", 4, 1), ("DECREASE", 0, 10), ("INCREASE", 0, 0), ("DECREASE", 5, 0)]


def test_L19_clamp_waives_no_more_than_is_demanded() -> None:
    book = book_of(payment("P", 10), order("1", 6), disputed("d", "P"), clawback="clamp")
    book.tell(closed("d", "P", "lost", 7), refund("o", "1", credits=6), payment_refund("r", "P", 10))
    assert posted(book) == [("DECREASE", 4, 6), ("DECREASE", 0, 0), ("DECREASE", 3, 7)]


def test_L19_clamp_demands_again_after_a_won_dispute() -> None:
    book = book_of(payment("P", 10), order("1", 6), disputed("d", "P"), clawback="clamp")
    book.tell(closed("d", "P", "won"))
    assert book.given["billing:payment:P"].waived == 0
    book.tell(refund("o", "1", credits=6), payment_refund("r", "P", 10))
    assert (posted(book)[-1], balance(book)) == (("DECREASE", 10, 0), 0)


# ---- renewals, and what comes before its payment


def test_L19_a_renewal_is_taken_back_as_a_payment_is() -> None:
    book = book_of(renewal("A", "2026-01", 50), renewal("A", "2026-02", 70))
    book.tell(payment_refund("r", "A:2026-01", 30), disputed("d", "A:2026-02"))
    assert book.remaining() == {1: 20}
    assert [done.reference for done in book.transactions[-2:]] == [("subscription", "A"), ("subscription", "A")]


@pytest.mark.parametrize(
    "fact", [payment_refund("r", "P", 5), disputed("d", "P"), closed("d", "P", "lost"), payment_refund("r", "A:1", 5)]
)
def test_L19_what_comes_before_its_payment_waits(fact: Command) -> None:
    book = book_of()
    assert isinstance(book.do(fact), Waiting)
    assert isinstance(book.do(fact), Waiting)
    book.tell(payment("P", 5), renewal("A", "1", 5))
    assert (balance(book), book.parked) == (5, {})


def test_L19_what_waited_too_long_is_a_dead_letter() -> None:
    book = book_of()
    book.do(disputed("d", "P"))
    told = book.wait(days=8).tell(payment("P", 5))
    assert [letter.code for letter in told.dead_letters] == ["payment_unknown"]
    assert balance(book) == 5
