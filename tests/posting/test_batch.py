"""Batches: each command sees the earlier ones, and atomic ones are posted whole."""

import asyncio
from collections.abc import Sequence
from typing import cast

import pytest

from credit_service.ledger.decide import Outcome, Replayed, Waiting
from credit_service.ledger.draft import Posted
from credit_service.ledger.refusals import Refusal, Refused
from credit_service.posting import RefusedAt
from tests.ledger.telling import (
    add,
    opening,
    order,
    payment,
    payment_refund,
    refund,
    sweep,
    trial,
    use,
)
from tests.posting.desk import (
    OTHER,
    answers,
    now,
    opened,
    timeless,
    was_posted,
)
from tests.storage.values import of

# ---- batches


@timeless
async def test_a_lone_command_is_posted_at_once():
    async with await opened() as desk:
        outcome = await desk.posting.submit(use(1, "a"))
        assert was_posted(outcome, "a")
        assert (now(), desk.store.batches) == (0, [["a"]])


@timeless
async def test_commands_that_arrive_while_a_batch_commits_share_the_next():
    async with await opened() as desk:
        first = await desk.halt()
        rest = await desk.hand_in(*(use(1, f"k{index}") for index in range(5)))
        assert desk.posting.queued == 5
        desk.store.free.set()
        assert all(was_posted(outcome, f"k{index}") for index, outcome in enumerate(await answers(rest)))
        assert was_posted(await first, "first")
        assert desk.store.batches == [["first"], ["k0", "k1", "k2", "k3", "k4"]]
        assert (desk.posting.queued, now()) == (0, 0)


@timeless
async def test_order_of_arrival_is_kept_from_batch_to_batch():
    async with await opened(max_batch=3) as desk:
        await desk.halt()
        many = await desk.started(desk.posting.submit_many([use(1, f"m{index}") for index in range(5)]))
        singles = await desk.hand_in(use(1, "s0"), use(1, "s1"))
        desk.store.free.set()
        outcomes = [*await many, *await answers(singles)]
        expected = ["m0", "m1", "m2", "m3", "m4", "s0", "s1"]
        assert all(was_posted(*pair) for pair in zip(outcomes, expected, strict=True))
        assert desk.store.keys == ["first", *expected]
        assert desk.store.batches == [["first"], ["m0", "m1", "m2"], ["m3", "m4", "s0"], ["s1"]]


@timeless
async def test_an_atomic_batch_is_never_split():
    async with await opened(max_batch=3) as desk:
        await desk.halt()
        one = await desk.started(desk.posting.submit(use(1, "a")))
        whole = await desk.started(desk.posting.submit_atomic([use(1, f"b{index}") for index in range(3)]))
        large = await desk.started(desk.posting.submit_atomic([use(1, f"c{index}") for index in range(4)]))
        last = await desk.started(desk.posting.submit(use(1, "d")))
        desk.store.free.set()
        await asyncio.gather(one, whole, large, last)
        assert desk.store.batches[1:] == [["a"], ["b0", "b1", "b2"], ["c0", "c1", "c2", "c3"], ["d"]]


@timeless
async def test_L4_each_of_many_commands_sees_those_before_it():
    async with await opened() as desk:
        spent, short, earned, more, again, reused = await desk.posting.submit_many(
            [use(100, "a"), use(1, "b"), add(5, "c"), use(5, "d"), use(5, "d"), use(4, "d")]
        )
        assert was_posted(spent, "a")
        assert short == Refused(Refusal.INSUFFICIENT_CREDITS, {"available": 0, "required": 1})
        assert was_posted(earned, "c")
        assert isinstance(more, Posted)
        assert more.account.balance == 0
        assert again == Replayed(more.transaction)
        assert reused == Refused(Refusal.KEY_REUSED)
        assert len(desk.store.batches) == 1


@timeless
async def test_L3_a_command_is_replayed_from_an_earlier_batch():
    async with await opened() as desk:
        command = use(1, "a")
        first = await desk.posting.submit(command)
        assert isinstance(first, Posted)
        assert await desk.posting.submit(command) == Replayed(first.transaction)
        assert desk.store.keys == ["a"]


@timeless
async def test_L8_one_batch_parks_and_applies_a_refund():
    async with await opened() as desk:
        early, twice, paid, late = await desk.posting.submit_many(
            [refund("R", "1", credits=2), refund("R", "1", credits=2), order("1", 5), refund("S", "1", credits=9)]
        )
        assert isinstance(early, Waiting)
        assert twice == Waiting(early.parked, None)
        assert isinstance(paid, Posted)
        assert [transaction.amount for transaction in paid.transactions] == [5, 2]
        assert isinstance(late, Posted)
        assert late.transaction is not None
        assert (late.transaction.amount, late.transaction.shortfall) == (3, 6)
        (writes,) = desk.store.writes
        assert (writes.parked, writes.unparked) == ({}, [])  # it never was in the database


@timeless
async def test_L8_a_refund_parked_before_is_taken_out_of_the_database():
    async with await opened() as desk:
        await desk.posting.submit(payment_refund("R", "Q", 9))
        await desk.posting.submit(payment("Q", 20))
        parked, unparked = (list(writes.parked) for writes in desk.store.writes)
        assert (len(parked), unparked) == (1, [])
        assert desk.store.writes[1].unparked == parked


@timeless
async def test_L8_a_refund_can_be_parked_again_in_one_batch():
    async with await opened() as desk:
        first = await desk.posting.submit(refund("R", "1", credits=2))
        assert isinstance(first, Waiting)
        await asyncio.sleep(8 * 24 * 3600)
        swept, again = await desk.posting.submit_many([sweep(), refund("R", "1", credits=2)])
        assert isinstance(swept, Posted)
        assert [letter.code for letter in swept.dead_letters] == ["order_unknown"]
        assert isinstance(again, Waiting)
        assert again.parked.until > first.parked.until
        writes = desk.store.writes[-1]
        assert ([key for _, key in writes.unparked], [key for _, key in writes.parked]) == ([first.parked.key],) * 2
        assert len(writes.dead_letters) == 1


@timeless
async def test_L12_a_trial_is_seen_by_the_next_command_of_its_batch():
    async with await opened() as desk:
        by_hand, told, created = await desk.posting.submit_many([add(7, "k", "TRIAL"), trial(50), opening()])
        assert isinstance(by_hand, Posted)
        first = by_hand.transaction
        assert (told, created) == (Replayed(first, conflicting=True),) * 2


@timeless
async def test_an_empty_batch_needs_no_store():
    async with await opened() as desk:
        assert await desk.posting.submit_many([]) == []
        assert desk.store.batches == []


# ---- atomic batches


@timeless
async def test_L4_an_atomic_batch_is_posted_whole_in_its_order():
    async with await opened() as desk:
        outcomes = await desk.posting.submit_atomic([use(100, "a"), add(7, "b"), use(7, "c")])
        assert not isinstance(outcomes, RefusedAt)
        assert [was_posted(*pair) for pair in zip(outcomes, "abc", strict=True)] == [True] * 3
        assert desk.store.keys == ["a", "b", "c"]


@timeless
async def test_L4_a_refused_atomic_batch_leaves_nothing():
    async with await opened() as desk:
        await desk.halt()
        before = await desk.started(desk.posting.submit(use(1, "before")))
        whole = await desk.started(
            desk.posting.submit_atomic([add(50, "a"), refund("R", "1", credits=1), use(100, "b"), use(99, "c")])
        )
        after = await desk.started(desk.posting.submit(use(100, "a")))
        desk.store.free.set()
        assert was_posted(await before, "before")
        assert await whole == RefusedAt(3, Refused(Refusal.INSUFFICIENT_CREDITS, {"available": 50, "required": 99}))
        assert was_posted(await after, "a")  # its key was left free
        assert desk.store.keys == ["first", "before", "a"]
        assert desk.store.batches[1:] == [["before", "a", "shopify:refund:R", "b", "c", "a"]]
        assert desk.store.writes[-1].parked == {}


@timeless
async def test_an_atomic_batch_of_one_is_refused_like_any_other():
    async with await opened() as desk:
        refused = Refused(Refusal.INSUFFICIENT_CREDITS, {"available": 100, "required": 101})
        assert await desk.posting.submit_atomic([use(101)]) == RefusedAt(0, refused)
        (outcome,) = cast("Sequence[Outcome]", await desk.posting.submit_atomic([use(1, "a")]))
        assert was_posted(outcome, "a")


@timeless
async def test_an_atomic_batch_may_replay_some_of_its_items():
    async with await opened() as desk:
        first = await desk.posting.submit(use(1, "a"))
        assert isinstance(first, Posted)
        replayed, posted = cast("Sequence[Outcome]", await desk.posting.submit_atomic([use(1, "a"), use(1, "b")]))
        assert replayed == Replayed(first.transaction)
        assert was_posted(posted, "b")


@timeless
async def test_an_atomic_batch_is_of_one_merchant():
    async with await opened() as desk:
        for wrong in ([use(1), of(OTHER, use(1))], []):
            with pytest.raises(AssertionError):
                await desk.posting.submit_atomic(wrong)
