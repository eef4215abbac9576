"""Delete a webhook endpoint."""

from credit_service.doors.http import api
from credit_service.doors.http.webhook_endpoints.shared import ENDPOINT, MISSING, TAG, EndpointId, EndpointShape, find
from credit_service.messages import webhooks
from credit_service.storage.webhooks import WebhookEndpoints


@api.endpoint("DELETE", ENDPOINT, scope="admin", tag=TAG, answers=api.one(EndpointShape), problems=MISSING)
async def delete_webhook_endpoint(
    endpoint_id: EndpointId, call: api.Call, endpoints: WebhookEndpoints, sender: api.WebhookSender
) -> api.Answer:
    """Delete an endpoint with its deliveries. It receives nothing more, except what is being sent right now."""
    found, now = await find(endpoints, endpoint_id), await endpoints.now()
    await endpoints.delete(endpoint_id, now)
    sender.changed()
    return api.answer(call, now, webhooks.endpoint(found))
