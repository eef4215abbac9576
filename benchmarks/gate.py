"""PostgreSQL and Valkey: two replicas, of which one answers storefronts while the other posts.

How many answers come from memory while there is a change of some merchant to every hundred questions, and how long
after a posting on the one replica was answered the other one tells of it. The TTL is long here: what it costs besides
is plain, a miss for each merchant who is asked for less often than that.
"""

import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from unittest.mock import patch
from urllib.request import Request, urlopen
from uuid import UUID, uuid4

from benchmarks.client import HOST, get, load, post
from benchmarks.ledger import POLICY, folder
from benchmarks.measure import Figure, figure, percentile
from benchmarks.postgres import server
from benchmarks.servers import Server, running
from tests.servers.valkey import cache

CONNECTIONS = 16
_STATUS = "/api/v1/credits/plugin-status"
_AT_ONCE = 1_000


async def run(quick: bool) -> list[Figure]:
    """Over 100,000 merchants, who are asked for as Zipf has it: the n-th one n times more seldom than the first."""
    rounds, merchants, questions, changes = (3, 10_000, 5_000, 30) if quick else (7, 100_000, 50_000, 200)
    rates, waits = [], []
    with _replicas() as (here, there):
        known = _opened(here, merchants)
        chance = random.Random(1)
        weights = list(accumulate([1 / place for place in range(1, merchants + 1)]))
        for _ in range(rounds):
            _ask_for_all(there, known)
            asked = chance.choices(known, cum_weights=weights, k=questions)
            before = _checks(there)
            for start in range(0, questions, _AT_ONCE):
                some = asked[start : start + _AT_ONCE]
                load(there.port, [get(f"{_STATUS}/{merchant}") for merchant in some], CONNECTIONS)
                for merchant in some[::100]:
                    _change(here, merchant)
            after = _checks(there)
            rates.append((after["near"] - before["near"]) / (sum(after.values()) - sum(before.values())))
            waits.append(percentile([_seen_after(here, there, known[number]) for number in range(changes)], 99) * 1e3)
    return [
        figure("answers from memory, of all", rates, "")._replace(owed=0.99),
        figure("a change here is seen there after, p99", waits, "ms")._replace(owed=50, less_is_better=True),
    ]


@contextmanager
def _replicas() -> Iterator[tuple[Server, Server]]:
    with server() as databases, databases.database() as url, cache() as redis, folder() as path:
        shared = {"REDIS_URL": redis, "SERVICE_SOURCE": uuid4().hex, "PLUGIN_STATUS_CACHE_TTL": "3600"}
        with (
            patch.dict(os.environ, shared),
            running(path, "service", url) as here,
            running(path, "service", url) as there,
        ):
            yield here, there


def _opened(replica: Server, number: int) -> Sequence[UUID]:
    merchants = [uuid4() for _ in range(number)]
    for some in _portions(merchants):
        kind = {"specversion": "1.0", "source": "benchmark", "type": "evt.merchant.created"}
        events = [{**kind, "id": str(merchant), "data": {"merchant_id": str(merchant)}} for merchant in some]
        _post(replica, "/api/v1/credits/events", events, "application/cloudevents-batch+json")
    return merchants


def _ask_for_all(replica: Server, merchants: Sequence[UUID]) -> None:
    for some in _portions(merchants):
        _post(replica, f"{_STATUS}/batch", {"merchant_ids": [str(merchant) for merchant in some]})


def _portions(merchants: Sequence[UUID]) -> Iterator[Sequence[UUID]]:
    return (merchants[start : start + _AT_ONCE] for start in range(0, len(merchants), _AT_ONCE))


def _post(replica: Server, path: str, body: object, media_type: str = "application/json") -> None:
    headers = {"Authorization": f"Bearer {replica.key}", "Content-Type": media_type}
    with urlopen(Request(f"http://{HOST}:{replica.port}{path}", json.dumps(body).encode(), headers)) as answer:
        answer.read()


def _change(replica: Server, merchant: UUID) -> None:
    """Change a merchant's plugin status: all of its credits are spent, or given back."""
    body = {"merchant_id": str(merchant), "amount": POLICY.trial_credits}
    ways = (
        {"operation_type": "DECREASE", "transaction_type": "USAGE"},
        {"operation_type": "INCREASE", "transaction_type": "MANUAL", "reason": "benchmark"},
    )
    bearer = f"Bearer {replica.key}"
    for way in ways:
        request = post(
            "/api/v1/credits/transactions",
            json.dumps(body | way).encode(),
            Authorization=bearer,
            Idempotency_Key=uuid4().hex,
        )
        try:
            load(replica.port, [request], 1, 201)
        except RuntimeError as refused:
            if " 402 " not in str(refused):
                raise
        else:
            return


def _seen_after(here: Server, there: Server, merchant: UUID) -> float:
    """Seconds from the answer to a posting until the other replica tells of it."""
    path = f"http://{HOST}:{there.port}{_STATUS}/{merchant}"

    def told() -> bytes:
        with urlopen(path) as answer:
            return bytes(re.search(rb'"status":"(\w+)"', answer.read())[1])  # type: ignore[index]

    before = told()
    _change(here, merchant)
    begun = time.perf_counter()
    while told() == before:
        pass
    return time.perf_counter() - begun


def _checks(replica: Server) -> Counter[str]:
    """Plugin statuses that were asked for, by where the answer came from."""
    with urlopen(f"http://{HOST}:{replica.port}/metrics") as answer:
        text = answer.read().decode()
    found: Counter[str] = Counter()
    for source, count in re.findall(r'^credits_plugin_status_checks_total\{source="(\w+)",.*\} (\S+)$', text, re.M):
        found[source] += int(float(count))
    return found
