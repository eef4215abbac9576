"""Shopify's deliveries, read: whether Shopify signed them, whose they are, and what they mean. Pure functions.

Only the body of a delivery is signed. So its topic, which stands in a header, only says how to read the body, and a
shop that the body names counts before the one in a header. Of a body nothing goes any further than the fields declared
here: no name, address or mail of a customer gets into the ledger, nor into what is kept until it can be applied.
"""

import hmac
import json
import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from hashlib import sha256
from typing import Annotated, Any, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from credit_service.ledger.account import MICROSECONDS
from credit_service.messages import patterns, strict_json
from credit_service.messages.faults import Fault, Invalid, of_validation
from credit_service.messages.fields import Currency, Id, Money, Time, format_time, id_text, parse_time

_SHOP = re.compile(patterns.SHOP.removesuffix("$"))
_ORDER_PAGE = re.compile(r"https://([^/]+)/([0-9]{1,20})/orders/")
_PAID: Final = {"paid", "partially_refunded", "refunded"}
_PERIODS: Final = {"every_30_days": 30, "annual": 365}
"""Days in a period, by the interval of a subscription."""


_Gid = Annotated[str, Field(pattern="^gid://shopify/[A-Za-z]{1,64}/[0-9]{1,20}$")]
"""One of Shopify's global ids, which end with the number that the thing has among its like."""


class Fact(NamedTuple):
    """A delivery means this inbound event; its data lacks the merchant."""

    type: str
    data: Mapping[str, Any]
    occurred_at: int | None


class Uninstalled(NamedTuple):
    """The shop uninstalled the app."""


class DataRequest(NamedTuple):
    """A customer of the shop asks what is known of him."""

    request_id: str | None
    orders: Sequence[str]


class Redaction(NamedTuple):
    """Personal data of these orders is to be erased; of all, where `orders` is None."""

    orders: Sequence[str] | None


class Ignored(NamedTuple):
    """A delivery means nothing to a ledger of credits."""

    reason: str


Meaning = Fact | Uninstalled | DataRequest | Redaction | Ignored


class Delivery(NamedTuple):
    """A delivery as read: its meaning, what of its body is kept should it have to wait, and the shop that signed it."""

    meaning: Meaning
    kept: str = ""
    shop: str | None = None  # its domain, where the body names it
    shop_id: str | None = None  # Shopify's own number of it, where the body names it


class Credits(NamedTuple):
    """What is bought on Shopify gives these: a period of a plan by its handle or name, a purchase by its name."""

    plans: Mapping[str, int] = {}
    purchases: Mapping[str, int] = {}


def is_signed(body: bytes, signatures: Sequence[bytes], secrets: Sequence[str]) -> bool:
    """Whether a body was signed with one of the secrets; there must be just one signature (X-Shopify-Hmac-Sha256)."""
    if len(signatures) != 1:
        return False
    ours = [b64encode(hmac.digest(secret.encode(), body, sha256)) for secret in secrets]
    # All of them are compared, so that the time it takes does not tell which one it was.
    return sum(hmac.compare_digest(signatures[0], one) for one in ours) > 0


def shop_domain(text: str | None) -> str | None:
    """The domain that Shopify gave a shop, in lower case; None where the text is none."""
    return text.lower() if text is not None and _SHOP.fullmatch(text) else None


def read(topic: str, body: bytes, credits: Credits, max_depth: int) -> Delivery:
    """What a signed body means that came as this topic. Raises Invalid for one that cannot be of it."""
    kind = TOPICS.get(topic)
    if kind is None:
        return Delivery(Ignored("No use is made of this topic."))
    try:
        value = strict_json.parse(body, max_depth)
    except strict_json.Suspect as suspect:
        value = suspect.value  # what is wrong with it is none of ours, or found again below
    model, meaning = kind
    try:
        sent = model.model_validate(value)
    except ValidationError as error:
        raise Invalid(of_validation(error)) from None
    kept = sent.model_dump(exclude_none=True, exclude={"order_status_url"})  # whose page tells the customer's address
    return Delivery(meaning(sent, credits), json.dumps(kept, default=str), *sent.shop())


# ---- what of each body is read


class _Sent(BaseModel):
    """A body, or a part of one: what is not declared is left where it came from."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, hide_input_in_errors=True)

    def shop(self) -> tuple[str | None, str | None]:
        """The shop that the body names: its domain, and its number."""
        return None, None


class _Order(_Sent):
    id: Id
    total_price: Money
    currency: Currency
    financial_status: str | None = None
    test: bool | None = None
    processed_at: Time | None = None
    order_status_url: str | None = None

    def shop(self) -> tuple[str | None, str | None]:
        found = _ORDER_PAGE.match(self.order_status_url or "")
        return (shop_domain(found[1]), found[2]) if found else (None, None)


class _MoneyMoved(_Sent):
    kind: str
    status: str
    amount: Money
    currency: Currency | None = None
    test: bool | None = None


class _Refund(_Sent):
    id: Id
    order_id: Id
    created_at: Time | None = None
    transactions: list[_MoneyMoved]


class _Bought(_Sent):
    name: str
    status: str
    admin_graphql_api_shop_id: _Gid | None = None
    updated_at: Time

    def shop(self) -> tuple[str | None, str | None]:
        return None, _number(self.admin_graphql_api_shop_id)


class _Subscription(_Bought):
    admin_graphql_api_id: _Gid
    created_at: Time
    interval: str | None = None
    plan_handle: str | None = None


class _Purchase(_Bought):
    admin_graphql_api_id: _Gid


class _SubscriptionUpdate(_Sent):
    app_subscription: _Subscription

    def shop(self) -> tuple[str | None, str | None]:
        return self.app_subscription.shop()


class _PurchaseUpdate(_Sent):
    app_purchase_one_time: _Purchase

    def shop(self) -> tuple[str | None, str | None]:
        return self.app_purchase_one_time.shop()


class _Shop(_Sent):
    id: Id
    myshopify_domain: str

    def shop(self) -> tuple[str | None, str | None]:
        return shop_domain(self.myshopify_domain), id_text(self.id)


class _Privacy(_Sent):
    shop_id: Id
    shop_domain: str

    def shop(self) -> tuple[str | None, str | None]:
        return shop_domain(self.shop_domain), id_text(self.shop_id)


class _Request(_Sent):
    id: Id


class _CustomersDataRequest(_Privacy):
    orders_requested: list[Id]
    data_request: _Request | None = None


class _CustomersRedact(_Privacy):
    orders_to_redact: list[Id]


class _ShopRedact(_Privacy):
    # A request of one customer, sent on under this topic, must not erase everything.
    customer: None = None
    orders_to_redact: None = None
    orders_requested: None = None


# ---- what it means


def _order_paid(order: _Order, credits: Credits) -> Meaning:
    if order.test:
        return Ignored("A test order costs nothing.")
    if order.financial_status is not None and order.financial_status not in _PAID:
        raise Invalid([Fault("/financial_status", "not_allowed", "The order is not paid.")])
    data = {"order_id": order.id, "total": order.total_price, "currency": order.currency}
    return Fact("evt.shopify.webhook.order_paid", data, _time(order.processed_at))


def _refund_created(refund: _Refund, credits: Credits) -> Meaning:
    moved = [one for one in refund.transactions if (one.kind, one.status) == ("refund", "success")]
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
    return Fact("evt.shopify.webhook.order_refunded", data, _time(refund.created_at))


def _subscription_updated(update: _SubscriptionUpdate, credits: Credits) -> Meaning:
    bought = update.app_subscription
    if bought.status.upper() != "ACTIVE":
        return Ignored("Only an active subscription gives credits.")
    given = credits.plans.get(bought.plan_handle or "", credits.plans.get(bought.name))
    if given is None:
        raise Invalid([Fault("/app_subscription/name", "not_allowed", "SHOPIFY_PLAN_CREDITS does not name this plan.")])
    data = {
        "subscription_id": _number(bought.admin_graphql_api_id),
        "period": _period(bought),
        "credits": given,
    }
    return Fact("evt.billing.subscription_renewed", data, parse_time(bought.updated_at))


def _period(bought: _Subscription) -> str:
    """The period of a subscription that was running at the update, named by its first day in UTC (L11).

    Shopify does not say it, so it is counted from the day when the subscription was made.
    """
    days = _PERIODS.get((bought.interval or "").lower())
    if days is None:
        fault = f"The interval is none of {', '.join(_PERIODS)}."
        raise Invalid([Fault("/app_subscription/interval", "not_allowed", fault)])
    begun, length = parse_time(bought.created_at), days * 86_400 * MICROSECONDS
    passed = max(0, parse_time(bought.updated_at) - begun) // length
    return format_time(begun + passed * length)[:10]


def _purchase_updated(update: _PurchaseUpdate, credits: Credits) -> Meaning:
    bought = update.app_purchase_one_time
    if bought.status.upper() != "ACTIVE":
        return Ignored("Only an active purchase gives credits.")
    given = credits.purchases.get(bought.name)
    if given is None:
        fault = "SHOPIFY_PURCHASE_CREDITS does not name this purchase."
        raise Invalid([Fault("/app_purchase_one_time/name", "not_allowed", fault)])
    data = {"payment_id": _number(bought.admin_graphql_api_id), "credits": given}
    return Fact("evt.billing.payment_succeeded", data, parse_time(bought.updated_at))


def _uninstalled(shop: _Shop, credits: Credits) -> Meaning:
    return Uninstalled()


def _data_requested(request: _CustomersDataRequest, credits: Credits) -> Meaning:
    named = None if request.data_request is None else id_text(request.data_request.id)
    return DataRequest(named, tuple(map(id_text, request.orders_requested)))


def _customer_redacted(request: _CustomersRedact, credits: Credits) -> Meaning:
    return Redaction(tuple(map(id_text, request.orders_to_redact)))


def _shop_redacted(request: _ShopRedact, credits: Credits) -> Meaning:
    return Redaction(None)


def _number(gid: str | None) -> str | None:
    """The number at the end of one of Shopify's global ids."""
    return None if gid is None else gid.rpartition("/")[2]


def _time(text: str | None) -> int | None:
    return None if text is None else parse_time(text)


TOPICS: Final[Mapping[str, tuple[type[_Sent], Callable[[Any, Credits], Meaning]]]] = {
    "orders/paid": (_Order, _order_paid),
    "refunds/create": (_Refund, _refund_created),
    "app_subscriptions/update": (_SubscriptionUpdate, _subscription_updated),
    "app_purchases_one_time/update": (_PurchaseUpdate, _purchase_updated),
    "app/uninstalled": (_Shop, _uninstalled),
    "customers/data_request": (_CustomersDataRequest, _data_requested),
    "customers/redact": (_CustomersRedact, _customer_redacted),
    "shop/redact": (_ShopRedact, _shop_redacted),
}
"""The topics of which use is made."""
