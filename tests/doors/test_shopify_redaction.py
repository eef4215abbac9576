"""What is erased from dead letters, by whatever door their events came."""

import json
from typing import Any
from uuid import UUID

import pytest

from credit_service.doors.shopify_redaction import redacted
from credit_service.storage.erasing import without as without_metadata
from credit_service.storage.letters import Letter
from tests.ledger.telling import MERCHANT, T0
from tests.storage.values import FULL_REFUND, PAYMENT_REFUND

SHOP = "example.myshopify.com"
ORDERS = frozenset({"1", "9007199254740993"})
METADATA = {"metadata": {"email": "ada@example.com"}}


def letter(original: Any, code: str = "currency_mismatch", subject: str = "evt.x") -> Letter:
    text = original if isinstance(original, bytes) else json.dumps(original).encode()
    return Letter(1, code, "r", T0, None, subject, text)


def event(**data: Any) -> dict[str, Any]:
    return {"specversion": "1.0", "type": "evt.x", "data": {"merchant_id": str(MERCHANT), **data}}


def left(one: Letter, orders: frozenset[str] | None = ORDERS, merchant_id: UUID = MERCHANT) -> Any:
    """What is left of a letter as JSON, None where nothing had to be erased."""
    found = redacted(one, SHOP, merchant_id, orders)
    if found is None:
        return None
    assert found._replace(original=one.original, fact=one.fact) == one
    return json.loads(found.original) if found.original else b""


@pytest.mark.parametrize("order_id", ["1", 1, 9007199254740993])
def test_the_metadata_of_a_redacted_order_is_erased(order_id: Any) -> None:
    assert left(letter(event(order_id=order_id, total="5", **METADATA))) == event(order_id=order_id, total="5")


def test_the_metadata_of_one_of_several_orders_is_erased_with_all_of_its_event() -> None:
    items = [{"order_id": 1, **METADATA}, {"order_id": 2, **METADATA}, "nonsense"]
    assert left(letter(event(order_items=items))) == event(order_items=[{"order_id": 1}, {"order_id": 2}, "nonsense"])


def test_the_older_envelope_is_understood() -> None:
    older = {"event_type": "evt.x", "payload": {"merchant_id": str(MERCHANT), "order_id": 1}}
    told = {**older, "payload": {**older["payload"], **METADATA}}  # type: ignore[dict-item]
    assert left(letter(told)) == older


@pytest.mark.parametrize(
    "original",
    [
        event(order_id=1),  # without metadata
        event(order_id=2, **METADATA),
        event(payment_id=1, **METADATA),
        {"data": {"order_id": 1, **METADATA}},
        {"data": {"merchant_id": str(UUID(int=5)), "order_id": 1, **METADATA}},
        {"data": 5},
        {"shop": SHOP, "topic": "orders/paid", "body": {"id": 1}},
        {"shop": "other.myshopify.com", "topic": "orders/paid", "raw": "ada@example.com"},
        [],
        b"{",
        b"\xff",
        b"",
    ],
)
def test_what_is_of_others_or_not_personal_is_left_alone(original: Any) -> None:
    assert left(letter(original)) is None


def test_of_a_redacted_shop_all_metadata_is_erased() -> None:
    assert left(letter(event(payment_id=1, **METADATA)), None) == event(payment_id=1)
    assert left(letter(event(payment_id=1)), None) is None
    assert left(letter(event(payment_id=1, **METADATA)), None, UUID(int=5)) is None


def test_a_malformed_event_may_say_anything_so_nothing_of_it_is_kept() -> None:
    malformed = event(order_id=1, mail="ada@example.com")
    assert left(letter(malformed, "validation_failed")) == b""
    assert left(letter(event(order_id=2, mail="ada@example.com"), "validation_failed")) is None
    twice = json.dumps(malformed).encode().replace(b'"order_id": 1', b'"order_id": 1, "mail": "x"')
    assert left(letter(twice, "validation_failed")) == b""


@pytest.mark.parametrize("orders", [ORDERS, None])
def test_of_a_delivery_that_could_not_be_read_nothing_is_kept(orders: frozenset[str] | None) -> None:
    told = {"shop": SHOP, "topic": "orders/paid", "raw": "ada@example.com"}
    assert left(letter(told, "validation_failed"), orders) == {"shop": SHOP, "topic": "orders/paid"}


def test_a_refund_that_the_ledger_put_aside_loses_its_metadata() -> None:
    whole = Letter(1, "order_unknown", "r", T0, FULL_REFUND)
    assert redacted(whole, SHOP, MERCHANT, ORDERS) == whole._replace(fact=without_metadata(FULL_REFUND))
    assert redacted(whole, SHOP, MERCHANT, frozenset({"2"})) is None
    assert redacted(whole, SHOP, UUID(int=5), None) is None
    assert redacted(whole._replace(fact=PAYMENT_REFUND), SHOP, MERCHANT, None) is None
    assert redacted(whole._replace(fact=without_metadata(FULL_REFUND)), SHOP, MERCHANT, None) is None
