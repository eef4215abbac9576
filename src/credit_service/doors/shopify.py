"""Read Shopify's deliveries: check the signature, and find the shop and the meaning. Pure functions.

Shopify signs only the body. So the topic, which is a header, decides only how the body is read, and the shop that the
body names comes before the one in a header. Only the fields that `shopify_bodies` declares are used: no name, address
or mail of a customer gets into the ledger or into a kept delivery.
"""

import hmac
import json
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from hashlib import sha256
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from credit_service.doors.shopify_bodies import (
    CustomersDataRequest,
    CustomersRedact,
    Order,
    PurchaseUpdate,
    Refund,
    Sent,
    ShopRedact,
    Subscription,
    SubscriptionUpdate,
    UninstalledShop,
)
from credit_service.ledger.account import MICROSECONDS
from credit_service.messages import strict_json
from credit_service.messages.faults import Fault, Invalid, of_validation
from credit_service.messages.fields import format_time, id_text, parse_time

_PAID: Final = {"paid", "partially_refunded", "refunded"}
_PERIODS: Final = {"every_30_days": 30, "annual": 365}
"""Days in a period, by the interval of a subscription."""


class InboundEvent(NamedTuple):
    """A delivery means this inbound event; its data lacks the merchant.

    `purchase`: the global id of the purchase or subscription, which only one merchant can be credited for. `window`:
    the begin and the end of a subscription's billing window.
    """

    type: str
    data: Mapping[str, Any]
    occurred_at: int | None
    purchase: str | None = None
    window: tuple[int, int] | None = None


class Uninstalled(NamedTuple):
    """The shop uninstalled the app."""


class DataRequest(NamedTuple):
    """A customer of the shop asks for the data that is kept about them."""

    request_id: str | None
    orders: Sequence[str]


class Redaction(NamedTuple):
    """Personal data of these orders must be erased; of all orders if `orders` is None."""

    orders: Sequence[str] | None


class Ignored(NamedTuple):
    """The delivery has no effect on the ledger."""

    reason: str


Meaning = InboundEvent | Uninstalled | DataRequest | Redaction | Ignored


class Delivery(NamedTuple):
    """A delivery as read. `kept` is the part of its body that is stored if it must wait."""

    meaning: Meaning
    kept: str = ""
    shop: str | None = None  # the domain of its shop, if the body names it


class Credits(NamedTuple):
    """Credits for a period of a plan, by its handle or name, and for a purchase, by its name."""

    plans: Mapping[str, int] = {}
    purchases: Mapping[str, int] = {}


def is_signed(body: bytes, signatures: Sequence[bytes], secrets: Sequence[str]) -> bool:
    """Whether a body was signed with one of the secrets. There must be exactly one signature."""
    if len(signatures) != 1:
        return False
    ours = [b64encode(hmac.digest(secret.encode(), body, sha256)) for secret in secrets]
    # Compare with every secret, so that the time does not show which one matched.
    return sum(hmac.compare_digest(signatures[0], one) for one in ours) > 0


def read(topic: str, body: bytes, credits: Credits, max_depth: int) -> Delivery:
    """Read a signed body of this topic. Raises Invalid for a body that does not fit the topic."""
    kind = TOPICS.get(topic)
    if kind is None:
        return Delivery(Ignored("This topic is not used."))
    try:
        value = strict_json.parse(body, max_depth)
    except strict_json.Suspect as suspect:
        value = suspect.value  # a fault is in a field that is not used, or the model finds it again
    model, meaning = kind
    try:
        sent = model.model_validate(value)
    except ValidationError as error:
        raise Invalid(of_validation(error)) from None
    kept = sent.model_dump(exclude_none=True, exclude={"order_status_url"})  # its page shows the customer's address
    return Delivery(meaning(sent, credits), json.dumps(kept, default=str), sent.shop())


# ---- the meaning by topic


def _order_paid(order: Order, credits: Credits) -> Meaning:
    if order.test:
        return Ignored("A test order costs nothing.")
    if order.financial_status is not None and order.financial_status not in _PAID:
        raise Invalid([Fault("/financial_status", "not_allowed", "The order is not paid.")])
    data = {"order_id": order.id, "total": order.total_price, "currency": order.currency}
    return InboundEvent("evt.shopify.webhook.order_paid", data, _time(order.processed_at))


def _refund_created(refund: Refund, credits: Credits) -> Meaning:
    refunds = [one for one in refund.transactions if one.kind == "refund"]
    moved = [one for one in refunds if one.status == "success"]
    if any(one.status == "pending" for one in refunds) or (refunds and not moved):
        # Its key stays free, because its money may still move (L8).
        return Ignored("The money of this refund has not been returned.")
    if moved and all(one.test for one in moved):
        return Ignored("A refund of a test order gives nothing back.")
    currencies = {one.currency for one in moved if one.currency is not None}
    if len(currencies) > 1:
        raise Invalid([Fault("/transactions", "not_allowed", "The refund is in several currencies.")])
    amount = sum([Decimal(one.amount) for one in moved], Decimal(0))
    data = {
        "refund_id": refund.id,
        "order_id": refund.order_id,
        "refund_amount": f"{amount:f}",
        "currency": next(iter(currencies), None),
    }
    return InboundEvent("evt.shopify.webhook.order_refunded", data, _time(refund.created_at))


def _subscription_updated(update: SubscriptionUpdate, credits: Credits) -> Meaning:
    bought = update.app_subscription
    if bought.status.upper() != "ACTIVE":
        return Ignored("Only an active subscription gives credits.")
    given = credits.plans.get(bought.plan_handle or "", credits.plans.get(bought.name))
    if given is None:
        raise Invalid([Fault("/app_subscription/name", "not_allowed", "SHOPIFY_PLAN_CREDITS does not name this plan.")])
    gid, window = bought.admin_graphql_api_id, _window(bought)
    # The first day in UTC names the period (L11).
    data = {"subscription_id": id_text(gid), "period": format_time(window[0])[:10], "credits": given}
    return InboundEvent("evt.billing.subscription_renewed", data, parse_time(bought.updated_at), gid, window)


def _window(bought: Subscription) -> tuple[int, int]:
    """The begin and the end of the period of a subscription at the time of the update.

    Shopify does not tell the period, so periods are counted from the creation of the subscription.
    """
    days = _PERIODS.get((bought.interval or "").lower())
    if days is None:
        fault = f"The interval must be one of {', '.join(_PERIODS)}."
        raise Invalid([Fault("/app_subscription/interval", "not_allowed", fault)])
    begun, length = parse_time(bought.created_at), days * 86_400 * MICROSECONDS
    passed = max(0, parse_time(bought.updated_at) - begun) // length
    return begun + passed * length, begun + (passed + 1) * length


def _purchase_updated(update: PurchaseUpdate, credits: Credits) -> Meaning:
    bought = update.app_purchase_one_time
    if bought.status.upper() != "ACTIVE":
        return Ignored("Only an active purchase gives credits.")
    given = credits.purchases.get(bought.name)
    if given is None:
        fault = "SHOPIFY_PURCHASE_CREDITS does not name this purchase."
        raise Invalid([Fault("/app_purchase_one_time/name", "not_allowed", fault)])
    data = {"payment_id": id_text(bought.admin_graphql_api_id), "credits": given}
    return InboundEvent(
        "evt.billing.payment_succeeded", data, parse_time(bought.updated_at), bought.admin_graphql_api_id
    )


def _uninstalled(shop: UninstalledShop, credits: Credits) -> Meaning:
    return Uninstalled()


def _data_requested(request: CustomersDataRequest, credits: Credits) -> Meaning:
    named = None if request.data_request is None else id_text(request.data_request.id)
    return DataRequest(named, tuple(map(id_text, request.orders_requested)))


def _customer_redacted(request: CustomersRedact, credits: Credits) -> Meaning:
    return Redaction(tuple(map(id_text, request.orders_to_redact)))


def _shop_redacted(request: ShopRedact, credits: Credits) -> Meaning:
    return Redaction(None)


def _time(text: str | None) -> int | None:
    return None if text is None else parse_time(text)


TOPICS: Final[Mapping[str, tuple[type[Sent], Callable[[Any, Credits], Meaning]]]] = {
    "orders/paid": (Order, _order_paid),
    "refunds/create": (Refund, _refund_created),
    "app_subscriptions/update": (SubscriptionUpdate, _subscription_updated),
    "app_purchases_one_time/update": (PurchaseUpdate, _purchase_updated),
    "app/uninstalled": (UninstalledShop, _uninstalled),
    "customers/data_request": (CustomersDataRequest, _data_requested),
    "customers/redact": (CustomersRedact, _customer_redacted),
    "shop/redact": (ShopRedact, _shop_redacted),
}
"""The topics of which use is made."""
