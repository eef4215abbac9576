"""The announcements of a posting: their order and their details."""

from typing import get_args

import pytest

from credit_service.ledger.announcements import plugin_reason
from credit_service.ledger.draft import Posted
from credit_service.ledger.policy import Policy
from credit_service.ledger.types import ANNOUNCED, TYPES, PostableType, TransactionType, announced_by
from tests.ledger.book import Book
from tests.ledger.telling import (
    add,
    days,
    opening,
    order,
    payment,
    payment_refund,
    refund,
    renewal,
    terms,
    trial,
    use,
    void,
)

NO_TRIAL = Policy(trial_credits=0)


def told(posted: Posted) -> list[tuple[str, int | None, int]]:
    """Type, causing transaction and available credits of each announcement."""
    return [(said.type, said.sequence, said.available) for said in posted.announcements]


def test_every_transaction_type_has_a_row_and_an_announcement() -> None:
    assert tuple(TYPES) == get_args(TransactionType)
    assert set(get_args(PostableType)) == {name for name, row in TYPES.items() if row.postable}
    assert all(row.announcement in ANNOUNCED for row in TYPES.values())
    assert all(announced_by(announcement) for announcement in ANNOUNCED)
    assert announced_by("recharged") == ("TRIAL", "SUBSCRIPTION", "PAYMENT")
    assert announced_by("order_rejected") == ("ORDER_PAID",)


def test_each_fact_and_command_has_its_own_announcement() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening())
    for command, word in [
        (trial(90), "recharged"),
        (payment("1", 5), "recharged"),
        (renewal("A", "1", 5), "recharged"),
        (order("1", 1), "consumed"),
        (use(1), "consumed"),
        (refund("1", "1", credits=1), "refunded"),
        (add(1), "adjusted"),
        (payment_refund("1", "1", 1), "payment_refunded"),
        (void(1), "grant.voided"),
    ]:
        assert book.tell(command).announcements[0].type == word


def test_account_created_is_the_first_announcement() -> None:
    assert told(Book(Policy(trial_credits=9)).tell(opening())) == [
        ("account.created", None, 0),
        ("recharged", 1, 9),
        ("plugin_status_changed", 1, 9),
    ]


def test_first_order_without_credits_announces_low_and_exhausted() -> None:
    assert told(Book(NO_TRIAL).tell(order("1", 5))) == [
        ("account.created", None, 0),
        ("consumed", 1, -5),
        ("low_balance_reached", 1, -5),
        ("balance_exhausted", 1, -5),
    ]


def test_a_posting_announces_expiries_then_itself_then_parked_refunds() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), add(30, expires_at=days(3)), add(5), terms(low_threshold=6))
    book.do(refund("1", "1", money=5))
    posted = book.wait(days=3).tell(order("1", 5, total=5))
    assert told(posted) == [
        ("expired", 3, 5),
        ("low_balance_reached", 3, 5),
        ("consumed", 4, 0),
        ("balance_exhausted", 4, 0),
        ("plugin_status_changed", 4, 0),
        ("refunded", 5, 5),
        ("plugin_status_changed", 5, 5),
    ]
    assert [done.type for done in posted.transactions] == ["EXPIRY", "ORDER_PAID", "ORDER_REFUNDED"]


def test_balance_restored_comes_before_plugin_status_changed() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), order("1", 5))
    assert told(book.tell(add(9))) == [
        ("adjusted", 2, 4),
        ("balance_restored", 2, 4),
        ("plugin_status_changed", 2, 4),
    ]


def test_announcement_numbers_continue_across_postings() -> None:
    book = Book()
    book.tell(opening(), use(100))
    assert [said.number for said in book.announcements] == [1, 2, 3, 4, 5, 6, 7]
    assert book.account is not None
    assert book.account.announced == 7


def test_level_announcements_have_a_threshold_or_status_and_reason() -> None:
    book = Book(Policy(trial_credits=10))
    book.tell(opening(), use(10), add(10))
    assert [(said.type, said.detail) for said in book.announcements if said.detail] == [
        ("plugin_status_changed", _status("disabled", "enabled", "available")),
        ("low_balance_reached", {"low_threshold": 2}),
        ("plugin_status_changed", _status("enabled", "disabled", "exhausted")),
        ("balance_restored", {"low_threshold": 2}),
        ("plugin_status_changed", _status("disabled", "enabled", "available")),
    ]


def _status(previous: str, current: str, reason: str) -> dict[str, str]:
    return {"previous_status": previous, "current_status": current, "reason": reason}


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (2, ["low_balance_reached"]),
        (1, ["low_balance_reached"]),
        (0, ["low_balance_reached", "balance_exhausted", "plugin_status_changed"]),
    ],
)
def test_the_plugin_is_enabled_until_the_last_credit(left: int, words: list[str]) -> None:
    book = Book(Policy(trial_credits=10))
    book.tell(opening())
    posted = book.tell(use(10 - left))
    assert [said.type for said in posted.announcements[1:]] == words
    assert plugin_reason(posted.account.available, "open") == ("available" if left else "exhausted")


def test_the_first_credit_enables_the_plugin() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening())
    status = book.tell(add(1)).announcements[-1]
    assert (status.type, status.detail) == ("plugin_status_changed", _status("disabled", "enabled", "available"))


def test_a_rejected_order_announces_order_rejected_and_no_level() -> None:
    book = Book(Policy(trial_credits=5, when_insufficient="reject"))
    book.tell(opening())
    assert told(book.tell(order("1", 6))) == [("order_rejected", 2, 5)]


def test_a_partly_posted_order_announces_consumed() -> None:
    book = Book(Policy(trial_credits=5, when_insufficient="partial"))
    book.tell(opening(), use(5))
    assert told(book.tell(order("1", 6))) == [("consumed", 3, 0)]


def test_expiring_soon_has_the_id_of_its_grant() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), add(5, expires_at=days(30)))
    posted = book.wait(days=25).tell(use(2))
    warning = posted.announcements[0]
    assert (warning.type, warning.at, warning.available) == ("expiring_soon", days(25), 5)
    assert warning.detail == {
        "grant_id": "48d159e2-6af3-87bc-8200-000000000001",
        "remaining": 5,
        "expires_at": days(30),
    }


def test_spending_the_only_credit_disables_the_plugin() -> None:
    book = Book(Policy(trial_credits=1))
    book.tell(opening())
    assert told(book.tell(use(1)))[-1] == ("plugin_status_changed", 2, 0)
