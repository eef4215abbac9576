"""L13 Range: balance and available stay within ±(2^53-1); no number overflows or becomes a float."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit_service.ledger.account import MAX_CREDITS, MAX_TOTAL
from credit_service.ledger.commands import Command
from credit_service.ledger.draft import Posted
from credit_service.ledger.policy import Policy
from credit_service.ledger.refusals import Refusal, Refused
from tests.laws.stories import ids, refund_ids
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
    sweep,
    terms,
    trial,
    use,
)

NO_TRIAL = Policy(trial_credits=0)
FULL = [add(MAX_CREDITS)]
OWING_ALL = [order("all", MAX_CREDITS)]
OUT = "amount_out_of_range"

huge = st.sampled_from([0, 1, 2, MAX_CREDITS // 2, MAX_CREDITS - 1, MAX_CREDITS])
huge_commands = st.one_of(
    st.builds(payment, ids, huge),
    st.builds(payment_refund, refund_ids, ids, huge),
    st.builds(order, ids, huge | st.just(2 * MAX_CREDITS), total=st.just("3")),
    st.builds(refund, refund_ids, ids | st.none(), credits=huge),
    st.builds(refund, refund_ids, ids, money=st.sampled_from(["1", "3"])),
    st.builds(lambda amount, soon: add(amount, effective_at=days(soon)), huge.filter(bool), st.integers(0, 3)),
    st.builds(use, huge.filter(bool)),
    st.builds(sweep),
)


@given(st.lists(st.tuples(st.integers(0, 1), huge_commands), max_size=20))
def test_L13_balances_stay_in_range_and_no_number_is_float(story: list[tuple[int, Command]]) -> None:
    book = Book(NO_TRIAL)
    book.tell(opening())
    for wait, command in story:
        outcome = book.wait(days=wait).do(command)
        account = book.standing().account
        assert abs(account.balance) <= MAX_CREDITS
        assert abs(account.available) <= MAX_CREDITS
        if isinstance(outcome, Refused):
            assert outcome.refusal in (Refusal.OUT_OF_RANGE, Refusal.INSUFFICIENT_CREDITS)
    assert [number for number in _numbers(book.written()) if type(number) is not int] == []
    assert book.faults() == []


def _numbers(value: Any) -> list[Any]:
    """All numbers in a value, at any depth."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [number for part in value for number in _numbers(part)]
    return [value] if isinstance(value, int | float | Decimal) else []


@pytest.mark.parametrize(
    ("before", "command", "code"),
    [
        ([], add(MAX_CREDITS), None),
        ([], add(MAX_CREDITS + 1), OUT),
        (FULL, add(1), OUT),
        (FULL, add(1, effective_at=days(1)), OUT),
        (FULL, payment("1", 1), OUT),
        (FULL, payment("1", 0), None),
        (FULL, payment("1", 1, expires_at=days(-1)), OUT),
        (FULL, renewal("A", "1", 1), OUT),
        (FULL, trial(1), OUT),
        (FULL, refund("1", credits=1), OUT),
        (FULL, use(MAX_CREDITS), None),
        ([], order("1", MAX_CREDITS), None),
        ([], order("1", MAX_CREDITS + 1), OUT),
        (OWING_ALL, order("1", 0), None),
        (OWING_ALL, order("1", 1), OUT),
        (OWING_ALL, payment("1", MAX_CREDITS), None),
        ([*FULL, order("1", 5), add(5)], refund("1", "1", credits=1), OUT),
        ([payment("1", 5), use(5), order("1", MAX_CREDITS)], payment_refund("1", "1", 1), OUT),
        # A worth out of range is refused even if the order would post nothing.
        ([terms(when_insufficient="reject")], order("1", MAX_CREDITS + 1), OUT),
        ([terms(when_insufficient="partial")], order("1", MAX_CREDITS + 1), OUT),
        ([terms(overdraft_limit=0)], order("1", MAX_CREDITS), None),
        # Pending credits count in the balance, but not in available.
        ([add(5, effective_at=days(1)), order("1", MAX_CREDITS)], order("2", 1), OUT),
    ],
)
def test_L13_the_limits_of_the_range(before: list[Command], command: Command, code: str | None) -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), *before)
    written = book.written()
    outcome = book.do(command)
    if code is None:
        assert isinstance(outcome, Posted)
    else:
        assert isinstance(outcome, Refused)
        assert outcome.refusal.code == code
        assert book.written() == written


def test_L13_a_claw_back_out_of_range_is_refused() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), payment("1", 5), order("1", 5), *OWING_ALL)
    assert book.refused(payment_refund("1", "1", 5)).refusal == Refusal.OUT_OF_RANGE


def test_L13_credits_of_a_won_dispute_out_of_range_are_refused() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), payment("1", 5), disputed("1", "1"), payment("2", MAX_CREDITS))
    assert book.refused(closed("1", "1", "won")).refusal == Refusal.OUT_OF_RANGE


def test_L13_every_json_reader_holds_the_limit_exactly() -> None:
    assert MAX_CREDITS == 9_007_199_254_740_991


def test_L13_the_trial_of_the_settings_may_be_out_of_range() -> None:
    book = Book(Policy(trial_credits=1))
    book.tell(payment("1", MAX_CREDITS))
    assert book.refused(opening()).refusal == Refusal.OUT_OF_RANGE


def test_L13_the_total_of_increases_fits_into_64_bits() -> None:
    book = Book()
    account = book.tell(opening()).account
    taken = MAX_TOTAL - 1 - account.balance
    book.account = account._replace(total_increases=MAX_TOTAL - 1, total_decreases=taken)
    refused = book.do(add(2))
    assert isinstance(refused, Refused)
    assert refused.refusal is Refusal.OUT_OF_RANGE
    assert isinstance(book.do(add(1)), Posted)


def test_L13_recorded_refunded_money_has_a_limit() -> None:
    book = Book()
    book.tell(opening(), order("1", 5, total="10"))
    for number in range(3):
        book.tell(refund(str(number), "1", money=str(10**12)))
    (given_back,) = book.given.values()
    assert (given_back.money_micros, given_back.credits) == (10**12 * 1_000_000, 5)
