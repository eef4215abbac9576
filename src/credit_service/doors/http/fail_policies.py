"""What an account's plugin status is while nothing is known of it: its own policy, or the default (GATE_FAIL)."""

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from credit_service.doors.http.accounts import ONE, held_of
from credit_service.doors.http.call import Call
from credit_service.doors.http.openapi import examples, problems
from credit_service.doors.http.routes import (
    CallOf,
    MerchantId,
    MerchantText,
    Meta,
    Parts,
    PartsOf,
    answer,
    respond,
    router,
)
from credit_service.gate.status import FailPolicy
from credit_service.messages.fields import Body, uuid

PATH = ONE + "/fail-policy"

Fail = Annotated[Literal["closed", "open"], Field(examples=["open"])]


class FailBody(Body):
    """What the plugin status is while nothing is known: disabled (closed), or enabled (open)."""

    fail: Literal["closed", "open"]


class FailShape(BaseModel):
    """The fail policy in force for an account; `own`: whether it is its own, and not the default."""

    merchant_id: MerchantText
    fail: Fail
    own: bool


class OneFailPolicy(BaseModel):
    """A fail policy."""

    data: FailShape
    meta: Meta


admin = router("admin")
_tags: list[Any] = ["plugin status"]
_missing = problems("account_not_found")
_POLICIES = examples(keep_running={"fail": "open"}, stop={"fail": "closed"})


@admin.get(PATH, operation_id="get_fail_policy", response_model=OneFailPolicy, tags=_tags, responses=_missing)
async def get_fail_policy(merchant_id: MerchantId, call: CallOf, parts: PartsOf) -> Response:
    """Read what an account's plugin status is while nothing is known of it."""
    await held_of(parts, merchant_id, await parts.now())
    return await _told(call, parts, uuid(merchant_id))


@admin.put(PATH, operation_id="set_fail_policy", response_model=OneFailPolicy, tags=_tags, responses=_missing)
async def set_fail_policy(
    merchant_id: MerchantId, body: Annotated[FailBody, _POLICIES], call: CallOf, parts: PartsOf
) -> Response:
    """Give an account a fail policy of its own; in force everywhere within 10 seconds."""
    return await _set(call, parts, merchant_id, body.fail)


@admin.delete(PATH, operation_id="drop_fail_policy", response_model=OneFailPolicy, tags=_tags, responses=_missing)
async def drop_fail_policy(merchant_id: MerchantId, call: CallOf, parts: PartsOf) -> Response:
    """Put an account back to the default fail policy."""
    return await _set(call, parts, merchant_id, None)


async def _set(call: Call, parts: Parts, merchant_id: str, fail: FailPolicy | None) -> Response:
    await held_of(parts, merchant_id, await parts.now())
    await parts.fail_policies.set(uuid(merchant_id), fail)
    parts.gate.set_fail(uuid(merchant_id), fail)
    return await _told(call, parts, uuid(merchant_id))


async def _told(call: Call, parts: Parts, merchant_id: UUID) -> Response:
    own = (await parts.fail_policies.all()).get(merchant_id)
    shape = {"merchant_id": str(merchant_id), "fail": own or parts.settings.gate_fail, "own": own is not None}
    return respond(answer(call, await parts.now(), shape))


ROUTERS: tuple[APIRouter, ...] = (admin,)
