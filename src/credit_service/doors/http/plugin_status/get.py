"""Tell whether a merchant's plugin may run: the question of every storefront page."""

import time
from typing import Literal

from pydantic import BaseModel

from credit_service.doors.http import api
from credit_service.doors.http.accounts.shared import MerchantId
from credit_service.doors.http.plugin_status import app_proxy
from credit_service.doors.http.plugin_status.shared import STATUS, TAG, Rendered
from credit_service.gate.answers import Reason
from credit_service.gate.status import Gate
from credit_service.messages.fields import merchant_text
from credit_service.observability import Metrics
from credit_service.settings import Settings


class StatusShape(BaseModel):
    """Whether a merchant's plugin may run, and why."""

    merchant_id: api.MerchantText
    status: Literal["enabled", "disabled"]
    reason: Reason
    as_of: api.Instant


class OneStatus(BaseModel):
    """A plugin status. It has no `meta`, so that its ETag is its own."""

    data: StatusShape


_IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "description": "The ETag of the answer before.",
    "schema": {"type": "string", "examples": ['"87e427c28550b42401"']},
}
_CACHED = {"headers": api.headers("ETag", "Cache-Control")}


@api.endpoint(
    "GET",
    STATUS + "/{merchant_id}",
    scope=None,
    tag=TAG,
    answers=OneStatus,
    responses={200: _CACHED, 304: {**_CACHED, "description": "It is as the ETag sent says"}},
    openapi_extra={"parameters": [_IF_NONE_MATCH]},
)
async def get_plugin_status(
    merchant_id: MerchantId, call: api.Call, gate: Gate, metrics: Metrics, settings: Settings
) -> api.Answer:
    """Tell whether a merchant's plugin may run. Answers 200 for any id, also while the database is away.

    Anybody may ask about a UUID. Another id can be guessed, so it needs a key of scope status (PLUGIN_STATUS_PUBLIC).
    """
    if settings.plugin_status_auth == "shopify":
        _check_signature(call, settings)
    merchant = merchant_text(merchant_id)
    status = gate.cached(merchant) or await gate.ask(merchant)
    metrics.status_checks[status.status, status.source] += 1
    call.rate_limit = None  # the headers that tell it would cost as much as the look-up
    rendered: Rendered = status.rendered
    known = call.headers.get(b"if-none-match")
    return rendered.whole if known is None or rendered.tag not in known else rendered.unchanged


def needed_scope(settings: Settings) -> str | None:
    """The scope that a caller needs to ask for one status (PLUGIN_STATUS_AUTH), None if the endpoint is public."""
    return {"publishable": "status", "read": "read"}.get(settings.plugin_status_auth)


def _check_signature(call: api.Call, settings: Settings) -> None:
    """Raise Problem unless a request comes by Shopify's app proxy."""
    given = (settings.shopify_webhook_secret, settings.shopify_webhook_secret_previous)
    secrets = [secret.get_secret_value() for secret in given if secret is not None]
    app_proxy.check(call.query, secrets, time.time())
