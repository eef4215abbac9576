"""Plugin status: may a merchant's plugin run? The question of every storefront page."""

import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from credit_service.doors.http.problems import of_faults
from credit_service.doors.http.routes import CallOf, MerchantId, Parts, PartsOf, respond, router
from credit_service.doors.http.shell import Answer, Call
from credit_service.gate.status import Answer as Status
from credit_service.gate.status import shape
from credit_service.messages import patterns
from credit_service.messages.faults import Fault
from credit_service.messages.fields import Body, Uuid, format_time, uuid
from credit_service.messages.shapes import encode

STATUS = "/credits/plugin-status"
_UUID = re.compile(patterns.UUID)
_NOT_STORED = [(b"cache-control", b"no-store")]

Reason = Literal["available", "exhausted", "unknown_merchant", "unavailable"]


class StatusShape(BaseModel):
    """Whether a merchant's plugin may run, and why."""

    merchant_id: str
    status: Literal["enabled", "disabled"]
    reason: Reason
    as_of: str


class OneStatus(BaseModel):
    """A plugin status."""

    data: StatusShape


class StatusesBody(Body):
    """Whose status to tell."""

    merchant_ids: Annotated[list[Uuid], Field(min_length=1, max_length=1000)]


class ShortStatus(BaseModel):
    """A plugin status among many."""

    status: Literal["enabled", "disabled"]
    reason: Reason


class Statuses(BaseModel):
    """Plugin statuses by merchant_id."""

    statuses: dict[str, ShortStatus]


class ManyStatuses(BaseModel):
    """Plugin statuses."""

    data: Statuses


def render(status: Status) -> bytes:
    """The body that tells a plugin status."""
    told = {
        "merchant_id": str(status.merchant_id),
        "status": status.status,
        "reason": status.reason,
        "as_of": format_time(status.as_of),
    }
    return encode({"data": told})


async def hot_status(parts: Parts, call: Call) -> Answer | None:
    """One status, where its path names a UUID; None leaves it to FastAPI."""
    merchant_id = call.path.rpartition("/")[2]
    if not _UUID.match(merchant_id):
        return None
    return await _one(parts, call, merchant_id)


async def _one(parts: Parts, call: Call, merchant_id: str) -> Answer:
    if parts.settings.plugin_status_auth != "none":
        await call.caller(parts.settings.plugin_status_auth)
    key = uuid(merchant_id)
    status = parts.gate.cached(key) or await parts.gate.ask(key)
    return Answer(200, status.rendered, _NOT_STORED)


public, read = router(None), router("read")
_tags: list[Any] = ["plugin status"]


@public.get(STATUS + "/{merchant_id}", operation_id="get_plugin_status", response_model=OneStatus, tags=_tags)
async def get_plugin_status(merchant_id: MerchantId, call: CallOf, parts: PartsOf) -> Response:
    """Whether a merchant's plugin may run. Answers 200 for any UUID, also while the database is away."""
    return respond(await _one(parts, call, merchant_id))


@read.post(STATUS + "/batch", operation_id="get_plugin_statuses", response_model=ManyStatuses, tags=_tags)
async def get_plugin_statuses(body: StatusesBody, parts: PartsOf) -> Response:
    """Whether the plugins of up to 1,000 merchants may run."""
    most = parts.settings.batch_max_items
    if len(body.merchant_ids) > most:
        raise of_faults([Fault("/merchant_ids", "too_long", f"Ask for {most} merchants at most.")])
    found = await parts.gate.ask_many([uuid(merchant_id) for merchant_id in body.merchant_ids])
    statuses = {merchant_id: shape(status) for merchant_id, status in zip(body.merchant_ids, found, strict=True)}
    return respond(Answer(200, encode({"data": {"statuses": statuses}})))


ROUTERS: tuple[APIRouter, ...] = (public, read)
