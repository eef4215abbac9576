"""Take the webhooks that Shopify sends."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from credit_service.doors.http import api
from credit_service.doors.shopify import is_signed
from credit_service.doors.shopify_bodies import shop_domain
from credit_service.doors.shopify_inbox import Inbox
from credit_service.messages import patterns
from credit_service.messages.faults import Fault, Invalid
from credit_service.settings import Settings

_SIGNATURE = b"x-shopify-hmac-sha256"
_CHALLENGE = {"WWW-Authenticate": 'Shopify-Hmac-Sha256 realm="credit-service"'}
_ORDER = {"id": 5324830114101, "total_price": "149.90", "currency": "GBP", "financial_status": "paid"}
_HMAC = "hMTq0K2x7oyOjoBwGYeTj5oxfnaVYXzbanUG9aajpKI="


class TakenShape(BaseModel):
    """The result of a delivery that the service received. Shopify need not send the delivery again."""

    outcome: Annotated[
        Literal["posted", "replayed", "parked", "refused", "noted", "ignored"], Field(examples=["posted"])
    ]
    reason: Annotated[str | None, api.Unset] = None
    code: Annotated[str | None, api.Unset] = None


def _header(name: str, description: str, example: str, **schema: str) -> dict[str, Any]:
    described = {"type": "string", **schema, "examples": [example]}
    return {"name": name, "in": "header", "required": True, "description": description, "schema": described}


# The endpoint checks the signature before these headers: the answer to an unsigned request names no other fault.
_DELIVERED = {
    "parameters": [
        _header("X-Shopify-Hmac-Sha256", "HMAC-SHA256 of the body, in base64.", _HMAC),
        _header("X-Shopify-Topic", "The topic. It tells the service how to read the body.", "orders/paid"),
        _header(
            "X-Shopify-Shop-Domain",
            "The shop, for a body that does not name it.",
            "example.myshopify.com",
            pattern=patterns.SHOP,
        ),
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object", "description": "The body that Shopify signed, byte for byte."},
                "examples": {"order_paid": {"summary": "An order was paid", "value": _ORDER}},
            }
        },
    },
}


@api.endpoint(
    "POST",
    api.PREFIX + "/webhooks/shopify",
    scope=None,
    tag="shopify",
    answers=api.one(TakenShape),
    problems=("unauthenticated", "not_found", "validation_failed", "storage_unavailable", *api.QUEUED),
    media_types=(),
    openapi_extra=_DELIVERED,
    is_large=True,
)
async def take_shopify_delivery(call: api.Call, inbox: Inbox, ledger: api.Ledger, settings: Settings) -> api.Answer:
    """Take a delivery that Shopify signed. The service answers 200 after it has posted, kept or put it aside."""
    _check_signature(call, settings)
    topic, shop = _single(call, b"x-shopify-topic"), _single(call, b"x-shopify-shop-domain")
    if topic is None:
        raise Invalid([Fault("/header/X-Shopify-Topic", "required", "This header is required, once.")])
    taken = await inbox.take(topic, shop_domain(shop), call.body, call.correlation_id)
    return api.answer(call, await ledger.now(), taken._asdict())


def _single(call: api.Call, name: bytes) -> str | None:
    """Return the value of a header that the request has exactly once, else None."""
    sent = call.sent(name)
    return sent[0].decode("latin-1") if len(sent) == 1 else None


def _check_signature(call: api.Call, settings: Settings) -> None:
    if settings.shopify_webhook_secret is None:
        raise api.Problem(
            "not_found", "This service takes no Shopify webhooks, because SHOPIFY_WEBHOOK_SECRET is not set."
        )
    valid = (settings.shopify_webhook_secret, settings.shopify_webhook_secret_previous)
    secrets = [secret.get_secret_value() for secret in valid if secret is not None]
    if not is_signed(call.body, call.sent(_SIGNATURE), secrets):
        detail = "X-Shopify-Hmac-Sha256 is missing, or does not match the body and SHOPIFY_WEBHOOK_SECRET."
        raise api.Problem("unauthenticated", detail, headers=_CHALLENGE)
