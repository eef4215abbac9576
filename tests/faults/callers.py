"""Callers of a service whose database fails. They record every answer, and repeat an unanswered posting with its key.

Each caller is a thread. A watcher thread asks for plugin status and health, which the service must always answer.
"""

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from uuid import uuid4

import asyncpg
import httpx2

from tests.served import Served, plain_client

API = "/api/v1/credits"
REFUSALS = {"storage_unavailable", "outcome_unknown", "overloaded", "deadline_exceeded"}
OPENING_CREDITS = 1_000_000
PATIENCE_SECONDS = 60.0


class Spend(NamedTuple):
    """An acknowledged posting."""

    merchant_id: str
    key: str
    amount: int


class Callers:
    """Callers that spend credits, half of the time from one hot account. Each caller uses one of the services."""

    def __init__(self, services: Sequence[Served], seed: object, count: int = 8, merchants: int = 12) -> None:
        self._services = services
        self._seed = seed
        self._stopping = threading.Event()
        self.merchants = [str(uuid4()) for _ in range(merchants)]
        self.acknowledged: list[Spend] = []
        self.wrong: list[str] = []  # forbidden answers
        self.refused: Counter[str] = Counter()  # by code
        self.longest = 0.0  # the longest wait for the answer to a posting, in seconds
        self.longest_status = 0.0  # the longest wait of the watcher, in seconds
        self.ready: list[tuple[float, int]] = []  # times and status codes of /readyz
        self._last = [0.0] * count  # for each caller, the start of its last successful posting
        with services[0].client() as client:
            for merchant in self.merchants:
                client.post("/credits/accounts", json={"merchant_id": merchant}).raise_for_status()
        targets: list[tuple[Callable[..., None], Any]] = [(self._spend, number) for number in range(count)]
        targets += [(self._watch, service) for service in services]
        self._threads = [threading.Thread(target=target, args=(one,), name="caller") for target, one in targets]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop the callers. Each caller first repeats its current posting until it is posted."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive(), "a caller does not end"

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until the condition is true. Fails at once after a forbidden answer."""
        until = time.monotonic() + seconds
        while not condition():
            assert not self.wrong, self.wrong
            assert time.monotonic() < until, f"timed out while waiting for {what}; refusals: {dict(self.refused)}"
            time.sleep(0.005)

    def wait_for_more(self, count: int = 60) -> None:
        """Wait for `count` more acknowledged postings."""
        enough = len(self.acknowledged) + count
        self.wait_until(lambda: len(self.acknowledged) >= enough, "postings")

    def wait_for_each(self, since: float) -> float:
        """Wait until each caller has posted something that it started after `since`.

        Returns the seconds from `since` to the start of the last of these postings.
        """
        self.wait_until(lambda: min(self._last) > since, "every caller to post again")
        return max(self._last) - since

    # ---- the threads

    def _spend(self, number: int) -> None:
        chance = random.Random(f"{self._seed} {number}")
        with self._client(number) as client:
            while not self._stopping.is_set():
                merchant = self.merchants[0 if chance.random() < 0.5 else chance.randrange(len(self.merchants))]
                spend = Spend(merchant, f"{self._seed}-{number}-{chance.getrandbits(64)}", chance.randint(1, 3))
                self._post_once(client, spend, number, chance)

    def _client(self, number: int) -> httpx2.Client:
        service = self._services[number % len(self._services)]
        return plain_client(service.url, headers={"authorization": f"Bearer {service.key}"}, timeout=30)

    def _post_once(self, client: httpx2.Client, spend: Spend, number: int, chance: random.Random) -> None:
        unknown = False
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until:
            began = time.monotonic()
            answer = self._post(client, spend)
            if answer is None:
                return
            if answer.status_code in (200, 201):
                if answer.status_code == 200 and not unknown:
                    self.wrong.append(f"{spend.key} was replayed without an earlier outcome_unknown")
                self.acknowledged.append(spend)
                self._last[number] = began
                return
            unknown = unknown or answer.json()["code"] == "outcome_unknown"
            time.sleep(chance.uniform(0.01, 0.05))  # back off before the retry
        self.wrong.append(f"{spend.key} was never posted")

    def _post(self, client: httpx2.Client, spend: Spend) -> httpx2.Response | None:
        """Post a spend. Returns the answer, or None for a forbidden answer."""
        body = {
            "merchant_id": spend.merchant_id,
            "operation_type": "DECREASE",
            "transaction_type": "USAGE",
            "amount": spend.amount,
        }
        began = time.monotonic()
        try:
            answer = client.post(f"{API}/transactions", json=body, headers={"idempotency-key": spend.key})
        except httpx2.HTTPError as error:
            self.wrong.append(f"no answer at all: {error!r}")
            return None
        self.longest = max(self.longest, time.monotonic() - began)
        if answer.status_code in (200, 201):
            return answer
        problem = answer.json() if answer.headers["content-type"] == "application/problem+json" else {}
        if answer.status_code != 503 or problem.get("code") not in REFUSALS or "retry-after" not in answer.headers:
            self.wrong.append(f"{answer.status_code} {answer.text}")
            return None
        self.refused[problem["code"]] += 1
        return answer

    def _watch(self, service: Served) -> None:
        """Ask for plugin status, liveness and readiness until the end."""
        with plain_client(service.url, timeout=30) as client:
            while not self._stopping.is_set():
                for path in (f"{API}/plugin-status/{self.merchants[0]}", f"{API}/plugin-status/{uuid4()!s}", "/livez"):
                    began = time.monotonic()
                    answer = client.get(path)
                    self.longest_status = max(self.longest_status, time.monotonic() - began)
                    if answer.status_code != 200:
                        self.wrong.append(f"{path}: {answer.status_code} {answer.text}")
                self.ready.append((time.monotonic(), client.get("/readyz").status_code))
                self._stopping.wait(0.02)


@contextlib.contextmanager
def calling(*services: Served, seed: object, **more: int) -> Iterator[Callers]:
    """Run callers of these services. At the end, assert that no caller got a forbidden answer."""
    callers = Callers(services, seed, **more)
    try:
        yield callers
    finally:
        callers.stop()
    assert callers.wrong == []


async def check_books(url: str, acknowledged: Sequence[Spend], merchants: Sequence[str]) -> None:
    """Check the ledger: exactly the acknowledged postings, each once; correct balances; no gap in a lane of events."""
    connection = await asyncpg.connect(url)
    try:
        posted = await connection.fetch(
            "SELECT merchant_id, key, amount FROM transactions JOIN accounts ON number = account "
            "WHERE type = 'USAGE' AND merchant_id = ANY($1::text[])",
            merchants,
        )
        found = Counter(Spend(merchant, key, amount) for merchant, key, amount in posted)
        assert found == Counter(acknowledged)
        assert max(found.values()) == 1
        expected = {
            merchant: OPENING_CREDITS - sum(spend.amount for spend in acknowledged if spend.merchant_id == merchant)
            for merchant in merchants
        }
        balances = await connection.fetch("SELECT merchant_id, balance FROM accounts")
        actual = dict(map(tuple, balances))
        assert {merchant: actual[merchant] for merchant in merchants} == expected
        lanes = await connection.fetch("SELECT lane, count(*), min(id), max(id) FROM events GROUP BY lane")
        assert all((first, last) == (1, count) for _, count, first, last in lanes)
    finally:
        await connection.close()
