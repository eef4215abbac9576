"""List the API keys."""

from credit_service.doors.http import api
from credit_service.doors.http.api_keys.shared import KEYS, TAG, KeyShape
from credit_service.messages import shapes
from credit_service.storage.keys import Keys


@api.endpoint("GET", KEYS, scope="admin", tag=TAG, answers=api.page_of(KeyShape), problems=("cursor_invalid",))
async def list_api_keys(call: api.Call, keys: Keys, limit: api.Limit = None, cursor: api.Cursor = None) -> api.Answer:
    """List the API keys, newest first."""
    pager = api.Pager(call, limit, list="keys")
    return pager.slice(await keys.now(), await keys.all(), shapes.api_key, cursor)
