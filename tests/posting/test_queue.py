"""The queue: streams, batches that share a commit, deadlines, and the end."""

import asyncio
from typing import Any
from uuid import UUID

import pytest

from credit_service.ledger.commands import Command
from credit_service.ledger.decide import Replayed
from credit_service.ledger.draft import Posted
from credit_service.posting import DeadlineExceeded, Overloaded, attempt, queue
from credit_service.posting.queue import AHEAD, LARGE_BATCH
from credit_service.storage.engine import (
    BadRow,
    Conflict,
    OutcomeUnknown,
    StorageUnavailable,
)
from credit_service.supervision import Supervisor
from tests.ledger.telling import (
    MERCHANT,
    payment,
    use,
)
from tests.posting.desk import (
    OF_STREAMS,
    After,
    Before,
    Desk,
    MemoryStore,
    ahead,
    answers,
    at_once,
    begun,
    now,
    opened,
    spends,
    timeless,
    was_posted,
)
from tests.storage.values import of


# ---- deciding ahead
async def test_a_large_batch_is_split_so_that_halves_overlap():
    async with await ahead() as desk:
        few = 2 * AHEAD - 1
        await at_once(desk, spends(few))
        assert [len(batch) for batch in desk.store.batches] == [few], "too few for two halves"
        desk.store.batches.clear()
        desk.store.free.clear()
        together = asyncio.create_task(at_once(desk, spends(2 * AHEAD + 1, 100)))
        await begun()
        assert [len(batch) for batch in desk.store.batches] == [AHEAD + 1, AHEAD]
        assert desk.store.keys[few:] == [], "none of them is over"
        desk.store.free.set()
        await together
        assert desk.store.keys[few:] == [command.key for command in spends(2 * AHEAD + 1, 100)]


async def test_many_new_commands_are_decided_ahead_in_their_turn():
    async with await ahead() as desk:
        store, half = desk.store, AHEAD
        store.free.clear()
        halves = [asyncio.create_task(at_once(desk, spends(2 * half)))]
        await begun()
        halves.append(asyncio.create_task(at_once(desk, spends(half, 100))))
        await begun()
        assert [len(batch) for batch in store.batches] == [half, half], "there is one in the store, and one ahead"
        store.free.set()
        await answers(halves)
        assert [len(batch) for batch in store.batches] == [half] * 3
        assert store.keys == [command.key for command in [*spends(2 * half), *spends(half, 100)]]


async def test_the_next_batch_is_sent_before_callers_are_answered():
    async with await ahead() as desk:

        async def call(command: Command) -> None:
            await desk.posting.submit(command)
            assert desk.store.followed == [True], "the second half is in the store"

        await asyncio.gather(*[call(command) for command in spends(2 * AHEAD)])


@pytest.mark.parametrize(
    "step",
    [
        Before(Conflict("busy")),
        After(OutcomeUnknown("lost"), committed=True),
        After(OutcomeUnknown("lost"), committed=False),
    ],
    ids=["a conflict", "an answer that was lost", "a commit that was lost"],
)
async def test_a_batch_decided_ahead_waits_for_retries_before_it(step: Before | After):
    async with await ahead() as desk:
        desk.store.script.append(step)
        commands = spends(2 * AHEAD)
        outcomes = await at_once(desk, commands)
        assert desk.store.keys == [command.key for command in commands]
        assert all(was_posted(outcome, command.key) for outcome, command in zip(outcomes, commands, strict=True))
        sizes = [len(batch) for batch in desk.store.batches]
        assert sizes == [AHEAD] * 3, "the first, the second which waits, and the first again"


async def test_a_broken_command_is_isolated_before_the_next_batch():
    async with await ahead() as desk:
        commands = spends(2 * AHEAD)
        desk.store.poison = {commands[3].key}
        failed = [isinstance(answer, BadRow) for answer in await at_once(desk, commands)]
        assert failed == [number == 3 for number in range(len(commands))]
        assert desk.store.keys == [command.key for command in commands if command is not commands[3]]


async def test_an_unavailable_store_also_refuses_the_batch_decided_ahead():
    async with await ahead() as desk:
        desk.store.script.extend([Before(StorageUnavailable("gone"))] * 2)
        came = await at_once(desk, spends(2 * AHEAD))
        assert {type(answer) for answer in came} == {StorageUnavailable}


async def test_the_items_of_one_submission_are_never_split():
    async with await ahead() as desk:
        first, together = spends(AHEAD), spends(2 * AHEAD, 100)
        asked = [*[desk.posting.submit(command) for command in first], desk.posting.submit_many(together)]
        await answers(asked)
        await desk.posting.submit_many(spends(2 * AHEAD, 200))
        assert [len(batch) for batch in desk.store.batches] == [3 * AHEAD, 2 * AHEAD]


async def test_no_item_is_posted_after_its_caller_got_a_failure():
    async with await ahead(max_batch=AHEAD) as desk:
        desk.store.script.append(Before(StorageUnavailable("gone")))
        asked = [desk.posting.submit_many(spends(2 * AHEAD)), desk.posting.submit(use(1, "another's"))]
        refused, outcome = await answers(asked)
        assert isinstance(refused, StorageUnavailable)
        assert was_posted(outcome, "another's")
        assert desk.store.keys == ["another's"]


@pytest.mark.parametrize("committed", [True, False])
async def test_a_batch_learns_whether_its_predecessor_needed_a_retry(committed: bool):
    async with await ahead() as desk:
        if not committed:
            desk.store.script.append(Before(Conflict("busy")))
        await at_once(desk, spends(2 * AHEAD))
        assert desk.store.followed == [committed]


async def test_a_store_without_deciding_ahead_gets_one_batch_at_a_time():
    async with await opened() as desk:
        desk.store.free.clear()
        tasks = await desk.hand_in(*spends(2 * AHEAD))
        assert desk.posting.queued == 2 * AHEAD - 1
        desk.store.free.set()
        await answers(tasks)
        assert [len(batch) for batch in desk.store.batches] == [1, 2 * AHEAD - 1]


async def test_nothing_is_decided_ahead_of_many_merchants():
    async with await ahead() as desk:
        desk.store.free.clear()
        merchants = [MERCHANT, *OF_STREAMS]
        many = [of(merchant, command) for command in spends(AHEAD) for merchant in merchants]
        task = await desk.started(desk.posting.submit_many(many))
        await begun()
        assert [len(batch) for batch in desk.store.batches] == [len(many)]
        desk.store.free.set()
        await task


async def test_nothing_is_decided_ahead_while_other_streams_are_busy(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(queue, "LARGE_BATCH", 30)
    async with await ahead(streams=2, max_batch=30) as desk:
        desk.store.free.clear()
        one, other = OF_STREAMS
        many = [of(one, command) for command in spends(30)] + [of(other, command) for command in spends(60)]
        task = await desk.started(desk.posting.submit_many(many))
        await begun()
        assert [len(batch) for batch in desk.store.batches] == [30, 30], "one of each stream, and none ahead"
        desk.store.free.set()
        await task


async def test_a_batch_ahead_includes_other_streams():
    async with await ahead(streams=2) as desk:
        desk.store.free.clear()
        half = AHEAD
        mixed = [of(merchant, command) for command in spends(half) for merchant in OF_STREAMS]
        task = asyncio.create_task(at_once(desk, mixed))
        await begun()
        assert [len(batch) for batch in desk.store.batches] == [half, half]
        desk.store.free.set()
        await task
        for merchant in OF_STREAMS:
            mine = [each.key for each in desk.store.transactions if each.merchant_id == merchant]
            assert mine == [command.key for command in spends(half)]


async def test_a_batch_beside_another_stream_is_not_split(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(queue, "LARGE_BATCH", 3 * AHEAD)
    async with await ahead(streams=2) as desk:
        one, other = OF_STREAMS
        first = await desk.halt(of(one, use(1, "first")))
        rest = asyncio.create_task(at_once(desk, [of(other, command) for command in spends(3 * AHEAD)]))
        await begun()
        assert [len(batch) for batch in desk.store.batches] == [1, 3 * AHEAD]
        desk.store.free.set()
        await answers([first, rest])


# ---- streams


async def test_two_streams_post_large_batches_at_once_in_order(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(queue, "LARGE_BATCH", 1)
    store = MemoryStore(streams=2)
    async with Desk(store) as desk:
        store.free.clear()
        firsts = await desk.hand_in(*[of(one, payment("P", 9)) for one in OF_STREAMS])
        await asyncio.sleep(0)
        assert len(store.batches) == 2  # both are in the store
        later = [await desk.started(desk.posting.submit(of(one, use(1, key)))) for key in "ab" for one in OF_STREAMS]
        assert desk.posting.queued == 4
        store.free.set()
        await answers([*firsts, *later])
        assert [sorted(batch) for batch in store.batches[2:]] == [["a", "b"]] * 2
        for one in OF_STREAMS:
            assert [each.key for each in store.transactions if each.merchant_id == one][1:] == ["a", "b"]


async def test_small_streams_share_one_batch_after_another():
    store = MemoryStore(streams=2)
    async with Desk(store) as desk:
        first = await desk.halt(of(OF_STREAMS[0], payment("P", 9)))
        later = await desk.hand_in(*[of(one, payment(key, 9)) for key in "QR" for one in OF_STREAMS])
        await asyncio.sleep(0)
        assert (len(store.batches), desk.posting.queued) == (1, 4)  # the second stream waits for the first
        store.free.set()
        await answers([first, *later])
        assert [len(batch) for batch in store.batches] == [1, 4]


async def test_a_joined_stream_waits_like_the_one_it_joined():
    store = MemoryStore(streams=2)
    async with Desk(store) as desk:
        store.free.clear()
        together = await desk.started(desk.posting.submit_many([of(one, payment("P", 9)) for one in OF_STREAMS]))
        await asyncio.sleep(0)
        later = await desk.hand_in(*[of(one, use(1, "u")) for one in OF_STREAMS])
        await asyncio.sleep(0)
        assert [len(batch) for batch in store.batches] == [2]
        store.free.set()
        await answers([together, *later])
        assert [len(batch) for batch in store.batches] == [2, 2]


async def test_a_joined_batch_respects_the_maximum_size():
    store = MemoryStore(streams=2)
    async with Desk(store, max_batch=2) as desk:
        first = await desk.halt(of(OF_STREAMS[0], payment("P", 9)))
        later = [of(one, payment(key, 9)) for one in OF_STREAMS for key in "QR"]
        tasks = await desk.hand_in(*later)
        store.free.set()
        await answers([first, *tasks])
        assert [len(batch) for batch in store.batches] == [1, 2, 2]


async def test_a_busy_stream_leaves_room_for_small_ones():
    store = MemoryStore(streams=2)
    async with Desk(store, max_batch=10) as desk:
        one, other = OF_STREAMS
        first = await desk.halt(of(one, payment("P", 99)))
        many = await desk.started(desk.posting.submit_many([of(one, use(1, f"{number}")) for number in range(30)]))
        (little,) = await desk.hand_in(of(other, payment("little", 9)))
        store.free.set()
        await answers([first, many, little])
        assert "little" in store.batches[1][0]


async def test_draining_ends_although_a_stream_expired():
    store = MemoryStore(streams=2)
    async with Desk(store, deadline_seconds=0.5) as desk:
        one, other = OF_STREAMS
        stuck = await desk.halt(of(one, payment("P", 9)))
        (waiting,) = await desk.hand_in(of(other, payment("Q", 9)))
        stopping = asyncio.create_task(desk.posting.drain())
        assert isinstance((await answers([waiting]))[0], DeadlineExceeded)
        store.free.set()
        await answers([stuck])
        await stopping


async def test_a_full_stream_starts_beside_a_running_batch():
    store = MemoryStore(streams=2)
    async with Desk(store) as desk:
        first = await desk.halt(of(OF_STREAMS[0], payment("P", 9)))
        many = [of(OF_STREAMS[1], payment(f"{number}", 9)) for number in range(LARGE_BATCH)]
        later = await desk.started(desk.posting.submit_many(many))
        await asyncio.sleep(0)
        assert [len(batch) for batch in store.batches] == [1, LARGE_BATCH]
        store.free.set()
        await answers([first, later])


@timeless
async def test_a_deadline_in_the_store_answers_outcome_unknown():
    async with await opened(deadline_seconds=5) as desk:
        await desk.halt()
        (early,) = await desk.hand_in(use(1, "early"))
        await asyncio.sleep(2)
        (late,) = await desk.hand_in(use(1, "late"))
        desk.store.free.set()
        desk.store.free.clear()  # for one batch: that of both is in the store next
        told = []
        for caller in (early, late):
            with pytest.raises(OutcomeUnknown):
                await caller
            told.append(now())
        assert told == [5, 7]
        desk.store.free.set()
        assert isinstance(await desk.posting.submit(use(1, "late")), Replayed)  # it was posted all the same


async def test_draining_waits_for_every_stream():
    store = MemoryStore(streams=2)
    desk = Desk(store)
    desk.posting.start()
    store.free.clear()
    tasks = await desk.hand_in(*[of(str(UUID(int=number)), payment("P", 9)) for number in (2, 3)])
    draining = await desk.started(desk.posting.drain())
    assert not draining.done()
    store.free.set()
    await draining
    assert all(isinstance(outcome, Posted) for outcome in await answers(tasks))


# ---- overload, deadlines, callers that give up


@timeless
async def test_a_full_queue_refuses_at_once_and_counts_commands():
    async with await opened(max_queue=4) as desk:
        await desk.halt()
        many = await desk.started(desk.posting.submit_many([use(1, "a"), use(1, "b"), use(1, "c")]))
        with pytest.raises(Overloaded):
            await desk.posting.submit_atomic([use(1, "d"), use(1, "e")])
        last = await desk.started(desk.posting.submit(use(1, "f")))
        with pytest.raises(Overloaded):
            await desk.posting.submit(use(1, "g"))
        assert (desk.posting.queued, now()) == (4, 0)
        desk.store.free.set()
        await asyncio.gather(many, last)
        assert was_posted(await desk.posting.submit(use(1, "g")), "g")
        assert desk.store.keys == ["first", "a", "b", "c", "f", "g"]


@timeless
async def test_a_queued_command_expires_while_the_store_hangs():
    async with await opened(deadline_seconds=5) as desk:
        first = await desk.halt()
        (early,) = await desk.hand_in(use(1, "early"))
        await asyncio.sleep(2)
        late = await desk.started(desk.posting.submit_many([use(1, "l1"), use(1, "l2")]))
        with pytest.raises(DeadlineExceeded):
            await early
        assert (now(), desk.posting.queued) == (5, 2)
        with pytest.raises(DeadlineExceeded):
            await late
        assert (now(), desk.posting.queued) == (7, 0)
        with pytest.raises(OutcomeUnknown):  # what the store is at may still be posted
            await first
        desk.store.free.set()
        assert was_posted(await desk.posting.submit(use(1, "next")), "next")
        assert desk.store.keys == ["first", "next"]


@timeless
async def test_a_met_deadline_has_no_later_effect():
    async with await opened(deadline_seconds=5) as desk:
        await desk.posting.submit(use(1, "a"))
        await asyncio.sleep(20)
        await desk.posting.submit(use(1, "b"))
        await asyncio.sleep(4)
        await desk.halt()
        (waiting,) = await desk.hand_in(use(1, "c"))
        await asyncio.sleep(2)
        assert not waiting.done()  # the deadline of b has passed, that of c has not
        desk.store.free.set()
        assert was_posted(await waiting, "c")


@timeless
async def test_a_retried_command_expires_before_newer_ones(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attempt, "FIRST_PAUSE_SECONDS", 3.0)
    monkeypatch.setattr("random.uniform", lambda least, most: most)
    async with await opened(deadline_seconds=5) as desk:
        await desk.posting.submit(use(1, "long gone"))  # whose deadline passes while nobody is in the store
        await asyncio.sleep(3)
        desk.store.script.append(Before(Conflict("busy")))
        (again,) = await desk.hand_in(use(1, "again"))  # until 8, and in the store again at 6
        await asyncio.sleep(1)
        desk.store.free.clear()
        (after,) = await desk.hand_in(use(1, "after"))  # until 9
        with pytest.raises(OutcomeUnknown):
            await again
        assert now() == 8
        with pytest.raises(DeadlineExceeded):
            await after
        assert now() == 9


@timeless
async def test_a_submission_partly_in_the_store_expires_as_unknown():
    async with await opened(deadline_seconds=5, max_batch=2) as desk:
        desk.store.free.clear()
        both = await desk.started(desk.posting.submit_many([use(1, "a"), use(1, "b"), use(1, "c")]))
        with pytest.raises(OutcomeUnknown):
            await both


@timeless
async def test_a_caller_that_gives_up_does_not_cancel_its_posting():
    async with await opened() as desk:
        first = await desk.halt()
        queued, other = await desk.hand_in(use(1, "a"), use(1, "b"))
        for task in (first, queued):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        desk.store.free.set()
        assert was_posted(await other, "b")
        assert desk.store.keys == ["first", "a", "b"]


@timeless
async def test_a_cancelled_caller_receives_no_failure():
    async with await opened(Before(StorageUnavailable("gone"))) as desk:
        first = await desk.halt()
        first.cancel()
        desk.store.free.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert was_posted(await desk.posting.submit(use(1, "a")), "a")


# ---- the end


@timeless
async def test_draining_finishes_the_queue_and_refuses_new_commands():
    async with await opened(max_batch=2) as desk:
        first = await desk.halt()
        rest = await desk.hand_in(use(1, "a"), use(1, "b"), use(1, "c"))
        ending = await desk.started(desk.posting.drain())
        assert desk.posting.draining
        with pytest.raises(Overloaded):
            await desk.posting.submit(use(1, "d"))
        assert not ending.done()
        desk.store.free.set()
        await ending
        assert all(task.done() for task in (first, *rest))
        assert desk.store.keys == ["first", "a", "b", "c"]


@timeless
async def test_cancelling_the_wait_for_draining_does_not_stop_it():
    async with await opened() as desk:
        first = await desk.halt()
        (queued,) = await desk.hand_in(use(1, "a"))
        ending = await desk.started(desk.posting.drain())
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
        desk.store.free.set()
        assert was_posted(await first, "first")
        assert was_posted(await queued, "a")


@timeless
async def test_draining_without_a_start_ends_at_once():
    desk = await opened()
    await desk.posting.drain()
    with pytest.raises(Overloaded):
        await desk.posting.submit(use(1))


# ---- supervision


@pytest.mark.parametrize("count", [1, 2 * AHEAD], ids=["alone", "ahead"])
@timeless
async def test_a_runner_that_dies_is_restarted_and_answers_its_callers(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = await ahead()
    answer, broken = attempt.Attempts._answer, [True]

    def dies(*args: Any) -> None:
        if broken and broken.pop():
            raise KeyError("a bug")
        answer(*args)

    monkeypatch.setattr(attempt.Attempts, "_answer", dies)
    supervisor = Supervisor()
    desk.posting.start(supervisor)
    first = await at_once(desk, spends(count))
    assert [type(outcome) for outcome in first[: (count + 1) // 2]] == [OutcomeUnknown] * ((count + 1) // 2)
    assert supervisor.critical_faults == {"posting 0": "KeyError"}
    assert was_posted(await desk.posting.submit(use(1, "later")), "later")
    await asyncio.sleep(10)
    assert supervisor.faults == {}
    await desk.posting.drain()
