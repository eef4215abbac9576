"""Make an API key."""

from typing import Annotated

from pydantic import Field

from credit_service.doors.http import api
from credit_service.doors.http.api_keys.shared import KEY_ID, KEYS, TAG, KeyShape, Scope
from credit_service.doors.http.keys import new_key
from credit_service.messages import shapes
from credit_service.messages.faults import Fault
from credit_service.messages.fields import Body, Time, parse_time
from credit_service.storage.keys import Keys


class KeyBody(Body):
    """The key to make."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    scope: Scope
    expires_at: Time | None = None


class NewKeyShape(KeyShape):
    """A new API key with the whole of it, which is shown this once."""

    key: Annotated[str, Field(examples=[f"cs_{KEY_ID}_{'…' * 43}"])]


_KEYS = api.examples(
    for_a_service={"name": "billing", "scope": "write"},
    for_a_storefront_page={"name": "storefront", "scope": "status"},
    for_a_while={"name": "auditors", "scope": "read", "expires_at": "2099-12-31T23:59:59Z"},
)


@api.endpoint(
    "POST",
    KEYS,
    scope="admin",
    tag=TAG,
    answers=api.one(NewKeyShape),
    status_code=201,
    responses={201: {"headers": api.headers("Cache-Control")}},
)
async def create_api_key(body: Annotated[KeyBody, _KEYS], call: api.Call, keys: Keys) -> api.Answer:
    """Make an API key. The answer holds the whole key, this once."""
    now = await keys.now()
    expires_at = None if body.expires_at is None else parse_time(body.expires_at)
    if expires_at is not None and expires_at <= now:
        raise api.of_faults([Fault("/expires_at", "not_allowed", "expires_at lies in the past.")])
    made = new_key(body.name, body.scope, now, expires_at)
    await keys.add(made.key)
    shape = {**shapes.api_key(made.key), "key": made.whole}
    return api.answer(call, now, shape, 201, [(b"cache-control", b"no-store")])
