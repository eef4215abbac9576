"""Send all events since an instant to a webhook endpoint again."""

from typing import Annotated

from pydantic import Field

from credit_service.doors.http import api
from credit_service.doors.http.webhook_endpoints.shared import ENDPOINT, MISSING, TAG, EndpointId, EndpointShape, find
from credit_service.messages import webhooks
from credit_service.messages.faults import Fault
from credit_service.messages.fields import Body, Time, parse_time
from credit_service.storage.outbox import Outbox
from credit_service.storage.webhooks import WebhookEndpoints


class ReplayBody(Body):
    """The instant from which on events are sent again."""

    from_: Annotated[Time, Field(alias="from")]


@api.endpoint(
    "POST",
    ENDPOINT + "/replay",
    scope="admin",
    tag=TAG,
    answers=api.one(EndpointShape),
    status_code=202,
    problems=MISSING,
)
async def replay_webhook_endpoint(
    endpoint_id: EndpointId,
    body: Annotated[ReplayBody, api.examples(since_a_day={"from": "2026-11-21T10:45:00Z"})],
    call: api.Call,
    endpoints: WebhookEndpoints,
    outbox: Outbox,
    sender: api.WebhookSender,
) -> api.Answer:
    """Send all events since an instant again, of the endpoint's types, each with the same id as before."""
    await find(endpoints, endpoint_id)
    since, now = parse_time(body.from_), await endpoints.now()
    if since > now:
        raise api.of_faults([Fault("/from", "not_allowed", "from lies in the future.")])
    await endpoints.change(endpoint_id, position=await outbox.position_at(since))
    sender.changed()
    return api.answer(call, now, webhooks.endpoint(await find(endpoints, endpoint_id)), 202)
