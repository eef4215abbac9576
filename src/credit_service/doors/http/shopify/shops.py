"""The merchant of a Shopify shop: link, read and unlink it."""

from contextlib import suppress
from typing import Annotated

from fastapi import Path
from pydantic import BaseModel, Field

from credit_service.doors.http import api
from credit_service.doors.shopify_inbox import Inbox
from credit_service.messages import patterns, shapes
from credit_service.messages.fields import Body, MerchantId, merchant_text
from credit_service.posting import DeadlineExceeded, Overloaded
from credit_service.storage.engine import StorageError
from credit_service.storage.shops import Shops

SHOP = api.PREFIX + "/credits/shops/{shop_domain}"
MISSING = ("shop_not_found",)
_DOMAIN = "example.myshopify.com"
ShopDomain = Annotated[
    str, Path(pattern=patterns.SHOP, description="The domain that Shopify gave the shop.", examples=[_DOMAIN])
]


class ShopBody(Body):
    """The merchant of the shop."""

    merchant_id: MerchantId


class DataRequestShape(BaseModel):
    """A customer's request for their data: Shopify's id of it, and the orders that it is about."""

    id: Annotated[str | None, Field(examples=["9999"])]
    orders: Annotated[list[str], Field(examples=[["299938"]])]
    received_at: api.Instant


class ShopShape(BaseModel):
    """A shop and its merchant."""

    shop_domain: Annotated[str, Field(examples=[_DOMAIN])]
    merchant_id: api.MerchantText
    linked_at: api.Instant
    uninstalled_at: Annotated[api.Instant | None, api.Unset]
    data_requests: list[DataRequestShape]


@api.endpoint("PUT", SHOP, scope="admin", tag="shopify", answers=api.one(ShopShape))
async def link_shop(
    shop_domain: ShopDomain,
    body: Annotated[ShopBody, api.examples(link={"merchant_id": api.MERCHANT})],
    call: api.Call,
    shops: Shops,
    inbox: Inbox,
) -> api.Answer:
    """Link a Shopify shop to a merchant, instead of the one before. Deliveries of the shop that waited are applied."""
    domain, merchant_id = shop_domain.lower(), merchant_text(body.merchant_id)
    found = await shops.get(domain)
    linked = None if found is None else (found.merchant_id, found.unlinked_at, found.uninstalled_at)
    if linked != (merchant_id, None, None):
        await shops.link(domain, merchant_id, await shops.now())
    with suppress(StorageError, Overloaded, DeadlineExceeded):  # the shop is linked, and the next round catches up
        await inbox.catch_up()
    return await _answer(domain, call, shops, inbox)


@api.endpoint("GET", SHOP, scope="admin", tag="shopify", answers=api.one(ShopShape), problems=MISSING)
async def get_shop(shop_domain: ShopDomain, call: api.Call, shops: Shops, inbox: Inbox) -> api.Answer:
    """Look up the merchant of a Shopify shop, and its customers' requests for their data."""
    return await _answer(shop_domain.lower(), call, shops, inbox)


@api.endpoint("DELETE", SHOP, scope="admin", tag="shopify", answers=api.one(ShopShape), problems=MISSING)
async def unlink_shop(shop_domain: ShopDomain, call: api.Call, shops: Shops, inbox: Inbox) -> api.Answer:
    """Unlink a Shopify shop. Its merchant keeps account and credits. Later deliveries wait for a new link."""
    domain = shop_domain.lower()
    shown = await _answer(domain, call, shops, inbox)
    await shops.unlink(domain, await shops.now())
    return shown


async def _answer(domain: str, call: api.Call, shops: Shops, inbox: Inbox) -> api.Answer:
    found = await shops.get(domain)
    if found is None or found.unlinked_at is not None:
        raise api.Problem("shop_not_found", "No merchant is linked to this shop.")
    asked = [shapes.data_request(*one) for one in await inbox.data_requests(domain)]
    return api.answer(call, await shops.now(), {**shapes.shop(found), "data_requests": asked})
