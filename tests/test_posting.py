"""The one way in: queue, batches, answers, and what happens when the store does not do its part.

No test waits for real time: the loop's clock jumps to the next timer as soon as nobody has anything else to do. The
store is a dictionary that can be told to stop, to fail and to lose its answer; `tests/storage` uses real ones.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import wraps
from itertools import count, pairwise
from typing import Any, NamedTuple, ParamSpec, cast
from uuid import UUID

import pytest

from credit_service import posting
from credit_service.ledger.account import Transaction
from credit_service.ledger.commands import Command
from credit_service.ledger.decide import Needs, Outcome, Replayed, Waiting, decide
from credit_service.ledger.draft import Posted
from credit_service.ledger.policy import Policy
from credit_service.ledger.refusals import Refusal, Refused
from credit_service.posting import (
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    DeadlineExceeded,
    Overloaded,
    Posting,
    RefusedAt,
)
from credit_service.storage.engine import (
    BadRow,
    Committed,
    Conflict,
    Engine,
    Loaded,
    OutcomeUnknown,
    Record,
    StorageUnavailable,
    Work,
    Writes,
)
from tests.ledger.telling import (
    MERCHANT,
    T0,
    add,
    opening,
    order,
    payment,
    payment_refund,
    refund,
    sweep,
    terms,
    trial,
    use,
)
from tests.storage.values import of

P = ParamSpec("P")
OTHER = UUID(int=1)


# ---- a loop in which waiting takes no time


class TimelessLoop(asyncio.SelectorEventLoop):
    """Where nothing is ready, its clock jumps to the next timer; where there is none either, it fails."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        select = self._selector.select  # type: ignore[attr-defined]  # asyncio's own

        def jump(timeout: float | None) -> Any:
            events = select(0)
            if not events:
                assert timeout is not None, "everybody waits for ever"
                self.seconds += timeout
            return events

        self._selector.select = jump  # type: ignore[attr-defined]

    def time(self) -> float:
        return self.seconds


def timeless(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=TimelessLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run


def now() -> float:
    return asyncio.get_running_loop().time()


# ---- a store in memory, with a will of its own


class Before(NamedTuple):
    """The store fails before it has asked for a decision."""

    error: Exception


class After(NamedTuple):
    """The store fails after the decision; what was decided is there or not."""

    error: Exception
    committed: bool = False


class MemoryStore:
    """The records of merchants, and a script for the next postings; where it says nothing all goes well."""

    def __init__(self, streams: int = 1, *, ahead: int = 0) -> None:
        self.streams = streams
        self.ahead = ahead
        self.records: dict[UUID, Record] = {}
        self.transactions: list[Transaction] = []
        self.writes: list[Writes] = []
        self.script: deque[Before | After] = deque()
        self.batches: list[list[str]] = []  # the keys of each attempt
        self.attempts: list[float] = []  # when
        self.followed: list[bool] = []  # what was said of the batch before, to those that were handed over behind one
        self.poison: set[str] = set()  # keys of transactions that break a law of the database
        self.free = asyncio.Event()
        self.free.set()
        self.numbers = count(1)

    def stream_of(self, merchant_id: UUID) -> int:
        return merchant_id.int % self.streams

    async def post(self, needs: Sequence[Needs], work: Work, after: asyncio.Future[bool] | None = None) -> Committed:
        self.batches.append([need.key for need in needs])
        self.attempts.append(now())
        if after is not None:
            self.followed.append(await after)
        step = self.script.popleft() if self.script else None
        await self.free.wait()
        if isinstance(step, Before):
            raise step.error
        records: dict[UUID, Record] = {}
        for need in needs:
            known = self.records.get(need.merchant_id) or Record(None, next(self.numbers))
            records.setdefault(need.merchant_id, known.copy())
        writes = work(Loaded(T0 + round(now() * 1e6), records))
        if bad := self.poison & {transaction.key for transaction in writes.transactions}:
            raise BadRow(f"{bad} cannot be kept")
        if step is None or step.committed:
            self.records |= records
            self.transactions += writes.transactions
            self.writes.append(writes)
        if step is not None:
            raise step.error
        return Committed(writes)

    @property
    def keys(self) -> list[str]:
        """What is there, in order."""
        return [transaction.key for transaction in self.transactions]


class Desk:
    """A posting at work on a memory store, with commands that can be handed in without waiting for their answers."""

    def __init__(self, store: MemoryStore, **settings: Any) -> None:
        self.store = store
        self.told: list[Committed] = []
        told: Callable[[Committed], None] = self.told.append
        self.posting = Posting(cast("Engine", store), Policy(), **({"on_committed": told} | settings))

    async def __aenter__(self) -> "Desk":
        self.posting.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.store.free.set()
        await self.posting.drain()

    async def hand_in(self, *commands: Command) -> list[asyncio.Task[Outcome]]:
        """Callers who each submit one of these, in this order."""
        return [await self.started(self.posting.submit(command)) for command in commands]

    async def started(self, asked: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(asked)
        await asyncio.sleep(0)
        return task

    async def halt(self, command: Command | None = None) -> asyncio.Task[Outcome]:
        """Make the store stand still, with one posting in it."""
        command = command or add(1, "first")
        self.store.free.clear()
        (first,) = await self.hand_in(command)
        await begun()
        assert self.store.batches[-1] == [command.key]
        return first


async def opened(*script: Before | After, **settings: Any) -> Desk:
    """A desk whose merchants have 100 credits each, and whose store goes by the script from then on."""
    made = Desk(MemoryStore(), **settings)
    async with Desk(made.store) as first:
        await first.posting.submit_many([payment("P", 100), of(OTHER, payment("P", 100))])
    made.store.script.extend(script)
    made.store.transactions.clear()
    made.store.batches.clear()
    made.store.attempts.clear()
    made.store.writes.clear()
    return made


async def answers(tasks: Sequence[Awaitable[Any]]) -> list[Any]:
    """What came of each: its outcome, or its exception."""
    return await asyncio.gather(*tasks, return_exceptions=True)


def was_posted(outcome: Any, key: str) -> bool:
    return isinstance(outcome, Posted) and outcome.transaction is not None and outcome.transaction.key == key


# ---- deciding ahead


def spends(number: int, first: int = 0) -> list[Command]:
    """Spends of one credit by as many callers."""
    return [use(1, f"{first + one}") for one in range(number)]


async def begun() -> None:
    """Let what was handed in come to the store."""
    for _ in range(6):
        await asyncio.sleep(0)


async def at_once(desk: Desk, commands: Sequence[Command]) -> list[Any]:
    """What as many callers are answered who all submit before the first batch begins."""
    return await answers([desk.posting.submit(command) for command in commands])


async def ahead(streams: int = 1, **settings: Any) -> Desk:
    """A desk whose store decides ahead, and whose merchants have 1,000 credits each."""
    made = Desk(MemoryStore(streams, ahead=2), **settings)
    async with Desk(made.store) as first:
        await first.posting.submit_many([of(one, payment("P", 1_000)) for one in (MERCHANT, *OF_STREAMS)])
    made.store.transactions.clear()
    made.store.batches.clear()
    return made


async def test_who_waits_together_is_posted_in_two_halves_of_which_one_is_handed_over_while_the_other_is_in_the_store():
    async with await ahead() as desk:
        few = 2 * posting.AHEAD - 1
        await at_once(desk, spends(few))
        assert [len(batch) for batch in desk.store.batches] == [few], "too few for two halves"
        desk.store.batches.clear()
        desk.store.free.clear()
        together = asyncio.create_task(at_once(desk, spends(2 * posting.AHEAD + 1, 100)))
        await begun()
        assert [len(batch) for batch in desk.store.batches] == [posting.AHEAD + 1, posting.AHEAD]
        assert desk.store.keys[few:] == [], "none of them is over"
        desk.store.free.set()
        await together
        assert desk.store.keys[few:] == [command.key for command in spends(2 * posting.AHEAD + 1, 100)]


async def test_what_comes_meanwhile_is_handed_over_ahead_in_its_turn_where_it_is_much():
    async with await ahead() as desk:
        store, half = desk.store, posting.AHEAD
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


async def test_the_next_batch_goes_to_the_store_before_the_callers_of_the_one_before_are_answered():
    async with await ahead() as desk:

        async def call(command: Command) -> None:
            await desk.posting.submit(command)
            assert desk.store.followed == [True], "the second half is in the store"

        await asyncio.gather(*[call(command) for command in spends(2 * posting.AHEAD)])


@pytest.mark.parametrize(
    "step",
    [
        Before(Conflict("busy")),
        After(OutcomeUnknown("lost"), committed=True),
        After(OutcomeUnknown("lost"), committed=False),
    ],
    ids=["a conflict", "an answer that was lost", "a commit that was lost"],
)
async def test_what_was_decided_ahead_waits_until_what_came_before_it_has_been_tried_again(step: Before | After):
    async with await ahead() as desk:
        desk.store.script.append(step)
        commands = spends(2 * posting.AHEAD)
        outcomes = await at_once(desk, commands)
        assert desk.store.keys == [command.key for command in commands]
        assert all(was_posted(outcome, command.key) for outcome, command in zip(outcomes, commands, strict=True))
        sizes = [len(batch) for batch in desk.store.batches]
        assert sizes == [posting.AHEAD] * 3, "the first, the second which waits, and the first again"


async def test_a_command_that_breaks_a_batch_is_isolated_before_the_batch_that_was_decided_ahead():
    async with await ahead() as desk:
        commands = spends(2 * posting.AHEAD)
        desk.store.poison = {commands[3].key}
        failed = [isinstance(answer, BadRow) for answer in await at_once(desk, commands)]
        assert failed == [number == 3 for number in range(len(commands))]
        assert desk.store.keys == [command.key for command in commands if command is not commands[3]]


async def test_where_the_store_cannot_be_used_who_waits_behind_is_refused_too():
    async with await ahead() as desk:
        desk.store.script.extend([Before(StorageUnavailable("gone"))] * 2)
        came = await at_once(desk, spends(2 * posting.AHEAD))
        assert {type(answer) for answer in came} == {StorageUnavailable}


async def test_what_one_caller_hands_in_at_once_is_not_cut_in_halves():
    async with await ahead() as desk:
        first, together = spends(posting.AHEAD), spends(2 * posting.AHEAD, 100)
        asked = [*[desk.posting.submit(command) for command in first], desk.posting.submit_many(together)]
        await answers(asked)
        await desk.posting.submit_many(spends(2 * posting.AHEAD, 200))
        assert [len(batch) for batch in desk.store.batches] == [3 * posting.AHEAD, 2 * posting.AHEAD]


async def test_of_what_one_caller_hands_in_nothing_is_posted_after_he_was_told_that_nothing_was():
    async with await ahead(max_batch=posting.AHEAD) as desk:
        desk.store.script.append(Before(StorageUnavailable("gone")))
        asked = [desk.posting.submit_many(spends(2 * posting.AHEAD)), desk.posting.submit(use(1, "another's"))]
        refused, outcome = await answers(asked)
        assert isinstance(refused, StorageUnavailable)
        assert was_posted(outcome, "another's")
        assert desk.store.keys == ["another's"]


@pytest.mark.parametrize("committed", [True, False])
async def test_what_follows_is_told_whether_the_batch_before_it_was_posted_at_once(committed: bool):
    async with await ahead() as desk:
        if not committed:
            desk.store.script.append(Before(Conflict("busy")))
        await at_once(desk, spends(2 * posting.AHEAD))
        assert desk.store.followed == [committed]


async def test_a_store_that_does_not_decide_ahead_gets_one_batch_at_a_time():
    async with await opened() as desk:
        desk.store.free.clear()
        tasks = await desk.hand_in(*spends(2 * posting.AHEAD))
        assert desk.posting.queued == 2 * posting.AHEAD - 1
        desk.store.free.set()
        await answers(tasks)
        assert [len(batch) for batch in desk.store.batches] == [1, 2 * posting.AHEAD - 1]


async def test_nothing_is_decided_ahead_of_a_batch_of_many_merchants():
    async with await ahead() as desk:
        desk.store.free.clear()
        merchants = [MERCHANT, *OF_STREAMS]
        many = [of(merchant, command) for command in spends(posting.AHEAD) for merchant in merchants]
        task = await desk.started(desk.posting.submit_many(many))
        await begun()
        assert [len(batch) for batch in desk.store.batches] == [len(many)]
        desk.store.free.set()
        await task


async def test_nothing_is_decided_ahead_while_batches_of_other_streams_are_in_the_store(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(posting, "LARGE_BATCH", 30)
    async with await ahead(streams=2, max_batch=30) as desk:
        desk.store.free.clear()
        one, other = OF_STREAMS
        many = [of(one, command) for command in spends(30)] + [of(other, command) for command in spends(60)]
        task = await desk.started(desk.posting.submit_many(many))
        await begun()
        assert [len(batch) for batch in desk.store.batches] == [30, 30], "one of each stream, and none ahead"
        desk.store.free.set()
        await task


async def test_what_waits_for_other_streams_is_taken_along_ahead():
    async with await ahead(streams=2) as desk:
        desk.store.free.clear()
        half = posting.AHEAD
        mixed = [of(merchant, command) for command in spends(half) for merchant in OF_STREAMS]
        task = asyncio.create_task(at_once(desk, mixed))
        await begun()
        assert [len(batch) for batch in desk.store.batches] == [half, half]
        desk.store.free.set()
        await task
        for merchant in OF_STREAMS:
            mine = [each.key for each in desk.store.transactions if each.merchant_id == merchant]
            assert mine == [command.key for command in spends(half)]


async def test_what_waits_beside_a_batch_of_another_stream_goes_to_the_store_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(posting, "LARGE_BATCH", 3 * posting.AHEAD)
    async with await ahead(streams=2) as desk:
        one, other = OF_STREAMS
        first = await desk.halt(of(one, use(1, "first")))
        rest = asyncio.create_task(at_once(desk, [of(other, command) for command in spends(3 * posting.AHEAD)]))
        await begun()
        assert [len(batch) for batch in desk.store.batches] == [1, 3 * posting.AHEAD]
        desk.store.free.set()
        await answers([first, rest])


# ---- streams


OF_STREAMS = [UUID(int=number) for number in (2, 3)]  # one merchant of each of two streams


async def test_large_batches_of_two_streams_are_in_the_store_at_once_and_each_merchant_keeps_its_order(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(posting, "LARGE_BATCH", 1)
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


async def test_what_is_little_is_posted_together_one_batch_after_the_other():
    store = MemoryStore(streams=2)
    async with Desk(store) as desk:
        first = await desk.halt(of(OF_STREAMS[0], payment("P", 9)))
        later = await desk.hand_in(*[of(one, payment(key, 9)) for key in "QR" for one in OF_STREAMS])
        await asyncio.sleep(0)
        assert (len(store.batches), desk.posting.queued) == (1, 4)  # the second stream waits for the first
        store.free.set()
        await answers([first, *later])
        assert [len(batch) for batch in store.batches] == [1, 4]


async def test_a_stream_that_was_taken_along_waits_for_its_turn_like_the_other():
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


async def test_of_another_stream_no_more_is_taken_along_than_a_batch_holds():
    store = MemoryStore(streams=2)
    async with Desk(store, max_batch=2) as desk:
        first = await desk.halt(of(OF_STREAMS[0], payment("P", 9)))
        later = [of(one, payment(key, 9)) for one in OF_STREAMS for key in "QR"]
        tasks = await desk.hand_in(*later)
        store.free.set()
        await answers([first, *tasks])
        assert [len(batch) for batch in store.batches] == [1, 2, 2]


async def test_a_stream_that_always_fills_a_batch_leaves_room_for_the_little_of_others():
    store = MemoryStore(streams=2)
    async with Desk(store, max_batch=10) as desk:
        one, other = OF_STREAMS
        first = await desk.halt(of(one, payment("P", 99)))
        many = await desk.started(desk.posting.submit_many([of(one, use(1, f"{number}")) for number in range(30)]))
        (little,) = await desk.hand_in(of(other, payment("little", 9)))
        store.free.set()
        await answers([first, many, little])
        assert "little" in store.batches[1][0]


async def test_a_stop_ends_though_what_waited_for_a_stream_was_given_up_meanwhile():
    store = MemoryStore(streams=2)
    async with Desk(store, deadline_seconds=0.5) as desk:
        one, other = OF_STREAMS
        stuck = await desk.halt(of(one, payment("P", 9)))
        (waiting,) = await desk.hand_in(of(other, payment("Q", 9)))
        stopping = asyncio.create_task(desk.posting.drain())
        assert isinstance((await answers([waiting]))[0], posting.DeadlineExceeded)
        store.free.set()
        await answers([stuck])
        await stopping


async def test_a_stream_that_fills_up_goes_ahead_beside_the_one_that_is_under_way():
    store = MemoryStore(streams=2)
    async with Desk(store) as desk:
        first = await desk.halt(of(OF_STREAMS[0], payment("P", 9)))
        many = [of(OF_STREAMS[1], payment(f"{number}", 9)) for number in range(posting.LARGE_BATCH)]
        later = await desk.started(desk.posting.submit_many(many))
        await asyncio.sleep(0)
        assert [len(batch) for batch in store.batches] == [1, posting.LARGE_BATCH]
        store.free.set()
        await answers([first, later])


@timeless
async def test_callers_whose_deadlines_pass_in_the_store_are_told_one_by_one_that_the_outcome_is_unknown():
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
    tasks = await desk.hand_in(*[of(UUID(int=number), payment("P", 9)) for number in (2, 3)])
    draining = await desk.started(desk.posting.drain())
    assert not draining.done()
    store.free.set()
    await draining
    assert all(isinstance(outcome, Posted) for outcome in await answers(tasks))


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
async def test_an_atomic_batch_is_never_split_and_goes_alone_where_it_is_too_large():
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
async def test_L8_a_refund_is_parked_found_and_applied_within_one_batch():
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
async def test_L8_a_refund_given_up_in_a_batch_can_be_parked_again_in_it():
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
async def test_a_batch_of_nothing_is_answered_without_the_store():
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
async def test_L4_a_refused_atomic_batch_leaves_nothing_and_those_after_it_see_nothing_of_it():
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


# ---- who is told


@timeless
async def test_a_rehearsal_sees_what_came_before_it_and_leaves_nothing():
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
async def test_a_rehearsal_after_a_lost_answer_is_still_one():
    async with await opened(After(OutcomeUnknown("lost"))) as desk:
        (outcome,) = await desk.posting.rehearse([use(1, "a")])
        assert was_posted(outcome, "a")
        assert desk.store.keys == []


@timeless
async def test_each_batch_is_measured_with_what_came_of_its_commands_and_how_long_they_waited():
    measured: list[tuple[Sequence[Outcome], Sequence[float]]] = []
    async with await opened(on_measured=lambda *batch: measured.append(batch)) as desk:
        await desk.posting.submit_many([use(1, "a"), use(1000, "b")])
        await desk.posting.submit_atomic([use(1, "c"), use(1000, "d")])
    (many, many_seconds), (whole, whole_seconds) = measured[-2:]
    assert was_posted(many[0], "a")
    assert [type(outcome) for outcome in [*many[1:], *whole]] == [Refused, Refused]
    assert (many_seconds, whole_seconds) == ([0, 0], [0])


@timeless
async def test_each_commit_is_told_once_before_its_callers_are_answered():
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
async def test_what_fails_after_a_commit_is_reported_and_stops_nobody():
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
    failure = ValueError("the gate fell")

    def told(committed: Committed) -> None:
        raise failure

    async with await opened(on_committed=told) as desk:
        assert was_posted(await desk.posting.submit(use(1, "a")), "a")
        assert was_posted(await desk.posting.submit(use(1, "b")), "b")
    assert [context["exception"] for context in reported] == [failure, failure]


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
async def test_a_command_is_given_up_at_its_deadline_in_the_queue_while_the_store_stands_still():
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
async def test_a_deadline_met_in_time_troubles_nobody_later():
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
async def test_who_was_tried_again_is_answered_at_his_deadline_whoever_came_after_him(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(posting, "FIRST_PAUSE_SECONDS", 3.0)
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
async def test_who_has_something_in_the_store_and_something_in_the_queue_is_told_that_the_outcome_is_unknown():
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
async def test_a_caller_that_gives_up_hears_of_no_failure_either():
    async with await opened(Before(StorageUnavailable("gone"))) as desk:
        first = await desk.halt()
        first.cancel()
        desk.store.free.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert was_posted(await desk.posting.submit(use(1, "a")), "a")


# ---- the end


@timeless
async def test_draining_finishes_what_is_queued_and_refuses_what_is_new():
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
async def test_whoever_gives_up_waiting_for_the_end_does_not_stop_it():
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
async def test_what_was_never_started_ends_at_once():
    desk = await opened()
    await desk.posting.drain()
    with pytest.raises(Overloaded):
        await desk.posting.submit(use(1))


# ---- one command that cannot be posted


@timeless
async def test_a_command_that_breaks_its_batch_is_isolated_and_fails_alone():
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
async def test_a_fault_in_the_rules_is_isolated_too(monkeypatch: pytest.MonkeyPatch):
    def faulty(state: Any, command: Command, *more: Any) -> Outcome:
        assert command.key != "k1", "a broken assumption"
        return decide(state, command, *more)

    monkeypatch.setattr("credit_service.posting.decide", faulty)
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
async def test_of_many_commands_with_a_broken_one_the_rest_stays_posted_and_its_keys_tell():
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
async def test_a_conflict_is_tried_again_with_growing_pauses():
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
async def test_a_conflict_that_does_not_end_is_unavailability_at_the_deadline():
    async with await opened(*[Before(Conflict("busy"))] * 10_000, deadline_seconds=5) as desk:
        (early,) = await desk.hand_in(use(1, "early"))
        with pytest.raises(StorageUnavailable, match="busy"):
            await early
        assert 5 <= now() <= 5 + LONGEST_PAUSE_SECONDS
        desk.store.script.clear()
        assert was_posted(await desk.posting.submit(use(1, "late")), "late")
        assert desk.store.keys == ["late"]


@timeless
async def test_those_of_a_batch_who_can_still_wait_are_tried_again():
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
async def test_unavailability_fails_the_batch_at_once_and_the_next_is_tried():
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
async def test_L3_after_a_lost_answer_the_batch_is_run_again_and_answered_as_the_first_time(committed: bool):
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
        # Everybody who must know is told of each account once, as it is now.
        accounts = [
            (account.merchant_id, account.balance) for told in desk.told for account in told.writes.accounts.values()
        ]
        assert sorted(accounts) == [(OTHER, 102), (MERCHANT, 96)]
        assert sorted(one.key for told in desk.told for one in told.writes.transactions) == sorted(desk.store.keys)


@pytest.mark.parametrize("committed", [True, False])
@timeless
async def test_an_atomic_batch_whose_answer_was_lost_is_answered_as_the_first_time(committed: bool):
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
async def test_an_answer_lost_twice_is_found_all_the_same():
    for first, second in ((True, False), (False, True), (False, False)):
        async with await opened(After(LOST, first), After(LOST, second)) as desk:
            outcome = await desk.posting.submit(use(1, "a"))
            assert was_posted(outcome, "a")
            assert desk.store.keys == ["a"]


@timeless
async def test_an_answer_lost_before_anything_was_decided_is_no_posting():
    async with await opened(Before(LOST)) as desk:
        assert was_posted(await desk.posting.submit(use(1, "a")), "a")
        assert desk.store.keys == ["a"]


@timeless
async def test_a_replay_by_somebody_else_after_a_lost_answer_stays_a_replay():
    async with await opened() as desk:
        first = await desk.posting.submit(use(1, "a"))
        assert isinstance(first, Posted)
        desk.store.script.append(After(LOST, committed=True))
        assert await desk.posting.submit(use(1, "a")) == Replayed(first.transaction)


@pytest.mark.parametrize("then", [Before(StorageUnavailable("gone")), Before(Conflict("busy"))])
@timeless
async def test_after_a_lost_answer_nobody_is_told_that_nothing_was_done(then: Before):
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
async def test_what_was_lost_is_remembered_while_a_broken_command_is_isolated():
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
