"""List the webhook endpoints."""

from credit_service.doors.http import api
from credit_service.doors.http.webhook_endpoints.shared import ENDPOINTS, TAG, EndpointShape
from credit_service.messages import webhooks
from credit_service.storage.webhooks import WebhookEndpoints


@api.endpoint(
    "GET", ENDPOINTS, scope="admin", tag=TAG, answers=api.page_of(EndpointShape), problems=("cursor_invalid",)
)
async def list_webhook_endpoints(
    call: api.Call, endpoints: WebhookEndpoints, limit: api.Limit = None, cursor: api.Cursor = None
) -> api.Answer:
    """List the endpoints, newest first."""
    pager = api.Pager(call, limit, list="webhook endpoints")
    return pager.slice(await endpoints.now(), await endpoints.all(), webhooks.endpoint, cursor)
