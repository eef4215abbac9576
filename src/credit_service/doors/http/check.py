"""Check: may this be spent? With `consume` it is spent in the same breath. The answer is always 200, allowed or not."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from credit_service.doors.http.call import Call
from credit_service.doors.http.openapi import QUEUED, examples, problems
from credit_service.doors.http.problems import of_refusal
from credit_service.doors.http.routes import (
    MERCHANT,
    CallOf,
    Meta,
    Parts,
    PartsOf,
    Unsaid,
    answer,
    respond,
    router,
)
from credit_service.doors.http.transactions import (
    PostingBody,
    ReferenceBody,
    TransactionShape,
    command_of,
    idempotency_key,
    key_header,
)
from credit_service.ledger.decide import Replayed
from credit_service.ledger.draft import Posted
from credit_service.ledger.refusals import Refusal, Refused
from credit_service.ledger.settle import standing_at
from credit_service.ledger.types import DECREASE, USAGE
from credit_service.messages import shapes
from credit_service.messages.fields import Body, Metadata, PositiveCredits, Uuid, uuid

CHECK = "/credits/check"
_NOT_ALLOWED = (Refusal.ACCOUNT_NOT_FOUND, Refusal.INSUFFICIENT_CREDITS)


class CheckBody(Body):
    """What somebody wants to spend; `reference` and `metadata` are kept where it is consumed."""

    merchant_id: Uuid
    amount: PositiveCredits
    consume: bool = False
    reference: ReferenceBody | None = None
    metadata: Metadata | None = None


class CheckShape(BaseModel):
    """Whether it may be spent, or was."""

    allowed: Annotated[bool, Field(examples=[True])]
    reason: Annotated[Literal["insufficient_credits", "account_not_found"] | None, Unsaid]
    available: Annotated[int, Field(examples=[75])]
    required: Annotated[int, Field(examples=[25])]
    transaction: Annotated[TransactionShape | None, Unsaid]


class OneCheck(BaseModel):
    """A check."""

    data: CheckShape
    meta: Meta


read = router("read")
_KEY = ("idempotency_key_missing", "idempotency_key_invalid", "idempotency_key_reused")
_CHECKS = examples(
    look={"merchant_id": MERCHANT, "amount": 25},
    spend={"merchant_id": MERCHANT, "amount": 25, "consume": True, "reference": {"type": "message", "id": "1004"}},
)


@read.post(
    CHECK,
    operation_id="check_credits",
    response_model=OneCheck,
    openapi_extra=key_header("With consume: the caller's name for this spend, kept for ever.", required=False),
    tags=["check"],
    responses=problems(*_KEY, *QUEUED),
)
async def check_credits(body: Annotated[CheckBody, _CHECKS], call: CallOf, parts: PartsOf) -> Response:
    """Whether credits may be spent. With `consume` they are: that needs scope write and an Idempotency-Key."""
    key = idempotency_key(call) if body.consume or call.sent(b"idempotency-key") else ""
    data = await _consume(body, key, call, parts) if body.consume else await _look(body, parts)
    return respond(answer(call, await parts.now(), data))


async def _look(body: CheckBody, parts: Parts) -> dict[str, Any]:
    available = await _available(body, parts)
    if available is None:
        return _told(body, 0, Refusal.ACCOUNT_NOT_FOUND)
    return _told(body, available, None if available >= body.amount else Refusal.INSUFFICIENT_CREDITS)


async def _consume(body: CheckBody, key: str, call: Call, parts: Parts) -> dict[str, Any]:
    call.require("write")
    posting = PostingBody(
        merchant_id=body.merchant_id,
        operation_type=DECREASE,
        transaction_type=USAGE,
        amount=body.amount,
        reference=body.reference,
        metadata=body.metadata,
    )
    outcome = await parts.posting.submit(command_of(posting, key, call))
    match outcome:
        case Posted(transaction=transaction, account=account) if transaction is not None:
            return _told(body, account.available, None) | {"transaction": shapes.transaction(transaction)}
        case Replayed(first=first) if first is not None:
            available = await _available(body, parts)
            return _told(body, available or 0, None) | {"transaction": shapes.transaction(first)}
        case Refused(refusal=refusal, detail=detail) if refusal in _NOT_ALLOWED:
            return _told(body, detail.get("available", 0), refusal)
        case Refused():
            raise of_refusal(outcome)
    raise AssertionError(f"a spend cannot come to {outcome}")


async def _available(body: CheckBody, parts: Parts) -> int | None:
    merchant_id, now = uuid(body.merchant_id), await parts.now()
    held = (await parts.accounts.load([merchant_id], now)).get(merchant_id)
    return None if held is None else standing_at(held.account, held.grants, parts.policy, now).account.available


def _told(body: CheckBody, available: int, refusal: Refusal | None) -> dict[str, Any]:
    return {
        "allowed": refusal is None,
        "reason": None if refusal is None else refusal.code,
        "available": available,
        "required": body.amount,
        "transaction": None,
    }


ROUTERS: tuple[APIRouter, ...] = (read,)
