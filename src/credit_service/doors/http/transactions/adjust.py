"""Add or take credits by hand."""

from typing import Annotated

from credit_service.doors.http import api
from credit_service.doors.http.transactions.posting import PostingBody, command_of, idempotency_key, post_one
from credit_service.doors.http.transactions.shared import REPLAYED, TransactionShape, key_header
from credit_service.ledger.types import MANUAL, Operation
from credit_service.messages.fields import Body, MerchantId, PositiveCredits, Reason
from credit_service.posting import Posting


class AdjustmentBody(Body):
    """The credits to add or take, and why."""

    merchant_id: MerchantId
    operation_type: Operation
    amount: PositiveCredits
    reason: Reason


KEY_PROBLEMS = ("idempotency_key_missing", "idempotency_key_invalid", "idempotency_key_reused")
_EXAMPLE = {"merchant_id": api.MERCHANT, "operation_type": "INCREASE", "amount": 50, "reason": "goodwill, ticket 4711"}


@api.endpoint(
    "POST",
    api.PREFIX + "/credits/adjustments",
    scope="admin",
    tag="adjustments",
    answers=api.one(TransactionShape),
    status_code=201,
    responses={200: {**REPLAYED, "model": api.one(TransactionShape)}},
    problems=(*KEY_PROBLEMS, "account_not_found", "insufficient_credits", "amount_out_of_range", *api.QUEUED),
    openapi_extra=key_header(),
)
async def adjust_credits(
    body: Annotated[AdjustmentBody, api.examples(goodwill=_EXAMPLE)],
    call: api.Call,
    posting: Posting,
    ledger: api.Ledger,
) -> api.Answer:
    """Add or take credits by hand. The metadata of the transaction keeps the reason."""
    asked = PostingBody(
        merchant_id=body.merchant_id,
        operation_type=body.operation_type,
        transaction_type=MANUAL,
        amount=body.amount,
        reason=body.reason,
    )
    return await post_one(posting, ledger, call, command_of(asked, idempotency_key(call), call))
