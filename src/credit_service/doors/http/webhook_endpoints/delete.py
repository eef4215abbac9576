"""Delete a webhook endpoint."""

from credit_service.doors.http.answers import answer, one
from credit_service.doors.http.call import Answer, Call
from credit_service.doors.http.endpoints import endpoint
from credit_service.doors.http.parts import WebhookSender
from credit_service.doors.http.webhook_endpoints.shared import ENDPOINT, MISSING, TAG, EndpointId, EndpointShape, find
from credit_service.messages import webhooks
from credit_service.storage.webhooks import WebhookEndpoints


@endpoint("DELETE", ENDPOINT, scope="admin", tag=TAG, answers=one(EndpointShape), problems=MISSING)
async def delete_webhook_endpoint(
    endpoint_id: EndpointId, call: Call, endpoints: WebhookEndpoints, sender: WebhookSender
) -> Answer:
    """Delete an endpoint with its deliveries. It receives nothing more, except what is being sent right now."""
    found, now = await find(endpoints, endpoint_id), await endpoints.now()
    await endpoints.delete(endpoint_id, now)
    sender.changed()
    return answer(call, now, webhooks.endpoint(found))
