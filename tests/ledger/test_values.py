"""The values of the ledger."""

from dataclasses import FrozenInstanceError

import pytest

from credit_service.ledger.account import Account, Grant, transaction_time
from credit_service.ledger.commands import Command, order_key, payment_key, trial_key
from credit_service.ledger.draft import Draft
from credit_service.ledger.policy import Policy
from credit_service.ledger.types import DECREASE, EXPIRY, INCREASE, postable
from tests.ledger.book import Book
from tests.ledger.telling import (
    MERCHANT,
    T0,
    add,
    days,
    opening,
    order,
    payment,
    payment_refund,
    refund,
    renewal,
    sweep,
    terms,
    trial,
    use,
)


def test_available_is_balance_less_held_and_pending() -> None:
    account = Account(1, MERCHANT, days(0), days(0), balance=10, held=3, pending=2)
    assert account.available == 5


@pytest.mark.parametrize(
    "command",
    [
        opening(),
        trial(1),
        payment("1", 1),
        payment_refund("1", "1", 1),
        renewal("A", "1", 1),
        order("1"),
        refund("1", credits=1),
        add(1),
        terms(),
        sweep(),
        add(1).terms,
    ],
    ids=lambda command: type(command).__name__,
)
def test_a_command_cannot_be_changed_or_extended(command: Command) -> None:
    for name in ("key", "priority", "something_else"):
        with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
            setattr(command, name, "other")
    assert not hasattr(command, "__dict__")


def test_natural_keys_are_made_from_the_fact() -> None:
    assert trial_key(MERCHANT) == f"trial:{MERCHANT}"
    assert order_key("9007199254740993") == "shopify:order:9007199254740993"
    assert payment_key("a b") == "billing:payment:a b"


def test_an_expiry_is_dated_by_its_instant() -> None:
    book = Book()
    book.tell(opening(), add(5, expires_at=days(1)))
    for done in book.wait(days=3).tell(use(1, occurred_at=days(2))).transactions:
        assert transaction_time(done) == (days(1) if done.type == EXPIRY else days(3))


def test_callers_post_each_type_in_its_direction() -> None:
    assert postable(INCREASE) == ("TRIAL", "SUBSCRIPTION", "PAYMENT", "ORDER_REFUNDED", "MANUAL")
    assert postable(DECREASE) == ("ORDER_PAID", "USAGE", "MANUAL")


def test_a_changed_grant_keeps_its_terms_and_lapses() -> None:
    grant = Grant(1, 1, "paid", 7, T0, None, amount=5, remaining=3, lapses=2)
    draft = Draft(Account(1, MERCHANT, T0, T0), (grant,), {}, Policy(), T0)
    assert draft.change_grant(grant, -1) == grant._replace(remaining=2)
