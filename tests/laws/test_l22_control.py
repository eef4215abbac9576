"""L22 Control: an administrator may take the unspent credits of a grant, by a transaction."""

from dataclasses import replace
from uuid import UUID

import pytest

from credit_service.ledger import addresses
from credit_service.ledger.account import DAY, AccountState
from credit_service.ledger.commands import Command, VoidGrant
from credit_service.ledger.decide import Replayed
from credit_service.ledger.draft import Posted
from credit_service.ledger.policy import Policy
from credit_service.ledger.refusals import Refusal
from tests.ledger.book import Book
from tests.ledger.telling import (
    BOOK_ACCOUNT,
    add,
    days,
    opening,
    order,
    payment,
    payment_refund,
    post,
    refund,
    state,
    sweep,
    terms,
    use,
    void,
)

NO_TRIAL = Policy(trial_credits=0)


def book_of(*amounts: int) -> Book:
    """An account with one grant for each amount."""
    book = Book(NO_TRIAL)
    book.tell(opening(), *[add(amount) for amount in amounts])
    return book


def test_L22_void_takes_all_unspent_credits_of_one_grant() -> None:
    book = book_of(100, 50)
    book.tell(use(30))
    voided = book.tell(void(1)).transaction
    assert voided is not None
    assert (voided.operation, voided.type, voided.amount, voided.draws) == ("DECREASE", "VOID", 70, ((1, -70),))
    assert voided.reference == ("grant", str(void(1).grant_id))
    assert book.remaining() == {2: 50}
    assert book.faults() == []


def test_L22_void_takes_a_part() -> None:
    book = book_of(100)
    book.tell(void(1, 40), void(1, 60))
    assert book.remaining() == {}
    assert [done.amount for done in book.transactions] == [100, 40, 60]
    assert (book.grants[1].gone, book.grants[1].lapses, book.faults()) == (100, 0, [])


def test_L22_void_counts_beside_earlier_losses() -> None:
    book = book_of(100)
    book.tell(void(1, 40), use(10), void(1, 20))
    assert (book.grants[1].gone, book.remaining(), book.faults()) == (60, {1: 30}, [])


def test_L22_credits_of_a_voided_grant_that_were_spent_return_to_it() -> None:
    book = book_of(100)
    book.tell(order("1", 30), void(1), refund("1", "1", credits=30))
    assert book.remaining() == {1: 30}


def test_L22_void_of_a_grant_that_has_not_begun_changes_no_level() -> None:
    book = book_of(100)
    book.tell(add(50, effective_at=days(5)))
    posted = book.tell(void(2))
    assert [told.type for told in posted.announcements] == ["grant.voided"]
    assert (posted.account.available, posted.account.pending, posted.account.next_due_at) == (100, 0, None)


def test_L22_void_of_the_last_credits_disables_the_plugin() -> None:
    posted = book_of(100).tell(void(1))
    types = ["grant.voided", "low_balance_reached", "balance_exhausted", "plugin_status_changed"]
    assert [told.type for told in posted.announcements] == types


@pytest.mark.parametrize(
    ("command", "refusal", "detail"),
    [
        (void(3), Refusal.GRANT_NOT_FOUND, {}),
        (void(0), Refusal.GRANT_NOT_FOUND, {}),
        (void(1, account=BOOK_ACCOUNT + 1), Refusal.GRANT_NOT_FOUND, {}),
        (void(2, 51), Refusal.INSUFFICIENT_CREDITS, {"available": 50, "required": 51}),
        (void(1), Refusal.INSUFFICIENT_CREDITS, {"available": 0, "required": 1}),
        (void(1, 5), Refusal.INSUFFICIENT_CREDITS, {"available": 0, "required": 5}),
        (void(9, key="used"), Refusal.KEY_REUSED, {}),
    ],
)
def test_L22_void_is_refused_and_changes_nothing(command: VoidGrant, refusal: Refusal, detail: dict[str, int]) -> None:
    book = book_of(100, 50)
    book.tell(use(100, "used"))
    before = book.written()
    assert book.refused(command) == (refusal, detail)
    assert book.written() == before


def test_L22_id_of_another_kind_is_no_grant() -> None:
    book = book_of(100)
    # The account's own id, and one that no service creates.
    for identifier in (UUID(addresses.text(BOOK_ACCOUNT, addresses.TRANSACTION, 1)), UUID(int=1)):
        assert book.refused(replace(void(1), grant_id=identifier)).refusal == Refusal.GRANT_NOT_FOUND


def test_L22_expired_credits_cannot_be_voided() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), add(10, expires_at=days(1)))
    book.wait(micros=DAY)
    assert book.refused(void(1)) == (Refusal.INSUFFICIENT_CREDITS, {"available": 0, "required": 1})


def test_L22_repeated_void_replays_the_first() -> None:
    book = book_of(100)
    first = book.tell(void(1, key="v")).transaction
    assert book.do(void(1, key="v")) == Replayed(first)
    assert book.refused(void(1, 5, key="v")).refusal == Refusal.KEY_REUSED


# ---- the state of an account


def told(posted: Posted) -> list[str]:
    return [said.type for said in posted.announcements]


def test_L22_freezing_and_thawing_are_announced_with_reason_and_actor() -> None:
    book = book_of(100)
    frozen = book.tell(replace(state("frozen"), reason="fraud", actor="key:a"))
    assert told(frozen) == ["account.frozen", "plugin_status_changed"]
    assert [said.detail for said in frozen.announcements] == [
        {"reason": "fraud", "actor": "key:a"},
        {"previous_status": "enabled", "current_status": "disabled", "reason": "frozen"},
    ]
    thawed = book.tell(state("open"))
    assert told(thawed) == ["account.thawed", "plugin_status_changed"]
    assert thawed.announcements[1].detail == {
        "previous_status": "disabled",
        "current_status": "enabled",
        "reason": "available",
    }
    assert (thawed.transactions, thawed.account.available) == ((), 100)


@pytest.mark.parametrize("again", ["open", "frozen", "closed"])
def test_L22_a_state_that_is_in_force_changes_nothing(again: AccountState) -> None:
    book = book_of()
    book.do(state(again))
    assert book.do(state(again)) == Replayed(None)
    assert book.account is not None
    assert book.account.state == again


def test_L22_a_frozen_account_refuses_spends_and_takes_everything_else() -> None:
    book = book_of(100)
    book.tell(state("frozen"))
    assert book.refused(use(1)).refusal == Refusal.ACCOUNT_FROZEN
    for command in (
        order("1", 5),
        refund("1", "1", credits=5),
        payment("P", 7),
        add(1),
        post("DECREASE", "MANUAL", 1),
        post("INCREASE", "SUBSCRIPTION", 1),
        void(1, 1),
        terms(low_threshold=3),
    ):
        posted = book.tell(command)
        assert posted.account.state == "frozen"
        assert "plugin_status_changed" not in told(posted)
    assert book.tell(state("open")).account.available == 107


def test_L22_credits_of_a_frozen_account_expire_without_a_word_about_its_plugin() -> None:
    book = Book(NO_TRIAL)
    book.tell(opening(), add(5, expires_at=days(1)), state("frozen"))
    posted = book.wait(days=1).tell(sweep())
    assert told(posted) == ["expired", "low_balance_reached", "balance_exhausted"]
    assert told(book.tell(state("open"))) == ["account.thawed"]


@pytest.mark.parametrize("command", [use(1), add(1), void(1), terms(low_threshold=3), state("frozen"), state("open")])
def test_L22_a_closed_account_refuses_commands(command: Command) -> None:
    book = book_of(100)
    book.tell(state("closed", forfeit=True))
    assert book.refused(command).refusal == Refusal.ACCOUNT_CLOSED


def test_L22_a_grant_that_is_unknown_is_named_before_the_closed_account() -> None:
    book = book_of()
    book.tell(state("closed"))
    assert book.refused(void(9)).refusal == Refusal.GRANT_NOT_FOUND


@pytest.mark.parametrize("fact", [order("1", 5), payment("P", 5), refund("r", credits=5), opening()])
def test_L22_a_fact_opens_a_closed_account_frozen(fact: Command) -> None:
    book = book_of()
    book.tell(state("closed"))
    posted = book.tell(replace(fact, actor="shop"))
    assert told(posted)[0] == "account.frozen"
    assert posted.announcements[0].detail == {
        "reason": "A fact came after the account was closed.",
        "actor": "shop",
    }
    assert posted.account.state == "frozen"
    assert isinstance(book.do(fact), Replayed)


def test_L22_closing_needs_an_empty_account() -> None:
    book = book_of(10)
    refused = book.refused(state("closed"))
    assert (refused.refusal, refused.detail) == (Refusal.ACCOUNT_NOT_EMPTY, {"balance": 10, "held": 0})
    book.tell(use(10))
    closed = book.tell(state("closed"))
    assert (closed.account.state, told(closed)) == ("closed", ["account.closed"])


def test_L22_an_account_with_a_debt_cannot_be_closed() -> None:
    book = book_of(10)
    book.tell(order("1", 15), add(8, effective_at=days(2)), add(2, effective_at=days(1)))
    for forfeit in (True, False):
        assert book.refused(state("closed", forfeit=forfeit)).refusal == Refusal.ACCOUNT_NOT_EMPTY


def test_L22_forfeit_voids_all_that_is_left_in_one_transaction() -> None:
    book = book_of(100, 50)
    book.tell(use(30), add(7, effective_at=days(3)))
    closed = book.tell(state("closed", forfeit=True, key="bye"))
    assert closed.transaction is not None
    assert (closed.transaction.type, closed.transaction.amount, closed.transaction.key) == ("VOID", 127, "bye")
    assert closed.transaction.operation == "DECREASE"
    assert closed.transaction.draws == ((1, -70), (2, -50), (3, -7))
    assert told(closed) == [
        "grant.voided",
        "low_balance_reached",
        "balance_exhausted",
        "plugin_status_changed",
        "account.closed",
    ]
    assert (closed.account.balance, closed.account.pending, book.faults()) == (0, 0, [])
    assert book.do(state("closed", forfeit=True, key="bye")) == Replayed(closed.transaction)


def test_L22_the_policy_freeze_freezes_where_spent_credits_are_taken_back() -> None:
    policy = replace(NO_TRIAL, clawback="freeze")
    book = Book(policy)
    book.tell(opening(), payment("A", 10), payment("B", 10))
    assert book.tell(payment_refund("a", "A", 10)).account.state == "open"
    book.tell(order("1", 1))
    frozen = book.tell(payment_refund("b", "B", 10))
    assert (frozen.account.state, frozen.account.debt, told(frozen)[0]) == ("frozen", 1, "account.frozen")
    assert frozen.announcements[0].detail == {
        "reason": "A payment was taken back whose credits were spent.",
        "actor": "system",
    }
    assert "account.frozen" not in told(book.tell(payment_refund("c", "B", 1)))
