"""Register a webhook endpoint."""

from typing import Annotated

from credit_service.doors.http import api
from credit_service.doors.http.keys import new_id
from credit_service.doors.http.webhook_endpoints.shared import (
    ENDPOINTS,
    NO_STORE,
    SECRET,
    TAG,
    EventTypes,
    NewEndpointShape,
    Url,
    check_url,
    new_secret,
    stored_types,
)
from credit_service.messages import webhooks
from credit_service.messages.fields import Body
from credit_service.messages.outbound import PREFIX
from credit_service.storage.outbox import Outbox
from credit_service.storage.webhooks import WebhookEndpoint, WebhookEndpoints


class EndpointBody(Body):
    """The endpoint to register."""

    url: Url
    event_types: EventTypes = None


_ENDPOINT = api.examples(
    of_all_events={"url": "https://example.com/credits"},
    of_some_events={
        "url": "https://example.com/credits",
        "event_types": [f"{PREFIX}plugin_status_changed", f"{PREFIX}low_balance_reached"],
    },
)


@api.endpoint(
    "POST",
    ENDPOINTS,
    scope="admin",
    tag=TAG,
    answers=api.one(NewEndpointShape),
    status_code=201,
    responses={201: SECRET},
)
async def create_webhook_endpoint(
    body: Annotated[EndpointBody, _ENDPOINT],
    call: api.Call,
    endpoints: WebhookEndpoints,
    outbox: Outbox,
    sender: api.WebhookSender,
) -> api.Answer:
    """Register an endpoint, which receives events from now on. The answer holds the secret that signs, this once."""
    await check_url(sender, body.url)
    secret, now = new_secret(), await endpoints.now()
    made = WebhookEndpoint(new_id(), body.url, stored_types(body.event_types), now, await outbox.end())
    await endpoints.add(made, secret)
    sender.changed()
    return api.answer(call, now, {**webhooks.endpoint(made), "secret": secret}, 201, NO_STORE)
