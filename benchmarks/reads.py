"""Reads over HTTP (account, balance, grants, transaction, first page), beside a plain service and a bare hello."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import cycle, islice
from urllib.request import Request, urlopen

from benchmarks.client import HOST, get, load, post
from benchmarks.http_spend import CONNECTIONS, open_accounts, spend
from benchmarks.ledger import folder
from benchmarks.measure import Figure, figure, interleaved, ratio
from benchmarks.postgres import server
from benchmarks.servers import Server, running, running_plain

MERCHANTS = 50
SPENDS = 60
"""Postings of each merchant, enough to fill a first page of 50 transactions."""
REQUIRED_MILLISECONDS = 0.35
PATHS = {
    "account": "/api/v1/credits/accounts/{merchant}",
    "balance": "/api/v1/credits/accounts/{merchant}/balance",
    "grants": "/api/v1/credits/accounts/{merchant}/grants",
    "one transaction": "/api/v1/credits/transactions/{transaction}",
    "first page of 10": "/api/v1/credits/transactions?merchant_id={merchant}&limit=10",
    "first page of 50": "/api/v1/credits/transactions?merchant_id={merchant}",
}
OURS_ALONE = {"grants"}
"""Reads that the plain service does not have."""


async def run(quick: bool) -> list[Figure]:
    """Measure the processor time of a response and the rate at 64 connections, on SQLite and on PostgreSQL."""
    rounds, number = (3, 1_000) if quick else (7, 4_000)
    with ExitStack() as stack:
        databases = stack.enter_context(server())
        path = stack.enter_context(folder())
        url, other, third = (stack.enter_context(databases.database()) for _ in range(3))
        servers = {
            "SQLite": stack.enter_context(running(path, "service")),
            "PostgreSQL": stack.enter_context(running(path, "service", url)),
            "plain service": stack.enter_context(running_plain(path, other, 20)),
        }
        hello = stack.enter_context(running(path, "hello", third))
        asked = {name: _requests(one) for name, one in servers.items()}
        cpu: dict[str, list[float]] = defaultdict(list)
        variants = {
            f"{what}, {name}": partial(_rate, servers[name], asked[name][what], number, cpu[f"{what}, {name}"])
            for what in PATHS
            for name in servers
            if what in asked[name]
        }
        variants["hello"] = partial(_rate, hello, [get("/")], number, cpu["hello"])
        rates = await interleaved(rounds, variants)
    return [*_spent(cpu), *[figure(f"rate, {name}", rates[name], "/s") for name in variants]]


def _spent(cpu: Mapping[str, Sequence[float]]) -> Iterator[Figure]:
    """Yield the processor times. On PostgreSQL they do not include the time of the database server."""
    for name, milliseconds in cpu.items():
        required = None if "plain" in name or name == "hello" else REQUIRED_MILLISECONDS
        spent = figure(f"processor time, {name}", milliseconds, "ms")
        yield spent._replace(required=required, less_is_better=True)
    for what in PATHS:
        if what not in OURS_ALONE:
            ours, plain = cpu[f"{what}, PostgreSQL"], cpu[f"{what}, plain service"]
            yield ratio(f"processor time over that of the plain service, {what}", ours, plain, less_is_better=True)


def _requests(asked: Server) -> Mapping[str, Sequence[bytes]]:
    """Open accounts, post to them, and return the requests for each read."""
    merchants = open_accounts(asked, MERCHANTS)
    load(asked.port, [spend(asked, merchant) for merchant in merchants for _ in range(SPENDS)], CONNECTIONS, 201)
    bearer = f"Bearer {asked.key}"
    made: dict[str, list[bytes]] = defaultdict(list)
    is_plain = not asked.key.startswith("cs_")
    for merchant in merchants:
        transaction = _newest(asked, merchant)
        if not is_plain:
            _buy(asked, merchant)
        for what, path in PATHS.items():
            if not (is_plain and what in OURS_ALONE):
                made[what].append(get(path.format(merchant=merchant, transaction=transaction), Authorization=bearer))
    return made


def _newest(asked: Server, merchant: str) -> str:
    """Return the id of the last transaction of a merchant."""
    url = f"http://{HOST}:{asked.port}{PATHS['first page of 50'].format(merchant=merchant)}&limit=1"
    with urlopen(Request(url, headers={"Authorization": f"Bearer {asked.key}"})) as answer:
        found = json.load(answer)
    return str((found if isinstance(found, list) else found["data"])[0]["id"])


def _buy(asked: Server, merchant: str) -> None:
    """Post two purchases, so that the account has several grants."""
    for number in range(2):
        body = {
            "merchant_id": str(merchant),
            "operation_type": "INCREASE",
            "transaction_type": "SUBSCRIPTION",
            "amount": 100,
            "grant": {"expires_at": "2099-12-31T23:59:59Z"},
        }
        headers = {"Authorization": f"Bearer {asked.key}", "Idempotency_Key": f"invoice-{number}"}
        load(asked.port, [post("/api/v1/credits/transactions", json.dumps(body).encode(), **headers)], 1, 201)


async def _rate(asked: Server, requests: Sequence[bytes], number: int, cpu: list[float]) -> float:
    before = asked.cpu_seconds()
    ran = load(asked.port, islice(cycle(requests), number), CONNECTIONS)
    cpu.append((asked.cpu_seconds() - before) / number * 1e3)
    return number / ran.seconds
