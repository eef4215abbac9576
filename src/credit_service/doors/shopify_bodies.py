"""What is read of the bodies of Shopify's deliveries, and nothing else is: the rest stays where it came from."""

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from credit_service.messages import patterns
from credit_service.messages.fields import Currency, Id, Money, Time

_SHOP = re.compile(patterns.SHOP.removesuffix("$"))
_ORDER_PAGE = re.compile(r"https://([^/]+)/[0-9]+/orders/")
_Gid = Annotated[str, Field(pattern="^gid://shopify/[A-Za-z]{1,64}/[0-9]{1,20}$")]
"""One of Shopify's global ids, which end with the number that the thing has among its like."""


def shop_domain(text: str | None) -> str | None:
    """The domain that Shopify gave a shop, in lower case; None where the text is none."""
    return text.lower() if text is not None and _SHOP.fullmatch(text) else None


class Sent(BaseModel):
    """A body, or a part of one: what is not declared is left where it came from."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, hide_input_in_errors=True)

    def shop(self) -> str | None:
        """The domain of the shop that the body names."""
        return None


class Order(Sent):
    """An order; the page that shows it to its customer is at its shop."""

    id: Id
    total_price: Money
    currency: Currency
    financial_status: str | None = None
    test: bool | None = None
    processed_at: Time | None = None
    order_status_url: str | None = None

    def shop(self) -> str | None:
        """See `Sent.shop`."""
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
    """A refund; what it comes to is said by its transactions alone."""

    id: Id
    order_id: Id
    created_at: Time | None = None
    transactions: list[MoneyMoved]


class Bought(Sent):
    """What a merchant buys of the app."""

    name: str
    status: str
    updated_at: Time


class Subscription(Bought):
    """A plan."""

    admin_graphql_api_id: _Gid
    created_at: Time
    interval: str | None = None
    plan_handle: str | None = None


class Purchase(Bought):
    """Something bought once."""

    admin_graphql_api_id: _Gid


class SubscriptionUpdate(Sent):
    """What came of a subscription."""

    app_subscription: Subscription


class PurchaseUpdate(Sent):
    """What came of a purchase."""

    app_purchase_one_time: Purchase


class UninstalledShop(Sent):
    """A shop, as it is told of when it uninstalled the app."""

    myshopify_domain: str

    def shop(self) -> str | None:
        """See `Sent.shop`."""
        return shop_domain(self.myshopify_domain)


class Privacy(Sent):
    """What the law asks of an app."""

    shop_domain: str

    def shop(self) -> str | None:
        """See `Sent.shop`."""
        return shop_domain(self.shop_domain)


class Numbered(Sent):
    """Something of which only the id is read."""

    id: Id


class CustomersDataRequest(Privacy):
    """A customer asks what is known of him."""

    orders_requested: list[Id]
    data_request: Numbered | None = None


class CustomersRedact(Privacy):
    """A customer asks to be forgotten."""

    orders_to_redact: list[Id]


class ShopRedact(Privacy):
    """A shop has left, and is to be forgotten."""

    # A request of one customer, sent on under this topic, must not erase everything.
    customer: None = None
    orders_to_redact: None = None
    orders_requested: None = None
