"""Plugin status: may a merchant's plugin run? The question of every storefront page."""

import re
import time
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from credit_service.doors.http import shopify_proxy
from credit_service.doors.http.call import Answer, Call
from credit_service.doors.http.openapi import examples, headers
from credit_service.doors.http.problems import of_faults
from credit_service.doors.http.routes import (
    MERCHANT,
    PREFIX,
    CallOf,
    Instant,
    MerchantId,
    MerchantText,
    Parts,
    PartsOf,
    respond,
    router,
)
from credit_service.gate.answers import Answer as Status
from credit_service.gate.answers import shape
from credit_service.messages import patterns
from credit_service.messages.faults import Fault
from credit_service.messages.fields import Body, Uuid, format_time, uuid
from credit_service.messages.shapes import encode
from credit_service.settings import Settings

STATUS = "/credits/plugin-status"
PATH = f"{PREFIX}{STATUS}/"
"""How the paths of single statuses begin."""

_UUID = re.compile(patterns.UUID)
_PATH_LENGTH = len(PATH) + 36

Reason = Literal["available", "exhausted", "unknown_merchant", "unavailable"]


class StatusShape(BaseModel):
    """Whether a merchant's plugin may run, and why."""

    merchant_id: MerchantText
    status: Literal["enabled", "disabled"]
    reason: Reason
    as_of: Instant


class OneStatus(BaseModel):
    """A plugin status."""

    data: StatusShape


class StatusesBody(Body):
    """Whose status to tell."""

    merchant_ids: Annotated[list[Uuid], Field(min_length=1, max_length=1000)]


class ShortStatus(BaseModel):
    """A plugin status among many."""

    status: Literal["enabled", "disabled"]
    reason: Reason


class Statuses(BaseModel):
    """Plugin statuses by merchant_id."""

    statuses: Annotated[
        dict[str, ShortStatus], Field(examples=[{MERCHANT: {"status": "enabled", "reason": "available"}}])
    ]


class TotalsShape(BaseModel):
    """All merchants in sum; zero_balance_count are those with nothing available."""

    total_merchants: Annotated[int, Field(examples=[8])]
    enabled_count: Annotated[int, Field(examples=[7])]
    disabled_count: Annotated[int, Field(examples=[1])]
    enabled_percentage: Annotated[float, Field(ge=0, le=100, examples=[87.5])]
    average_balance: Annotated[float, Field(examples=[341.25])]
    zero_balance_count: Annotated[int, Field(examples=[1])]


class OneTotals(BaseModel):
    """Totals of plugin status."""

    data: TotalsShape


class ManyStatuses(BaseModel):
    """Plugin statuses."""

    data: Statuses


class Rendered(NamedTuple):
    """How a status is answered: in full, and to those who have just this already."""

    tag: bytes
    whole: Answer
    unchanged: Answer


def render(status: Status) -> Rendered:
    """The answers that tell a plugin status. It may be kept, but must be asked for again each time (ETag)."""
    told = {
        "merchant_id": str(status.merchant_id),
        "status": status.status,
        "reason": status.reason,
        "as_of": format_time(status.as_of),
    }
    body = encode({"data": told})
    tag = b'"%s"' % blake2b(body, digest_size=9).hexdigest().encode()
    headers = [(b"cache-control", b"no-cache"), (b"etag", tag)]
    return Rendered(tag, Answer(200, body, headers), Answer(304, b"", headers))


async def hot_status(parts: Parts, call: Call) -> Answer | None:
    """One status, where its path names a UUID; None leaves it to FastAPI."""
    merchant_id = _merchant(call.path) if len(call.path) == _PATH_LENGTH else None
    return None if merchant_id is None else await _one(parts, call, merchant_id)


@lru_cache(maxsize=100_000)
def _merchant(path: str) -> UUID | None:
    """Whom a path names: the same few are asked for again and again. Only for paths of the right length."""
    merchant_id = path[len(PATH) :]
    return uuid(merchant_id) if _UUID.fullmatch(merchant_id) else None


async def _one(parts: Parts, call: Call, merchant_id: UUID) -> Answer:
    _check_signature(parts, call)
    status = parts.gate.cached(merchant_id) or await parts.gate.ask(merchant_id)
    parts.metrics.status_checks[status.status, status.source] += 1
    return _told(status, call.headers)


def needed_scope(settings: Settings) -> str | None:
    """The scope that a caller needs to ask for one status (PLUGIN_STATUS_AUTH), None where the route is public."""
    return {"publishable": "status", "read": "read"}.get(settings.plugin_status_auth)


def _check_signature(parts: Parts, call: Call) -> None:
    """Raise Problem if requests must come by Shopify's app proxy, and this one did not."""
    settings = parts.settings
    if settings.plugin_status_auth == "shopify":
        given = (settings.shopify_webhook_secret, settings.shopify_webhook_secret_previous)
        secrets = [secret.get_secret_value() for secret in given if secret is not None]
        shopify_proxy.check(call.query, secrets, time.time())


def _told(status: Status, headers: Mapping[bytes, bytes]) -> Answer:
    rendered: Rendered = status.rendered
    known = headers.get(b"if-none-match")
    return rendered.whole if known is None or rendered.tag not in known else rendered.unchanged


public, read = router(None), router("read")
_tags: list[Any] = ["plugin status"]
_IF_NONE_MATCH = {
    "parameters": [
        {
            "name": "If-None-Match",
            "in": "header",
            "required": False,
            "description": "The ETag of the answer before.",
            "schema": {"type": "string", "examples": ['"87e427c28550b42401"']},
        }
    ]
}


@public.get(
    STATUS + "/{merchant_id}",
    operation_id="get_plugin_status",
    response_model=OneStatus,
    tags=_tags,
    openapi_extra=_IF_NONE_MATCH,
    responses={
        200: {"headers": headers("ETag", "Cache-Control")},
        304: {"description": "It is as the ETag sent says", "headers": headers("ETag", "Cache-Control")},
    },
)
async def get_plugin_status(merchant_id: MerchantId, call: CallOf, parts: PartsOf) -> Response:
    """Whether a merchant's plugin may run. Answers 200 for any UUID, also while the database is away."""
    return respond(await _one(parts, call, uuid(merchant_id)))


@read.get(STATUS, operation_id="get_plugin_status_totals", response_model=OneTotals, tags=_tags)
async def get_plugin_status_totals(parts: PartsOf) -> Response:
    """How many plugins may run, and how much there is on average."""
    totals = await parts.gate.totals()
    share = 100 * totals.enabled / totals.merchants if totals.merchants else 0
    shape = {
        "total_merchants": totals.merchants,
        "enabled_count": totals.enabled,
        "disabled_count": totals.exhausted,
        "enabled_percentage": round(share, 2),
        "average_balance": round(totals.average_balance, 2),
        "zero_balance_count": totals.exhausted,
    }
    return respond(Answer(200, encode({"data": shape})))


@read.post(STATUS + "/batch", operation_id="get_plugin_statuses", response_model=ManyStatuses, tags=_tags)
async def get_plugin_statuses(
    body: Annotated[StatusesBody, examples(one={"merchant_ids": [MERCHANT]})], parts: PartsOf
) -> Response:
    """Whether the plugins of up to 1,000 merchants may run."""
    most = parts.settings.batch_max_items
    if len(body.merchant_ids) > most:
        raise of_faults([Fault("/merchant_ids", "too_long", f"Ask for {most} merchants at most.")])
    found = await parts.gate.ask_many([uuid(merchant_id) for merchant_id in body.merchant_ids])
    parts.metrics.status_checks.update([(status.status, status.source) for status in found])
    statuses = {merchant_id: shape(status) for merchant_id, status in zip(body.merchant_ids, found, strict=True)}
    return respond(Answer(200, encode({"data": {"statuses": statuses}})))


ROUTERS: tuple[APIRouter, ...] = (public, read)
