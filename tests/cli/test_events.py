"""`credit-service events tail`: follows a running service, and goes on where it was."""

import json
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.commands import command
from tests.doors.running import new_merchant, posting
from tests.served import Served, reaped, served, start

MERCHANT = "6f1c2a54-8d0e-4c0b-9c55-0c7a8c1f2b11"
OTHER = "0b54d4c9-4b2f-4b38-8a3e-2f1a7f0d9e55"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service that knows a merchant."""
    with served(tmp_path_factory.mktemp("tail") / "ledger.db") as running, running.client() as client:
        opened(client, MERCHANT)
        yield running


def opened(client: httpx2.Client, merchant: str) -> None:
    """Open an account, which tells three events."""
    assert client.post("/credits/accounts", json={"merchant_id": merchant}).status_code == 201


def tail(service: Served, *arguments: str) -> subprocess.Popen[str]:
    """A command that follows the service."""
    environment = {"CREDIT_SERVICE_KEY": service.key}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return start("events", "tail", "--url", service.url, *arguments, cwd=Path.cwd(), env=environment, **pipes)


def lines(running: subprocess.Popen[str], count: int) -> list[str]:
    """The next lines that it prints."""
    assert running.stdout is not None
    return [running.stdout.readline() for _ in range(count)]


def test_from_the_start_every_event_is_a_line_and_as_json_a_cloudevent(service: Served) -> None:
    with reaped(tail(service, "--from-start", "--json")) as machine, reaped(tail(service, "--from-start")) as person:
        events = [json.loads(line) for line in lines(machine, 3)]
        assert [event["sequence"] for event in events] == ["1", "2", "3"]
        shown = lines(person, 3)
    assert shown[1] == (f"{events[1]['time']} {MERCHANT} 2 evt.credits.recharged: available 100, amount 100 (TRIAL)\n")
    assert shown[0].endswith("evt.credits.account.created: available 0\n")


def test_otherwise_it_begins_with_the_next_event(service: Served) -> None:
    with reaped(tail(service, "--json")) as running, service.client() as client:
        assert running.stdout is not None
        while not select.select([running.stdout], [], [], 0.2)[0]:  # it takes a while to start
            opened(client, new_merchant())
        assert json.loads(lines(running, 1)[0])["subject"] != MERCHANT


def test_of_a_merchant_only_that_merchants_events_are_shown(service: Served) -> None:
    with reaped(tail(service, "--from-start", "--json", "--merchant", OTHER)) as refused:
        assert refused.wait(20) == 2
        assert refused.stderr is not None
        assert "404: This merchant has no account." in refused.stderr.read()
    with service.client() as client:
        opened(client, OTHER)
    with reaped(tail(service, "--from-start", "--json", "--merchant", OTHER)) as running:
        assert {json.loads(line)["subject"] for line in lines(running, 3)} == {OTHER}


def test_it_goes_on_where_it_was_when_the_service_comes_back(tmp_path: Path) -> None:
    with served(tmp_path / "ledger.db") as service, reaped(tail(service, "--from-start", "--json")) as running:
        with service.client() as client:
            opened(client, MERCHANT)
        lines(running, 3)
        service.stop()
        with served(tmp_path / "ledger.db", port=service.port) as again, again.client() as client:
            posted = client.post("/credits/transactions", json=posting(MERCHANT), headers={"Idempotency-Key": "once"})
            assert posted.status_code == 201
            assert [json.loads(line)["sequence"] for line in lines(running, 1)] == ["4"]


def test_whoever_has_seen_enough_may_go(service: Served) -> None:
    with reaped(tail(service, "--from-start")) as running:
        lines(running, 1)
        assert running.stdout is not None
        running.stdout.close()
        with service.client() as client:
            opened(client, new_merchant())
        assert running.wait(20) == 0
        assert running.stderr is not None
        assert running.stderr.read() == ""
        running.stdout = None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "An API key is needed: --key, or CREDIT_SERVICE_KEY in the environment."),
        (("--key", "é"), "--key: this is no API key."),
        (("--key", "a b"), "--key: this is no API key."),
        (("--key", "cs_x", "--url", "nonsense://x"), "--url nonsense://x:"),
    ],
)
def test_what_is_asked_wrong_is_said_in_one_line(tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    ran = command("events", "tail", *arguments, cwd=tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"credit-service: {sentence}")
    assert ran.err.count("\n") == 1


def test_a_key_that_is_not_valid_is_told(service: Served, tmp_path: Path) -> None:
    ran = command("events", "tail", "--url", service.url, "--key", "cs_wrong", cwd=tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert "answered 401: " in ran.err


def test_a_service_that_is_not_there_is_given_up_after_a_while(tmp_path: Path) -> None:
    ran = command("events", "tail", "--url", "http://127.0.0.1:1", "--key", "cs_x", "--patience", "0", cwd=tmp_path)
    assert (ran.code, ran.out) == (1, "")
    assert "it does not answer" in ran.err
