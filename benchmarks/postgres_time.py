"""The parts of a posting's time on PostgreSQL, in a batch of 1,000 and alone.

The ledger has one stream, so nothing overlaps. Each message to the server takes our processor (the driver's encoding
and decoding, the event loop) and then a wait. The processor time of the server shows its work during that wait. EXPLAIN
ANALYZE of further batches shows it by statement, but EXPLAIN makes the server slower.
"""

import json
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

from benchmarks.ledger import Ledger
from benchmarks.measure import Figure, figure
from benchmarks.postgres import open_ledger, server
from credit_service.ledger.commands import Post
from credit_service.storage import rows
from credit_service.storage.engine import Committed, Work

T = TypeVar("T")
BATCH = 1_000
MESSAGES = ("lock", "load", "copy", "write", "commit")


async def run(quick: bool) -> list[Figure]:
    """Measure the µs of each part of a posting."""
    rounds, alone = (5, 50) if quick else (20, 200)
    figures = []
    with server() as databases, databases.database() as url:
        async with open_ledger(url, streams=1) as ledger:
            for name, spends in (("1,000 merchants", ledger.uniform), ("one hot account", ledger.hot)):
                figures += await _parts(f"N=1000, {name}", ledger, spends, BATCH, rounds)
                figures += await _explained(f"N=1000, {name}", ledger, spends)
            figures += await _parts("alone", ledger, ledger.uniform, 1, rounds, times=alone)
    return figures


async def _parts(
    name: str, ledger: Ledger, spends: Callable[[int], Sequence[Post]], size: int, rounds: int, times: int = 1
) -> list[Figure]:
    taken: dict[str, list[float]] = defaultdict(list)
    await ledger.rate(BATCH, spends(BATCH))
    for _ in range(rounds):
        watch = _Watch(ledger)
        batches = [spends(size) for _ in range(times)]
        async with ledger.posting(BATCH) as posting:
            with watch.looking():
                started, cpu, served = time.perf_counter(), time.thread_time(), watch.served()
                for batch in batches:
                    await posting.submit_many(batch)
                took, cpu, served = (
                    time.perf_counter() - started, time.thread_time() - cpu, watch.served() - served,
                )  # fmt: skip
        for part, seconds in watch.parts(took, cpu, served).items():
            taken[part].append(seconds / size / times * 1e6)
    return [figure(f"{name}: {part}", micros, "µs") for part, micros in taken.items()]


async def _explained(name: str, ledger: Ledger, spends: Callable[[int], Sequence[Post]]) -> list[Figure]:
    taken: dict[str, list[float]] = defaultdict(list)
    for _ in range(3):
        watch = _Watch(ledger, explain=True)
        with watch.looking():
            await ledger.rate(BATCH, spends(BATCH))
        for part, milliseconds in watch.explained.items():
            taken[part].append(milliseconds / BATCH * 1e3)
    return [figure(f"{name}: by EXPLAIN, {part}", micros, "µs") for part, micros in taken.items()]


class _Watch:
    """Adds stopwatches to the parts of a store with one stream."""

    def __init__(self, ledger: Ledger, *, explain: bool = False) -> None:
        store: Any = ledger.store
        self._store = store
        self._line = self._store._posting[0]
        self.explains = explain
        self._ours: dict[str, float] = defaultdict(float)  # seconds of our processor
        self._wait: dict[str, float] = defaultdict(float)  # seconds that our processor waited
        self.explained: dict[str, float] = {}  # milliseconds

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Measure until the end of the context."""
        whole: Callable[..., Awaitable[Committed]] = self._store.post
        ask: Callable[..., Awaitable[Any]] = self._line.fetch_one

        def post(needs: Any, work: Work, *more: Any) -> Awaitable[Committed]:
            return whole(needs, self._timed("decide", work), *more)

        connection = self._line.raw

        async def asked(statement: str, values: Sequence[Any]) -> Any:
            if self.explains:
                explaining = connection.transaction()
                await explaining.start()
                await self.explain(connection, statement, values)
                await explaining.rollback()  # otherwise the statement would write its rows twice
            return await self.message(statement, lambda: ask(statement, values))

        with (
            patch.object(self._store, "post", post),
            patch.object(rows, "all_rows", self._timed("making rows", rows.all_rows)),
            patch.object(self._line, "fetch_one", asked),
            patch.object(self._line, "raw", _Connection(connection, self)),
        ):
            yield

    def served(self) -> float:
        """Return the processor seconds of the server's process for our connection."""
        pid = self._line.raw.get_server_pid()
        try:
            return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e9
        except FileNotFoundError:  # the server runs on another machine
            return float("nan")

    def parts(self, elapsed: float, cpu: float, served: float) -> dict[str, float]:
        """Return the seconds of each part."""
        ours = self._ours
        return {
            "decide": ours["decide"],
            "making rows": ours["making rows"],
            **{f"{message}, driver": ours[message] for message in MESSAGES},
            "records, queue and the rest": cpu - sum(ours.values()),
            **{f"{message}, wait": self._wait[message] for message in MESSAGES},
            "all": elapsed,
            "our processor": cpu,
            "the server's processor": served,
        }

    def _timed(self, part: str, function: Callable[..., T]) -> Callable[..., T]:
        def timed(*arguments: Any) -> T:
            started = time.thread_time()
            try:
                return function(*arguments)
            finally:
                self._ours[part] += time.thread_time() - started

        return timed

    async def message(self, statement: str, answer: Callable[[], Awaitable[T]]) -> T:
        """Measure how long a message takes us, and how long we wait for the server."""
        verb = statement.split(maxsplit=1)[0]
        message = {"BEGIN": "lock", "SELECT": "load", "WITH": "write"}.get(verb, verb.lower())
        started, cpu = time.perf_counter(), time.thread_time()
        try:
            return await answer()
        finally:
            ours = time.thread_time() - cpu
            self._ours[message] += ours
            self._wait[message] += max(time.perf_counter() - started - ours, 0)

    async def explain(self, connection: Any, statement: str, values: Sequence[Any]) -> bool:
        """Run a statement by EXPLAIN ANALYZE. Returns False without running it if `explains` is off."""
        if not self.explains or not values:
            return False
        (found,) = json.loads(await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", *values))
        parts = [part for part in found["Plan"].get("Plans", ()) if "Operation" in part]
        if statement.startswith("SELECT"):
            self.explained[f"load {_relation(found['Plan']) or 'events'}"] = found["Execution Time"]
        else:
            for plan in parts:
                self.explained[f"{plan['Operation'].lower()} {_relation(plan)}"] = plan["Actual Total Time"]
        return True


def _relation(plan: Any) -> str:
    """Return the tables that a plan reads or writes."""
    names = [plan["Relation Name"]] if "Relation Name" in plan else []
    if plan.get("Node Type") != "ModifyTable":
        names += [name for part in plan.get("Plans", ()) if (name := _relation(part))]
    return ", ".join(names)


class _Connection:
    """A connection that measures its messages."""

    def __init__(self, connection: Any, watch: _Watch) -> None:
        self._connection = connection
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def execute(self, statement: str, *values: Any) -> Any:
        if await self._watch.explain(self._connection, statement, values):
            return None
        return await self._watch.message(statement, lambda: self._connection.execute(statement, *values))

    async def fetchval(self, statement: str, *values: Any) -> Any:
        if await self._watch.explain(self._connection, statement, values):
            return None
        return await self._watch.message(statement, lambda: self._connection.fetchval(statement, *values))

    async def fetch(self, statement: str, *values: Any) -> Any:
        await self._watch.explain(self._connection, statement, values)
        return await self._watch.message(statement, lambda: self._connection.fetch(statement, *values))

    async def fetchrow(self, statement: str, *values: Any) -> Any:
        await self._watch.explain(self._connection, statement, values)
        return await self._watch.message(statement, lambda: self._connection.fetchrow(statement, *values))

    async def copy_records_to_table(self, table: str, **what: Any) -> Any:
        return await self._watch.message("COPY", lambda: self._connection.copy_records_to_table(table, **what))
