"""A single caller: its wait for one posting, compared with one plain INSERT under the same SQLite settings."""

import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from statistics import median

from benchmarks.ledger import database, open_ledger
from benchmarks.measure import Figure, figure, interleaved, ratio

_TABLE = "CREATE TABLE plain (id INTEGER PRIMARY KEY, account BLOB, amount INTEGER, note TEXT) STRICT"
_INSERT = "INSERT INTO plain (account, amount, note) VALUES (?, ?, ?)"


async def run(quick: bool) -> list[Figure]:
    """Measure the median wait of a single caller that posts one command at a time."""
    rounds, number = (3, 100) if quick else (9, 300)
    async with open_ledger() as ledger:
        with database() as path, closing(_plain(path)) as connection:

            async def statements() -> float:
                return _inserts(connection, number)

            waits = await interleaved(rounds, {"submit": lambda: ledger.lone(number), "insert": statements})
    return [
        ratio("p50 of a lone posting over one INSERT", waits["submit"], waits["insert"], less_is_better=True),
        figure("p50 of a lone posting", waits["submit"], "µs"),
        figure("p50 of one INSERT", waits["insert"], "µs"),
    ]


def _plain(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", _TABLE):
        connection.execute(statement)
    return connection


def _inserts(connection: sqlite3.Connection, number: int) -> float:
    took = []
    for _ in range(number):
        values = (os.urandom(16), 1, "a note as long as a key")
        started = time.perf_counter()
        connection.execute(_INSERT, values)
        took.append(time.perf_counter() - started)
    return median(took) * 1e6
