"""The locked way to post, complete by itself: lock the lanes, load, decide, write, commit.

What is read after the locks is the truth at the commit, whatever other processes post. Each step is a message or a few
to the server, whatever the size of the batch (docs/decisions/0009).
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import asyncpg

from credit_service.ledger.decide import Needs
from credit_service.storage import tables
from credit_service.storage.clock import steady_micros
from credit_service.storage.engine import Committed, Conflict, Work
from credit_service.storage.loading import Loading
from credit_service.storage.postgres import statements as sql
from credit_service.storage.postgres.batch import DecidedBatch, LastEvent, stored_events
from credit_service.storage.postgres.clock import DatabaseClock
from credit_service.storage.postgres.connections import Connection, answer, answered
from credit_service.storage.postgres.errors import outcome_unknown
from credit_service.storage.postgres.lanes import lanes_of
from credit_service.storage.recent import CommitState
from credit_service.storage.rows import TableRows, columns_of

FEW: Final = 4
"""Up to so many merchants are loaded by one statement: it is slower for each merchant, but waits only once."""
_COPIED: Final = 50
"""From so many new rows on, COPY is faster, although it is a message of its own."""


def ignore(batch: DecidedBatch) -> None:
    """Nobody wants to know what was decided."""


class LockedPosting:
    """Posts batches on a connection that its caller gives. `name` is what messages call the database.

    `draw_number` gives the number of a new account. `timeout_seconds` bounds the time before the commit, and
    `settings` are those of the server for each posting, if the connection does not have them.
    """

    def __init__(
        self,
        name: str,
        clock: DatabaseClock,
        draw_number: Callable[[], int],
        timeout_seconds: float,
        settings: Mapping[str, str],
    ) -> None:
        self._name = name
        self._clock = clock
        self._draw_number = draw_number
        self._timeout = timeout_seconds
        self._settings = settings

    async def post(
        self,
        connection: Connection,
        needs: Sequence[Needs],
        work: Work,
        on_decided: Callable[[DecidedBatch], None] = ignore,
    ) -> Committed:
        """Post a batch; `on_decided` receives it before it is written. Raises the driver's errors, OutcomeUnknown."""
        deadline = asyncio.get_running_loop().time() + self._timeout
        async with asyncio.timeout_at(deadline):
            lanes = lanes_of(need.merchant_id for need in needs)
            await connection.execute(sql.begin(lanes, self._settings))
            loading = Loading(needs)
            load = self.load_few if len(loading.merchants) <= FEW else self._load_many
            batch = DecidedBatch(loading, *await load(connection, loading, lanes), work)
        with batch:
            on_decided(batch)
            async with asyncio.timeout_at(deadline):  # not for the commit: there a timeout means an unknown outcome
                if not (batch.parts or batch.writes.unparked):
                    await connection.execute("ROLLBACK")
                    return batch.committed
                version = await self._write(connection, batch)
            await self.commit(connection)
            batch.commit.version = version
        return batch.committed

    async def load_few(
        self, connection: Connection, loading: Loading, lanes: list[int]
    ) -> tuple[int, dict[int, LastEvent]]:
        """Load in one message, so that a lone caller waits once; returns the time and the lanes' last events."""
        keys, sources, trials = loading.keys(), loading.sources(), loading.trials()
        places = [loading.merchants, lanes, *_by_merchant(keys)]
        if sources:
            places += _by_merchant(sources)
        if trials:
            places.append([*trials])
        asked_at = steady_micros()
        now, ids, *found = await connection.fetchrow(sql.load(bool(sources), bool(trials)), *places)
        now = self._clock.measured(now, asked_at)
        versioned, grants, parked, firsts, given_back, trials_found = [some or () for some in found]
        loading.found_accounts([tuple(row)[:-1] for row in versioned], self._draw_number)
        loading.commits |= {row[0]: CommitState(row[-1]) for row in versioned}
        loading.found_grants(grants)
        loading.found_parked(parked)
        loading.found_firsts(firsts)
        loading.found_given_back(given_back)
        loading.found_trials(trials_found)
        if sources:
            loading.found_drawn(await answer(connection, loading.drawn()))
        return now, stored_events(lanes, ids or ())

    async def _load_many(
        self, connection: Connection, loading: Loading, lanes: list[int]
    ) -> tuple[int, dict[int, LastEvent]]:
        """Load table by table: the server finds a thousand places of one table faster than those of all at once."""
        asked_at = steady_micros()
        now, ids = await connection.fetchrow(sql.STATE, lanes)
        now = self._clock.measured(now, asked_at)
        await answered(connection, loading.questions(self._draw_number))
        return now, stored_events(lanes, ids)

    async def _write(self, connection: Connection, batch: DecidedBatch) -> int:
        """Write all of it; returns the version that the rows of accounts have then."""
        if batch.writes.unparked:
            await connection.execute(sql.DELETE_PARKED, *sql.by_column(batch.writes.unparked))
        rest: list[TableRows] = []
        for part in batch.parts:
            if len(part.rows) > _COPIED and part.how == "insert":
                columns = columns_of(part.table)
                await connection.copy_records_to_table(part.table.name, records=part.rows, columns=columns)
            else:
                rest.append(part)
        parts, values = statement_of(rest)
        version: int = await connection.fetchval(sql.write(parts), *values)
        return version

    async def commit(self, connection: Connection) -> None:
        """Commit. Raises OutcomeUnknown if the answer is lost, and Conflict if the server rolled back."""
        try:
            done = await connection.execute("COMMIT")
        except (asyncpg.TransactionRollbackError, asyncpg.IntegrityConstraintViolationError):
            raise  # the server says that it did not commit
        except Exception as error:
            raise outcome_unknown(self._name, error) from error
        if done != "COMMIT":
            raise Conflict(f"{self._name} rolled a posting back at its commit.")


def statement_of(
    parts: Iterable[TableRows], commits: Mapping[int, CommitState] | None = None, more: Iterable[int] = ()
) -> tuple[tuple[sql.Part, ...], list[object]]:
    """The parts of the statement that writes these rows, and the values of its parameters.

    `commits`: rows of accounts that are updated must still have the version that these tell; then comes `more`.
    """
    found: list[sql.Part] = []
    values: list[object] = []
    for table, how, written in parts:
        checked = commits if table is tables.accounts and how == "update" else None
        many = len(written) > 1
        part = sql.Part(table, how if checked is None else sql.CHECKED, many)
        found.append(part)
        values += sql.values_of(part, written)
        if checked is not None:
            versions = [checked[row[0]].version for row in written]
            values.append(versions if many else versions[0])
            values += more
    return tuple(found), values


def _by_merchant(some: Iterable[tuple[str, str]]) -> tuple[list[str], list[str]]:
    return [merchant for merchant, _ in some], [key for _, key in some]
