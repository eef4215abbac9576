"""Adjustments: an administrator adds or takes credits, and says why. Who it was is the key that called."""

from typing import Annotated, Literal

from fastapi import APIRouter, Response

from credit_service.doors.http.openapi import QUEUED, examples, problems
from credit_service.doors.http.routes import MERCHANT, CallOf, PartsOf, respond, router
from credit_service.doors.http.transactions import (
    REPLAYED,
    OneTransaction,
    PostingBody,
    command_of,
    idempotency_key,
    key_header,
    post_one,
)
from credit_service.ledger.types import MANUAL
from credit_service.messages.fields import Body, PositiveCredits, Reason, Uuid

ADJUSTMENTS = "/credits/adjustments"


class AdjustmentBody(Body):
    """What to adjust, and why."""

    merchant_id: Uuid
    operation_type: Literal["INCREASE", "DECREASE"]
    amount: PositiveCredits
    reason: Reason


admin = router("admin")
_KEY = ("idempotency_key_missing", "idempotency_key_invalid", "idempotency_key_reused")
_REFUSED = (*_KEY, "account_not_found", "insufficient_credits", "amount_out_of_range", *QUEUED)
_EXAMPLE = {"merchant_id": MERCHANT, "operation_type": "INCREASE", "amount": 50, "reason": "goodwill, ticket 4711"}


@admin.post(
    ADJUSTMENTS,
    operation_id="adjust_credits",
    status_code=201,
    response_model=OneTransaction,
    openapi_extra=key_header(),
    tags=["adjustments"],
    responses={200: {**REPLAYED, "model": OneTransaction}, **problems(*_REFUSED)},
)
async def adjust_credits(
    body: Annotated[AdjustmentBody, examples(goodwill=_EXAMPLE)], call: CallOf, parts: PartsOf
) -> Response:
    """Add or take credits by hand. The reason is kept in the transaction's metadata."""
    posting = PostingBody(
        merchant_id=body.merchant_id,
        operation_type=body.operation_type,
        transaction_type=MANUAL,
        amount=body.amount,
        reason=body.reason,
    )
    return respond(await post_one(parts, call, command_of(posting, idempotency_key(call), call)))


ROUTERS: tuple[APIRouter, ...] = (admin,)
