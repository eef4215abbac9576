"""Attempts: retries, bisection, lost answers, and the listeners of a commit."""

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from credit_service.ledger.commands import Command
from credit_service.ledger.decide import Outcome, Replayed, Waiting, decide
from credit_service.ledger.draft import Posted
from credit_service.ledger.refusals import Refusal, Refused
from credit_service.posting import RefusedAt
from credit_service.posting.attempt import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS
from credit_service.storage.engine import (
    BadRow,
    Committed,
    Conflict,
    OutcomeUnknown,
    StorageUnavailable,
)
from tests.ledger.telling import (
    MERCHANT,
    add,
    order,
    refund,
    sweep,
    terms,
    use,
)
from tests.posting.desk import (
    OTHER,
    After,
    Before,
    answers,
    now,
    opened,
    timeless,
    was_posted,
)
from tests.storage.values import of

# ---- one command that cannot be posted


@timeless
async def test_a_broken_command_fails_alone():
    async with await opened() as desk:
        await desk.halt()
        desk.store.poison = {"k2", "k5"}
        tasks = await desk.hand_in(*(use(1, f"k{index}") for index in range(7)))
        desk.store.free.set()
        for index, outcome in enumerate(await answers(tasks)):
            if index in (2, 5):
                assert isinstance(outcome, BadRow)
            else:
                assert was_posted(outcome, f"k{index}")
        assert desk.store.keys == ["first", "k0", "k1", "k3", "k4", "k6"]
        assert was_posted(await desk.posting.submit(use(1, "next")), "next")


@timeless
async def test_a_fault_in_the_rules_fails_alone(monkeypatch: pytest.MonkeyPatch):
    def faulty(state: Any, command: Command, *more: Any) -> Outcome:
        assert command.key != "k1", "a broken assumption"
        return decide(state, command, *more)

    monkeypatch.setattr("credit_service.posting.batch.decide", faulty)
    async with await opened() as desk:
        await desk.halt()
        tasks = await desk.hand_in(*(use(1, f"k{index}") for index in range(4)))
        desk.store.free.set()
        outcomes = await answers(tasks)
        assert [isinstance(outcome, AssertionError) for outcome in outcomes] == [False, True, False, False]
        assert desk.store.keys == ["first", "k0", "k2", "k3"]


@timeless
async def test_an_atomic_batch_with_a_broken_item_fails_whole():
    async with await opened() as desk:
        await desk.halt()
        desk.store.poison = {"b"}
        whole = await desk.started(desk.posting.submit_atomic([use(1, "a"), use(1, "b")]))
        (single,) = await desk.hand_in(use(1, "c"))
        desk.store.free.set()
        with pytest.raises(BadRow):
            await whole
        assert was_posted(await single, "c")
        assert desk.store.keys == ["first", "c"]


@timeless
async def test_one_broken_item_leaves_the_others_posted():
    async with await opened() as desk:
        desk.store.poison = {"b"}
        commands = [use(1, "a"), use(1, "b"), use(1, "c")]
        with pytest.raises(BadRow):
            await desk.posting.submit_many(commands)
        await asyncio.sleep(0)
        desk.store.poison = set()
        outcomes = await desk.posting.submit_many(commands)
        assert [type(outcome) for outcome in outcomes] == [Replayed, Posted, Replayed]
        assert sorted(desk.store.keys) == ["a", "b", "c"]


# ---- a store that is busy


@timeless
async def test_a_conflict_is_retried_with_backoff():
    async with await opened(*[Before(Conflict("busy"))] * 9) as desk:
        assert was_posted(await desk.posting.submit(use(1, "a")), "a")
        assert desk.store.keys == ["a"]
        pauses = [later - earlier for earlier, later in pairwise(desk.store.attempts)]
        longest = FIRST_PAUSE_SECONDS
        for pause in pauses:
            assert longest / 2 <= pause <= longest * 1.000_001
            longest = min(longest * 2, LONGEST_PAUSE_SECONDS)
        assert longest == LONGEST_PAUSE_SECONDS


@timeless
async def test_an_endless_conflict_is_unavailability_at_the_deadline():
    async with await opened(*[Before(Conflict("busy"))] * 10_000, deadline_seconds=5) as desk:
        (early,) = await desk.hand_in(use(1, "early"))
        with pytest.raises(StorageUnavailable, match="busy"):
            await early
        assert 5 <= now() <= 5 + LONGEST_PAUSE_SECONDS
        desk.store.script.clear()
        assert was_posted(await desk.posting.submit(use(1, "late")), "late")
        assert desk.store.keys == ["late"]


@timeless
async def test_only_callers_with_time_left_are_retried():
    async with await opened(deadline_seconds=5) as desk:
        await desk.halt()
        (early,) = await desk.hand_in(use(1, "early"))
        await asyncio.sleep(4)
        (late,) = await desk.hand_in(use(1, "late"))
        desk.store.script.extend([Before(Conflict("busy"))] * 12)  # for more than a second
        desk.store.free.set()
        with pytest.raises(StorageUnavailable):
            await early
        assert 5 <= now() <= 5 + LONGEST_PAUSE_SECONDS
        assert was_posted(await late, "late")
        assert "early" not in desk.store.keys


# ---- a store that is away


@timeless
async def test_an_unavailable_store_fails_one_batch_at_once():
    gone = StorageUnavailable("The disk is full.")
    async with await opened(Before(gone)) as desk:
        outcomes = await answers([desk.posting.submit(use(1, "a")), desk.posting.submit(use(1, "b"))])
        assert outcomes == [gone, gone]
        assert now() == 0
        assert was_posted(await desk.posting.submit(use(1, "a")), "a")
        assert desk.store.keys == ["a"]


# ---- answers that are lost

LOST = OutcomeUnknown("The commit was not answered.")


@pytest.mark.parametrize("committed", [True, False])
@timeless
async def test_L3_a_batch_with_a_lost_answer_runs_again(committed: bool):
    async with await opened(After(LOST, committed)) as desk:
        commands = [use(1, "a"), of(OTHER, add(2, "b")), use(1, "a"), use(500, "c"), terms(7), order("9", 3)]
        outcomes = await desk.posting.submit_many(commands)
        a, b, again, refused, changed, paid = outcomes
        assert was_posted(a, "a")
        assert was_posted(b, "b")
        assert isinstance(a, Posted)
        assert again == Replayed(a.transaction)
        assert isinstance(refused, Refused)
        assert isinstance(changed, Posted)
        assert changed.account.low_threshold == 7
        assert was_posted(paid, "shopify:order:9")
        assert desk.store.keys == ["a", "b", "shopify:order:9"]
        assert len(desk.store.batches) == 2
        # The listener receives each account once, in its latest state.
        accounts = [
            (account.merchant_id, account.balance) for told in desk.told for account in told.writes.accounts.values()
        ]
        assert sorted(accounts) == [(OTHER, 102), (MERCHANT, 96)]
        assert sorted(one.key for told in desk.told for one in told.writes.transactions) == sorted(desk.store.keys)


@pytest.mark.parametrize("committed", [True, False])
@timeless
async def test_an_atomic_batch_with_a_lost_answer_runs_again(committed: bool):
    async with await opened() as desk:
        await desk.halt()
        desk.store.script.append(After(LOST, committed))
        good = await desk.started(desk.posting.submit_atomic([use(1, "a"), refund("R", "1", credits=1), use(2, "b")]))
        bad = await desk.started(desk.posting.submit_atomic([use(1, "c"), use(500, "d")]))
        desk.store.free.set()
        a, waiting, b = await good
        assert was_posted(a, "a")
        assert isinstance(waiting, Waiting)
        assert was_posted(b, "b")
        assert isinstance(await bad, RefusedAt)
        assert desk.store.keys == ["first", "a", "b"]


@timeless
async def test_an_answer_lost_twice_is_still_found():
    for first, second in ((True, False), (False, True), (False, False)):
        async with await opened(After(LOST, first), After(LOST, second)) as desk:
            outcome = await desk.posting.submit(use(1, "a"))
            assert was_posted(outcome, "a")
            assert desk.store.keys == ["a"]


@timeless
async def test_an_answer_lost_before_the_decision_is_no_posting():
    async with await opened(Before(LOST)) as desk:
        assert was_posted(await desk.posting.submit(use(1, "a")), "a")
        assert desk.store.keys == ["a"]


@timeless
async def test_another_callers_posting_stays_a_replay():
    async with await opened() as desk:
        first = await desk.posting.submit(use(1, "a"))
        assert isinstance(first, Posted)
        desk.store.script.append(After(LOST, committed=True))
        assert await desk.posting.submit(use(1, "a")) == Replayed(first.transaction)


@pytest.mark.parametrize("then", [Before(StorageUnavailable("gone")), Before(Conflict("busy"))])
@timeless
async def test_after_a_lost_answer_failures_are_unknown(then: Before):
    async with await opened(After(LOST), *[then] * 1_000) as desk:
        outcomes = await answers(
            [
                desk.posting.submit(use(1, "a")),
                desk.posting.submit(refund("R", "1", credits=1)),
                desk.posting.submit_many([use(1, "b"), use(1, "c")]),
            ]
        )
        assert [type(outcome) for outcome in outcomes] == [OutcomeUnknown] * 3


@timeless
async def test_bisection_keeps_the_lost_postings():
    async with await opened() as desk:
        await desk.halt()
        tasks = await desk.hand_in(use(1, "a"), use(1, "b"), use(1, "c"))
        broken = BadRow("as if one of them broke a law now")
        desk.store.script.extend([After(LOST, committed=True), Before(broken), Before(broken)])
        desk.store.free.set()
        a, b, c = await answers(tasks)
        assert a is broken
        assert was_posted(b, "b")
        assert was_posted(c, "c")
        assert desk.store.keys == ["first", "a", "b", "c"]


# ---- listeners


@timeless
async def test_a_rehearsal_sees_earlier_commands_and_leaves_nothing():
    async with await opened() as desk:
        await desk.halt()
        before = await desk.started(desk.posting.submit(use(1, "before")))
        rehearsed = await desk.started(
            desk.posting.rehearse([use(100, "a"), of(OTHER, use(60, "o")), use(1, "b"), use(1, "b"), sweep()])
        )
        after = await desk.started(desk.posting.submit(use(100, "a")))
        desk.store.free.set()
        first, other, second, again, nothing = await rehearsed
        assert was_posted(await before, "before")
        assert (was_posted(first, "a"), was_posted(other, "o")) == (True, True)
        assert second == again == Refused(Refusal.INSUFFICIENT_CREDITS, {"available": 0, "required": 1})
        assert nothing == Replayed(None)
        assert was_posted(await after, "a")  # it had been left free
        assert desk.store.keys == ["first", "before", "a"]


@timeless
async def test_a_rehearsal_with_a_lost_answer_posts_nothing():
    async with await opened(After(OutcomeUnknown("lost"))) as desk:
        (outcome,) = await desk.posting.rehearse([use(1, "a")])
        assert was_posted(outcome, "a")
        assert desk.store.keys == []


@timeless
async def test_each_batch_is_measured_with_outcomes_and_seconds():
    measured: list[tuple[Sequence[Outcome], Sequence[float]]] = []
    async with await opened(on_measured=lambda *batch: measured.append(batch)) as desk:
        await desk.posting.submit_many([use(1, "a"), use(1000, "b")])
        await desk.posting.submit_atomic([use(1, "c"), use(1000, "d")])
    (many, many_seconds), (whole, whole_seconds) = measured[-2:]
    assert was_posted(many[0], "a")
    assert [type(outcome) for outcome in [*many[1:], *whole]] == [Refused, Refused]
    assert (many_seconds, whole_seconds) == ([0, 0], [0])


@timeless
async def test_a_commit_is_announced_before_callers_are_answered():
    callers: list[asyncio.Task[Outcome]] = []
    seen: list[tuple[list[str], list[bool]]] = []

    def told(committed: Committed) -> None:
        seen.append(([one.key for one in committed.writes.transactions], [caller.done() for caller in callers]))

    async with await opened(on_committed=told) as desk:
        callers.append(await desk.halt())
        callers += await desk.hand_in(use(1, "a"), use(1, "b"))
        desk.store.free.set()
        await asyncio.gather(*callers)
        assert seen == [(["first"], [False] * 3), (["a", "b"], [False] * 3)]


@timeless
async def test_a_failing_listener_stops_no_answer():
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
    failure = ValueError("the gate fell")

    def told(committed: Committed) -> None:
        raise failure

    async with await opened(on_committed=told) as desk:
        assert was_posted(await desk.posting.submit(use(1, "a")), "a")
        assert was_posted(await desk.posting.submit(use(1, "b")), "b")
    assert [context["exception"] for context in reported] == [failure, failure]
