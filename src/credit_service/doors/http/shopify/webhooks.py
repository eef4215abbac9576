"""Take the webhooks that Shopify sends."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from credit_service.doors.http.answers import Unset, answer, one
from credit_service.doors.http.call import Answer, Call
from credit_service.doors.http.endpoints import PREFIX, endpoint
from credit_service.doors.http.ledger import Ledger
from credit_service.doors.http.openapi import QUEUED
from credit_service.doors.http.problems import Problem
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
    """The result of a delivery; unless it is an error, Shopify need not send the delivery again."""

    outcome: Annotated[
        Literal["posted", "replayed", "parked", "refused", "noted", "ignored"], Field(examples=["posted"])
    ]
    reason: Annotated[str | None, Unset] = None
    code: Annotated[str | None, Unset] = None


def _header(name: str, description: str, example: str, **schema: str) -> dict[str, Any]:
    described = {"type": "string", **schema, "examples": [example]}
    return {"name": name, "in": "header", "required": True, "description": description, "schema": described}


# The function reads these headers itself: the answer to an unsigned request must not name any other fault.
_DELIVERED = {
    "parameters": [
        _header("X-Shopify-Hmac-Sha256", "HMAC-SHA256 of the body, in base64.", _HMAC),
        _header("X-Shopify-Topic", "How to read the body.", "orders/paid"),
        _header(
            "X-Shopify-Shop-Domain",
            "The shop, should the body not name it.",
            "example.myshopify.com",
            pattern=patterns.SHOP,
        ),
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


@endpoint(
    "POST",
    PREFIX + "/webhooks/shopify",
    scope=None,
    tag="shopify",
    answers=one(TakenShape),
    problems=("unauthenticated", "not_found", "validation_failed", "storage_unavailable", *QUEUED),
    media_types=(),
    openapi_extra=_DELIVERED,
    is_large=True,
)
async def take_shopify_delivery(call: Call, inbox: Inbox, ledger: Ledger, settings: Settings) -> Answer:
    """Take a delivery that Shopify signed. The answer is 200 once it is posted, kept or put aside."""
    _check_signature(call, settings)
    topic, shop = _single(call, b"x-shopify-topic"), _single(call, b"x-shopify-shop-domain")
    if topic is None:
        raise Invalid([Fault("/header/X-Shopify-Topic", "required", "This header is required, once.")])
    taken = await inbox.take(topic, shop_domain(shop), call.body, call.correlation_id)
    return answer(call, await ledger.now(), taken._asdict())


def _single(call: Call, name: bytes) -> str | None:
    """The value of a header that came once."""
    sent = call.sent(name)
    return sent[0].decode("latin-1") if len(sent) == 1 else None


def _check_signature(call: Call, settings: Settings) -> None:
    if settings.shopify_webhook_secret is None:
        raise Problem("not_found", "Shopify's webhooks are not taken here: SHOPIFY_WEBHOOK_SECRET is not set.")
    valid = (settings.shopify_webhook_secret, settings.shopify_webhook_secret_previous)
    secrets = [secret.get_secret_value() for secret in valid if secret is not None]
    if not is_signed(call.body, call.sent(_SIGNATURE), secrets):
        detail = "X-Shopify-Hmac-Sha256 is missing, or was not made of this body with the secret of the settings."
        raise Problem("unauthenticated", detail, headers=_CHALLENGE)
