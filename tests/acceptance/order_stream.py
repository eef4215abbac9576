"""The orders and refunds of a real web shop, and the expected balances, computed without the service's code."""

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
from uuid import NAMESPACE_URL, uuid5

import pytest

ROOT = Path(__file__).parent.parent.parent
DATA = ROOT.parent / "shared" / "data"
ORDERS = DATA / "online_retail_orders.csv.gz"
LINKS = DATA / "online_retail_refund_links.csv.gz"
EXAMPLES = ROOT / "examples"

needs_data = pytest.mark.skipif(
    not ORDERS.exists() and os.environ.get("CI") != "true",  # in CI missing data is a failure
    reason=f"The order stream is missing: put {ORDERS.name} and {LINKS.name} into {DATA}.",
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
    """A link from a refund to its order."""

    refund_invoice: str
    order_invoice: str
    refund_total: str
    order_total: str
    order_refunded_so_far: str


class Price(NamedTuple):
    """The price of orders, as settings and as plain arithmetic."""

    fixed: int
    percent: int

    @property
    def settings(self) -> dict[str, str]:
        """Return the price as settings of the service."""
        return {"ORDER_CREDIT_FIXED_AMOUNT": str(self.fixed), "ORDER_CREDIT_PERCENTAGE": str(self.percent)}

    def of(self, total: str) -> int:
        """Return the price of an order, rounded half up."""
        exact = max(Fraction(self.fixed), Fraction(self.percent, 100) * Fraction(total))
        return floor(exact + Fraction(1, 2))


FIXED = Price(fixed=1, percent=0)
PENNIES = Price(fixed=0, percent=10_000)


def open_text(path: Path) -> str:
    """Return the text of a file, plain or gzipped."""
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode()


@cache
def rows(path: Path = ORDERS) -> Sequence[Row]:
    """Return all rows of an order stream."""
    return [Row(*row) for row in list(csv.reader(open_text(path).splitlines()))[1:]]


@cache
def links(path: Path = LINKS) -> Mapping[str, Link]:
    """Return the links from refunds to orders, by the invoice of the refund."""
    return {row[0]: Link(*row) for row in list(csv.reader(open_text(path).splitlines()))[1:]}


def merchant(customer_id: str) -> str:
    """Return the merchant that stands for a customer."""
    return str(uuid5(NAMESPACE_URL, f"customer:{customer_id}"))


def expected_balances(stream: Sequence[Row], linked: Mapping[str, Link], price: Price) -> dict[str, int]:
    """Return the balance of every merchant: minus the prices of the orders, plus the credits of the refunds.

    All linked refunds of an order together give back the refunded share of its price, rounded down and at most the
    whole price. An unlinked refund gives back the price of an order with its total.
    """
    found: dict[str, int] = defaultdict(int)
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
