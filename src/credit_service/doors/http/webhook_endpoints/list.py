"""List the webhook endpoints."""

from credit_service.doors.http.call import Answer, Call
from credit_service.doors.http.endpoints import endpoint
from credit_service.doors.http.pages import Cursor, Limit, Pager, page_of
from credit_service.doors.http.webhook_endpoints.shared import ENDPOINTS, TAG, EndpointShape
from credit_service.messages import webhooks
from credit_service.storage.webhooks import WebhookEndpoints


@endpoint("GET", ENDPOINTS, scope="admin", tag=TAG, answers=page_of(EndpointShape), problems=("cursor_invalid",))
async def list_webhook_endpoints(
    call: Call, endpoints: WebhookEndpoints, limit: Limit = None, cursor: Cursor = None
) -> Answer:
    """List the endpoints, newest first."""
    pager = Pager(call, limit, list="webhook endpoints")
    return pager.slice(await endpoints.now(), await endpoints.all(), webhooks.endpoint, cursor)
