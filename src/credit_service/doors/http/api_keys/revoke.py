"""Revoke an API key."""

from typing import Annotated

from fastapi import Path

from credit_service.doors.http.answers import answer, one
from credit_service.doors.http.api_keys.shared import ID, KEY_ID, KEYS, TAG, KeyShape
from credit_service.doors.http.call import Answer, Call
from credit_service.doors.http.endpoints import endpoint
from credit_service.doors.http.keys import Keyring
from credit_service.doors.http.problems import Problem
from credit_service.messages import shapes
from credit_service.storage.keys import Keys


@endpoint("DELETE", KEYS + "/{key_id}", scope="admin", tag=TAG, answers=one(KeyShape), problems=("key_not_found",))
async def revoke_api_key(
    key_id: Annotated[str, Path(description="The key's id, the part after cs_.", examples=[KEY_ID])],
    call: Call,
    keys: Keys,
    keyring: Keyring,
) -> Answer:
    """Revoke an API key, everywhere within 5 seconds. It stays in the list."""
    now = await keys.now()
    if not ID.fullmatch(key_id) or not await keys.revoke(key_id, now):
        raise Problem("key_not_found", "There is no API key of this id.")
    keyring.forget(key_id)
    key = await keys.get(key_id)
    assert key is not None
    return answer(call, now, shapes.api_key(key))
