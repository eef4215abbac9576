"""The ledger and the reference model play the same stories, and must agree after each step."""

from typing import Any

from hypothesis import given

from credit_service.ledger.decide import Outcome, Replayed, Waiting
from credit_service.ledger.draft import Posted
from credit_service.ledger.policy import Policy
from credit_service.ledger.refusals import Refused
from credit_service.ledger.types import INCREASE
from tests.laws import model
from tests.laws.model import Model
from tests.laws.stories import Step, grant_stories, policies, stories
from tests.ledger.book import Book


@given(policies, stories | grant_stories)
def test_L1_to_L13_the_ledger_and_the_reference_model_agree(policy: Policy, story: list[Step]) -> None:
    book, judge = Book(policy), Model(policy)
    for step in story:
        book.wait(micros=step.wait)
        if isinstance(step.tell, Policy):
            book.policy = judge.settings = step.tell
            continue
        assert _word(book.do(step.tell)) == judge.judge(step.tell, book.now)
        assert _told_by_book(book) == _told_by_model(judge)


def _word(outcome: Outcome) -> str:
    match outcome:
        case Refused():
            return outcome.refusal.code
        case Replayed():
            return model.REPLAYED
        case Waiting():
            return model.PARKED
        case Posted():
            return model.POSTED


def _told_by_book(book: Book) -> dict[str, Any]:
    account = book.account
    if account is None:
        return {"open": False}
    return {
        "open": True,
        "state": account.state,
        "balance": account.balance,
        "pending": account.pending,
        "available": account.available,
        "debt": account.debt,
        "grants": {
            grant.number: (
                grant.remaining, grant.category, grant.priority, grant.effective_at, grant.expires_at, grant.sequence,
            )
            for grant in book.open_grants
        },
        "transactions": [
            (
                transaction.type,
                transaction.amount if transaction.operation == INCREASE else -transaction.amount,
                transaction.shortfall,
                transaction.debt_after,
                "expiry" if transaction.type == "EXPIRY" else transaction.key,
            )
            for transaction in book.transactions
        ],
        "announcements": [(told.type, told.sequence, told.available) for told in book.announcements],
        "dead letters": [(letter.code, letter.fact.key) for letter in book.dead_letters],
        "parked": {key: (parked.waits_for, parked.until) for key, parked in book.parked.items()},
    }  # fmt: skip


def _told_by_model(judge: Model) -> dict[str, Any]:
    if not judge.open:
        return {"open": False}
    return {
        "open": True,
        "state": judge.state,
        "balance": judge.balance,
        "pending": judge.pending,
        "available": judge.available,
        "debt": judge.debt,
        "grants": {
            pot.number: (pot.credits, pot.category, pot.priority, pot.effective_at, pot.expires_at, pot.made_by)
            for pot in judge.pots
            if pot.credits
        },
        "transactions": [
            (
                entry.type,
                entry.signed,
                entry.shortfall,
                entry.debt_after,
                "expiry" if entry.type == "EXPIRY" else entry.key,
            )
            for entry in judge.entries
        ],
        "announcements": judge.told,
        "dead letters": judge.dead,
        "parked": {key: (waits_for, until) for key, (waits_for, until, _) in judge.parked.items()},
    }
