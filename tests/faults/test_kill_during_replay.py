"""The test kills the service during a replay over HTTP. No event is lost or counts twice.

KILL_ROUNDS is the number of kills. A failure prints its seed, and KILL_SEED repeats the moments of an earlier run.
"""

import json
import os
import random
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from tests.acceptance.order_stream import PENNIES
from tests.cli import ledgers
from tests.cli.events import links, order, refund, stream
from tests.commands import command
from tests.served import Served, reaped, start
from tests.storage.files import new_file

ROUNDS = int(os.environ.get("KILL_ROUNDS", "2"))
SEED = int(os.environ.get("KILL_SEED", random.SystemRandom().randrange(10**6)))
ROWS_A_ROUND = 1_500
CUSTOMERS = 40
LONGEST_SECONDS = 120.0


def _write_stream(folder: Path, rows: int, chance: random.Random) -> Path:
    """Write orders of a few customers and refunds of some orders. Some refunds come before their order."""
    events: list[str] = []
    linked: list[tuple[str, str, str]] = []
    for number in range(rows):
        customer, total = str(chance.randrange(CUSTOMERS)), f"{chance.randrange(10_000) / 100:.2f}"
        events.append(order(f"{number}", customer, total))
        if chance.random() < 0.2:
            linked.append((f"C{number}", f"{number}", total))
            events.insert(len(events) - chance.randrange(2), refund(f"C{number}", customer, total))
    (folder / "refund_links.csv").write_bytes(links(*linked))
    file = folder / "orders.csv"
    file.write_bytes(stream(*events))
    return file


def test_killed_service_loses_nothing_and_counts_nothing_twice(tmp_path: Path) -> None:
    print(f"KILL_SEED={SEED} KILL_ROUNDS={ROUNDS}")
    chance = random.Random(SEED)
    file = _write_stream(tmp_path, ROWS_A_ROUND * (ROUNDS + 1), chance)
    settings = PENNIES.settings
    uninterrupted = new_file(tmp_path / "uninterrupted.db")
    whole = command("replay", file, "--json", cwd=tmp_path, DATABASE_URL=f"sqlite:///{uninterrupted}", **settings)
    assert whole.code == 0
    read = whole.json["read"]
    # The test kills the service a random time after each of these numbers of transactions is on the disk.
    marks = sorted(chance.randrange(1, read * 9 // 10) for _ in range(ROUNDS))

    database = tmp_path / "ledger.db"
    service = Served(database, settings=settings)
    try:
        arguments = ("replay", file, "--url", service.url, "--json", "--patience", f"{LONGEST_SECONDS}")
        replaying = start(
            *arguments,
            cwd=tmp_path,
            env={"CREDIT_SERVICE_KEY": service.key} | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with reaped(replaying):
            for mark in marks:
                _wait_until_posted(database, mark, replaying)
                time.sleep(chance.random() * 0.2)
                service.kill()
                assert _faults(database) == []
                service = Served(database, port=service.port, settings=settings)
            out, err = replaying.communicate(timeout=LONGEST_SECONDS)
        assert replaying.returncode == 0, err
        counts = json.loads(out)
        assert (counts["read"], counts["refused"]) == (read, 0)
        assert counts["posted"] + counts["replayed"] + counts["parked"] == read

        again = command(*arguments, cwd=tmp_path, CREDIT_SERVICE_KEY=service.key, **settings)
        assert (again.code, again.json["replayed"]) == (0, read)
        service.stop()
    finally:
        service.kill()

    assert ledgers.balances(database) == ledgers.balances(uninterrupted)
    assert sorted(ledgers.postings(database)) == sorted(ledgers.postings(uninterrupted))
    assert ledgers.rows(database, "SELECT * FROM parked") == []
    per_account = "SELECT account, count(*), min(sequence), max(sequence) FROM transactions GROUP BY account"
    assert all((first, last) == (1, count) for _, count, first, last in ledgers.rows(database, per_account))
    assert _faults(database) == []


def _posted(database: Path) -> int:
    try:
        return int(ledgers.rows(database, "SELECT coalesce(sum(sequence), 0) FROM accounts")[0][0])
    except sqlite3.OperationalError:  # a starting service recovers the file
        return 0


def _faults(database: Path) -> list[object]:
    ran = command("verify", "--json", cwd=database.parent, DATABASE_URL=f"sqlite:///{database}")
    faults = ran.json["faults"]
    assert isinstance(faults, list)
    return faults


def _wait_until_posted(database: Path, count: int, replaying: subprocess.Popen[str]) -> None:
    until = time.monotonic() + LONGEST_SECONDS
    while _posted(database) < count and replaying.poll() is None:
        if time.monotonic() > until:
            pytest.fail("the replay makes no progress")
        time.sleep(0.01)
