"""The queue in front of the store: streams, which of them share a batch, and deadlines.

Commands wait in a bounded queue. While one batch commits, the next one gathers; as soon as the store is free, all
pending commands become one database transaction. There are no timers: an idle service answers one command at once, a
busy one shares a commit among hundreds. A store that takes several postings at once has a stream for each, and each
merchant belongs to one. A store that decides ahead receives the next batch while it still writes the one before
(docs/decisions/0029). The rules are the ledger's, retries are `attempt.py`'s.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

from credit_service.ledger.commands import Command
from credit_service.ledger.decide import Outcome, needs
from credit_service.ledger.policy import Policy
from credit_service.ledger.refusals import Refused
from credit_service.posting.attempt import Attempts, in_time
from credit_service.posting.submission import Decided, RefusedAt, Submission, Unit
from credit_service.storage.engine import Committed, Engine, OutcomeUnknown
from credit_service.supervision import Supervisor

LARGE_BATCH = 200
"""A stream with so many pending commands posts beside the others instead of together with them."""
AHEAD = 24
"""With so many pending commands, the next batch is decided while one is in the store."""


class Overloaded(Exception):
    """The queue is full, or the service stops: nothing was done, try again in a moment."""


class DeadlineExceeded(Exception):
    """The command stayed in the queue beyond its deadline; nothing was done."""


class _Stream:
    """Pending commands of one of the store's streams, in order of arrival."""

    __slots__ = ("batches", "may_go", "queue")

    def __init__(self) -> None:
        self.queue: deque[Unit] = deque()
        self.may_go = asyncio.Event()  # set when a batch may be able to begin
        self.batches = 0  # with commands of this stream, in the store or decided ahead


class _Batch(NamedTuple):
    """What becomes one database transaction, and the streams it comes from."""

    units: list[Unit]
    streams: list[_Stream]


class Posting:
    """The one way in.

    `on_committed` receives each commit in the event loop, before the callers are answered. `on_measured` receives the
    outcomes of each batch, and for each unit how many seconds it took since it was submitted. `on_failed` is called if
    the database cannot take a batch. `max_queue` and `max_batch` count commands. Start it with `start` inside a running
    loop, stop it with `drain`.
    """

    def __init__(
        self,
        engine: Engine,
        policy: Policy,
        *,
        on_committed: Callable[[Committed], None] = lambda committed: None,
        on_measured: Callable[[Sequence[Outcome], Sequence[float]], None] = lambda outcomes, seconds: None,
        on_failed: Callable[[], None] = lambda: None,
        deadline_seconds: float = 5.0,
        max_batch: int = 1_000,
        max_queue: int = 20_000,
    ) -> None:
        self._engine = engine
        self._on_measured = on_measured
        self._deadline_seconds = deadline_seconds
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._streams = [_Stream() for _ in range(engine.streams)]
        self._attempts = Attempts(engine, policy, on_committed, self._measured, on_failed, self._watch)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0  # not after any deadline; uvloop's timer cannot tell its time once it is due
        self._queued = 0
        self._draining = False
        self._runners: list[asyncio.Task[None]] = []

    def start(self, supervisor: Supervisor | None = None) -> None:
        """Begin to take batches from the queue; a runner that dies is restarted."""
        supervisor = supervisor or Supervisor()
        self._runners = [
            supervisor.start(f"posting {number}", partial(self._run, stream), critical=True)
            for number, stream in enumerate(self._streams)
        ]

    async def drain(self) -> None:
        """Refuse new commands, finish the queued ones, and stop; cancelling the wait for it stops nothing."""
        self._draining = True
        for stream in self._streams:
            stream.may_go.set()
        await asyncio.shield(asyncio.gather(*self._runners))

    @property
    def draining(self) -> bool:
        """Whether new commands are refused because the service stops."""
        return self._draining

    @property
    def queued(self) -> int:
        """How many commands wait for a batch."""
        return self._queued

    # ---- submitting

    async def submit(self, command: Command) -> Outcome:
        """Post one command or fact.

        Raises Overloaded, DeadlineExceeded, StorageUnavailable (nothing was done) or OutcomeUnknown (repeat with the
        same key). A caller that gives up does not cancel the posting.
        """
        (outcomes,) = await self._enqueue([(command,)])
        assert not isinstance(outcomes, RefusedAt)
        return outcomes[0]

    async def submit_many(self, commands: Sequence[Command]) -> list[Outcome]:
        """Post commands in their order, best effort: each has its own outcome and sees the earlier ones (L4).

        Raises as `submit`; items that were posted by then stay posted, and their keys show it.
        """
        return [
            outcomes[0]
            for outcomes in await self._enqueue([(command,) for command in commands])
            if not isinstance(outcomes, RefusedAt)
        ]

    async def submit_atomic(self, commands: Sequence[Command]) -> Decided:
        """Post commands of one merchant in their order, all or nothing (L4). Raises as `submit`."""
        assert len({command.merchant_id for command in commands}) == 1, "an atomic batch is of one merchant"
        (outcomes,) = await self._enqueue([tuple(commands)])
        if not isinstance(outcomes, RefusedAt) and isinstance(outcomes[0], Refused):  # the only one of its batch
            return RefusedAt(0, outcomes[0])
        return outcomes

    async def rehearse(self, commands: Sequence[Command]) -> Sequence[Outcome]:
        """What commands would lead to, in their order: the real path up to its commit. Raises as `submit`."""
        (outcomes,) = await self._enqueue([tuple(commands)], rehearsal=True)
        assert not isinstance(outcomes, RefusedAt)
        return outcomes

    async def _enqueue(self, groups: Sequence[tuple[Command, ...]], *, rehearsal: bool = False) -> list[Decided]:
        count = sum(map(len, groups))
        if self._draining or self._queued + count > self._max_queue:
            raise Overloaded
        if not count:
            return []
        loop = asyncio.get_running_loop()
        submission = Submission(loop.create_future(), loop.time() + self._deadline_seconds, len(groups))
        streams = self._streams
        for index, commands in enumerate(groups):
            needed = tuple([needs(command) for command in commands])
            stream = streams[self._engine.stream_of(commands[0].merchant_id)]
            stream.queue.append(Unit(submission, index, commands, needed, rehearsal))
            stream.may_go.set()
        self._watch(submission.deadline)
        self._queued += count
        await submission.answer
        return [decided for decided in submission.decided if decided is not None]

    # ---- from the queue to the store

    async def _run(self, stream: _Stream) -> None:
        stream.may_go.set()  # after a restart, commands may be pending
        while not (self._draining and not stream.queue):
            await stream.may_go.wait()
            stream.may_go.clear()
            while stream.queue and self._may_begin(stream):
                await self._post_in_turn(stream)

    def _may_begin(self, stream: _Stream) -> bool:
        """Whether a batch of this stream can begin now, rather than join those of others a little later."""
        if stream.batches:
            return False
        return len(stream.queue) >= LARGE_BATCH or not any(other.batches for other in self._streams)

    async def _post_in_turn(self, stream: _Stream) -> None:
        """Post the pending commands; while many are pending, decide each batch while the one before is in the store.

        Callers that wait for an answer before they ask again then form two halves, of which one is in the store.
        """
        batch = self._gather(self._joined(stream))
        following = self._gather_ahead(stream, batch) if self._queued >= AHEAD else None
        if following is None and len(batch.units) >= 2 * AHEAD:
            batch, following = self._halves(batch)
        loop = asyncio.get_running_loop()
        over = loop.create_future()
        if following is None:
            await self._post(batch, None, over)
            return
        posting = loop.create_task(self._post(batch, None, over))
        while following is not None:
            before, after, over = posting, over, loop.create_future()
            posting = loop.create_task(self._post(following, after, over))
            await before
            following = self._gather_ahead(stream, following)
        await posting

    async def _post(self, batch: _Batch, after: asyncio.Future[bool] | None, over: asyncio.Future[bool]) -> None:
        """Post a batch and release its streams; `over` is done at its end at the latest."""
        try:
            await self._attempts.post(batch.units, after=after, over=over)
        except Exception:  # a fault of this package: it ends the runner, but no caller may wait for ever
            for unit in batch.units:
                unit.submission.fail(OutcomeUnknown("The service failed while it posted this."))
            raise
        finally:
            if not over.done():
                over.set_result(False)
            self._release(batch)

    def _release(self, batch: _Batch) -> None:
        for taken in batch.streams:
            taken.batches -= 1
        for stream in self._streams:
            if stream.queue or self._draining:
                stream.may_go.set()

    def _joined(self, stream: _Stream, behind: Sequence[_Stream] = ()) -> list[_Stream]:
        """The streams that share a batch: this one, and those with too few pending commands for a batch of their own.

        Two small batches at once cost more than one after the other, because each waits for the database as long. The
        small streams come first, or a stream that always fills a batch would leave them no room. `behind`: the streams
        of the batch that this one follows.
        """
        small = [
            other
            for other in self._streams
            if other.queue
            and other is not stream
            and len(other.queue) < LARGE_BATCH
            and (not other.batches or other in behind)
        ]
        return [*small, stream]

    def _gather(self, streams: Iterable[_Stream]) -> _Batch:
        """All pending commands of these streams, up to the size of a batch."""
        batch = _Batch([], [])
        size = 0
        for stream in streams:
            queue = stream.queue
            before = len(batch.units)
            while queue and (not batch.units or size + len(queue[0].commands) <= self._max_batch):
                unit = queue.popleft()
                size += len(unit.commands)
                batch.units.append(unit)
            if len(batch.units) > before:
                batch.streams.append(stream)
                stream.batches += 1
        self._queued -= size
        return batch

    def _gather_ahead(self, stream: _Stream, before: _Batch) -> _Batch | None:
        """The batch to decide while another one is in the store, if enough commands are pending."""
        joined = self._joined(stream, before.streams)
        if sum([len(other.queue) for other in joined]) < AHEAD or not self._is_decided_beside(before):
            return None
        return self._gather(joined)

    def _is_decided_beside(self, batch: _Batch) -> bool:
        """Whether the next batch is decided while this one is in the store: only if no other stream keeps us busy."""
        if not self._engine.ahead or any(other.batches for other in self._streams if other not in batch.streams):
            return False
        return len({unit.commands[0].merchant_id for unit in batch.units}) <= self._engine.ahead

    def _halves(self, batch: _Batch) -> tuple[_Batch, _Batch | None]:
        """Split a batch in two if that pays; the units of one submission stay together."""
        units = batch.units
        middle = (len(units) + 1) // 2
        while middle < len(units) and units[middle].submission is units[middle - 1].submission:
            middle += 1
        if len(units) - middle < AHEAD or not self._is_decided_beside(batch):
            return batch, None
        for stream in batch.streams:
            stream.batches += 1
        return batch._replace(units=units[:middle]), batch._replace(units=units[middle:])

    # ---- deadlines

    def _watch(self, deadline: float) -> None:
        """Make sure that expired callers are answered at this deadline; one timer serves all."""
        if self._timer is not None:
            if self._timer_at <= deadline:
                return
            self._timer.cancel()  # a retried batch has an earlier deadline than newer commands
        self._timer_at = deadline
        self._timer = asyncio.get_running_loop().call_at(deadline, self._expire)

    def _expire(self) -> None:
        """Answer callers whose deadline has passed, also while the store does not answer.

        Commands in the queue were not posted; those in the store may be. All have the same time limit, so each queue
        is in the order of deadlines.
        """
        now = asyncio.get_running_loop().time()
        deadlines: list[float] = []
        for units in self._attempts.in_store:  # first: of one submission, some units may be here and some in the queue
            waiting = in_time(units, OutcomeUnknown("The database did not answer in time."))
            deadlines += [unit.submission.deadline for unit in waiting]
        for stream in self._streams:
            queue = stream.queue
            while queue and queue[0].submission.deadline <= now:
                unit = queue.popleft()
                self._queued -= len(unit.commands)
                unit.submission.fail(DeadlineExceeded())
            stream.may_go.set()
            deadlines += [unit.submission.deadline for unit in islice(queue, 1)]
        self._timer = None
        if deadlines:
            self._watch(min(deadlines))

    def _measured(self, outcomes: Sequence[Outcome], deadlines: Sequence[float]) -> None:
        submitted = asyncio.get_running_loop().time() + self._deadline_seconds
        self._on_measured(outcomes, [submitted - deadline for deadline in deadlines])
