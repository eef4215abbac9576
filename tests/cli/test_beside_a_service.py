"""Commands beside a running service on SQLite: they work, and the service notices what they changed."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from credit_service.storage.tables import REVISION
from tests.cli.events import MERCHANT, lines, paid
from tests.commands import Ran, command
from tests.served import Served, reaped, served, start

DATABASE = "credit-service.db"


class Beside:
    """A running service, and commands on its ledger."""

    def __init__(self, service: Served, folder: Path) -> None:
        self.service = service
        self.folder = folder

    def run(self, *arguments: str | Path, **settings: str) -> Ran:
        """Run a command."""
        return command(*arguments, cwd=self.folder, **settings)


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    folder = tmp_path_factory.mktemp("beside")
    with served(folder / DATABASE) as service, service.client() as client:
        opened = client.post("/credits/accounts", json={"merchant_id": str(MERCHANT)})
        assert opened.status_code == 201
        yield Beside(service, folder)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("keys list", "first admin key"),
        ("verify", "1 accounts, 1 transactions: no fault"),
        ("dead-letters list", ""),
        ("parked list", ""),
        ("migrate", f"{DATABASE} is up to date (schema {REVISION})."),
        ("config", "DATABASE_URL=sqlite:///credit-service.db"),
        ("backup b.db", "b.db: 1 accounts, 1 transactions, "),
        ("doctor", f"ok   database: {DATABASE}, schema {REVISION}"),
    ],
)
def test_a_command_that_reads_works_beside_a_service(beside: Beside, asked: str, said: str) -> None:
    ran = beside.run(*asked.split(), SERVICE_PORT=str(beside.service.port))
    assert (ran.code, ran.err) == (0, "")
    assert said in ran.out


def test_a_key_made_beside_a_service_opens_it(beside: Beside) -> None:
    key = beside.run("keys", "create", "--name", "n", "--scope", "read").out.strip()
    with beside.service.client() as client:
        client.headers["Authorization"] = f"Bearer {key}"
        assert client.get(f"/credits/accounts/{MERCHANT}").status_code == 200
    assert beside.run("keys", "revoke", key[3:15]) == Ran(0, f"{key[3:15]} is revoked.\n", "")


def test_an_erasure_beside_a_service_is_done(beside: Beside) -> None:
    with beside.service.client() as client:
        client.post(
            "/credits/transactions",
            headers={"Idempotency-Key": "personal"},
            json={
                "merchant_id": str(MERCHANT),
                "operation_type": "DECREASE",
                "transaction_type": "USAGE",
                "amount": 1,
                "metadata": {"buyer": "somebody@example.com"},
            },
        )
        ran = beside.run("erase", str(MERCHANT), "--json")
        assert (ran.code, ran.json["transactions"]) == (0, 1)
        listed: Any = client.get("/credits/transactions", params={"merchant_id": str(MERCHANT)}).json()
    assert [one["metadata"] for one in listed["data"] if one["idempotency_key"] == "personal"] == [None]


@pytest.mark.parametrize("asked", ["serve --port 0", "replay events.jsonl"])
def test_a_second_service_and_a_replay_into_the_file_are_refused_in_one_line(beside: Beside, asked: str) -> None:
    (beside.folder / "events.jsonl").write_bytes(lines(paid(1)))
    instead = " Replay into that one: --url http://… --key cs_…" if asked.startswith("replay") else ""
    in_use = f"{DATABASE} is in use by another credit-service process (pid {beside.service.process.pid})."
    second = start(*asked.split(), cwd=beside.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with reaped(second):
        assert second.communicate(timeout=60) == ("", f"credit-service: {in_use}{instead}\n")
        assert second.returncode == 2
