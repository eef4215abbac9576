"""L3 Idempotent: a repeated command or fact returns the first result and posts nothing."""

from dataclasses import replace

import pytest
from hypothesis import given

from credit_service.ledger.account import Transaction
from credit_service.ledger.commands import Command, Fact, OpenAccount, OrderPaid, Post, TrialStarted
from credit_service.ledger.decide import Outcome, Replayed, Waiting
from credit_service.ledger.policy import Policy
from credit_service.ledger.refusals import Refusal, Refused
from tests.laws.stories import THAWED, Step, play, policies, stories
from tests.ledger.book import Book
from tests.ledger.telling import add, fresh_key, opening, order, payment, refund, trial, use


def told(story: list[Step]) -> list[Command]:
    """The commands of a story whose keys are stored."""
    return [step.tell for step in story if isinstance(step.tell, Fact | Post)]


@given(policies, stories)
def test_L3_a_repeated_story_replays_and_changes_nothing(policy: Policy, story: list[Step]) -> None:
    book = play(Book(policy), story)
    before = book.written()
    results = {done.key: done for done in book.transactions}
    the_trial = next((done for done in book.transactions if done.type == "TRIAL"), None)
    book.wait(days=100)
    for command in told(story):
        first = results.get(command.key)
        if first is None and isinstance(command, OpenAccount | TrialStarted):
            first = the_trial
        if first is not None:
            assert_repeats(book.do(command), command, first)
        elif command.key in book.parked:
            parked = book.parked[command.key]
            again = book.do(command)
            assert again == (Waiting(parked, None) if _same_type(command, parked.fact) else _reused())
    assert book.written() == before


def assert_repeats(outcome: Outcome, command: Command, first: Transaction) -> None:
    """The command replays the first result, or it is refused because its content differs."""
    if isinstance(command, Fact) and command.type == first.type:
        assert outcome == Replayed(first, conflicting=_content(command) != _content(first))
    elif isinstance(command, Post) and _content(command) == _content(first):
        assert outcome == Replayed(first)
    else:
        assert outcome == _reused()


def _content(asked: Command | Transaction) -> tuple[bytes, str | None]:
    return asked.content, asked.metadata


def _same_type(command: Command, fact: Fact) -> bool:
    return isinstance(command, Fact) and command.type == fact.type


def _reused() -> Refused:
    return Refused(Refusal.KEY_REUSED)


@given(policies, stories)
def test_L3_a_refused_command_leaves_its_key_free(policy: Policy, story: list[Step]) -> None:
    book = play(Book(replace(policy, auto_create=True)), [*story, Step(0, opening()), *THAWED])
    assert book.account is not None
    too_much = use(max(book.standing().account.available, 0) + 1, key="late")
    before = book.written()
    assert book.refused(too_much).refusal == Refusal.INSUFFICIENT_CREDITS
    assert book.written() == before
    book.do(add(too_much.amount - min(book.standing().account.available, 0)))
    assert book.tell(too_much).transactions[-1].key == "late"


def test_L3_a_spend_replays_even_without_credits() -> None:
    book = Book(Policy(trial_credits=5))
    first = book.tell(opening(), use(5, key="k")).transaction
    assert book.do(use(5, key="k")) == Replayed(first)


def test_L3_the_same_key_with_other_content_is_refused() -> None:
    book = Book()
    book.tell(opening(), use(5, key="k"))
    for other in (use(6, key="k"), add(5, key="k"), use(5, key="k", metadata="{}"), order("1", 5)):
        assert book.refused(replace(other, key="k")).refusal == Refusal.KEY_REUSED


@pytest.mark.parametrize("metadata", ['{"email":"a@b.c"}', '{"email":"x@y.z"}', None])
def test_L3_a_repeat_after_erasure_ignores_the_erased_metadata(metadata: str | None) -> None:
    book = Book()
    asked = use(5, key="k", metadata='{"email":"a@b.c"}', salt=b"0123456789abcdef")
    book.tell(opening(), asked)
    book.erase()
    erased = book.transactions[-1]
    assert book.do(replace(asked, metadata=metadata, salt=None)) == Replayed(erased)
    assert book.refused(replace(asked, amount=6, content=use(6).content)).refusal == Refusal.KEY_REUSED


def test_L3_a_repeated_fact_with_other_metadata_is_conflicting() -> None:
    book = Book()
    told = replace(order("1", 5), metadata="{}", salt=b"s")
    first = book.tell(opening(), told).transaction
    assert book.do(replace(told, salt=b"t")) == Replayed(first, conflicting=False)
    assert book.do(replace(told, metadata='{"a":1}')) == Replayed(first, conflicting=True)


def test_L3_actor_and_envelope_are_not_part_of_the_content() -> None:
    book = Book()
    command = use(5, key="k")
    first = book.tell(opening(), command).transaction
    again = replace(command, actor="key:2", correlation_id="c", occurred_at=1, salt=b"other" * 3)
    assert book.do(again) == Replayed(first)


def test_L3_a_repeated_fact_with_other_money_is_conflicting() -> None:
    book = Book()
    first = book.tell(opening(), order("1", total=10, currency="EUR")).transaction
    assert book.do(order("1", total=10, currency="EUR")) == Replayed(first, conflicting=False)
    assert book.do(order("1", total=99, currency="USD")) == Replayed(first, conflicting=True)


def test_L3_facts_and_commands_share_one_key_space() -> None:
    book = Book()
    book.tell(opening(), use(1, key="shopify:order:1"))
    assert book.refused(order("1", 5)).refusal == Refusal.KEY_REUSED
    book.tell(order("2", 5))
    assert book.refused(use(5, key="shopify:order:2")).refusal == Refusal.KEY_REUSED


def test_L3_a_parked_refund_uses_its_key() -> None:
    book = Book()
    book.tell(opening())
    early = refund("1", "1", money=5)
    waiting = book.do(early)
    assert isinstance(waiting, Waiting)
    assert book.wait(days=1).do(early) == Waiting(waiting.parked, None)
    assert book.refused(use(1, key=early.key)).refusal == Refusal.KEY_REUSED
    assert book.refused(replace(payment("9", 5), key=early.key)).refusal == Refusal.KEY_REUSED


def test_L3_the_trial_replays_under_any_key() -> None:
    book = Book()
    by_hand = book.tell(replace(opening(), key=fresh_key())).transaction
    assert book.do(trial(7)) == Replayed(by_hand, conflicting=True)


def test_L3_a_rejected_order_keeps_its_key() -> None:
    book = Book(Policy(when_insufficient="reject"))
    rejected = book.tell(replace(order("1", 50), opens=True)).transaction
    assert rejected is not None
    assert rejected.amount == 0
    book.tell(opening())
    # The order keeps its first result, although the credits would cover it now.
    assert book.do(OrderPaid(merchant_id=order("1").merchant_id, key=order("1").key, order_id="1")) == Replayed(
        rejected, conflicting=True
    )
