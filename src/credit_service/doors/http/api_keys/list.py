"""List the API keys."""

from credit_service.doors.http.api_keys.shared import KEYS, TAG, KeyShape
from credit_service.doors.http.call import Answer, Call
from credit_service.doors.http.endpoints import endpoint
from credit_service.doors.http.pages import Cursor, Limit, Pager, page_of
from credit_service.messages import shapes
from credit_service.storage.keys import Keys


@endpoint("GET", KEYS, scope="admin", tag=TAG, answers=page_of(KeyShape), problems=("cursor_invalid",))
async def list_api_keys(call: Call, keys: Keys, limit: Limit = None, cursor: Cursor = None) -> Answer:
    """List the API keys, newest first."""
    pager = Pager(call, limit, list="keys")
    return pager.slice(await keys.now(), await keys.all(), shapes.api_key, cursor)
