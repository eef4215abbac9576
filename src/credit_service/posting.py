"""The one way in: every change of any account, from any door, is a command or fact handed to `submit`.

Commands wait in a bounded queue. While one batch commits, the next gathers; as soon as the store is free, everything
waiting becomes one database transaction. There are no timers: an idle service answers one command at once, a busy one
shares a commit among hundreds, and a hot account is no convoy. A store that takes several postings at once has a stream
for each, and each merchant belongs to one. A store that decides ahead is handed the next batch while it has the one
before: then neither the rules nor the database wait for the other. The rules are the ledger's (`decide`), the database
is the store's; this module owns the queue, the batch, and what happens when either goes wrong.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from operator import attrgetter
from typing import NamedTuple

from credit_service.ledger.account import Parked, Transaction
from credit_service.ledger.commands import Command
from credit_service.ledger.decide import Needs, Outcome, Replayed, State, Waiting, decide, needs
from credit_service.ledger.draft import Posted
from credit_service.ledger.policy import Policy
from credit_service.ledger.refusals import Refused
from credit_service.ledger.types import TRIAL
from credit_service.storage.engine import (
    Committed,
    Conflict,
    Engine,
    Loaded,
    OutcomeUnknown,
    Record,
    StorageUnavailable,
    Writes,
)

LARGE_BATCH = 200
"""From so many waiting commands on, a stream posts beside the others instead of together with them."""
AHEAD = 24
"""From so many waiting commands on, the next batch is decided while one is in the store."""
FIRST_PAUSE_SECONDS = 0.005
LONGEST_PAUSE_SECONDS = 0.25


class Overloaded(Exception):
    """The queue is full, or the service is stopping: nothing was done, try again in a moment."""


class DeadlineExceeded(Exception):
    """The command waited in the queue for longer than its caller would; nothing was done."""


class RefusedAt(NamedTuple):
    """An atomic batch was refused: by the item at `position`, and so whole."""

    position: int
    refused: Refused


class _Job:
    """What one caller asked for, and the future that answers it when all of its units are decided."""

    __slots__ = ("answer", "deadline", "given_up", "left", "outcomes")

    def __init__(self, answer: asyncio.Future[None], deadline: float, units: int) -> None:
        self.answer = answer
        self.deadline = deadline
        self.left = units
        self.given_up = False  # the database failed an item, so those behind it may not be posted without it
        self.outcomes: list[Sequence[Outcome] | RefusedAt | None] = [None] * units

    def decided(self, position: int, outcomes: Sequence[Outcome] | RefusedAt) -> None:
        self.outcomes[position] = outcomes
        self.left -= 1
        if self.left == 0 and not self.answer.done():
            self.answer.set_result(None)

    def failed(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class _Unit(NamedTuple):
    """Commands of one merchant that are decided all or nothing; nearly always a single one."""

    job: _Job
    position: int
    commands: tuple[Command, ...]
    needs: tuple[Needs, ...]
    rehearsal: bool = False  # decided like the others, and then dropped; may be of several merchants


class _Stream:
    """Commands that wait for one of the streams of the store, in their order."""

    __slots__ = ("batches", "may_go", "queue")

    def __init__(self) -> None:
        self.queue: deque[_Unit] = deque()
        self.may_go = asyncio.Event()  # set when it is worth to look whether a batch can begin
        self.batches = 0  # that have commands of this stream, and are in the store or decided ahead


class _Batch(NamedTuple):
    """What becomes one database transaction, and of which streams it is."""

    units: list[_Unit]
    streams: list[_Stream]


_Decided = list[Sequence[Outcome] | RefusedAt]
_Lost = dict[tuple[_Job, int, int, bytes | None], Posted]
"""What attempts posted whose answer was lost, by job, position, index and the hash of the transaction."""


class Posting:
    """The queue in front of a store.

    `on_committed` is told of each commit, in the event loop, before the callers are answered; what it raises goes to
    the loop's exception handler, since nothing can undo the commit. `on_measured` is told of each batch what became of
    its commands, and how many seconds each had waited. `max_queue` and `max_batch` count commands. Start it with
    `start` inside a running loop, stop it with `drain`.
    """

    def __init__(
        self,
        engine: Engine,
        policy: Policy,
        *,
        on_committed: Callable[[Committed], None] = lambda committed: None,
        on_measured: Callable[[Sequence[Outcome], Sequence[float]], None] = lambda outcomes, seconds: None,
        deadline_seconds: float = 5.0,
        max_batch: int = 1_000,
        max_queue: int = 20_000,
    ) -> None:
        self._engine = engine
        self._policy = policy
        self._on_committed = on_committed
        self._on_measured = on_measured
        self._deadline_seconds = deadline_seconds
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._streams = [_Stream() for _ in range(engine.streams)]
        self._in_store: list[list[_Unit]] = []  # what attempts are under way there
        self._watch: asyncio.TimerHandle | None = None
        self._watch_at = 0.0  # not after any deadline; a timer of uvloop's that is due at once cannot tell its time
        self._queued = 0
        self._draining = False
        self._runners: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to take batches from the queue."""
        loop = asyncio.get_running_loop()
        self._runners = [loop.create_task(self._run(stream), name="posting") for stream in self._streams]

    async def drain(self) -> None:
        """Refuse what comes from now on, finish what is queued, and stop; giving up waiting for it stops nothing."""
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

    async def submit(self, command: Command) -> Outcome:
        """Post one command or fact.

        Raises Overloaded, DeadlineExceeded, StorageUnavailable (nothing was done) or OutcomeUnknown (repeat with the
        same key). A caller that gives up does not cancel the posting.
        """
        (outcomes,) = await self._enqueue([(command,)])
        assert not isinstance(outcomes, RefusedAt)
        return outcomes[0]

    async def submit_many(self, commands: Sequence[Command]) -> list[Outcome]:
        """Post commands in their order, best effort: each has its own outcome and sees those before it.

        Raises as `submit`; what had been posted by then stays posted, and its keys tell.
        """
        return [
            outcomes[0]
            for outcomes in await self._enqueue([(command,) for command in commands])
            if not isinstance(outcomes, RefusedAt)
        ]

    async def submit_atomic(self, commands: Sequence[Command]) -> Sequence[Outcome] | RefusedAt:
        """Post commands of one merchant in their order, all or nothing. Raises as `submit`."""
        assert len({command.merchant_id for command in commands}) == 1, "an atomic batch is of one merchant"
        (outcomes,) = await self._enqueue([tuple(commands)])
        if not isinstance(outcomes, RefusedAt) and isinstance(outcomes[0], Refused):  # the only one of its batch
            return RefusedAt(0, outcomes[0])
        return outcomes

    async def rehearse(self, commands: Sequence[Command]) -> Sequence[Outcome]:
        """What would come of commands, in their order: the real path up to its commit. Raises as `submit`."""
        (outcomes,) = await self._enqueue([tuple(commands)], rehearsal=True)
        assert not isinstance(outcomes, RefusedAt)
        return outcomes

    async def _enqueue(
        self, groups: Sequence[tuple[Command, ...]], *, rehearsal: bool = False
    ) -> list[Sequence[Outcome] | RefusedAt]:
        count = sum(map(len, groups))
        if self._draining or self._queued + count > self._max_queue:
            raise Overloaded
        if not count:
            return []
        loop = asyncio.get_running_loop()
        job = _Job(loop.create_future(), loop.time() + self._deadline_seconds, len(groups))
        streams = self._streams
        for index, commands in enumerate(groups):
            needed = tuple([needs(command) for command in commands])
            stream = streams[self._engine.stream_of(commands[0].merchant_id)]
            stream.queue.append(_Unit(job, index, commands, needed, rehearsal))
            stream.may_go.set()
        self._look_at(job.deadline)
        self._queued += count
        await job.answer
        return [outcomes for outcomes in job.outcomes if outcomes is not None]

    async def _run(self, stream: _Stream) -> None:
        while not (self._draining and not stream.queue):
            await stream.may_go.wait()
            stream.may_go.clear()
            while stream.queue and self._may_begin(stream):
                await self._post_in_turn(stream)

    def _may_begin(self, stream: _Stream) -> bool:
        """Whether a batch of this stream can begin, and is not better joined by those of others in a while."""
        if stream.batches:
            return False
        return len(stream.queue) >= LARGE_BATCH or not any(other.batches for other in self._streams)

    async def _post_in_turn(self, stream: _Stream) -> None:
        """Post what waits; while much does, each batch is decided while the one before it is in the store.

        Those who wait for their answers before they ask again are then two halves, of which one is always in the store.
        """
        batch = self._gather(self._joined(stream))
        following = self._gather_ahead(stream, batch) if self._queued >= AHEAD else None
        if following is None and len(batch.units) >= 2 * AHEAD:
            batch, following = self._halves(batch)
        if following is None:
            await self._post(batch.units)
            self._release(batch)
            return
        loop = asyncio.get_running_loop()
        over = loop.create_future()
        posting = loop.create_task(self._post_ahead(batch, None, over))
        while following is not None:
            before, after, over = posting, over, loop.create_future()
            posting = loop.create_task(self._post_ahead(following, after, over))
            await before
            self._release(batch)
            batch, following = following, self._gather_ahead(stream, following)
        await posting
        self._release(batch)

    async def _post_ahead(self, batch: _Batch, after: asyncio.Future[bool] | None, over: asyncio.Future[bool]) -> None:
        """Post a batch that another follows; `over` is done at its end, if it is not before."""
        try:
            await self._post(batch.units, after=after, over=over)
        finally:
            if not over.done():
                over.set_result(False)

    def _release(self, batch: _Batch) -> None:
        for taken in batch.streams:
            taken.batches -= 1
        for stream in self._streams:
            if stream.queue or self._draining:
                stream.may_go.set()

    def _give_up(self) -> None:
        """Answer those whose deadline has passed, also while the store does not answer.

        What waits in the queue was not posted; what is in the store may be. All have the same span, so the deadlines
        stand in the queues in their order.
        """
        now = asyncio.get_running_loop().time()
        deadlines: list[float] = []
        for units in self._in_store:  # first: of what one caller asked for, some may be there, and some in the queue
            waiting = _in_time(units, OutcomeUnknown("The database did not answer in time."))
            deadlines += [unit.job.deadline for unit in waiting]
        for stream in self._streams:
            queue = stream.queue
            while queue and queue[0].job.deadline <= now:
                unit = queue.popleft()
                self._queued -= len(unit.commands)
                unit.job.failed(DeadlineExceeded())
            stream.may_go.set()
            deadlines += [unit.job.deadline for unit in islice(queue, 1)]
        self._watch = None
        if deadlines:
            self._look_at(min(deadlines))

    def _look_at(self, deadline: float) -> None:
        """See to it that those are answered who wait until then."""
        if self._watch is not None:
            if self._watch_at <= deadline:
                return
            self._watch.cancel()  # what was tried again has waited for longer than what came since
        self._watch_at = deadline
        self._watch = asyncio.get_running_loop().call_at(deadline, self._give_up)

    def _joined(self, stream: _Stream, behind: Sequence[_Stream] = ()) -> list[_Stream]:
        """Of which streams a batch is made: of this one, and of those where too little waits for one of their own.

        Two small batches at once cost more than one after the other: each waits for the database as long. They come
        first, or a stream that always fills a batch would leave them none. `behind`: those of the batch it follows.
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
        """Everything that waits for these streams, up to the size of a batch."""
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
        """What is decided while a batch is in the store, where enough waits for it."""
        joined = self._joined(stream, before.streams)
        if sum([len(other.queue) for other in joined]) < AHEAD or not self._is_decided_beside(before):
            return None
        return self._gather(joined)

    def _is_decided_beside(self, batch: _Batch) -> bool:
        """Whether the next batch is decided while this one is in the store, and others do not keep us busy anyway."""
        if not self._engine.ahead or any(other.batches for other in self._streams if other not in batch.streams):
            return False
        return len({unit.commands[0].merchant_id.int for unit in batch.units}) <= self._engine.ahead

    def _halves(self, batch: _Batch) -> tuple[_Batch, _Batch | None]:
        """A batch as two, where that is worth it; whatever one caller asked for at once stays together."""
        units = batch.units
        middle = (len(units) + 1) // 2
        while middle < len(units) and units[middle].job is units[middle - 1].job:
            middle += 1
        if len(units) - middle < AHEAD or not self._is_decided_beside(batch):
            return batch, None
        for stream in batch.streams:
            stream.batches += 1
        return batch._replace(units=units[:middle]), batch._replace(units=units[middle:])

    async def _post(
        self,
        units: list[_Unit],
        lost: _Lost | None = None,
        *,
        after: asyncio.Future[bool] | None = None,
        over: asyncio.Future[bool] | None = None,
    ) -> None:
        """Post a batch, again after a conflict or a lost answer, within the deadlines of those who wait for it.

        `lost` is what was decided by attempts whose answer was lost, if there were any. `after` is done when the batch
        before it is over, and says whether that was posted at once; so does `over` of this one, before its callers are
        answered.
        """
        pause = FIRST_PAUSE_SECONDS
        at_once = True
        while units:
            decided: _Decided = []

            def work(loaded: Loaded, units: list[_Unit] = units, decided: _Decided = decided) -> Writes:
                writes = Writes()
                decided[:] = [
                    () if unit.job.given_up else _decide_unit(unit, loaded, self._policy, writes) for unit in units
                ]
                return writes

            self._in_store.append(units)
            self._look_at(min([unit.job.deadline for unit in units]))
            try:
                try:
                    committed = await self._engine.post([need for unit in units for need in unit.needs], work, after)
                finally:
                    self._in_store.remove(units)
            except (Conflict, OutcomeUnknown) as error:
                after, at_once = None, False
                if isinstance(error, OutcomeUnknown):
                    lost = (lost or {}) | _posted(units, decided)
                await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - jitter, not a secret
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
                failure = StorageUnavailable(str(error)) if lost is None else OutcomeUnknown(str(error))
                units = _in_time(units, failure, for_good=True)
            except StorageUnavailable as error:
                for unit in units:
                    unit.job.given_up = True
                    unit.job.failed(error if lost is None else OutcomeUnknown(str(error)))
                return
            except Exception as error:  # a command that breaks a law of the database, or of ours
                if len(units) == 1:
                    units[0].job.failed(error)
                    return
                half = len(units) // 2
                await self._post(units[:half], lost)
                await self._post(units[half:], lost)
                return
            else:
                if over is not None and not over.done():
                    over.set_result(at_once)
                if lost:
                    decided, recovered = _as_first_posted(units, decided, lost)
                    self._tell(self._on_committed, Committed(recovered))
                self._tell(self._on_committed, committed)
                for unit, outcomes in zip(units, decided, strict=True):
                    unit.job.decided(unit.position, outcomes)
                self._tell(self._measure, units, decided)
                return

    def _measure(self, units: list[_Unit], decided: _Decided) -> None:
        arrived = asyncio.get_running_loop().time() + self._deadline_seconds
        outcomes: list[Outcome] = []
        seconds: list[float] = []
        for unit, came in zip(units, decided, strict=True):
            if came:  # it was not given up
                outcomes += [came.refused] if isinstance(came, RefusedAt) else came
                seconds.append(arrived - unit.job.deadline)
        self._on_measured(outcomes, seconds)

    def _tell(self, told: Callable[..., None], *what: object) -> None:
        try:
            told(*what)
        except Exception as error:
            context = {"message": "what happens after a commit failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)


def _in_time(units: list[_Unit], late: Exception, *, for_good: bool = False) -> list[_Unit]:
    """Those units whose caller still waits; the others fail with `late`, `for_good` where they are not tried again."""
    now = asyncio.get_running_loop().time()
    for unit in units:
        if unit.job.deadline <= now:
            unit.job.given_up |= for_good
            unit.job.failed(late)
    return [unit for unit in units if unit.job.deadline > now]


def _posted(units: list[_Unit], decided: _Decided) -> _Lost:
    """What an attempt posted, by place and hash."""
    return {
        (unit.job, unit.position, index, _hash(outcome.transaction)): outcome
        for unit, outcomes in zip(units, decided, strict=False)
        for index, outcome in enumerate(outcomes)
        if isinstance(outcome, Posted) and not unit.rehearsal
    }


def _as_first_posted(units: list[_Unit], decided: _Decided, lost: _Lost) -> tuple[_Decided, Writes]:
    """After a lost answer the keys replay what had been committed: answer it as what it was, the first time.

    Also returns what had been committed, which nobody was told of.
    """
    answers: _Decided = []
    recovered = Writes()
    for unit, outcomes in zip(units, decided, strict=True):
        first = [
            lost.get((unit.job, unit.position, index, _hash(outcome.first))) if isinstance(outcome, Replayed) else None
            for index, outcome in enumerate(outcomes)
        ]
        for posted in first:
            if posted is not None:
                _note(recovered, posted)
        answers.append(
            outcomes
            if isinstance(outcomes, RefusedAt)
            else [posted or outcome for posted, outcome in zip(first, outcomes, strict=True)]
        )
    return answers, recovered


def _hash(transaction: Transaction | None) -> bytes | None:
    return None if transaction is None else transaction.hash


def _decide_unit(unit: _Unit, loaded: Loaded, policy: Policy, writes: Writes) -> Sequence[Outcome] | RefusedAt:
    """Decide a unit on what was loaded, and add what it posts to the writes."""
    if unit.rehearsal:
        return _rehearse(unit, loaded, policy)
    merchant_id = unit.commands[0].merchant_id
    record = loaded.records[merchant_id]
    if len(unit.commands) == 1:
        outcome = decide(_state(record, unit.needs[0], loaded.now), unit.commands[0], policy, loaded.now)
        if (posted := _posting(outcome)) is not None:
            _learn(record, posted)
            _note(writes, posted)
        return (outcome,)
    return _decide_atomic(unit, record, loaded, policy, writes)


def _rehearse(unit: _Unit, loaded: Loaded, policy: Policy) -> Sequence[Outcome]:
    trials = {command.merchant_id: loaded.records[command.merchant_id].copy() for command in unit.commands}
    outcomes: list[Outcome] = []
    for command, need in zip(unit.commands, unit.needs, strict=True):
        trial = trials[command.merchant_id]
        outcome = decide(_state(trial, need, loaded.now), command, policy, loaded.now)
        if (posted := _posting(outcome)) is not None:
            _learn(trial, posted)
        outcomes.append(outcome)
    return outcomes


def _decide_atomic(
    unit: _Unit, record: Record, loaded: Loaded, policy: Policy, writes: Writes
) -> Sequence[Outcome] | RefusedAt:
    # Undoing is dropping values: the unit learns on a copy, and only what is whole is kept.
    trial = record.copy()
    outcomes: list[Outcome] = []
    whole: list[Posted] = []
    for index, (command, need) in enumerate(zip(unit.commands, unit.needs, strict=True)):
        outcome = decide(_state(trial, need, loaded.now), command, policy, loaded.now)
        if isinstance(outcome, Refused):
            return RefusedAt(index, outcome)
        outcomes.append(outcome)
        if (posted := _posting(outcome)) is not None:
            _learn(trial, posted)
            whole.append(posted)
    for posted in whole:
        _learn(record, posted)
        _note(writes, posted)
    return outcomes


def _state(record: Record, need: Needs, now: int) -> State:
    return State(
        record.account,
        record.grants,
        record.number,
        record.firsts.get(need.key),
        record.trial if need.trial else None,
        record.parked.get(need.key),
        None if need.source is None else record.firsts.get(need.source),
        None if need.source is None else record.given_back.get(need.source),
        record.known_grants,
        _by_arrival(parked for parked in record.parked.values() if parked.waits_for == need.key)
        if record.parked and need.awaited
        else (),
        _by_arrival(parked for parked in record.parked.values() if parked.until <= now)
        if record.parked and need.overdue
        else (),
    )


def _by_arrival(some: Iterable[Parked]) -> tuple[Parked, ...]:
    # Those of one instant by key: an order that is the same in one batch as after a restart.
    return tuple(sorted(some, key=attrgetter("arrived_at", "key")))


def _posting(outcome: Outcome) -> Posted | None:
    """What must be written for an outcome, if anything."""
    posted = outcome.posted if isinstance(outcome, Waiting) else outcome
    return posted if isinstance(posted, Posted) else None


def _learn(record: Record, posted: Posted) -> None:
    """Bring the record up to date, so that the next command sees what was posted."""
    record.account = posted.account
    record.grants = posted.grants
    record.known_grants.update(posted.changed_grants)
    for transaction in posted.transactions:
        record.firsts[transaction.key] = transaction
        if transaction.type == TRIAL:
            record.trial = transaction
    for given in posted.given_back:
        record.given_back[given.key] = given
    for key in posted.unparked:
        del record.parked[key]
    if posted.parked is not None:
        record.parked[posted.parked.key] = posted.parked


def _note(writes: Writes, posted: Posted) -> None:
    """Add what was posted to the writes."""
    number = posted.account.number
    writes.accounts[number] = posted.account
    writes.transactions += posted.transactions
    writes.announcements += [(number, announcement) for announcement in posted.announcements]
    for grant in posted.changed_grants.values():
        writes.grants[number, grant.number] = grant
    for given in posted.given_back:
        writes.given_back[number, given.key] = given
    for key in posted.unparked:
        if writes.parked.pop((number, key), None) is None:  # else it is not in the database yet
            writes.unparked.append((number, key))
    if posted.parked is not None:
        writes.parked[number, posted.parked.key] = posted.parked
    writes.dead_letters += [(number, letter) for letter in posted.dead_letters]
