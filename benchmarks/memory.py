"""PostgreSQL: the memory of a service during a million postings over HTTP, in batches of 1,000.

The benchmark reads the memory at the start, after the first tenth, in the middle of the rest, and at the end. Memory
that grows after the first tenth is a leak of the posting path.
"""

import json
from collections.abc import Sequence
from itertools import count

from benchmarks.client import load, post
from benchmarks.http_spend import open_accounts
from benchmarks.ledger import MERCHANTS, folder
from benchmarks.measure import Figure, figure, ratio
from benchmarks.postgres import server
from benchmarks.servers import Server, running

BATCH = 1_000
CONNECTIONS = 4
_numbers = count(1)


async def run(quick: bool) -> list[Figure]:
    """Measure the resident memory and the postings per second."""
    batches, steps = (20, 10) if quick else (1_000, 10)
    with server() as databases, databases.database() as url, folder() as path, running(path, "service", url) as asked:
        merchants = open_accounts(asked, MERCHANTS)
        taken, rates = [asked.megabytes()], []
        for _ in range(steps):
            requests = [_batch(asked, merchants) for _ in range(batches // steps)]
            rates.append(batches // steps * BATCH / load(asked.port, requests, CONNECTIONS, 200).seconds)
            taken.append(asked.megabytes())
    return [
        ratio("memory at the end over memory after the first tenth", taken[-1:], taken[1:2], less_is_better=True),
        figure("memory at the start", taken[:1], "MB"),
        figure(f"memory after {batches // steps * BATCH:,} postings", taken[1:2], "MB"),
        figure("memory after the first tenth", taken[1:], "MB"),
        figure(f"memory after {batches * BATCH:,} postings", taken[-1:], "MB"),
        figure("postings in batches over HTTP", rates, "/s"),
    ]


def _batch(asked: Server, merchants: Sequence[str]) -> bytes:
    items = [
        {
            "merchant_id": str(merchant),
            "operation_type": "DECREASE",
            "transaction_type": "USAGE",
            "amount": 1,
            "idempotency_key": f"usage-{next(_numbers):012}",
        }
        for merchant in merchants[:BATCH]
    ]
    body = json.dumps({"items": items}).encode()
    return post("/api/v1/credits/transactions/batch", body, Authorization=f"Bearer {asked.key}")
