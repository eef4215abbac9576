"""Measuring: several ways in turn, round by round, so that whatever disturbs the machine disturbs all of them."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

Rounds = Mapping[str, Sequence[float]]
"""What each way measured, one value for each round."""


class Figure(NamedTuple):
    """One line of a table: the median of the rounds, with the lowest and the highest of them.

    `owed` and `aim` are bounds: the least where more is better, the most for latencies and their ratios. A figure that
    owes nothing is informative.
    """

    what: str
    value: float
    unit: str
    lowest: float
    highest: float
    owed: float | None = None
    aim: float | None = None
    less_is_better: bool = False

    @property
    def met(self) -> bool | None:
        """Whether it is what is owed; None where nothing is."""
        if self.owed is None:
            return None
        return self.value <= self.owed if self.less_is_better else self.value >= self.owed


async def interleaved(rounds: int, ways: Mapping[str, Callable[[], Awaitable[float]]]) -> Rounds:
    """Measure every way once a round; every other round in the opposite order."""
    measured: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        names = list(ways)
        for name in names if number % 2 == 0 else names[::-1]:
            measured[name].append(await ways[name]())
    return measured


def figure(what: str, values: Sequence[float], unit: str) -> Figure:
    """An informative figure."""
    return Figure(what, median(values), unit, min(values), max(values))


def ratio(
    what: str,
    over: Sequence[float],
    under: Sequence[float],
    *,
    owed: float | None = None,
    aim: float | None = None,
    less_is_better: bool = False,
) -> Figure:
    """How many times the one is the other: the ratio within each round, and the median of those."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return figure(what, ratios, "×")._replace(owed=owed, aim=aim, less_is_better=less_is_better)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which that share of the values lies."""
    return sorted(values)[min(int(len(values) * percent / 100), len(values) - 1)]
