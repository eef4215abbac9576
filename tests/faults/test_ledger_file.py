"""A service whose ledger file cannot be written, or is gone from its place: refused at once, told, and over again."""

import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.cli.events import MERCHANT
from tests.commands import command
from tests.served import Served, served
from tests.storage.files import new_file

SPEND = {"merchant_id": str(MERCHANT), "operation_type": "DECREASE", "transaction_type": "USAGE", "amount": 1}
Fault = Callable[[Served, Path], AbstractContextManager[None]]


@contextmanager
def full_disk(service: Served, path: Path) -> Iterator[None]:
    """No file of the service can grow: a commit fails while it writes its log, as on a full disk."""
    size = os.stat(f"{path}-wal").st_size
    before = resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (size, before[1]))
    yield
    resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, before)


@contextmanager
def moved_away(service: Served, path: Path) -> Iterator[None]:
    aside = path.with_name("aside.db")
    path.rename(aside)
    yield
    aside.rename(path)


@contextmanager
def replaced(service: Served, path: Path) -> Iterator[None]:
    """Another ledger stands in its place."""
    aside = path.with_name("aside.db")
    path.rename(aside)
    new_file(path)
    yield
    aside.rename(path)


@contextmanager
def without_its_log(service: Served, path: Path) -> Iterator[None]:
    """The write-ahead log was deleted, which the steps of a restore do."""
    log = Path(f"{path}-wal")
    log.rename(f"{path}-aside")
    yield
    Path(f"{path}-aside").rename(log)


def spend(client: httpx2.Client, key: str) -> httpx2.Response:
    return client.post("/credits/transactions", json=SPEND, headers={"Idempotency-Key": key})


def wait_until_ready(service: Served, client: httpx2.Client) -> None:
    until = time.monotonic() + 10
    while client.get(f"{service.url}/readyz").status_code != 200:
        assert time.monotonic() < until, service.errors()
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("fault", "found", "logged"),
    [
        (full_disk, "disk I/O error", "ledger_not_writable"),
        (moved_away, "was moved away or replaced", "ledger_file_replaced"),
        (replaced, "was moved away or replaced", "ledger_file_replaced"),
        (without_its_log, "was moved away or replaced", "ledger_file_replaced"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_ledger_that_cannot_be_written_is_unavailable_at_once(
    fault: Fault, found: str, logged: str, tmp_path: Path
) -> None:
    path = tmp_path / "ledger.db"
    with served(path, settings={"LOG_FORMAT": "json"}) as service, service.client() as client:
        client.post("/credits/accounts", json={"merchant_id": str(MERCHANT)})
        assert spend(client, "before").status_code == 201
        with fault(service, path):
            begun = time.monotonic()
            for _ in range(3):
                refused = spend(client, "during")
                assert (refused.status_code, refused.json()["code"]) == (503, "storage_unavailable")
            assert time.monotonic() - begun < 2
            ready = client.get(f"{service.url}/readyz")
            assert (ready.status_code, ready.json()["code"]) == (503, "storage_unavailable")
            assert found in ready.json()["detail"]
            assert "credits_storage_up 0.0\n" in client.get(f"{service.url}/metrics").text
        wait_until_ready(service, client)
        assert "credits_storage_up 1.0\n" in client.get(f"{service.url}/metrics").text
        assert spend(client, "during").status_code == 201, "its key stayed free"
        lines: list[dict[str, Any]] = [json.loads(line) for line in service.errors().splitlines()]
        assert [line["event"] for line in lines].count(logged) == 1
        service.stop()
    verified = command("verify", "--json", cwd=tmp_path, DATABASE_URL=f"sqlite:///{path}")
    assert verified.json == {"accounts": 1, "transactions": 3, "faults": []}
