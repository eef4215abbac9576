"""Bodies as Shopify sends them: the fields that are read, and personal data in each."""

from typing import Any

SHOP = "example.myshopify.com"
PERSONAL = "ada@example.com"
CUSTOMER = {"id": 191167, "email": PERSONAL, "phone": "555-625-1199"}


def order(order_id: Any = 1001, **more: Any) -> dict[str, Any]:
    """A paid order of 100 GBP."""
    body = {
        "id": order_id,
        "total_price": "100.00",
        "currency": "GBP",
        "financial_status": "paid",
        "test": False,
        "processed_at": "2026-11-22T10:45:00-05:00",
        "email": PERSONAL,
        "customer": CUSTOMER,
    }
    return {**body, **more}


def moved(amount: Any, kind: str = "refund", status: str = "success", **more: Any) -> dict[str, Any]:
    """A movement of money."""
    known = {"kind": kind, "status": status, "amount": amount, "currency": "GBP", "test": False}
    return {**known, "receipt": {"payer": PERSONAL}, **more}


def refund(refund_id: int | str, order_id: int | str, *moves: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A refund. Its lines have another amount than its transactions."""
    body = {"id": refund_id, "order_id": order_id, "created_at": "2026-11-23T10:45:00Z", "note": PERSONAL}
    return {**body, "refund_line_items": [{"subtotal": 77.7}], "transactions": list(moves), **more}


def subscription(**more: Any) -> dict[str, Any]:
    """An active subscription in its first period."""
    body = {
        "admin_graphql_api_id": "gid://shopify/AppSubscription/1029266977",
        "name": "Pro",
        "status": "ACTIVE",
        "admin_graphql_api_shop_id": "gid://shopify/Shop/548380009",
        "created_at": "2026-01-01T12:00:00Z",
        "updated_at": "2026-01-01T12:00:05Z",
        "currency": "USD",
        "price": "10.00",
        "interval": "every_30_days",
        "plan_handle": "pro-plan",
    }
    return {"app_subscription": {**body, **more}}


def purchase(**more: Any) -> dict[str, Any]:
    """A paid purchase."""
    body = {
        "admin_graphql_api_id": "gid://shopify/AppPurchaseOneTime/1017262355",
        "name": "1000 credits",
        "status": "ACTIVE",
        "admin_graphql_api_shop_id": "gid://shopify/Shop/548380009",
        "created_at": "2026-01-01T12:00:00Z",
        "updated_at": "2026-01-01T12:00:05Z",
    }
    return {"app_purchase_one_time": {**body, **more}}


def uninstalled(domain: str = SHOP) -> dict[str, Any]:
    """A shop that uninstalled the app."""
    return {"id": 548380009, "name": "Ada's", "email": PERSONAL, "domain": "ada.example", "myshopify_domain": domain}


def data_request(*orders: int, shop: str = SHOP, request: int = 9999) -> dict[str, Any]:
    """A customer asks for the data that is kept about them."""
    body = {"shop_id": 548380009, "shop_domain": shop, "customer": CUSTOMER, "orders_requested": list(orders)}
    return {**body, "data_request": {"id": request}}


def customer_redact(*orders: int, shop: str = SHOP) -> dict[str, Any]:
    """A customer asks for the erasure of personal data."""
    return {"shop_id": 548380009, "shop_domain": shop, "customer": CUSTOMER, "orders_to_redact": list(orders)}


def shop_redact(shop: str = SHOP) -> dict[str, Any]:
    """A shop asks for the erasure of all its data."""
    return {"shop_id": 548380009, "shop_domain": shop}
