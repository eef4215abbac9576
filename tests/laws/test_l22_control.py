"""L22 Control: an administrator may take the unspent credits of a grant, by a transaction."""

from dataclasses import replace
from uuid import UUID

import pytest

from credit_service.ledger import addresses
from credit_service.ledger.account import DAY
from credit_service.ledger.commands import VoidGrant
from credit_service.ledger.decide import Replayed
from credit_service.ledger.policy import Policy
from credit_service.ledger.refusals import Refusal
from tests.ledger.book import Book
from tests.ledger.telling import BOOK_ACCOUNT, add, days, opening, order, refund, use, void

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
