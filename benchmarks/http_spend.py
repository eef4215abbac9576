"""POST of a spend over 64 HTTP connections. Each connection waits for its response before it sends the next request."""

import json
from collections.abc import Sequence
from itertools import count
from uuid import uuid4

from benchmarks.client import load, post
from benchmarks.ledger import MERCHANTS, folder
from benchmarks.measure import Figure, figure, percentile
from benchmarks.servers import Server, running

CONNECTIONS = 64
_numbers = count(1)


async def run(quick: bool) -> list[Figure]:
    """Measure the rate and the 99th percentile, over 1,000 merchants and on one hot account."""
    rounds, number = (3, 1_000) if quick else (7, 5_000)
    figures = []
    with folder() as path, running(path, "service") as server:
        merchants = open_accounts(server, MERCHANTS)
        for name, some in (("uniform", merchants), ("one hot account", merchants[:1])):
            rates, p99s = [], []
            for _ in range(rounds):
                requests = [spend(server, some[index % len(some)]) for index in range(number)]
                ran = load(server.port, requests, CONNECTIONS, 201)
                rates.append(number / ran.seconds)
                p99s.append(percentile(ran.waits, 99) * 1e3)
            figures += [
                figure(f"rate, {CONNECTIONS} connections, {name}", rates, "/s"),
                figure(f"p99, {CONNECTIONS} connections, {name}", p99s, "ms"),
            ]
    return figures


def open_accounts(server: Server, number: int) -> Sequence[str]:
    """Open accounts with a trial. Returns their merchants."""
    merchants = [str(uuid4()) for _ in range(number)]
    bodies = [json.dumps({"merchant_id": str(merchant)}).encode() for merchant in merchants]
    bearer = f"Bearer {server.key}"
    load(
        server.port, [post("/api/v1/credits/accounts", body, Authorization=bearer) for body in bodies], CONNECTIONS, 201
    )
    return merchants


def spend(server: Server, merchant: str, amount: int = 1) -> bytes:
    """Return a request that spends credits of this merchant under a new key."""
    number = next(_numbers)
    body = {
        "merchant_id": str(merchant),
        "operation_type": "DECREASE",
        "transaction_type": "USAGE",
        "amount": amount,
        "reference": {"type": "message", "id": str(number)},
    }
    return post(
        "/api/v1/credits/transactions",
        json.dumps(body).encode(),
        Authorization=f"Bearer {server.key}",
        Idempotency_Key=f"usage-{number:012}",
    )
