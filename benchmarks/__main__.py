"""`python -m benchmarks [name …] [--quick]`: measure, print the figures, and write them to `benchmarks/results`.

Use a quick run to try a change. Its figures are too rough to publish, so it writes nothing.
"""

import argparse
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks import (
    batches,
    gate,
    group_commit,
    growth,
    growth_postgres,
    http_spend,
    jetstream,
    listeners,
    lone_caller,
    machine,
    memory,
    plugin_status,
    postgres_batches,
    postgres_callers,
    postgres_http,
    postgres_status,
    postgres_streams,
    postgres_time,
    reads,
    where_time_goes,
)
from benchmarks.measure import Figure
from credit_service.service import quieten_garbage_collection
from tests.servers.processes import Missing

RESULTS = Path(__file__).parent / "results"

BENCHMARKS: Mapping[str, Callable[[bool], Awaitable[Sequence[Figure]]]] = {
    "batches": batches.run,
    "group_commit": group_commit.run,
    "plugin_status": plugin_status.run,
    "lone_caller": lone_caller.run,
    "http_spend": http_spend.run,
    "reads": reads.run,
    "where_time_goes": where_time_goes.run,
    "postgres_batches": postgres_batches.run,
    "postgres_callers": postgres_callers.run,
    "postgres_time": postgres_time.run,
    "growth": growth.run,
    "postgres_http": postgres_http.run,
    "postgres_status": postgres_status.run,
    "postgres_streams": postgres_streams.run,
    "gate": gate.run,
    "memory": memory.run,
    "listeners": listeners.run,
    "jetstream": jetstream.run,
    "growth_postgres": growth_postgres.run,
}
LONG = {"growth", "growth_postgres", "memory"}
"""Benchmarks that take minutes. They run only if you name them."""

HEADERS = ("figure", "median", "lowest … highest", "required", "aim")


def main() -> None:
    """Run the named benchmarks, or all short ones."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure, print and save figures.")
    parser.add_argument(
        "names",
        nargs="*",
        metavar="name",
        help=f"one of {', '.join(BENCHMARKS)}; default: all except {', '.join(sorted(LONG))}",
    )
    parser.add_argument("--quick", action="store_true", help="measure less and write no files")
    given = parser.parse_args()
    unknown = set(given.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}; known are {', '.join(BENCHMARKS)}")
    quieten_garbage_collection()  # as the service does
    console = Console()
    described = machine.describe()
    for name, value in described.items():
        console.print(f"{name}: {value}", highlight=False)
    for name in given.names or [name for name in BENCHMARKS if name not in LONG]:
        neighbours = machine.Neighbours()
        try:
            figures = uvloop.run(_measure(name, quick=given.quick))
        except Missing as missing:
            console.print(f"\nskipped {name}: {missing}", highlight=False)
            continue
        described["used by other processes"] = f"{neighbours.cores():.2f} cores"
        console.print()
        console.print(_table(name, figures))
        console.print(f"other processes used {described['used by other processes']}", highlight=False)
        if not given.quick:
            _write(name, figures, described)


async def _measure(name: str, *, quick: bool) -> Sequence[Figure]:
    return await BENCHMARKS[name](quick)


def _table(name: str, figures: Sequence[Figure]) -> Table:
    table = Table(title=name, title_justify="left", title_style="bold")
    for number, header in enumerate(HEADERS):
        table.add_column(header, justify="right" if number else "left")
    for figure in figures:
        table.add_row(*_cells(figure), style={True: "green", False: "red", None: ""}[figure.met])
    return table


def _cells(figure: Figure) -> tuple[str, ...]:
    sign = "≤" if figure.less_is_better else "≥"
    spread = "" if figure.lowest == figure.highest else f"{_text(figure.lowest)} … {_text(figure.highest)}"
    bounds = ["" if bound is None else f"{sign} {bound:g}" for bound in (figure.required, figure.aim)]
    return (figure.what, f"{_text(figure.value)} {figure.unit}", spread, *bounds)


def _text(value: float) -> str:
    """Format a number with as many digits as the measurement supports."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _write(name: str, figures: Sequence[Figure], described: Mapping[str, str]) -> None:
    now = datetime.now(UTC)
    RESULTS.mkdir(exist_ok=True)
    whole: dict[str, Any] = {
        "benchmark": name,
        "at": now.isoformat(timespec="seconds"),
        "machine": described,
        "figures": [figure._asdict() for figure in figures],
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = [
        f"# {name}, {now:%Y-%m-%d}",
        "",
        *[f"- {what}: {value}" for what, value in described.items()],
        "",
        f"| {' | '.join(HEADERS)} |",
        f"| --- |{' ---: |' * (len(HEADERS) - 1)}",
        *[f"| {' | '.join(_cells(figure))} |" for figure in figures],
        "",
    ]
    (RESULTS / f"{name}.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
