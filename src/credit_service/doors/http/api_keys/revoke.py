"""Revoke an API key."""

from typing import Annotated

from fastapi import Path

from credit_service.doors.http import api
from credit_service.doors.http.api_keys.shared import ID, KEY_ID, KEYS, TAG, KeyShape
from credit_service.doors.http.keys import Keyring
from credit_service.messages import shapes
from credit_service.storage.keys import Keys


@api.endpoint(
    "DELETE", KEYS + "/{key_id}", scope="admin", tag=TAG, answers=api.one(KeyShape), problems=("key_not_found",)
)
async def revoke_api_key(
    key_id: Annotated[str, Path(description="The key's id, the part after cs_.", examples=[KEY_ID])],
    call: api.Call,
    keys: Keys,
    keyring: Keyring,
) -> api.Answer:
    """Revoke an API key, everywhere within 5 seconds. It stays in the list."""
    now = await keys.now()
    if not ID.fullmatch(key_id) or not await keys.revoke(key_id, now):
        raise api.Problem("key_not_found", "There is no API key of this id.")
    keyring.forget(key_id)
    key = await keys.get(key_id)
    assert key is not None
    return api.answer(call, now, shapes.api_key(key))
