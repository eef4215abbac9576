"""SQLite: the parts of a posting's time in a batch of 1,000: load, decide, write, commit."""

import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar
from unittest.mock import patch

from benchmarks.ledger import Ledger, open_ledger
from benchmarks.measure import Figure, figure
from credit_service.ledger.commands import Command
from credit_service.storage.engine import Committed, Work

T = TypeVar("T")
BATCH = 1_000


async def run(quick: bool) -> list[Figure]:
    """Measure the µs of each part of a posting, over 1,000 merchants and on one hot account."""
    figures = []
    async with open_ledger() as ledger:
        for name, spends in (("uniform", ledger.uniform), ("one hot account", ledger.hot)):
            figures += await _parts(ledger, name, spends, rounds=5 if quick else 20)
    return figures


async def _parts(ledger: Ledger, name: str, spends: Callable[[int], Sequence[Command]], rounds: int) -> list[Figure]:
    taken: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        commands = spends(BATCH)
        watch = _Watch(ledger)
        with watch.looking():
            rate = await ledger.rate(BATCH, commands)
        for part, seconds in watch.parts(BATCH / rate).items():
            taken[part].append(seconds / BATCH * 1e6)
    return [figure(f"{part}, {name}", micros, "µs") for part, micros in taken.items()]


class _Watch:
    """Adds stopwatches to the parts of a store."""

    def __init__(self, ledger: Ledger) -> None:
        self._store = ledger.store
        self._seconds: dict[str, float] = defaultdict(float)

    def looking(self) -> ExitStack:
        """Measure until the end of the context."""
        stack = ExitStack()
        store: Any = self._store
        whole: Callable[[Any, Work], Committed] = store._post

        def post(needs: Any, work: Work) -> Committed:
            return whole(needs, self._timed("decide", work))

        watched = {
            "_post": self._timed("whole", post),
            "_load": self._timed("load", store._load),
            "_write_rows": self._timed("write", store._write_rows),
            "_writer": _Connection(store._writer, self._seconds),
        }
        for attribute, value in watched.items():
            stack.enter_context(patch.object(store, attribute, value))
        return stack

    def parts(self, elapsed: float) -> dict[str, float]:
        """Return the seconds of each part. Their sum is the elapsed time."""
        taken = self._seconds
        rows = taken["write"] - sum(taken[name] for name in taken if name.startswith("write: "))
        return {
            "load": taken["load"],
            "decide": taken["decide"],
            **{name: taken[name] for name in sorted(taken) if name.startswith("write: ")},
            "write: making rows": rows,
            "commit": taken["COMMIT"],
            "queue, event loop and the rest": elapsed
            - sum(taken[name] for name in ("load", "decide", "write", "COMMIT")),
            "all": elapsed,
        }

    def _timed(self, part: str, function: Callable[..., T]) -> Callable[..., T]:
        def timed(*arguments: Any) -> T:
            started = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self._seconds[part] += time.perf_counter() - started

        return timed


class _Connection:
    """A connection that measures each kind of statement."""

    def __init__(self, connection: sqlite3.Connection, seconds: dict[str, float]) -> None:
        self._connection = connection
        self._seconds = seconds

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        started = time.perf_counter()
        try:
            return self._connection.execute(statement, parameters)
        finally:
            self._seconds[statement.split()[0]] += time.perf_counter() - started

    def executemany(self, statement: str, parameters: Iterable[Sequence[Any]]) -> sqlite3.Cursor:
        # "INSERT INTO transactions (…", "UPDATE accounts SET …"
        verb, *words = statement.split()
        table = words[1] if words[0] in ("INTO", "FROM") else words[0]
        started = time.perf_counter()
        try:
            return self._connection.executemany(statement, parameters)
        finally:
            self._seconds[f"write: {verb} {table}"] += time.perf_counter() - started
