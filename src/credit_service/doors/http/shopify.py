"""Shopify's own deliveries, and whose each shop is."""

from contextlib import suppress
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, Field

from credit_service.doors.http.call import Call
from credit_service.doors.http.openapi import QUEUED, examples, problems
from credit_service.doors.http.problems import Problem
from credit_service.doors.http.routes import (
    MERCHANT,
    CallOf,
    Instant,
    MerchantText,
    Meta,
    Parts,
    PartsOf,
    Unsaid,
    answer,
    respond,
    router,
)
from credit_service.doors.shopify import is_signed
from credit_service.doors.shopify_bodies import shop_domain
from credit_service.doors.shopify_inbox import Inbox
from credit_service.messages import patterns, shapes
from credit_service.messages.faults import Fault, Invalid
from credit_service.messages.fields import Body, Uuid, uuid
from credit_service.posting import DeadlineExceeded, Overloaded
from credit_service.storage.engine import StorageError

WEBHOOKS = "/webhooks/shopify"
SHOPS = "/credits/shops/{shop_domain}"
_SIGNATURE = b"x-shopify-hmac-sha256"
_CHALLENGE = {"WWW-Authenticate": 'Shopify-Hmac-Sha256 realm="credit-service"'}
_SHOP = "example.myshopify.com"
ShopDomain = Annotated[
    str, Path(pattern=patterns.SHOP, description="The domain that Shopify gave the shop.", examples=[_SHOP])
]


class DeliveryShape(BaseModel):
    """What became of a delivery; anything but an error means that Shopify need not send it again."""

    outcome: Annotated[
        Literal["posted", "replayed", "parked", "refused", "noted", "ignored"], Field(examples=["posted"])
    ]
    reason: Annotated[str | None, Unsaid] = None
    code: Annotated[str | None, Unsaid] = None


class TakenDelivery(BaseModel):
    """A delivery that was taken."""

    data: DeliveryShape
    meta: Meta


class ShopBody(Body):
    """Whose the shop is."""

    merchant_id: Uuid


class DataRequestShape(BaseModel):
    """A customer's request for what is known of him: Shopify's id of it, and the orders it is about."""

    id: Annotated[str | None, Field(examples=["9999"])]
    orders: Annotated[list[str], Field(examples=[["299938"]])]
    received_at: Instant


class ShopShape(BaseModel):
    """A shop and its merchant."""

    shop_domain: Annotated[str, Field(examples=[_SHOP])]
    merchant_id: MerchantText
    linked_at: Instant
    uninstalled_at: Annotated[Instant | None, Unsaid]
    data_requests: list[DataRequestShape]


class OneShop(BaseModel):
    """A shop."""

    data: ShopShape
    meta: Meta


def inbox(parts: Parts) -> Inbox:
    """Who takes the deliveries."""
    return parts.inbox


# ---- deliveries

signed = router(None, raw=True)
_ORDER = {"id": 5324830114101, "total_price": "149.90", "currency": "GBP", "financial_status": "paid"}


def _header(name: str, what: str, example: str, **schema: str) -> dict[str, Any]:
    described = {"type": "string", **schema, "examples": [example]}
    return {"name": name, "in": "header", "required": True, "description": what, "schema": described}


_HMAC = "hMTq0K2x7oyOjoBwGYeTj5oxfnaVYXzbanUG9aajpKI="
# Said here and not by parameters: whatever else is wrong with it, of what is not signed nothing more is told.
_DELIVERED = {
    "parameters": [
        _header("X-Shopify-Hmac-Sha256", "HMAC-SHA256 of the body, in base64.", _HMAC),
        _header("X-Shopify-Topic", "How to read the body.", "orders/paid"),
        _header("X-Shopify-Shop-Domain", "The shop, should the body not name it.", _SHOP, pattern=patterns.SHOP),
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object", "description": "What Shopify signed, byte for byte."},
                "examples": {"order_paid": {"summary": "An order was paid", "value": _ORDER}},
            }
        },
    },
}


@signed.post(
    WEBHOOKS,
    operation_id="take_shopify_delivery",
    response_model=TakenDelivery,
    openapi_extra=_DELIVERED,
    tags=["shopify"],
    responses=problems("unauthenticated", "not_found", "validation_failed", "storage_unavailable", *QUEUED),
)
async def take_shopify_delivery(call: CallOf, parts: PartsOf) -> Response:
    """Take a delivery that Shopify signed; it is posted, kept or put aside before it is answered 200."""
    _check_signature(call, parts)
    topic, shop = _said(call, b"x-shopify-topic"), _said(call, b"x-shopify-shop-domain")
    if topic is None:
        raise Invalid([Fault("/header/X-Shopify-Topic", "required", "This header is required, once.")])
    taken = await inbox(parts).take(topic, shop_domain(shop), call.body, call.correlation_id)
    return respond(answer(call, await parts.now(), taken._asdict()))


def _said(call: Call, name: bytes) -> str | None:
    """What a header says that came once."""
    sent = call.sent(name)
    return sent[0].decode("latin-1") if len(sent) == 1 else None


def _check_signature(call: Call, parts: Parts) -> None:
    settings = parts.settings
    if settings.shopify_webhook_secret is None:
        raise Problem("not_found", "Shopify's webhooks are not taken here: SHOPIFY_WEBHOOK_SECRET is not set.")
    valid = (settings.shopify_webhook_secret, settings.shopify_webhook_secret_previous)
    secrets = [secret.get_secret_value() for secret in valid if secret is not None]
    if not is_signed(call.body, call.sent(_SIGNATURE), secrets):
        detail = "X-Shopify-Hmac-Sha256 is missing, or was not made of this body with the secret of the settings."
        raise Problem("unauthenticated", detail, headers=_CHALLENGE)


# ---- shops

admin = router("admin")
_tags: list[Any] = ["shopify"]
_LINKS = examples(link={"merchant_id": MERCHANT})


@admin.put(SHOPS, operation_id="link_shop", response_model=OneShop, tags=_tags)
async def link_shop(
    shop_domain: ShopDomain, body: Annotated[ShopBody, _LINKS], call: CallOf, parts: PartsOf
) -> Response:
    """Link a Shopify shop to its merchant, instead of the one it was linked to. What was delivered of it is applied."""
    domain, merchant_id = shop_domain.lower(), uuid(body.merchant_id)
    found = await parts.shops.get(domain)
    is_so = found is not None and (found.merchant_id, found.unlinked_at, found.uninstalled_at) == (
        merchant_id,
        None,
        None,
    )
    if not is_so:
        await parts.shops.link(domain, merchant_id, await parts.now())
    with suppress(StorageError, Overloaded, DeadlineExceeded):  # linked it is, and the next round will do it
        await inbox(parts).catch_up()
    return await _shown(domain, call, parts)


@admin.get(SHOPS, operation_id="get_shop", response_model=OneShop, tags=_tags, responses=problems("shop_not_found"))
async def get_shop(shop_domain: ShopDomain, call: CallOf, parts: PartsOf) -> Response:
    """Whose a Shopify shop is, and what its customers asked to be told of themselves."""
    return await _shown(shop_domain.lower(), call, parts)


@admin.delete(
    SHOPS, operation_id="unlink_shop", response_model=OneShop, tags=_tags, responses=problems("shop_not_found")
)
async def unlink_shop(shop_domain: ShopDomain, call: CallOf, parts: PartsOf) -> Response:
    """Unlink a Shopify shop. Its merchant keeps account and credits; what is delivered from now on waits."""
    domain = shop_domain.lower()
    shown = await _shown(domain, call, parts)
    await parts.shops.unlink(domain, await parts.now())
    return shown


async def _shown(domain: str, call: Call, parts: Parts) -> Response:
    found = await parts.shops.get(domain)
    if found is None or found.unlinked_at is not None:
        raise Problem("shop_not_found", "No merchant is linked to this shop.")
    asked = [shapes.data_request(*one) for one in await inbox(parts).data_requests(domain)]
    return respond(answer(call, await parts.now(), {**shapes.shop(found), "data_requests": asked}))


ROUTERS: tuple[APIRouter, ...] = (signed, admin)
