"""Measure several variants in turn, round by round, so that a disturbance of the machine affects all of them."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

Rounds = Mapping[str, Sequence[float]]
"""The measured values of each variant, one for each round."""


class Figure(NamedTuple):
    """One line of a table: the median of the rounds, and the lowest and highest round.

    `required` and `aim` are bounds. They are lower bounds if more is better, and upper bounds for latencies and their
    ratios. A figure without `required` is only informative.
    """

    what: str
    value: float
    unit: str
    lowest: float
    highest: float
    required: float | None = None
    aim: float | None = None
    less_is_better: bool = False

    @property
    def met(self) -> bool | None:
        """Return whether the value meets `required`, or None without `required`."""
        if self.required is None:
            return None
        return self.value <= self.required if self.less_is_better else self.value >= self.required


async def interleaved(rounds: int, variants: Mapping[str, Callable[[], Awaitable[float]]]) -> Rounds:
    """Measure every variant once per round. Every second round has the opposite order."""
    measured: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        names = list(variants)
        for name in names if number % 2 == 0 else names[::-1]:
            measured[name].append(await variants[name]())
    return measured


def figure(what: str, values: Sequence[float], unit: str) -> Figure:
    """Return an informative figure."""
    return Figure(what, median(values), unit, min(values), max(values))


def ratio(
    what: str,
    over: Sequence[float],
    under: Sequence[float],
    *,
    required: float | None = None,
    aim: float | None = None,
    less_is_better: bool = False,
) -> Figure:
    """Return the median of the ratios `over / under` of all rounds."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return figure(what, ratios, "×")._replace(required=required, aim=aim, less_is_better=less_is_better)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that `percent` of the values do not exceed."""
    return sorted(values)[min(int(len(values) * percent / 100), len(values) - 1)]
