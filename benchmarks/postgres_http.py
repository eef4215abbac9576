"""PostgreSQL: POST of a spend over 64 connections, compared with a plain service of FastAPI and SQLAlchemy."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import median

from benchmarks.client import load
from benchmarks.http_spend import CONNECTIONS, open_accounts, spend
from benchmarks.ledger import MERCHANTS, folder
from benchmarks.measure import Figure, figure, interleaved, percentile, ratio
from benchmarks.postgres import server
from benchmarks.servers import Server, running, running_plain

POOLS = (20, 64)
"""Numbers of PostgreSQL connections of the plain service. The ratio uses the best of them."""


async def run(quick: bool) -> list[Figure]:
    """Measure the rate and the 99th percentile, over 1,000 merchants and on one hot account."""
    figures = []
    with ExitStack() as stack:
        databases = stack.enter_context(server())
        url, other = (stack.enter_context(databases.database()) for _ in range(2))
        path = stack.enter_context(folder())
        ours = stack.enter_context(running(path, "service", url))
        plain = {size: stack.enter_context(running_plain(path, other, size)) for size in POOLS}
        merchants, theirs = open_accounts(ours, MERCHANTS), open_accounts(plain[POOLS[0]], MERCHANTS)
        for name, many in (("1,000 merchants", MERCHANTS), ("one hot account", 1)):
            figures += await _compared(name, ours, merchants[:many], plain, theirs[:many], quick)
    return figures


async def _compared(
    name: str,
    ours: Server,
    merchants: Sequence[str],
    plain: Mapping[int, Server],
    theirs: Sequence[str],
    quick: bool,
) -> list[Figure]:
    rounds, number, slow = (3, 2_000, 500) if quick else (7, 15_000, 2_000)
    p99s: dict[str, list[float]] = defaultdict(list)
    cpu: dict[str, list[float]] = defaultdict(list)
    variants = {"ours": partial(_rate, ours, merchants, number, p99s["ours"], cpu["ours"])}
    for size, each in plain.items():
        which = f"plain service with a pool of {size}"
        variants[which] = partial(_rate, each, theirs, slow, p99s[which], cpu[which])
    rates = await interleaved(rounds, variants)
    _, *others = variants
    best, fastest = max(others, key=lambda which: median(rates[which])), min(others, key=lambda w: median(p99s[w]))
    what = f"{CONNECTIONS} connections, {name}"
    return [
        ratio(f"rate over the rate of the plain service, {what}", rates["ours"], rates[best], required=11, aim=40),
        ratio(
            f"p99 over the p99 of the plain service, {what}",
            p99s["ours"],
            p99s[fastest],
            required=1 / 8,
            less_is_better=True,
        ),
        *[figure(f"rate, {what}, {which}", rates[which], "/s") for which in variants],
        *[figure(f"p99, {what}, {which}", p99s[which], "ms") for which in variants],
        *[figure(f"processor time of an answer, {what}, {which}", cpu[which], "µs") for which in variants],
    ]


async def _rate(asked: Server, merchants: Sequence[str], number: int, p99s: list[float], cpu: list[float]) -> float:
    requests = [spend(asked, merchants[index % len(merchants)]) for index in range(number)]
    before = asked.cpu_seconds()
    ran = load(asked.port, requests, CONNECTIONS, 201)
    cpu.append((asked.cpu_seconds() - before) / number * 1e6)
    p99s.append(percentile(ran.waits, 99) * 1e3)
    return number / ran.seconds
