"""API keys: make, list, revoke."""

import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, Field

from credit_service.doors.http.keys import new_key
from credit_service.doors.http.openapi import examples, headers, problems
from credit_service.doors.http.problems import Problem, of_faults
from credit_service.doors.http.routes import (
    CallOf,
    Cursor,
    Instant,
    Limit,
    Links,
    Meta,
    Pagination,
    PartsOf,
    Unsaid,
    answer,
    page_of_all,
    respond,
    router,
)
from credit_service.messages import shapes
from credit_service.messages.faults import Fault
from credit_service.messages.fields import Body, Time, parse_time

KEYS = "/api-keys"
_ID = re.compile(r"^[a-z2-7]{12}$")
_KEY_ID = "vzphnrglpgkp"


class KeyBody(Body):
    """The key to make."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    scope: Literal["status", "read", "write", "admin"]
    expires_at: Time | None = None


class KeyShape(BaseModel):
    """An API key, without its secret."""

    id: Annotated[str, Field(pattern=_ID.pattern, examples=[_KEY_ID])]
    name: Annotated[str, Field(examples=["billing"])]
    scope: Annotated[Literal["status", "read", "write", "admin"], Field(examples=["write"])]
    created_at: Instant
    expires_at: Annotated[Instant | None, Unsaid]
    revoked_at: Annotated[Instant | None, Unsaid]
    last_used_at: Annotated[Instant | None, Unsaid]


class NewKeyShape(KeyShape):
    """An API key just made, with the whole of it, which is shown this once."""

    key: Annotated[str, Field(examples=[f"cs_{_KEY_ID}_{'…' * 43}"])]


class OneNewKey(BaseModel):
    """A new key."""

    data: NewKeyShape
    meta: Meta


class OneKey(BaseModel):
    """A key."""

    data: KeyShape
    meta: Meta


class KeyPage(BaseModel):
    """A page of API keys, newest first."""

    data: list[KeyShape]
    pagination: Pagination
    links: Links
    meta: Meta


admin = router("admin")
_tags: list[Any] = ["api keys"]
_KEYS = examples(
    for_a_service={"name": "billing", "scope": "write"},
    for_a_storefront_page={"name": "storefront", "scope": "status"},
    for_a_while={"name": "auditors", "scope": "read", "expires_at": "2099-12-31T23:59:59Z"},
)


@admin.post(
    KEYS,
    operation_id="create_api_key",
    status_code=201,
    response_model=OneNewKey,
    tags=_tags,
    responses={201: {"headers": headers("Cache-Control")}},
)
async def create_api_key(body: Annotated[KeyBody, _KEYS], call: CallOf, parts: PartsOf) -> Response:
    """Make an API key. The answer holds the whole key, this once."""
    now = await parts.now()
    expires_at = None if body.expires_at is None else parse_time(body.expires_at)
    if expires_at is not None and expires_at <= now:
        raise of_faults([Fault("/expires_at", "not_allowed", "expires_at lies in the past.")])
    made = new_key(body.name, body.scope, now, expires_at)
    await parts.keys.add(made.key)
    return respond(
        answer(call, now, {**shapes.api_key(made.key), "key": made.whole}, 201, [(b"cache-control", b"no-store")])
    )


@admin.get(KEYS, operation_id="list_api_keys", response_model=KeyPage, tags=_tags, responses=problems("cursor_invalid"))
async def list_api_keys(call: CallOf, parts: PartsOf, limit: Limit = None, cursor: Cursor = None) -> Response:
    """List the API keys, newest first."""
    return await page_of_all(call, parts, parts.keys.all, shapes.api_key, limit=limit, cursor=cursor, list="keys")


@admin.delete(
    KEYS + "/{key_id}",
    operation_id="revoke_api_key",
    response_model=OneKey,
    tags=_tags,
    responses=problems("key_not_found"),
)
async def revoke_api_key(
    key_id: Annotated[str, Path(description="The key's id, the part after cs_.", examples=[_KEY_ID])],
    call: CallOf,
    parts: PartsOf,
) -> Response:
    """Revoke an API key, everywhere within 5 seconds. It stays in the list."""
    now = await parts.now()
    if not _ID.fullmatch(key_id) or not await parts.keys.revoke(key_id, now):
        raise Problem("key_not_found", "There is no API key of this id.")
    parts.keyring.forget(key_id)
    key = await parts.keys.get(key_id)
    assert key is not None
    return respond(answer(call, now, shapes.api_key(key)))


ROUTERS: tuple[APIRouter, ...] = (admin,)
