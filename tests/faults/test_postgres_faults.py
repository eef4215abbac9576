"""Faults of PostgreSQL while a service posts. Callers get 503 and retry, nothing is lost, and the service recovers.

FAULT_ROUNDS is the number of faults of each kind. A failure prints its seed, and FAULT_SEED repeats the callers of an
earlier run.
"""

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import asyncpg
import pytest

from tests.commands import command
from tests.faults.callers import OPENING_CREDITS, Callers, calling, check_books
from tests.served import Served
from tests.servers import fixtures
from tests.servers.postgres import _PASSWORD, Postgres
from tests.servers.proxy import Proxy

ROUNDS = int(os.environ.get("FAULT_ROUNDS", "1"))
SEED = int(os.environ.get("FAULT_SEED", random.SystemRandom().randrange(10**6)))
DEADLINE_SECONDS = 2.0
TIMEOUT_SECONDS = 1.0
RECOVERY_SECONDS = 5.0
SPEND = b"USAGE"  # the transaction type, which appears in the one message that writes and commits the posting
SETTINGS = {
    "POSTING_DEADLINE_SECONDS": f"{DEADLINE_SECONDS}",
    "DATABASE_TIMEOUT_SECONDS": f"{TIMEOUT_SECONDS}",
    "PLUGIN_STATUS_CACHE_TTL": "0.1",  # a short TTL, so that the service asks the database even while it is down
    "TRIAL_CREDITS": f"{OPENING_CREDITS}",
    "RATE_LIMIT_ENABLED": "false",
    "DATABASE_ALLOW_UNSAFE": "true",  # the server of the test runs without fsync
    "LOG_FORMAT": "json",
}


class World:
    """A service, its PostgreSQL, and a proxy between them."""

    def __init__(self, server: Postgres, url: str, proxy: Proxy, folder: Path) -> None:
        self.server = server
        self.url = url
        self.proxy = proxy
        self.folder = folder
        self.service = Served(proxy.url, folder=folder, settings=SETTINGS)

    def run(self, *statements: str) -> None:
        """Run statements in order on a separate connection."""

        async def run() -> None:
            connection = await asyncpg.connect(self.server.url("postgres"))
            try:
                for statement in statements:
                    await connection.execute(statement)
            finally:
                await connection.close()

        asyncio.run(run())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with fixtures._have(lambda: Postgres(settings={"max_connections": 25})) as server:
        url = server.create_database()
        with Proxy(url) as proxy:
            world = World(server, url, proxy, tmp_path_factory.mktemp("service"))
            yield world
            world.service.kill()


# ---- the faults


@contextmanager
def stopped(world: World) -> Iterator[None]:
    """Shut the server down at once, and start it again."""
    world.server.stop("immediate")
    yield
    world.server.start()


@contextmanager
def killed(world: World) -> Iterator[None]:
    """Kill all processes of the server, and start it again."""
    world.server.kill()
    yield
    world.server.start()


@contextmanager
def paused(world: World) -> Iterator[None]:
    """Pause the server, and resume it."""
    world.server.pause()
    yield
    world.server.resume()


@contextmanager
def unreachable(world: World) -> Iterator[None]:
    """Hold all network traffic, and deliver it afterwards."""
    world.proxy.hold()
    yield
    world.proxy.release()


@contextmanager
def crowded(world: World) -> Iterator[None]:
    """Let other clients take all connections."""
    with asyncio.Runner() as runner:
        others: list[Any] = []

        def fill() -> None:
            while True:
                try:
                    others.append(runner.run(asyncpg.connect(world.server.url("postgres"))))
                except asyncpg.TooManyConnectionsError:
                    return

        fill()
        while runner.run(others[0].fetchval(f"SELECT count(*) FROM ({END_CONNECTIONS}) ended")):
            fill()
        yield
        for other in others:
            runner.run(other.close())


@contextmanager
def read_only(world: World) -> Iterator[None]:
    """Make the server read-only."""
    world.run("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
    yield
    world.run("ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()")


@contextmanager
def begun_read_only(world: World) -> Iterator[None]:
    """Make all sessions that start now read-only until they end."""
    name = urlsplit(world.url).path[1:]
    world.run(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on', END_CONNECTIONS)
    yield
    world.run(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')


END_CONNECTIONS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'credit-service'"
OUTAGES = (stopped, killed, paused, unreachable, crowded, read_only, begun_read_only)


def end_connections(world: World, callers: Callers) -> None:
    """End all connections, as an administrator can."""
    world.run(END_CONNECTIONS)


def cut_before_commit(world: World, callers: Callers) -> None:
    """Cut a connection before the server receives a posting."""
    sprung = world.proxy.cut_before(SPEND)
    callers.wait_until(sprung.is_set, "a commit")


def cut_after_commit(world: World, callers: Callers) -> None:
    """Cut a connection after the server has committed and before its answer arrives."""
    sprung = world.proxy.cut_after(SPEND)
    callers.wait_until(sprung.is_set, "a commit")


def cut_everything(world: World, callers: Callers) -> None:
    """Cut all connections at once."""
    world.proxy.cut()


# ---- the behaviour of the service


@pytest.mark.parametrize("outage", OUTAGES)
def test_outage_gives_503_and_loses_nothing(world: World, outage: Callable[..., Any]) -> None:
    recoveries = []
    with watched(world, outage.__name__) as callers:
        for _ in range(ROUNDS):
            callers.wait_for_more()
            began = time.monotonic()
            refused = callers.refused.total()
            with outage(world):
                callers.wait_until(
                    lambda refused=refused: callers.refused.total() >= refused + 20,  # type: ignore[misc]
                    "refusals",
                )
                callers.wait_until(
                    lambda began=began: any(at > began and ready == 503 for at, ready in callers.ready),  # type: ignore[misc]
                    "readiness 503",
                )
            ended = time.monotonic()
            recoveries.append(callers.wait_for_each(ended))
            callers.wait_until(lambda: callers.ready[-1][1] == 200, "readiness 200")
        print(f"{outage.__name__}: longest recovery {max(recoveries):.2f} s")
    if outage is read_only:
        assert "outcome_unknown" not in callers.refused
    assert max(recoveries) <= RECOVERY_SECONDS


@pytest.mark.parametrize("loss", [end_connections, cut_before_commit, cut_after_commit, cut_everything])
def test_service_replaces_lost_connections_without_any_refusal(
    world: World, loss: Callable[[World, Callers], None]
) -> None:
    with watched(world, loss.__name__) as callers:
        for _ in range(ROUNDS * 3):
            callers.wait_for_more(20)
            loss(world, callers)
            callers.wait_for_each(time.monotonic())
    assert not callers.refused


@contextmanager
def watched(world: World, kind: str) -> Iterator[Callers]:
    """Run callers of the service. At the end, check the books, the longest waits, and the log for noise and secrets."""
    print(f"FAULT_SEED={SEED} FAULT_ROUNDS={ROUNDS}")
    logged, began = len(world.service.errors()), time.monotonic()
    try:
        with calling(world.service, seed=f"{SEED}-{kind}") as callers:
            yield callers
    except BaseException as error:
        error.add_note(world.service.errors()[logged:])
        raise
    seconds = time.monotonic() - began
    counts = f"{len(callers.acknowledged)} acknowledged, refused {dict(callers.refused)}"
    longest = f"{callers.longest:.2f} s, of a status {callers.longest_status:.2f} s"
    print(f"{kind}: {counts}, longest answer {longest}, {seconds:.0f} s in all")
    asyncio.run(check_books(world.url, callers.acknowledged, callers.merchants))
    ran = command("verify", "--json", cwd=world.folder, DATABASE_URL=world.url, DATABASE_ALLOW_UNSAFE="true")
    assert ran.code == 0, ran.out + ran.err
    assert callers.longest <= DEADLINE_SECONDS + TIMEOUT_SECONDS + 1
    assert callers.longest_status <= 2 * TIMEOUT_SECONDS + 1
    text = world.service.errors()[logged:]
    assert not any(word in text for word in ("Traceback", _PASSWORD, quote(_PASSWORD, safe=""))), text
    lines = [json.loads(line) for line in text.splitlines()]
    logged_events = Counter((line["level"], line["event"]) for line in lines)
    print(f"{kind}: logged {dict(logged_events)}")
    assert {level for level, _ in logged_events} <= {"warning"}
    assert len(lines) <= 10 + 2 * seconds
