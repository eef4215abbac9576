"""Several workers share one socket and one database. An operator sees one service."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.served import reaped, start

WITHIN_SECONDS = 60


class Workers:
    """A running `credit-service serve --workers 2`."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path, metrics_port: int) -> None:
        assert process.stdout is not None
        self.process = process
        found = re.search(r"http://\S+?:\d+", process.stdout.readline())
        assert found is not None, log.read_text()
        self.url = found[0]
        self.metrics_port = metrics_port
        self.log = log

    def pids(self) -> list[int]:
        """Return the process ids of the workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [pid for pid in map(int, children) if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]

    def scraped(self, worker: int) -> str:
        """Return the metrics of one worker, or an empty text if it does not answer."""
        try:
            return httpx2.get(f"http://127.0.0.1:{self.metrics_port + worker}/metrics", timeout=3).text
        except httpx2.HTTPError:
            return ""


def until(condition: Callable[[], Any], what: str) -> None:
    """Wait until the condition is true. Fails after WITHIN_SECONDS."""
    end = time.monotonic() + WITHIN_SECONDS
    while not condition():
        assert time.monotonic() < end, f"timed out while waiting for {what}"
        time.sleep(0.05)


@pytest.fixture
def workers(postgres_url: str, tmp_path: Path, unused_tcp_port: int) -> Iterator[Workers]:
    settings = {
        "DATABASE_URL": postgres_url,
        "DATABASE_ALLOW_UNSAFE": "true",  # tests need no fsync
        "METRICS_PORT": str(10_000 + unused_tcp_port % 20_000),  # no client is given such a port meanwhile
        "SHUTDOWN_DELAY_SECONDS": "1",
    }
    log = tmp_path / "log"
    with log.open("w") as errors:
        process = start(
            *("serve", "--port", "0", "--workers", "2"),
            cwd=tmp_path,
            env=settings,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    with reaped(process):
        made = Workers(process, log, int(settings["METRICS_PORT"]))
        until(lambda: made.scraped(0) and made.scraped(1), "two workers")
        yield made


@pytest.mark.slow
def test_workers_share_socket_and_ledger_but_not_metrics(workers: Workers, tmp_path: Path):
    key = (tmp_path / "credit-service.admin-key").read_text().strip()
    merchant = "6f1c2a54-8d0e-4c0b-9c55-0c7a8c1f2b11"
    body = {"merchant_id": merchant, "operation_type": "DECREASE", "transaction_type": "USAGE", "amount": 1}

    def served_by(worker: int) -> bool:
        return 'credits_transactions_total{operation="DECREASE"' in workers.scraped(worker)

    headers = {"Authorization": f"Bearer {key}"}
    httpx2.post(f"{workers.url}/api/v1/credits/accounts", json={"merchant_id": merchant}, headers=headers, timeout=30)
    spent = 0
    while not (served_by(0) and served_by(1)):
        spent += 1
        url = f"{workers.url}/api/v1/credits/transactions"
        answer = httpx2.post(url, json=body, headers={**headers, "Idempotency-Key": f"{spent}"}, timeout=30)
        assert answer.status_code == 201, answer.text
        assert answer.json()["data"]["balance_after"] == 100 - spent
        assert spent < 100, "one worker accepts all connections"
    metrics = f"http://127.0.0.1:{workers.metrics_port}"
    assert httpx2.get(f"{metrics}/livez", timeout=30).status_code == 404  # this port serves only /metrics
    status = f"/api/v1/credits/plugin-status/{merchant}"
    assert [httpx2.get(f"{host}{status}", timeout=30).status_code for host in (workers.url, metrics)] == [200, 404]
    for number in range(4):  # twice for each worker
        key_header = {**headers, "Idempotency-Key": f"metrics-{number}"}
        url = f"http://127.0.0.1:{workers.metrics_port + number % 2}/api/v1/credits/transactions"
        assert httpx2.post(url, json=body, headers=key_header, timeout=30).status_code == 404


@pytest.mark.slow
def test_supervisor_restarts_a_dead_worker_and_workers_die_with_it(workers: Workers):
    first, second = workers.pids()
    os.kill(first, signal.SIGKILL)
    until(lambda: len(workers.pids()) == 2 and first not in workers.pids(), "another worker")
    assert second in workers.pids()
    until(lambda: "worker_ended" in workers.log.read_text(), "a line in the log")
    until(lambda: workers.scraped(0) and workers.scraped(1), "metrics on the same ports")

    left = workers.pids()
    workers.process.kill()
    workers.process.wait()
    until(lambda: not any(map(_runs, left)), "the end of the workers")


@pytest.mark.slow
def test_workers_are_not_ready_before_they_stop(workers: Workers):
    workers.process.terminate()
    until(lambda: httpx2.get(f"{workers.url}/readyz", timeout=30).status_code == 503, "readiness 503")
    assert httpx2.get(f"{workers.url}/livez", timeout=30).status_code == 200
    assert workers.process.wait(WITHIN_SECONDS) == 0
    assert "Traceback" not in workers.log.read_text()


def _runs(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
