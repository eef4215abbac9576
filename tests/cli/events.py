"""Events as a platform writes them, one on a line."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

MERCHANT = "6f1c2a54-8d0e-4c0b-9c55-0c7a8c1f2b11"
OTHER = "0b54d4c9-4b2f-4b38-8a3e-2f1a7f0d9e55"


def event(type_: str, data: Mapping[str, Any], **attributes: Any) -> str:
    """A CloudEvent as one line of JSON."""
    made = {"specversion": "1.0", "id": "e1", "source": "shop", "type": type_, "data": data}
    return json.dumps(made | attributes)


def paid(order_id: Any, merchant_id: str = MERCHANT, total: Any = "10.00", **more: Any) -> str:
    """An order was paid."""
    data = {"merchant_id": str(merchant_id), "order_id": order_id, "total": total} | more
    return event("evt.shopify.webhook.order_paid", data, id=f"paid {order_id}")


def refunded(refund_id: Any, merchant_id: str = MERCHANT, **more: Any) -> str:
    """An order was refunded."""
    data = {"merchant_id": str(merchant_id), "refund_id": refund_id} | more
    return event("evt.shopify.webhook.order_refunded", data, id=f"refunded {refund_id}")


def payment(payment_id: Any, credits: int, merchant_id: str = MERCHANT) -> str:
    """The merchant bought credits."""
    data = {"merchant_id": str(merchant_id), "payment_id": payment_id, "credits": credits}
    return event("evt.billing.payment_succeeded", data)


def lines(*events: str) -> bytes:
    """A file of events."""
    return "".join(f"{event}\n" for event in events).encode()


def stream(*rows: str, header: str = "invoice,customer_id,country,timestamp,total,items,kind") -> bytes:
    """A file of an order stream."""
    return "".join(f"{row}\n" for row in (header, *rows)).encode()


def order(invoice: str, customer: str = "17850", total: str = "10.00") -> str:
    """A row of an order."""
    return f"{invoice},{customer},United Kingdom,2010-12-01T08:26:00Z,{total},3,paid"


def refund(invoice: str, customer: str = "17850", total: str = "10.00") -> str:
    """A row of a refund."""
    return f"{invoice},{customer},United Kingdom,2010-12-02T08:26:00Z,{total},3,refund"


def links(*rows: Sequence[str]) -> bytes:
    """A file that names the orders of refunds: (refund, order, order total)."""
    header = "refund_invoice,order_invoice,refund_total,order_total,order_refunded_so_far"
    told = [f"{refund},{order},0.00,{total},0.00" for refund, order, total in rows]
    return "".join(f"{row}\n" for row in (header, *told)).encode()
