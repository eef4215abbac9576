"""Settling: expiries, beginnings and warnings in order of their instants, and the reads that show them."""

import pytest

from credit_service.ledger.account import DAY
from credit_service.ledger.announcements import EXPIRING_SOON
from credit_service.ledger.draft import WARNING, next_due
from credit_service.ledger.policy import Policy
from credit_service.ledger.settle import standing_at
from tests.ledger.book import Book
from tests.ledger.telling import add, days, opening, order, payment, payment_refund, sweep, terms, use

NO_TRIAL = Policy(trial_credits=0)


def opened(*commands: object) -> Book:
    """A book with an account without a trial."""
    book = Book(NO_TRIAL)
    book.tell(opening(), *commands)  # type: ignore[arg-type]
    return book


def test_at_one_instant_grants_expire_before_others_begin() -> None:
    book = opened(add(5, expires_at=days(1)), add(7, effective_at=days(1)))
    told = book.wait(days=1).tell(sweep())
    assert [done.amount for done in told.transactions] == [5]
    assert [(said.type, said.available) for said in told.announcements] == [
        ("expired", 0),
        ("low_balance_reached", 0),
        ("balance_exhausted", 0),
        ("plugin_status_changed", 0),
        ("balance_restored", 7),
        ("plugin_status_changed", 7),
    ]


def test_at_one_instant_grants_begin_before_warnings() -> None:
    book = opened(add(5, expires_at=days(8)), add(7, effective_at=days(1)))
    told = book.wait(days=1).tell(sweep())
    assert [(said.type, said.available) for said in told.announcements] == [(EXPIRING_SOON, 12)]


def test_grants_of_one_instant_begin_together_then_pay_debt() -> None:
    book = opened(order("1", 10), add(3, effective_at=days(1)), add(20, effective_at=days(1), priority=1))
    account = book.wait(days=1).tell(sweep()).account
    assert (account.debt, account.pending, account.available) == (0, 0, 13)
    # The grant with the lower priority number paid everything, although it came later.
    assert book.remaining() == {1: 3, 2: 10}
    assert book.faults() == []


def test_a_grant_spent_on_a_debt_does_not_expire() -> None:
    book = opened(order("1", 10), add(10, effective_at=days(1), expires_at=days(2)))
    assert book.wait(days=3).tell(sweep()).transactions == ()
    assert book.account is not None
    assert (book.account.debt, book.account.balance) == (0, 0)


def test_the_rest_of_a_grant_after_a_debt_expires() -> None:
    book = opened(order("1", 10), add(12, effective_at=days(1), expires_at=days(2)))
    (done,) = book.wait(days=3).tell(sweep()).transactions
    # The transaction also lists the earlier draw: the grant first paid the debt, then it lapsed.
    assert (done.type, done.amount, done.draws) == ("EXPIRY", 2, ((1, -10), (1, -2)))
    assert book.grants[1].lapses == 1


def test_a_grant_begins_before_it_expires() -> None:
    book = opened(add(5, effective_at=days(1), expires_at=days(1) + 1))
    told = book.wait(days=30).tell(sweep())
    assert [said.type for said in told.announcements] == [
        "plugin_status_changed",
        "expired",
        "low_balance_reached",
        "balance_exhausted",
        "plugin_status_changed",
    ]
    assert (told.account.pending, told.account.balance) == (0, 0)


def test_expiring_soon_is_announced_once_seven_days_before() -> None:
    book = opened(add(5, expires_at=days(30)))
    assert book.wait(days=23, micros=-1).do(sweep()) == (None, False)
    (said,) = book.wait(micros=1).tell(sweep()).announcements
    assert (said.type, said.sequence) == (EXPIRING_SOON, None)
    assert said.detail is not None
    assert (said.detail["remaining"], said.detail["expires_at"]) == (5, days(30))
    told = book.wait(days=6).tell(use(1))
    assert EXPIRING_SOON not in {said.type for said in told.announcements}


@pytest.mark.parametrize(
    ("effective_at", "expires_at", "told"),
    [
        (None, 7 * DAY - 1, 0),
        (DAY, 8 * DAY, 1),  # lives exactly seven days
        (DAY, 8 * DAY - 1, 0),
        (-30 * DAY, DAY, 0),  # its warning was due before the grant existed
        (None, 8 * DAY, 1),
    ],
)
def test_a_grant_shorter_than_the_warning_is_not_announced(
    effective_at: int | None, expires_at: int, told: int
) -> None:
    effective = None if effective_at is None else days(0) + effective_at
    book = opened(add(5, effective_at=effective, expires_at=days(0) + expires_at))
    announced = book.wait(days=60).tell(sweep()).announcements
    assert [said.type for said in announced].count(EXPIRING_SOON) == told


def test_a_spent_grant_is_neither_announced_nor_expired() -> None:
    book = opened(add(5, expires_at=days(30)), use(5))
    assert book.wait(days=60).do(sweep()) == (None, False)


def test_a_late_settle_dates_each_expiry_by_its_instant() -> None:
    book = opened(add(5, expires_at=days(1)), add(6, expires_at=days(2)))
    told = book.wait(days=9).tell(sweep())
    assert [(done.occurred_at, done.created_at) for done in told.transactions] == [
        (days(1), days(9)),
        (days(2), days(9)),
    ]
    assert {said.at for said in told.announcements} == {days(9)}


@pytest.mark.parametrize(
    ("after", "due"),
    [
        (0, days(10) - WARNING),
        (3, days(5)),
        (5, days(10)),
        (10, None),
    ],
)
def test_next_due_is_the_next_instant_with_a_change(after: int, due: int | None) -> None:
    book = opened(add(5, expires_at=days(10)), add(6, effective_at=days(5)), add(7))
    assert book.wait(days=after).standing().account.next_due_at == due


def test_spending_the_next_due_grant_moves_next_due() -> None:
    book = opened(add(5, expires_at=days(5)), add(6, expires_at=days(6)))
    assert book.account is not None
    assert book.account.next_due_at == days(5)
    assert book.tell(use(5)).account.next_due_at == days(6)
    assert book.tell(use(6)).account.next_due_at is None


def test_a_payment_refunded_before_its_start_is_not_due() -> None:
    book = opened(add(5, "billing:payment:1", "PAYMENT", effective_at=days(5)))
    account = book.tell(payment_refund("1", "1", 5)).account
    assert (account.next_due_at, account.pending, account.balance) == (None, 0, 0)


def test_nothing_is_due_without_grants() -> None:
    assert next_due([], days(0)) is None


def test_a_read_with_nothing_due_needs_no_grants() -> None:
    book = opened(add(5), payment("1", 5, expires_at=days(30)))
    assert book.account is not None
    standing = standing_at(book.account, (), NO_TRIAL, days(20))
    assert (standing.account.available, standing.status) == (10, "ACTIVE")
    assert standing.account.next_due_at == days(23)


def test_a_read_before_the_last_posting_shows_that_posting() -> None:
    book = opened(add(5))
    assert book.account is not None
    assert standing_at(book.account, book.open_grants, NO_TRIAL, days(-9)).account.settled_at == days(0)


@pytest.mark.parametrize(
    ("available", "status"), [(-1, "EXHAUSTED"), (0, "EXHAUSTED"), (1, "LOW"), (20, "LOW"), (21, "ACTIVE")]
)
def test_status_follows_from_available_and_threshold(available: int, status: str) -> None:
    book = opened(add(30), order("1", 30 - available))
    book.do(terms(low_threshold=20))
    assert (book.standing().status, book.standing().threshold) == (status, 20)
