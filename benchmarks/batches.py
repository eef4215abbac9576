"""SQLite: postings in transactions of 1,000, compared with one posting per transaction."""

from collections.abc import Callable, Sequence

from benchmarks.ledger import Ledger, open_ledger
from benchmarks.measure import Figure, figure, interleaved, ratio
from credit_service.ledger.commands import Command


async def run(quick: bool) -> list[Figure]:
    """Measure batched postings over 1,000 merchants and on one hot account."""
    async with open_ledger() as ledger:
        return [
            *await _compared(ledger, "uniform", ledger.uniform, quick),
            *await _compared(ledger, "one hot account", ledger.hot, quick),
        ]


async def _compared(ledger: Ledger, name: str, spends: Callable[[int], Sequence[Command]], quick: bool) -> list[Figure]:
    rounds, batched, single = (3, 2_000, 200) if quick else (7, 5_000, 1_000)
    rates = await interleaved(
        rounds,
        {
            "batched": lambda: ledger.rate(1_000, spends(batched)),
            "single": lambda: ledger.rate(1, spends(single)),
        },
    )
    return [
        ratio(f"N=1000 over N=1, {name}", rates["batched"], rates["single"], required=8, aim=12),
        figure(f"N=1000, {name}", rates["batched"], "/s"),
        figure(f"N=1, {name}", rates["single"], "/s"),
    ]
