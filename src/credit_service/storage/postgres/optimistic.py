"""The optimistic way to post: decide without a lock, and let the statement that writes judge whether that still holds.

A layer over the locked way, for batches whose accounts this process wrote lately, or which have few merchants to load.
It may say "not done": then the batch goes the locked way. So it saves messages and never decides what is true: the
database does, in the statement that writes (docs/decisions/0026). A batch can also be decided while the batch before it
is being written (docs/decisions/0029 has a picture).
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import asyncpg

from credit_service.ledger.decide import Needs
from credit_service.storage.clock import ClockMoved, steady_micros
from credit_service.storage.engine import Committed, Work
from credit_service.storage.loading import Loading
from credit_service.storage.postgres import optimistic_statements as sql
from credit_service.storage.postgres.batch import DecidedBatch, LastEvent
from credit_service.storage.postgres.clock import DatabaseClock
from credit_service.storage.postgres.connections import PostingConnection
from credit_service.storage.postgres.errors import outcome_unknown
from credit_service.storage.postgres.lanes import lanes_of
from credit_service.storage.postgres.locked import FEW, LockedPosting, statement_of
from credit_service.storage.questions import Row
from credit_service.storage.recent import RecentAccounts

AHEAD: Final = 100
"""A batch of up to so many merchants lets the next one be decided meanwhile: a larger one keeps us busy anyway."""
_MANY: Final = 1_000
"""Up to so many commands go the optimistic way: what a batch costs in vain grows with them."""
_LOCKED_AFTER_CONFLICT: Final = 100
"""So many postings of a stream go the locked way after another process changed one of its accounts meanwhile."""


class StreamState:
    """What is known of the postings of one stream.

    `locked_next`: how many more go the locked way. `is_working`: one is not decided yet, or has more than one message
    left to send.
    """

    __slots__ = ("is_working", "locked_next")

    def __init__(self) -> None:
        self.locked_next = 0
        self.is_working = False


class OptimisticPosting:
    """Posts batches the optimistic way if it can. `name` is what messages call the database."""

    def __init__(
        self, name: str, locked: LockedPosting, clock: DatabaseClock, streams: int, timeout_seconds: float
    ) -> None:
        self._name = name
        self._locked = locked
        self._clock = clock
        self._timeout = timeout_seconds
        self.streams = [StreamState() for _ in range(streams)]
        self.recent = RecentAccounts()
        self.last_events: dict[int, LastEvent] = {}  # by lane

    def decide_ahead(
        self, stream: StreamState, needs: Sequence[Needs], work: Work, *, follows: bool
    ) -> DecidedBatch | None:
        """Decide on recent accounts before it is this batch's turn; None if that is not possible.

        `follows`: another batch of the stream is being written, and this one may rest on what it will leave.
        """
        if stream.locked_next or (follows and any(one.is_working for one in self.streams)):
            return None
        if (known := self._recent(needs, pending=follows)) is None or known[0].merchants:
            return None
        try:
            return self._decided(*known, work)
        except Exception:  # in its turn the batch is decided again, which raises it to its caller
            return None

    async def post(
        self,
        connection: PostingConnection,
        stream: StreamState,
        needs: Sequence[Needs],
        work: Work,
        ahead: DecidedBatch | None,
    ) -> Committed | None:
        """Post in one message, or in two if merchants must be loaded. None: nothing was done, so go the locked way.

        `ahead`: the batch, if it is decided already. Raises the driver's errors and OutcomeUnknown.
        """
        if stream.locked_next:
            stream.locked_next -= 1
            return None
        if not 0 < len(needs) <= _MANY:
            return None
        committed = None
        if ahead is not None and self._may_be_written(ahead):
            committed = await self._write(connection, stream, ahead)
        else:
            if ahead is not None:
                ahead.lose()
            if (known := self._recent(needs)) is not None:
                committed = await self._attempt(connection, stream, *known, work)
        if committed is not None or stream.locked_next:
            return committed
        if ahead is not None:
            ahead.lose()
        return await self._attempt(connection, stream, Loading(needs), 0, {}, work)

    def note(self, batch: DecidedBatch) -> None:
        """Remember what a batch writes before it is committed, so that the next one can be decided meanwhile."""
        self.recent.note(batch.loading.records.items(), batch.writes.accounts, batch.commit)
        for lane, id_ in batch.last_ids.items():
            before = batch.before.get(lane)
            self.last_events[lane] = before if before and before.id == id_ else LastEvent(id_, batch.commit)

    def _decided(self, loading: Loading, now: int, before: Mapping[int, LastEvent], work: Work) -> DecidedBatch:
        batch = DecidedBatch(loading, now, before, work)
        self.note(batch)
        return batch

    def _recent(
        self, needs: Sequence[Needs], *, pending: bool = False
    ) -> tuple[Loading, int, dict[int, LastEvent]] | None:
        """The recent accounts of these merchants, the time, and the last events of their lanes; None if it has none.

        `pending`: also accounts that are not committed yet.
        """
        if not self._clock.is_known or not (recent := self.recent.find(needs, pending=pending)):
            return None
        loading = Loading(needs, recent)
        lanes = _lanes(loading)
        before = {
            lane: event
            for lane in lanes
            if (event := self.last_events.get(lane)) is not None and event.commit.may_be_used(pending=pending)
        }
        # If merchants must be loaded, the last events of the lanes come with them.
        return (loading, self._clock.estimate(), before) if loading.merchants or len(before) == len(lanes) else None

    def _may_be_written(self, batch: DecidedBatch) -> bool:
        """Whether all that a batch was decided on is committed, and the decision is recent enough for the server."""
        return (
            not batch.commit.lost
            and None not in [commit.version for commit in batch.loading.commits.values()]
            and None not in [event.commit.version for event in batch.before.values()]
            and abs(self._clock.estimate() - batch.now) < sql.LAG_MICROS * 3 // 4
        )

    async def _attempt(
        self,
        connection: PostingConnection,
        stream: StreamState,
        loading: Loading,
        now: int,
        before: Mapping[int, LastEvent],
        work: Work,
    ) -> Committed | None:
        """Load without a lock what is not recent, decide, and write only if nothing has changed."""
        if len(loading.merchants) > FEW:
            return None
        if loading.merchants:
            async with asyncio.timeout(self._timeout):
                now, before = await self._locked.load_few(connection.raw, loading, _lanes(loading))
        with self._decided(loading, now, before, work) as batch:
            return await self._write(connection, stream, batch)

    async def _write(self, connection: PostingConnection, stream: StreamState, batch: DecidedBatch) -> Committed | None:
        """Write and commit in one message, only if nothing has changed; None: nothing was done."""
        loading = batch.loading
        if not batch.parts:  # to refuse or to replay needs no lock, if the keys were looked up in the database
            return None if loading.unseen else batch.committed
        if batch.writes.unparked:  # one statement cannot delete a parked refund and insert it again
            return None
        decided_at = None if self._clock.fixed is not None else batch.now
        statement, values = _guarded(batch, decided_at)
        asked_at = steady_micros()
        stream.is_working = False
        try:
            now, used, version = await self._send(connection, statement, values)
        except (asyncpg.IntegrityConstraintViolationError, asyncpg.DivisionByZeroError):
            stream.locked_next = _LOCKED_AFTER_CONFLICT  # another process wrote meanwhile, or a law was broken
            return None
        finally:
            stream.is_working = True
        with suppress(ClockMoved):  # what was written rests on the time before; the locked way refuses what was not
            self._clock.measured(now, asked_at)
        if version is None:
            is_late = decided_at is not None and abs(now - decided_at) >= sql.LAG_MICROS
            stream.locked_next = 0 if used or is_late else _LOCKED_AFTER_CONFLICT
            return None
        batch.commit.version = version
        return batch.committed

    async def _send(self, connection: PostingConnection, statement: str, values: Sequence[Any]) -> Row:
        """Send the statement that writes and commits. Raises OutcomeUnknown unless the server says that it failed."""
        try:
            return await connection.fetch_one(statement, values)
        except asyncpg.DataError:
            raise  # a value is impossible: the driver found it, or the server
        except Exception as error:
            if isinstance(error, asyncpg.PostgresError) and error.as_dict().get("severity_en") == "ERROR":
                raise
            raise outcome_unknown(self._name, error) from error


def _guarded(batch: DecidedBatch, decided_at: int | None) -> tuple[str, list[Any]]:
    """The statement that writes a batch only if nothing has changed, and the values of its parameters."""
    loading, commits = batch.loading, batch.loading.commits
    if _is_alone(batch):
        (lane,), (account,), ((_, key),) = batch.before, loading.accounts.values(), loading.unseen
        parts, values = statement_of(batch.parts, commits, [account.settled_at])
        return sql.write_alone_unless_changed(parts), [*values, lane, *batch.ids_before, decided_at, key]
    parts, values = statement_of(batch.parts, commits)
    values += [[*batch.before], batch.ids_before, decided_at, *_known(loading), *_columns(loading.unseen)]
    if updated := sum([number in commits for number in batch.writes.accounts]):
        values.append(updated)
    return sql.write_unless_changed(parts), values


def _is_alone(batch: DecidedBatch) -> bool:
    """Whether a batch writes one recent account, and rests on nothing else but one key and one lane."""
    loading = batch.loading
    return (
        len(loading.accounts) == len(loading.unseen) == len(batch.before) == len(batch.writes.accounts) == 1
        and len(loading.commits) == 1
        and loading.commits.keys() == batch.writes.accounts.keys()
    )


def _lanes(loading: Loading) -> list[int]:
    return lanes_of((*loading.merchants, *loading.accounts))


def _known(loading: Loading) -> tuple[list[int], list[int | None], list[int]]:
    """The accounts on which a batch was decided: numbers, versions of their rows, and when they were settled last."""
    commits = loading.commits
    settled = {account.number: account.settled_at for account in loading.accounts.values()}
    return [*commits], [commit.version for commit in commits.values()], [settled[number] for number in commits]


def _columns(pairs: Collection[tuple[int, Any]]) -> list[list[Any]]:
    """Pairs as two arrays, also if there are none."""
    return [[one for one, _ in pairs], [other for _, other in pairs]]
