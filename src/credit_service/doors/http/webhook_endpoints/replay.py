"""Send all events since an instant to a webhook endpoint again."""

from typing import Annotated

from pydantic import Field

from credit_service.doors.http.answers import answer, one
from credit_service.doors.http.call import Answer, Call
from credit_service.doors.http.endpoints import endpoint
from credit_service.doors.http.openapi import examples
from credit_service.doors.http.parts import WebhookSender
from credit_service.doors.http.problems import of_faults
from credit_service.doors.http.webhook_endpoints.shared import ENDPOINT, MISSING, TAG, EndpointId, EndpointShape, find
from credit_service.messages import webhooks
from credit_service.messages.faults import Fault
from credit_service.messages.fields import Body, Time, parse_time
from credit_service.storage.outbox import Outbox
from credit_service.storage.webhooks import WebhookEndpoints


class ReplayBody(Body):
    """The instant from which on events are sent again."""

    from_: Annotated[Time, Field(alias="from")]


@endpoint(
    "POST", ENDPOINT + "/replay", scope="admin", tag=TAG, answers=one(EndpointShape), status_code=202, problems=MISSING
)
async def replay_webhook_endpoint(
    endpoint_id: EndpointId,
    body: Annotated[ReplayBody, examples(since_a_day={"from": "2026-11-21T10:45:00Z"})],
    call: Call,
    endpoints: WebhookEndpoints,
    outbox: Outbox,
    sender: WebhookSender,
) -> Answer:
    """Send all events since an instant again, of the endpoint's types, each with the same id as before."""
    await find(endpoints, endpoint_id)
    since, now = parse_time(body.from_), await endpoints.now()
    if since > now:
        raise of_faults([Fault("/from", "not_allowed", "from lies in the future.")])
    await endpoints.change(endpoint_id, position=await outbox.position_at(since))
    sender.changed()
    return answer(call, now, webhooks.endpoint(await find(endpoints, endpoint_id)), 202)
