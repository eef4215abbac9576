"""The orders and refunds of a real web shop, and what they must come to: computed here with nothing of the service."""

import csv
import gzip
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import cache
from math import floor
from pathlib import Path
from typing import NamedTuple
from uuid import NAMESPACE_URL, UUID, uuid5

import pytest

ROOT = Path(__file__).parent.parent.parent
DATA = ROOT.parent / "shared" / "data"
ORDERS = DATA / "online_retail_orders.csv.gz"
LINKS = DATA / "online_retail_refund_links.csv.gz"
EXAMPLES = ROOT / "examples"

needs_data = pytest.mark.skipif(
    not ORDERS.exists() and os.environ.get("CI") != "true",  # there its want is a failure
    reason=f"The order stream is not here: put {ORDERS.name} and {LINKS.name} into {DATA}.",
)


class Row(NamedTuple):
    """An order or a refund."""

    invoice: str
    customer_id: str
    country: str
    timestamp: str
    total: str
    items: str
    kind: str


class Link(NamedTuple):
    """The order that a refund belongs to."""

    refund_invoice: str
    order_invoice: str
    refund_total: str
    order_total: str
    order_refunded_so_far: str


class Price(NamedTuple):
    """What orders cost: the settings that say so, and the same in plain arithmetic."""

    fixed: int
    percent: int

    @property
    def settings(self) -> dict[str, str]:
        """The settings of the service."""
        return {"ORDER_CREDIT_FIXED_AMOUNT": str(self.fixed), "ORDER_CREDIT_PERCENTAGE": str(self.percent)}

    def of(self, total: str) -> int:
        """The price of an order, rounded half up."""
        exact = max(Fraction(self.fixed), Fraction(self.percent, 100) * Fraction(total))
        return floor(exact + Fraction(1, 2))


FIXED = Price(fixed=1, percent=0)
PENNIES = Price(fixed=0, percent=10_000)


def open_text(path: Path) -> str:
    """A file's text, gzipped or not."""
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode()


@cache
def rows(path: Path = ORDERS) -> Sequence[Row]:
    """All rows of an order stream."""
    return [Row(*row) for row in list(csv.reader(open_text(path).splitlines()))[1:]]


@cache
def links(path: Path = LINKS) -> Mapping[str, Link]:
    """The links of refunds to orders, by the refund."""
    return {row[0]: Link(*row) for row in list(csv.reader(open_text(path).splitlines()))[1:]}


def merchant(customer_id: str) -> UUID:
    """The merchant that a customer becomes."""
    return uuid5(NAMESPACE_URL, f"customer:{customer_id}")


def expected_balances(stream: Sequence[Row], linked: Mapping[str, Link], price: Price) -> dict[UUID, int]:
    """Every merchant's balance: less what the orders cost, plus what the refunds give back.

    A linked refund gives back its share of what its order cost: of all money refunded of an order so far, never more
    than its total, rounded down. Over all refunds of an order that is the share of their sum. An unlinked refund gives
    back what an order of its total would cost.
    """
    found: dict[UUID, int] = defaultdict(int)
    orders = {row.invoice: row for row in stream if row.kind == "paid"}
    refunded: dict[str, Fraction] = defaultdict(Fraction)
    for row in stream:
        if row.kind == "paid":
            found[merchant(row.customer_id)] -= price.of(row.total)
        elif row.invoice in linked:
            refunded[linked[row.invoice].order_invoice] += Fraction(row.total)
        else:
            found[merchant(row.customer_id)] += price.of(row.total)
    for invoice, money in refunded.items():
        order = orders[invoice]
        total = Fraction(order.total)
        share = min(money / total, Fraction(1)) if total else Fraction(1)
        found[merchant(order.customer_id)] += floor(price.of(order.total) * share)
    return dict(found)
