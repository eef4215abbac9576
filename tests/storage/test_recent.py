"""Recent accounts: the engine wrote them last, so it does not load them again."""

from typing import Any
from uuid import UUID

import pytest

from credit_service.ledger.account import Parked
from credit_service.ledger.commands import Settle
from credit_service.ledger.decide import State, decide, needs
from credit_service.ledger.draft import Posted
from credit_service.ledger.policy import Policy
from credit_service.storage.engine import Record
from credit_service.storage.recent import CommitState, RecentAccount, RecentAccounts
from tests.ledger.telling import MERCHANT, T0, opening, order, payment, refund, trial, use

COMMIT = CommitState(7)


def record(merchant: str = MERCHANT) -> Record:
    """Return the record of an account with a purchase."""
    posted = decide(State(None, (), int(UUID(merchant))), payment("P", 100), Policy(), T0)
    assert isinstance(posted, Posted)
    made = Record(posted.account, posted.account.number)
    made.grants = posted.grants
    return made


def kept(made: Record, *, size: int = 10, written: bool = True) -> RecentAccounts:
    """Return the recent accounts after a commit of this record."""
    recent = RecentAccounts(size)
    assert made.account is not None
    recent.note([(MERCHANT, made)], {made.number: made.account} if written else {}, COMMIT)
    return recent


@pytest.mark.parametrize("command", [use(1), payment("Q", 1), order("O", 10), refund("R", None, credits=1)])
def test_written_account_is_found_with_its_grants_and_its_version(command: Any):
    made = record()
    assert made.account is not None
    assert kept(made).find([needs(command)]) == {MERCHANT: RecentAccount(COMMIT, made.account, made.grants)}


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(refund("R", "O", credits=1), id="refunded order"),
        pytest.param(opening(), id="the trial"),
        pytest.param(trial(5), id="trial with its terms"),
        pytest.param(Settle(merchant_id=MERCHANT, key="sweep"), id="overdue refunds"),
    ],
)
def test_merchant_that_needs_more_rows_is_not_found(command: Any):
    assert kept(record()).find([needs(use(1)), needs(command), needs(use(1))]) == {}


def test_account_that_was_not_written_is_not_found():
    assert kept(record(), written=False).find([needs(use(1))]) == {}


def test_account_written_with_other_values_is_forgotten():
    made = record()
    assert made.account is not None
    recent = kept(made)
    recent.note([(MERCHANT, made)], {made.number: made.account._replace(balance=1)}, COMMIT)
    assert recent.find([needs(use(1))]) == {}


def test_account_with_very_many_grants_is_not_kept():
    made = record()
    made.grants *= 51
    assert kept(made).find([needs(use(1))]) == {}


def test_account_with_a_parked_refund_is_forgotten():
    made = record()
    assert made.account is not None
    recent = kept(made)
    made.parked["R"] = Parked("R", "O", T0, T0, refund("R", "O", credits=1))
    recent.note([(MERCHANT, made)], {made.number: made.account}, CommitState(8))
    assert recent.find([needs(use(1))]) == {}


def test_account_written_longest_ago_is_forgotten_first():
    recent = RecentAccounts(size=2)
    merchants = [str(UUID(int=number)) for number in range(1, 4)]
    for merchant in (*merchants[:2], merchants[0], merchants[2]):
        made = record(merchant)
        assert made.account is not None
        recent.note([(merchant, made)], {made.number: made.account}, COMMIT)
    asked = [needs(use(1))._replace(merchant_id=merchant) for merchant in merchants]
    assert set(recent.find(asked)) == {merchants[0], merchants[2]}


def test_clear_forgets_all_accounts():
    recent = kept(record())
    recent.clear()
    assert recent.find([needs(use(1))]) == {}
