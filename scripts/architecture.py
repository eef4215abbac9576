"""Make docs/architecture.md and its picture: the layers of the import rules, and the functions that one order passes.

The picture reads the layers from pyproject.toml, and the page imports each function, so neither names a missing part.
"""

import importlib
import tomllib
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

ROOT = Path(__file__).parent.parent


class Station(NamedTuple):
    """A function that the order passes, and its work."""

    module: str  # below credit_service
    function: str
    says: str

    @property
    def layer(self) -> str:
        """Return the layer of the function."""
        return self.module.partition(".")[0]

    @property
    def path(self) -> str:
        """Return the file of the function. Raises AttributeError if the function is not in it."""
        found: object = importlib.import_module(f"credit_service.{self.module}")
        for name in self.function.split("."):
            found = getattr(found, name)
        return str(Path(str(importlib.import_module(f"credit_service.{self.module}").__file__)).relative_to(ROOT))


STATIONS: Final = (
    Station(
        "doors.jetstream.taking",
        "Taking.take",
        "The consumer has fetched a batch of messages, and `Taking.read` has translated each into a command: here "
        "`OrderPaid`, under the natural key `shopify:order:1001`. `take` submits the commands, and acknowledges a "
        "message only after its commit.",
    ),
    Station(
        "posting.queue",
        "Posting.submit_many",
        "The commands wait in the queue of their merchant's stream. As soon as the store is free, the pending commands "
        "become one batch of at most 1,000.",
    ),
    Station(
        "posting.attempt",
        "Attempts.post",
        "Gets the batch into the database: retries a conflict, isolates a command that breaks the batch, and runs the "
        "batch again when the answer of a commit is lost.",
    ),
    Station(
        "storage.sqlite.engine",
        "SQLiteEngine.post",
        "One database transaction: load the account, its open grants and known keys; call the next function; write all "
        "of its values; commit. On PostgreSQL, `PostgresEngine.post` does this; it often decides on recent accounts in "
        "memory first (decision 26).",
    ),
    Station(
        "posting.batch",
        "decide_batch",
        "Hands each command to the ledger, with the state that the commands before it left, and collects the writes.",
    ),
    Station(
        "ledger.decide",
        "decide",
        "The rules: was this key used before? What has time changed? What does the order cost (`_order_paid`)? The "
        "outcome is a value: one transaction, the changed grants, and the announcement `consumed`.",
    ),
    Station(
        "outlets.reader",
        "OutboxReader.once",
        "The announcement was written in the same commit. The commit wakes the reader, which takes the next events in "
        "order, one page at a time, from memory or from the outbox.",
    ),
    Station(
        "outlets.jetstream",
        "Publisher.deliver",
        "Publishes the page as CloudEvents. Each message names the one before it, so NATS keeps their order. The "
        "reader moves its cursor after this page, or after several small pages.",
    ),
)

_PAGE: Final = """# Architecture

One picture, and the way of one order: from the message that reports it to the published event.

![The layers of the service, and the eight functions that an order passes](architecture.svg)

## The layers

A layer imports only layers below it; a test checks this. `ledger` holds the rules as functions over values, without a
clock, a database or randomness. `posting` is the one way in: every change of a balance, from every door, goes through
it. `storage` has one engine for SQLite and one for PostgreSQL behind nine methods. `doors` translate requests and
messages into commands. `messages` holds the shapes of events that doors and outlets share. `outlets` deliver events.
`jobs` run by themselves. `gate` answers plugin status from memory.

## The way of an order

NATS delivers `evt.shopify.webhook.order_paid` for order 1001. The order passes these functions:

| | function | what it does |
| --- | --- | --- |
{rows}

A POST takes the same way from the second function on: `doors/http` translates the request into the same command.

## Where to look

| to find | read |
| --- | --- |
| the rule behind a refusal | `ledger/refusals.py` names it, `ledger/decide.py` applies it |
| what a transaction type means | its row in `ledger/types.py` |
| how a read is answered | its subject in `storage/` (accounts, transactions, outbox, keys …) |
| which object calls which | `service.py`, which builds and connects all parts |
| why something is as it is | [decisions](decisions), one page each |
| which law a test proves | [laws](laws.md) |
"""


def page() -> str:
    """Return the text of docs/architecture.md."""
    rows = []
    for number, one in enumerate(STATIONS, 1):
        short = one.path.removeprefix("src/credit_service/")
        rows.append(f"| {number} | `{one.function}` in [`{short}`](../{one.path}) | {one.says} |")
    return _PAGE.format(rows="\n".join(rows))


_LANE, _STEP, _LEFT, _MARGIN = 74, 146, 250, 12
_BOX_WIDTH, _BOX_HEIGHT = 126, 46
_STYLE: Final = """
  text { font: 14px system-ui, sans-serif; fill: #1f2933; } .name { font-weight: 600; }
  .lane { fill: #f1f5f9; } .note { fill: #52606d; font-size: 12px; }
  .station { fill: #fff; stroke: #2f6f4f; stroke-width: 1.5; } .middle { text-anchor: middle; }
  .way { stroke: #2f6f4f; stroke-width: 2; fill: none; marker-end: url(#arrow); }
"""
_PARTS: Final = {
    "doors": "HTTP, JetStream, Shopify",
    "outlets": "JetStream, webhooks, event stream",
    "jobs": "background tasks",
    "gate": "plugin status, from memory",
    "messages": "events and shapes that doors share",
    "posting": "the one way in",
    "storage": "SQLite, PostgreSQL",
    "ledger": "the rules, as functions over values",
}


def layers() -> list[str]:
    """Return the parts of the picture from top to bottom, in the order of the import rules."""
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    ordered = next(rule["layers"] for rule in rules if rule["name"] == "Layers")
    named = [name.strip(" ()") for layer in ordered for name in layer.split("|")]
    assert set(_PARTS) <= set(named), "the picture names a missing part"
    return [name for name in named if name in _PARTS]


def picture() -> str:
    """Return the text of docs/architecture.svg: one lane for each layer, and the functions in their order."""
    lanes = {name: _MARGIN + index * _LANE for index, name in enumerate(layers())}
    width = _LEFT + len(STATIONS) * _STEP + _MARGIN
    height = len(lanes) * _LANE + 2 * _MARGIN
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">',
        "<title>The layers of the service, and the functions that one order passes</title>",
        f"<style>{_STYLE}</style>",
        '<marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#2f6f4f"/></marker>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for name, top in lanes.items():
        drawn += [
            f'<rect class="lane" x="{_MARGIN}" y="{top + 3}" width="{width - 2 * _MARGIN}" height="{_LANE - 6}"/>',
            f'<text class="name" x="{_MARGIN + 12}" y="{top + 32}">{name}</text>',
            f'<text class="note" x="{_MARGIN + 12}" y="{top + 50}">{escape(_PARTS[name])}</text>',
        ]
    places = [
        (_LEFT + index * _STEP, lanes[one.layer] + (_LANE - _BOX_HEIGHT) // 2) for index, one in enumerate(STATIONS)
    ]
    for (x, y), (next_x, next_y) in pairwise(places):
        start, end, middle = x + _BOX_WIDTH, next_x, y + _BOX_HEIGHT // 2
        if y == next_y:
            drawn.append(f'<path class="way" d="M{start} {middle} H{end}"/>')
        else:
            into = next_y if next_y > y else next_y + _BOX_HEIGHT
            drawn.append(f'<path class="way" d="M{start} {middle} H{next_x + _BOX_WIDTH // 2} V{into}"/>')
    for number, (station, (x, y)) in enumerate(zip(STATIONS, places, strict=True), 1):
        centre, name = x + _BOX_WIDTH // 2, station.function.rpartition(".")[2]
        drawn += [
            f'<rect class="station" x="{x}" y="{y}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="6"/>',
            f'<text class="name middle" x="{centre}" y="{y + 20}">{number} {name}</text>',
            f'<text class="note middle" x="{centre}" y="{y + 37}">{escape(Path(station.path).name)}</text>',
        ]
    return "\n".join([*drawn, "</svg>", ""])
