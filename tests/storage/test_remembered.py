"""What a store remembers of the accounts that it wrote, so that it need not load them again."""

from typing import Any
from uuid import UUID

import pytest

from credit_service.ledger.account import Parked
from credit_service.ledger.commands import Settle
from credit_service.ledger.decide import State, decide, needs
from credit_service.ledger.draft import Posted
from credit_service.ledger.policy import Policy
from credit_service.storage.engine import Record
from credit_service.storage.remembered import Commit, Recalled, Remembered
from tests.ledger.telling import MERCHANT, T0, opening, order, payment, refund, trial, use

COMMIT = Commit(7)


def record(merchant: UUID = MERCHANT) -> Record:
    """Of an account that has bought something."""
    posted = decide(State(None, (), merchant.int), payment("P", 100), Policy(), T0)
    assert isinstance(posted, Posted)
    made = Record(posted.account, posted.account.number)
    made.grants = posted.grants
    return made


def kept(made: Record, *, size: int = 10, written: bool = True) -> Remembered:
    """What was remembered when this was committed."""
    remembered = Remembered(size)
    assert made.account is not None
    remembered.keep([(MERCHANT, made)], {made.number: made.account} if written else {}, COMMIT)
    return remembered


@pytest.mark.parametrize("command", [use(1), payment("Q", 1), order("O", 10), refund("R", None, credits=1)])
def test_an_account_that_was_written_is_remembered_with_its_grants_and_the_version_of_its_row(command: Any):
    made = record()
    assert made.account is not None
    assert kept(made).recall([needs(command)]) == {MERCHANT.int: Recalled(COMMIT, made.account, made.grants)}


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(refund("R", "O", credits=1), id="what it refunds"),
        pytest.param(opening(), id="the trial"),
        pytest.param(trial(5), id="the trial, which was agreed"),
        pytest.param(Settle(merchant_id=MERCHANT, key="sweep"), id="what is overdue"),
    ],
)
def test_where_more_is_needed_than_is_remembered_all_is_loaded(command: Any):
    assert kept(record()).recall([needs(use(1)), needs(command), needs(use(1))]) == {}


def test_what_was_not_written_is_not_remembered():
    assert kept(record(), written=False).recall([needs(use(1))]) == {}


def test_what_was_written_otherwise_than_it_was_decided_is_forgotten():
    made = record()
    assert made.account is not None
    remembered = kept(made)
    remembered.keep([(MERCHANT, made)], {made.number: made.account._replace(balance=1)}, COMMIT)
    assert remembered.recall([needs(use(1))]) == {}


def test_an_account_of_very_many_grants_is_not_remembered():
    made = record()
    made.grants *= 51
    assert kept(made).recall([needs(use(1))]) == {}


def test_what_has_something_parked_is_forgotten():
    made = record()
    assert made.account is not None
    remembered = kept(made)
    made.parked["R"] = Parked("R", "O", T0, T0, refund("R", "O", credits=1))
    remembered.keep([(MERCHANT, made)], {made.number: made.account}, Commit(8))
    assert remembered.recall([needs(use(1))]) == {}


def test_of_more_than_it_can_hold_it_forgets_what_was_written_longest_ago():
    remembered = Remembered(size=2)
    merchants = [UUID(int=number) for number in range(1, 4)]
    for merchant in (*merchants[:2], merchants[0], merchants[2]):
        made = record(merchant)
        assert made.account is not None
        remembered.keep([(merchant, made)], {made.number: made.account}, COMMIT)
    asked = [needs(use(1))._replace(merchant_id=merchant) for merchant in merchants]
    assert set(remembered.recall(asked)) == {1, 3}


def test_it_can_be_made_to_forget_everything():
    remembered = kept(record())
    remembered.clear()
    assert remembered.recall([needs(use(1))]) == {}
