"""Publish the orders and refunds of a real web shop over a real NATS, and compare the balances with plain arithmetic.

By default the test publishes a part of the rows. ORDER_STREAM_ROWS=17750 publishes all of them.
"""

import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.order_stream import PENNIES, Row, expected_balances, links, merchant, needs_data, rows
from tests.doors.running import Running
from tests.doors.streaming import Message, Peer, event, letters
from tests.storage import engines
from tests.storage.engines import Ledgers

ROWS = int(os.environ.get("ORDER_STREAM_ROWS", "2500"))
PAID, REFUNDED = "evt.shopify.webhook.order_paid", "evt.shopify.webhook.order_refunded"


def message(row: Row) -> Message:
    """Return the message of a shop for an order or a refund."""
    data: dict[str, object] = {"merchant_id": str(merchant(row.customer_id))}
    if row.kind == "paid":
        return PAID, event(PAID, {**data, "order_id": row.invoice, "total": row.total, "currency": "GBP"})
    data["refund_id"] = row.invoice
    if (link := links().get(row.invoice)) is None:
        return REFUNDED, event(REFUNDED, {**data, "credits": PENNIES.of(row.total)})
    money = {"order_id": link.order_invoice, "refund_amount": row.total, "order_total": link.order_total}
    return REFUNDED, event(REFUNDED, {**data, **money, "currency": "GBP"})


def in_order(stream: Sequence[Row]) -> list[Message]:
    """Return the messages in their original order."""
    return list(map(message, stream))


def twice(stream: Sequence[Row]) -> list[Message]:
    """Return all messages, and then all of them again."""
    return in_order(stream) * 2


def shuffled(stream: Sequence[Row]) -> list[Message]:
    """Return the messages in random order, with all refunds first."""
    seed = random.randrange(2**32)
    print(f"shuffled by {seed}")
    messages = in_order(stream)
    random.Random(seed).shuffle(messages)
    return sorted(messages, key=lambda one: one[0] != REFUNDED)


@pytest.fixture
def running(ledgers: Ledgers, tmp_path: Path, nats_url: str) -> Iterator[Running]:
    """Run a service with NATS and a price of one credit per penny."""
    prices: dict[str, Any] = {"order_credit_fixed_amount": PENNIES.fixed, "order_credit_percentage": PENNIES.percent}
    with (
        ledgers.new(tmp_path) as url,
        Running(database_url=url, nats_url=nats_url, sweep_seconds=3600, **prices) as service,
    ):
        yield service


@needs_data
@pytest.mark.parametrize("way", [in_order, twice, shuffled], ids=lambda way: way.__name__)
def test_nats_stream_gives_expected_balances_and_one_transaction_per_invoice(
    running: Running, nats_url: str, way: object
) -> None:
    stream = rows()[:ROWS]
    assert callable(way)
    with Peer(nats_url) as peer:
        peer.send(*way(stream))
        peer.settle()
    url = running.settings.database_url.get_secret_value()
    found = engines.rows(url, "SELECT merchant_id, balance FROM accounts")
    assert dict(found) == expected_balances(stream, links(), PENNIES)
    keys = Counter(key.rpartition(":")[2] for (key,) in engines.rows(url, "SELECT key FROM transactions"))
    assert keys == Counter(row.invoice for row in stream)
    assert engines.rows(url, "SELECT * FROM parked") == []
    assert letters(running) == []
