"""The fields of Shopify's bodies that the service reads. All other fields are dropped."""

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from credit_service.messages import patterns
from credit_service.messages.fields import Currency, Id, Money, Time

_SHOP = re.compile(patterns.SHOP.removesuffix("$"))
_ORDER_PAGE = re.compile(r"https://([^/]+)/[0-9]+/orders/")
_Gid = Annotated[str, Field(pattern="^gid://shopify/[A-Za-z]{1,64}/[0-9]{1,20}$")]
"""A Shopify global id, like gid://shopify/AppSubscription/1: the number is unique within the kind."""


def shop_domain(text: str | None) -> str | None:
    """The myshopify.com domain in lower case; None if the text is not one."""
    return text.lower() if text is not None and _SHOP.fullmatch(text) else None


class Sent(BaseModel):
    """A body, or a part of one. Undeclared fields are dropped."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, hide_input_in_errors=True)

    def shop(self) -> str | None:
        """The domain of the shop, if the body names it."""
        return None


class Order(Sent):
    """An order. The address of its status page names the shop."""

    id: Id
    total_price: Money
    currency: Currency
    financial_status: str | None = None
    test: bool | None = None
    processed_at: Time | None = None
    order_status_url: str | None = None

    def shop(self) -> str | None:
        found = _ORDER_PAGE.match(self.order_status_url or "")
        return shop_domain(found[1]) if found else None


class MoneyMoved(Sent):
    """One movement of money of an order."""

    kind: str
    status: str
    amount: Money
    currency: Currency | None = None
    test: bool | None = None


class Refund(Sent):
    """A refund. Only its transactions say how much money moved."""

    id: Id
    order_id: Id
    created_at: Time | None = None
    transactions: list[MoneyMoved]


class Bought(Sent):
    """A subscription or purchase of the app by a merchant."""

    name: str
    status: str
    updated_at: Time


class Subscription(Bought):
    """A subscription to a plan."""

    admin_graphql_api_id: _Gid
    created_at: Time
    interval: str | None = None
    plan_handle: str | None = None


class Purchase(Bought):
    """A one-time purchase."""

    admin_graphql_api_id: _Gid


class SubscriptionUpdate(Sent):
    """The body of app_subscriptions/update."""

    app_subscription: Subscription


class PurchaseUpdate(Sent):
    """The body of app_purchases_one_time/update."""

    app_purchase_one_time: Purchase


class UninstalledShop(Sent):
    """The body of app/uninstalled: the shop."""

    myshopify_domain: str

    def shop(self) -> str | None:
        return shop_domain(self.myshopify_domain)


class Privacy(Sent):
    """A privacy request, which every app must answer by law."""

    shop_domain: str

    def shop(self) -> str | None:
        return shop_domain(self.shop_domain)


class Numbered(Sent):
    """An object whose id is read, and nothing else."""

    id: Id


class CustomersDataRequest(Privacy):
    """A customer asks for the data that is kept about them."""

    orders_requested: list[Id]
    data_request: Numbered | None = None


class CustomersRedact(Privacy):
    """A customer asks for the erasure of personal data."""

    orders_to_redact: list[Id]


class ShopRedact(Privacy):
    """A shop has uninstalled the app, and its data must be erased."""

    # Refuse the request of one customer that somebody sends again under this topic: it must not erase everything.
    customer: None = None
    orders_to_redact: None = None
    orders_requested: None = None
