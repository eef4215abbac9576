"""`python -m benchmarks.soak [--minutes 60] [--rate 150]`: a service under mixed load, for faults that need time.

A real `serve` on a new SQLite file gets the walk of `scripts/smoke.py` and random load over a few connections. The rate
is fixed and low, so other processes keep most of the machine. Every ten seconds the soak reads memory, open files and
threads. The soak fails in each of these cases:

- the log has a warning,
- a response has an unexpected status,
- open files or threads grow,
- the ledger does not verify,
- the median memory of the last quarter is more than `GROWTH` and `TOLERANCE_MB` above that of the second quarter.

The caches fill during the first quarter, because the number of merchants is fixed.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import httpx2

from benchmarks import machine
from benchmarks.ledger import folder
from scripts.smoke import CLOUDEVENT, Walk

RESULT = Path(__file__).parent / "results" / "soak.json"

CALLERS = 5
MERCHANTS = 500
STATUSES = 1_000
"""Size of the service's cache of plugin statuses. The load asks for more merchants, so the cache always evicts."""

SAMPLE_SECONDS = 10.0
GROWTH = 0.05
TOLERANCE_MB = 4.0
"""Allowed growth of memory besides GROWTH: SQLite's page caches and the allocator's arenas grow with the file."""


class Sample(NamedTuple):
    """The state of the server: seconds since the start, memory, open files, threads, and requests so far."""

    seconds: float
    rss_mb: float
    open_files: int
    threads: int
    requests: int


class Pace:
    """Limits all callers together to `per_second` requests per second."""

    def __init__(self, per_second: float, until: float) -> None:
        self._between = 1 / per_second
        self._until = until
        self._next = time.monotonic()
        self._lock = threading.Lock()

    @property
    def is_over(self) -> bool:
        """Return whether the end of the soak has come."""
        return time.monotonic() >= self._until

    def wait(self) -> None:
        """Wait until the caller may send its next request."""
        with self._lock:
            self._next = max(self._next + self._between, time.monotonic() - 1)
            mine = self._next
        time.sleep(max(mine - time.monotonic(), 0))


class Load:
    """Random requests of every kind, each with its expected status codes."""

    def __init__(self, url: str, key: str, pace: Pace, seed: int) -> None:
        self._random = random.Random(seed)
        self._pace = pace
        self._headers = {"Authorization": f"Bearer {key}"}
        self._client = httpx2.Client(base_url=url, headers=self._headers, timeout=30)
        self._merchants = [str(UUID(int=number + 1)) for number in range(MERCHANTS)]
        self._orders = count(seed * 10**9)
        self.answers: Counter[str] = Counter()
        self.unexpected: list[str] = []

    def run(self) -> None:
        """Send one request after the other until the end of the soak."""
        kinds: Sequence[tuple[int, Callable[[], None]]] = (
            (30, self._spend),
            (15, self._orders_and_refunds),
            (5, self._batch),
            (5, self._rehearse),
            (10, self._read),
            (5, self._list),
            (20, self._status),
            (6, self._malformed),
            (3, self._without_key),
            (1, self._reconnect),
        )
        weights, calls = zip(*kinds, strict=True)
        try:
            while not self._pace.is_over:
                self._random.choices(calls, weights)[0]()
        except Exception as error:  # report the error, because a thread ends silently
            self.unexpected.append(f"{type(error).__name__}: {error}")
        finally:
            self._client.close()

    def _ask(self, method: str, path: str, *expected: int, **sent: Any) -> Any:
        self._pace.wait()
        answer = self._client.request(method, f"/api/v1{path}", **sent)
        self.answers[f"{method} {path.partition('?')[0].split('/')[2]} {answer.status_code}"] += 1
        if answer.status_code not in expected:
            self.unexpected.append(f"{method} {path}: {answer.status_code} {answer.text[:200]}")
        return answer

    def _merchant(self) -> str:
        return self._random.choice(self._merchants)

    def _posting(self, amount: int, operation: str = "DECREASE", type_: str = "USAGE") -> dict[str, Any]:
        return {
            "merchant_id": self._merchant(),
            "operation_type": operation,
            "transaction_type": type_,
            "amount": amount,
            "metadata": {"note": "x" * self._random.randrange(200)},
        }

    def _spend(self) -> None:
        key = {"Idempotency-Key": uuid4().hex}
        body = self._posting(self._random.randrange(1, 20))
        first = self._ask("POST", "/credits/transactions", 201, 402, json=body, headers=key)
        if first.status_code == 201 and self._random.random() < 0.1:
            self._ask("POST", "/credits/transactions", 200, json=body, headers=key)
        elif first.status_code == 402:
            credits = {"Idempotency-Key": uuid4().hex}
            body = {**self._posting(500, "INCREASE", "SUBSCRIPTION"), "merchant_id": body["merchant_id"]}
            self._ask("POST", "/credits/transactions", 201, json=body, headers=credits)

    def _event(self, type_: str, **data: Any) -> dict[str, Any]:
        return {"specversion": "1.0", "id": uuid4().hex, "source": "soak", "type": type_, "data": data}

    def _orders_and_refunds(self) -> None:
        """Send orders, refunds and payments in random order, and some of them twice."""
        merchant = self._merchant()
        events = []
        for _ in range(self._random.randrange(1, 6)):
            order = {"merchant_id": merchant, "order_id": next(self._orders), "currency": "GBP"}
            events.append(self._event("evt.shopify.webhook.order_paid", **order, total="20.00"))
            if self._random.random() < 0.5:
                refund = {**order, "refund_id": next(self._orders), "refund_amount": "5.00"}
                events.append(self._event("evt.shopify.webhook.order_refunded", **refund))
        payment = {"merchant_id": merchant, "payment_id": next(self._orders), "credits": 10}
        events.append(self._event("evt.billing.payment_succeeded", **payment))
        events += self._random.choices(events, k=2)
        self._random.shuffle(events)
        headers = {"Content-Type": "application/cloudevents-batch+json"}
        answer = self._ask("POST", "/credits/events", 200, content=json.dumps(events).encode(), headers=headers)
        outcomes = Counter(result["outcome"] for result in answer.json()["data"]["results"])
        if set(outcomes) - {"posted", "replayed", "parked"}:
            self.unexpected.append(f"events: {outcomes}")

    def _batch(self) -> None:
        items = [
            {**self._posting(self._random.randrange(1, 5)), "idempotency_key": uuid4().hex}
            for _ in range(self._random.randrange(1, 40))
        ]
        self._ask("POST", "/credits/transactions/batch", 200, json={"atomic": False, "items": items})

    def _rehearse(self) -> None:
        key = {"Idempotency-Key": uuid4().hex}
        self._ask("POST", "/credits/transactions?dry_run=true", 200, 201, 402, json=self._posting(5), headers=key)

    def _read(self) -> None:
        merchant = self._merchant()
        what = self._random.choice(("", "/balance", "/stats", "/grants"))
        self._ask("GET", f"/credits/accounts/{merchant}{what}", 200)

    def _list(self) -> None:
        asked = {"merchant_id": self._merchant(), "limit": "50"}
        for _ in range(3):
            page = self._ask("GET", "/credits/transactions", 200, params=asked).json()["pagination"]
            if not page["has_next"]:
                break
            asked["cursor"] = page["next_cursor"]
        self._ask("GET", "/credits/transactions?limit=20", 200)
        self._ask("GET", "/credits/accounts?limit=100&status=LOW", 200)

    def _status(self) -> None:
        for _ in range(3):
            unknown = str(UUID(int=10**6 + self._random.randrange(2 * STATUSES)))
            asked = unknown if self._random.random() < 0.2 else self._merchant()
            self._ask("GET", f"/credits/plugin-status/{asked}", 200)
        some = [self._merchant() for _ in range(50)]
        self._ask("POST", "/credits/plugin-status/batch", 200, json={"merchant_ids": some})

    def _malformed(self) -> None:
        headers = {"Content-Type": "application/json", "Idempotency-Key": "k"}
        body = self._random.choice((b"{", b"[" * 50, b'{"amount": NaN}', b"\xff", b'{"a":1,"a":1}', b"null", b"{}"))
        self._ask("POST", "/credits/transactions", 422, content=body, headers=headers)
        self._ask("POST", "/credits/events", 422, content=body, headers={"Content-Type": CLOUDEVENT})
        self._ask("GET", f"/credits/accounts?limit={self._random.choice(('0', '-1', 'x', '1e3'))}", 422)
        self._ask("POST", "/credits/accounts", 413, content=b" " * 70_000, headers=headers)

    def _without_key(self) -> None:
        for key in ("", "Bearer cs_wrong", f"Bearer cs_{'a' * 12}_{'b' * 43}"):
            self._ask("GET", "/credits/accounts", 401, headers={"Authorization": key})

    def _reconnect(self) -> None:
        with httpx2.Client(base_url=str(self._client.base_url), headers=self._headers) as other:
            other.get("/metrics").raise_for_status()

    def open_accounts(self) -> None:
        """Open the account of every merchant."""
        for merchant in self._merchants:
            self._ask("POST", "/credits/accounts", 201, json={"merchant_id": merchant})


class Walks:
    """Repeats the walk of `scripts/smoke.py` at a fixed pace. Each walk opens a new account."""

    def __init__(self, url: str, key: str, until: float) -> None:
        self._client = httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30)
        self._until = until
        self.rounds = 0
        self.calls = 0
        self.failure: str | None = None

    def run(self) -> None:
        """Walk until the end of the soak. The last walk runs to its end."""
        with self._client:
            try:
                while time.monotonic() < self._until:
                    walk = Walk(self._client)
                    for _ in walk.steps():
                        time.sleep(0.25)
                    self.rounds += 1
                    self.calls += walk.calls
            except Exception as error:
                self.failure = f"{type(error).__name__}: {error}"


def sample(pid: int, started: float, requests: int) -> Sample:
    """Read the current state of the server."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    rss = int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024
    threads = int(re.findall(r"Threads:\s+(\d+)", status)[0])
    files = len(os.listdir(f"/proc/{pid}/fd"))
    return Sample(round(time.monotonic() - started, 1), round(rss, 2), files, threads, requests)


def _environment(database: Path, **settings: str) -> dict[str, str]:
    return {**os.environ, "DATABASE_URL": f"sqlite:///{database}", **settings}


@contextmanager
def serving(database: Path) -> Iterator[tuple[subprocess.Popen[str], str, str, Path]]:
    """Run `credit-service serve` on this file. Yields the process, its URL, its key and its log file."""
    log = database.with_suffix(".log")
    settings = {"LOG_FORMAT": "json", "TRIAL_CREDITS": "1000", "PLUGIN_STATUS_CACHE_SIZE": str(STATUSES)}
    command = [sys.executable, "-m", "credit_service", "serve", "--port", "0"]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            cwd=database.parent,
            env=_environment(database, **settings),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            assert process.stdout is not None
            url = re.search(r"http://\S+?:\d+", process.stdout.readline())
            if url is None:
                raise RuntimeError(f"the service did not start: {log.read_text()}")
            yield process, url[0], Path(f"{database}.admin-key").read_text(encoding="ascii").strip(), log
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def quarters(samples: Sequence[Sample]) -> list[float]:
    """Return the median memory of each quarter of the samples."""
    size = len(samples) / 4
    return [
        round(median(one.rss_mb for one in samples[int(n * size) : int((n + 1) * size)] or samples[-1:]), 2)
        for n in range(4)
    ]


def faults_of(samples: Sequence[Sample], memory: Sequence[float]) -> list[str]:
    """Return one sentence for each value that grew too much."""
    found = []
    if memory[3] > memory[1] * (1 + GROWTH) + TOLERANCE_MB:
        found.append(f"memory grew from {memory[1]} MB in the second quarter to {memory[3]} MB in the last")
    second, last = (samples[len(samples) * n // 4 : max(len(samples) * (n + 1) // 4, 1)] for n in (1, 3))
    for what in ("open_files", "threads"):
        before, after = (median(getattr(one, what) for one in some) if some else 0 for some in (second, last))
        if second and after > before + 2:
            found.append(f"{what} grew from {before} to {after}")
    return found


def soak(minutes: float, rate: float) -> dict[str, Any]:
    """Load a service for `minutes`, and return the report."""
    described = machine.describe()
    with folder() as path, serving(path / "soak.db") as (process, url, key, log):
        started = time.monotonic()
        pace = Pace(rate, started + minutes * 60)
        loads = [Load(url, key, pace, seed + 1) for seed in range(CALLERS)]
        loads[0].open_accounts()
        walks = Walks(url, key, started + minutes * 60)
        runs = [*(load.run for load in loads), walks.run]
        threads = [threading.Thread(target=run, daemon=True) for run in runs]
        for thread in threads:
            thread.start()

        def asked() -> int:
            return sum(load.answers.total() for load in loads) + walks.calls

        samples: list[Sample] = []
        for thread in threads:
            while thread.is_alive():
                samples.append(sample(process.pid, started, asked()))
                print(json.dumps(samples[-1]._asdict()), flush=True)
                thread.join(SAMPLE_SECONDS)
        seconds = time.monotonic() - started
        audited = "credits_ledger_drift_accounts 0.0" in httpx2.get(f"{url}/metrics").text
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        verified = subprocess.run(
            [sys.executable, "-m", "credit_service", "verify", "--json"],
            env=_environment(path / "soak.db"),
            capture_output=True,
            text=True,
        )
        books = json.loads(verified.stdout) if verified.stdout else {}
        size_mb = round((path / "soak.db").stat().st_size / 2**20, 1)
    memory = quarters(samples)
    warnings = [line for line in lines if line["level"] not in ("debug", "info")]
    unexpected = [fault for load in loads for fault in load.unexpected]
    faults = [
        *faults_of(samples, memory),
        *(f"log: {json.dumps(line)[:500]}" for line in warnings[:10]),
        *unexpected[:10],
        *([] if walks.failure is None else [f"walk: {walks.failure}"]),
        *([] if verified.returncode == 0 else [f"verify: {verified.stdout[:500]}{verified.stderr[:500]}"]),
        *([] if audited else ["the audit found drift"]),
    ]
    answers = sum([load.answers for load in loads], Counter())
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": described,
        "minutes": round(seconds / 60, 1),
        "callers": CALLERS,
        "asked_per_second": rate,
        "requests": asked(),
        "requests_per_second": round(asked() / seconds, 1),
        "walks": walks.rounds,
        "answers": dict(sorted(answers.items())),
        "ledger": {name: books.get(name) for name in ("accounts", "transactions", "faults")} | {"file_mb": size_mb},
        "median_rss_mb_by_quarter": memory,
        "allowed": f"last quarter ≤ second × {1 + GROWTH:g} + {TOLERANCE_MB:g} MB",
        "open_files": [min(one.open_files for one in samples), max(one.open_files for one in samples)],
        "threads": [min(one.threads for one in samples), max(one.threads for one in samples)],
        "log_lines": len(lines),
        "faults": faults,
        "samples": [list(one) for one in samples],
        "samples_are": list(Sample._fields),
    }


def as_text(found: dict[str, Any]) -> str:
    """Return the report as readable JSON, with one sample per line."""
    lines = ",\n".join(f"    {json.dumps(one)}" for one in found["samples"])
    return (
        json.dumps({**found, "samples": []}, ensure_ascii=False, indent=2).replace(
            '"samples": []', f'"samples": [\n{lines}\n  ]'
        )
        + "\n"
    )


def main() -> int:
    """Run the command. A run shorter than ten minutes writes no file."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--rate", type=float, default=150, help="requests per second of the random load")
    given = parser.parse_args()
    found = soak(given.minutes, given.rate)
    shown = {name: value for name, value in found.items() if name not in ("samples", "machine")}
    print(json.dumps(shown, indent=2, ensure_ascii=False))
    if given.minutes >= 10:
        RESULT.write_text(as_text(found), encoding="utf-8")
    return 1 if found["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
