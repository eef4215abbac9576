"""Group commit: 64 callers that wait for each posting, compared with the same callers and one transaction each."""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.ledger import Ledger, open_ledger
from benchmarks.measure import Figure, figure, interleaved, percentile, ratio
from credit_service.ledger.commands import Command

CALLERS = 64


async def run(quick: bool) -> list[Figure]:
    """Measure group commit over 1,000 merchants and on one hot account."""
    rounds, grouped, alone = (3, 50, 3) if quick else (7, 200, 15)
    figures = []
    async with open_ledger() as ledger:
        for name, spends in (("uniform", ledger.uniform), ("one hot account", ledger.hot)):
            waits: list[float] = []
            rates = await interleaved(
                rounds,
                {
                    "grouped": partial(rate, ledger, 1_000, spends, grouped, waits),
                    "alone": partial(rate, ledger, 1, spends, alone, []),
                },
            )
            figures += [
                ratio(
                    f"group commit over one transaction each, {CALLERS} callers, {name}",
                    rates["grouped"],
                    rates["alone"],
                    required=8,
                ),
                figure(f"group commit, {name}", rates["grouped"], "/s"),
                figure(f"one transaction each, {name}", rates["alone"], "/s"),
                figure(f"p99 wait of a caller with group commit, {name}", [percentile(waits, 99) * 1e3], "ms"),
            ]
    return figures


async def rate(
    ledger: Ledger, max_batch: int, spends: Callable[[int], Sequence[Command]], each: int, waits: list[float]
) -> float:
    """Return postings per second. Each caller waits for its posting before it submits the next."""
    commands = iter(spends(CALLERS * each))

    async with ledger.posting(max_batch) as posting:

        async def call() -> None:
            for command in commands:
                started = time.perf_counter()
                await posting.submit(command)
                waits.append(time.perf_counter() - started)

        started = time.perf_counter()
        await asyncio.gather(*[call() for _ in range(CALLERS)])
        return CALLERS * each / (time.perf_counter() - started)
