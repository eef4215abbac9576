"""PostgreSQL and Valkey: one replica answers storefronts while the other replica posts.

One figure is the share of answers from memory, with one change of a merchant per hundred questions. The other is the
delay from the answer to a posting on one replica until the other replica shows the change. The TTL is long here. A
short TTL would only add one miss for each merchant that is asked for less often.
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
from uuid import uuid4

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
    """Measure over 100,000 merchants with a Zipf distribution: merchant n gets 1/n of the questions of merchant 1."""
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
        figure("share of answers from memory", rates, "")._replace(required=0.99),
        figure("delay until the other replica shows a change, p99", waits, "ms")._replace(
            required=50, less_is_better=True
        ),
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


def _opened(replica: Server, number: int) -> Sequence[str]:
    merchants = [str(uuid4()) for _ in range(number)]
    for some in _portions(merchants):
        kind = {"specversion": "1.0", "source": "benchmark", "type": "evt.merchant.created"}
        events = [{**kind, "id": str(merchant), "data": {"merchant_id": str(merchant)}} for merchant in some]
        _post(replica, "/api/v1/credits/events", events, "application/cloudevents-batch+json")
    return merchants


def _ask_for_all(replica: Server, merchants: Sequence[str]) -> None:
    for some in _portions(merchants):
        _post(replica, f"{_STATUS}/batch", {"merchant_ids": [str(merchant) for merchant in some]})


def _portions(merchants: Sequence[str]) -> Iterator[Sequence[str]]:
    return (merchants[start : start + _AT_ONCE] for start in range(0, len(merchants), _AT_ONCE))


def _post(replica: Server, path: str, body: object, media_type: str = "application/json") -> None:
    headers = {"Authorization": f"Bearer {replica.key}", "Content-Type": media_type}
    with urlopen(Request(f"http://{HOST}:{replica.port}{path}", json.dumps(body).encode(), headers)) as answer:
        answer.read()


def _change(replica: Server, merchant: str) -> None:
    """Change a merchant's plugin status: spend all its credits, or give them back."""
    body = {"merchant_id": str(merchant), "amount": POLICY.trial_credits}
    variants = (
        {"operation_type": "DECREASE", "transaction_type": "USAGE"},
        {"operation_type": "INCREASE", "transaction_type": "MANUAL", "reason": "benchmark"},
    )
    bearer = f"Bearer {replica.key}"
    for variant in variants:
        request = post(
            "/api/v1/credits/transactions",
            json.dumps(body | variant).encode(),
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


def _seen_after(here: Server, there: Server, merchant: str) -> float:
    """Return the seconds from the answer to a posting until the other replica shows the change."""
    path = f"http://{HOST}:{there.port}{_STATUS}/{merchant}"

    def shown() -> bytes:
        with urlopen(path) as answer:
            return bytes(re.search(rb'"status":"(\w+)"', answer.read())[1])  # type: ignore[index]

    before = shown()
    _change(here, merchant)
    started = time.perf_counter()
    while shown() == before:
        pass
    return time.perf_counter() - started


def _checks(replica: Server) -> Counter[str]:
    """Return the number of plugin status answers by their source."""
    with urlopen(f"http://{HOST}:{replica.port}/metrics") as answer:
        text = answer.read().decode()
    found: Counter[str] = Counter()
    for source, count in re.findall(r'^credits_plugin_status_checks_total\{source="(\w+)",.*\} (\S+)$', text, re.M):
        found[source] += int(float(count))
    return found
