"""Plugin status from the cache, compared with a bare ASGI application on the same server."""

import os
from functools import partial
from itertools import repeat
from statistics import median

from benchmarks.client import Connection, get, load
from benchmarks.http_spend import open_accounts
from benchmarks.ledger import folder
from benchmarks.measure import Figure, figure, interleaved, ratio
from benchmarks.servers import Server, placed, running

CONNECTIONS = 64


async def run(quick: bool, url: str | None = None, other: str | None = None) -> list[Figure]:
    """Measure the median wait at one connection, the rate at 64 connections, and the processor time.

    Other processes disturb the processor time least. The databases are SQLite files, or the PostgreSQL databases `url`
    and `other`.
    """
    rounds, lone, many = (5, 300, 3_000) if quick else (15, 1_000, 15_000)
    with folder() as path, running(path, "service", url) as service, running(path, "hello", other) as hello:
        (merchant,) = open_accounts(service, 1)
        status = get(f"/api/v1/credits/plugin-status/{merchant}")
        for server in (service, hello):  # fill the cache
            load(server.port, repeat(status, 1_000), CONNECTIONS)
        first, *others = sorted(os.sched_getaffinity(0))
        # Both use one core. On two cores the time to wake an idle core would be most of the wait.
        with placed({first}, {first}, service, hello):
            waits = await interleaved(
                rounds,
                {"status": partial(_p50, service, status, lone), "hello": partial(_p50, hello, status, lone)},
            )
        cpu: dict[str, list[float]] = {"status": [], "hello": []}
        with placed({first}, set(others) or {first}, service, hello):
            rates = await interleaved(
                max(rounds // 2, 3),
                {
                    "status": partial(_rate, service, status, many, cpu["status"]),
                    "hello": partial(_rate, hello, status, many, cpu["hello"]),
                },
            )
    return [
        ratio(
            "p50 over hello's, 1 connection",
            waits["status"],
            waits["hello"],
            required=1.35,
            aim=1.1,
            less_is_better=True,
        ),
        figure("p50, 1 connection", waits["status"], "µs"),
        figure("p50 of hello, 1 connection", waits["hello"], "µs"),
        ratio(f"rate over hello's, {CONNECTIONS} connections", rates["status"], rates["hello"], required=0.65, aim=0.9),
        figure(f"rate, {CONNECTIONS} connections", rates["status"], "/s"),
        figure(f"rate of hello, {CONNECTIONS} connections", rates["hello"], "/s"),
        ratio("processor time over hello's", cpu["status"], cpu["hello"], less_is_better=True),
        figure("processor time of an answer", cpu["status"], "µs"),
        figure("processor time of hello", cpu["hello"], "µs"),
    ]


async def _p50(server: Server, request: bytes, number: int) -> float:
    with Connection(server.port) as connection:
        return median([connection.ask(request) for _ in range(number)]) * 1e6


async def _rate(server: Server, request: bytes, number: int, cpu: list[float]) -> float:
    before = server.cpu_seconds()
    ran = load(server.port, repeat(request, number), CONNECTIONS)
    cpu.append((server.cpu_seconds() - before) / number * 1e6)
    return number / ran.seconds
