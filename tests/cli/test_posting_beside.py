"""Commands that post beside a service: the service notices, within seconds, everywhere where it caches."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from credit_service.storage.letters import Letters, Undeliverable
from tests.cli.events import payment
from tests.commands import Ran, command
from tests.doors.running import Running
from tests.ledger.telling import T0

NOTICED_SECONDS = 5.0
PAID = "evt.billing.payment_succeeded"


@pytest.fixture
def running(new_ledger: Callable[[], str]) -> Any:
    with Running(database_url=new_ledger(), plugin_status_cache_ttl=3600, sweep_seconds=3600) as service:
        yield service


def replay(running: Running, folder: Path) -> Ran:
    """Replay all dead letters straight into the database."""
    url = running.settings.database_url.get_secret_value()
    return command(
        *("dead-letters", "replay", "--all", "--json"),
        cwd=folder,
        DATABASE_URL=url,
        DATABASE_ALLOW_UNSAFE="true",
    )


def put_aside(running: Running, merchant: str, *ids: str) -> None:
    """Keep payments of a merchant as dead letters."""
    events = [json.loads(payment(id_, 50)) for id_ in ids]
    for event in events:
        event["data"]["merchant_id"] = merchant
    letters = [Undeliverable(PAID, json.dumps(event).encode(), "internal", "No.", T0) for event in events]
    running.run(Letters(running.service.engine).put_aside(letters))


def status(running: Running, merchant: str) -> str:
    answer = running.get(f"/credits/plugin-status/{merchant}", None)
    return str(answer.json()["data"]["status"])


def noticed(look: Callable[[], Any], expected: Any) -> None:
    """Wait until a look finds what is expected."""
    until = time.monotonic() + NOTICED_SECONDS
    while (found := look()) != expected:
        assert time.monotonic() < until, f"{found} after {NOTICED_SECONDS} seconds"
        time.sleep(0.05)


def test_a_service_goes_on_from_what_a_command_posted(running: Running, tmp_path: Path) -> None:
    merchant = running.open()
    assert running.spend(merchant, 100).status_code == 201
    assert status(running, merchant) == "disabled"
    put_aside(running, merchant, "P1", "P2")
    ran = replay(running, tmp_path)
    assert (ran.code, ran.json["posted"]) == (0, 2)
    # The account is loaded anew, so the sequence has no gap, and no credit is spent twice.
    assert [running.spend(merchant, 60).status_code for _ in range(2)] == [201, 402]
    assert (running.balance(merchant), running.sequence(merchant)) == (40, 5)
    noticed(lambda: status(running, merchant), "enabled")


def test_a_cached_plugin_status_changes_after_a_command_posted(running: Running, tmp_path: Path) -> None:
    merchant = running.open()
    running.spend(merchant, 100)
    assert status(running, merchant) == "disabled"
    put_aside(running, merchant, "P")
    assert replay(running, tmp_path).json["posted"] == 1
    noticed(lambda: status(running, merchant), "enabled")


def test_events_of_a_command_stand_between_those_of_the_service(running: Running, tmp_path: Path) -> None:
    merchant = running.open()
    put_aside(running, merchant, "P")
    assert replay(running, tmp_path).json["posted"] == 1
    running.spend(merchant, 1)
    events = running.get("/credits/events", params={"merchant_id": merchant}).json()["data"]
    assert [event["sequence"] for event in events] == [str(number) for number in range(1, len(events) + 1)]
    moved = [event["data"]["amount"] for event in events if event["type"].endswith((".recharged", ".consumed"))]
    assert moved == [100, 50, 1]


def test_commands_and_postings_at_once_lose_nothing(running: Running, tmp_path: Path) -> None:
    merchants = [running.open() for _ in range(3)]
    for merchant in merchants:
        put_aside(running, merchant, *(f"{merchant} {number}" for number in range(20)))

    def spend() -> int:
        return sum(running.spend(merchant).status_code == 201 for merchant in merchants for _ in range(20))

    spent = running.loop.run_in_executor(None, spend)
    assert replay(running, tmp_path).json["posted"] == 60
    while not spent.done():
        time.sleep(0.01)
    assert spent.result() == 60
    assert [running.balance(merchant) for merchant in merchants] == [100 + 20 * 50 - 20] * 3
    faults: list[Any] = []

    async def verify() -> None:
        async for books in running.service.engine.books(list(merchants)):
            faults.extend([*books.faults, len(list(books.transactions)) - 41])

    running.run(verify())
    assert faults == [0, 0, 0]
