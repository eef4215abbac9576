"""Make a new secret for a webhook endpoint."""

from typing import Final

from credit_service.doors.http import api
from credit_service.doors.http.webhook_endpoints.shared import (
    ENDPOINT,
    MISSING,
    NO_STORE,
    SECRET,
    TAG,
    EndpointId,
    NewEndpointShape,
    find,
    new_secret,
)
from credit_service.ledger.account import DAY
from credit_service.messages import webhooks
from credit_service.messages.fields import format_time
from credit_service.storage.webhooks import WebhookEndpoints

OVERLAP: Final = DAY
"""How long deliveries carry a signature by the secret before, too (microseconds)."""
MAX_SECRETS: Final = 5


class RotatedEndpointShape(NewEndpointShape):
    """A webhook endpoint with its new secret, and the end of the secret before."""

    previous_secret_until: api.Instant


@api.endpoint(
    "POST",
    ENDPOINT + "/rotate",
    scope="admin",
    tag=TAG,
    answers=api.one(RotatedEndpointShape),
    responses={200: SECRET},
    problems=MISSING,
)
async def rotate_webhook_secret(endpoint_id: EndpointId, call: api.Call, endpoints: WebhookEndpoints) -> api.Answer:
    """Make a new secret, shown this once. For 24 hours deliveries carry a signature by each of the two."""
    found, now, secret = await find(endpoints, endpoint_id), await endpoints.now(), new_secret()
    await endpoints.rotate(endpoint_id, secret, now, now + OVERLAP, MAX_SECRETS)
    rotated = {"secret": secret, "previous_secret_until": format_time(now + OVERLAP)}
    return api.answer(call, now, webhooks.endpoint(found) | rotated, 200, NO_STORE)
