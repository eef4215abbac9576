"""Change a webhook endpoint, disable it, or enable it again."""

from typing import Annotated

from pydantic import ConfigDict, Field

from credit_service.doors.http import api
from credit_service.doors.http.webhook_endpoints.shared import (
    ENDPOINT,
    MISSING,
    TAG,
    EndpointId,
    EndpointShape,
    EventTypes,
    Url,
    check_url,
    find,
    stored_types,
)
from credit_service.messages import webhooks
from credit_service.messages.fields import Body
from credit_service.storage.webhooks import WebhookEndpoints


class EndpointChanges(Body):
    """The changes of an endpoint; what is left out stays."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    # By factories, so that the document names no default: what is left out stays.
    url: Url = Field(default_factory=str)
    event_types: EventTypes = None
    enabled: bool = Field(
        default_factory=bool, description="Whether it receives events. Enabled again, it goes on where it stopped."
    )


_CHANGES = api.examples(go_on={"enabled": True}, move={"url": "https://example.com/v2/credits"})


@api.endpoint("PATCH", ENDPOINT, scope="admin", tag=TAG, answers=api.one(EndpointShape), problems=MISSING)
async def change_webhook_endpoint(
    endpoint_id: EndpointId,
    body: Annotated[EndpointChanges, _CHANGES],
    call: api.Call,
    endpoints: WebhookEndpoints,
    sender: api.WebhookSender,
) -> api.Answer:
    """Change an endpoint. Enabled again, it goes on where it stopped, and misses nothing."""
    changed = api.changes(body)
    before, now = await find(endpoints, endpoint_id), await endpoints.now()
    if "url" in changed:
        await check_url(sender, changed["url"])
    if "event_types" in changed:
        changed["event_types"] = stored_types(changed["event_types"])
    enabled = changed.pop("enabled", None)
    if enabled is False and before.disabled_at is None:
        changed |= {"disabled_at": now, "disabled_reason": f"It was disabled by {call.actor}."}
    if changed:
        await endpoints.change(endpoint_id, **changed)
    if enabled and before.disabled_at is not None:
        await endpoints.enable(endpoint_id, now)
    sender.changed()
    return api.answer(call, now, webhooks.endpoint(await find(endpoints, endpoint_id)))
