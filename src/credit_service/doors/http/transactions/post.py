"""Post one transaction, or rehearse it."""

from typing import Annotated, Literal

from fastapi import Query

from credit_service.doors.http import api
from credit_service.doors.http.transactions.posting import PostingBody, command_of, optional_key, post_one
from credit_service.doors.http.transactions.shared import (
    KEY_OR_NATURAL,
    PAYMENT,
    REFUSED,
    REPLAYED,
    SPEND,
    TRANSACTIONS,
    RehearsedShape,
    TransactionShape,
    key_header,
    rehearsed,
)
from credit_service.ledger.refusals import Refused
from credit_service.posting import Posting

DryRun = Annotated[
    bool, Query(description="Answer the result with draws and announcements, as if posted; post nothing.")
]
_ADJUSTMENT = {
    "merchant_id": SPEND["merchant_id"],
    "operation_type": "DECREASE",
    "transaction_type": "MANUAL",
    "amount": 5,
    "reason": "booked twice by hand",
}


class RehearsalShape(RehearsedShape):
    """The result that one posting would have."""

    dry_run: Literal[True]


@api.endpoint(
    "POST",
    TRANSACTIONS,
    scope="write",
    tag="transactions",
    answers=api.one(TransactionShape),
    status_code=201,
    responses={
        200: {
            **REPLAYED,
            "model": api.one(TransactionShape) | api.one(RehearsalShape),
            "description": "Replayed, or rehearsed",
        }
    },
    problems=("idempotency_key_missing", *REFUSED),
    openapi_extra=key_header(KEY_OR_NATURAL, is_required=False),
    is_fast=True,
)
async def post_transaction(
    body: Annotated[PostingBody, api.examples(spend=SPEND, payment_with_a_grant=PAYMENT, adjustment=_ADJUSTMENT)],
    call: api.Call,
    posting: Posting,
    ledger: api.Ledger,
    dry_run: DryRun = False,
) -> api.Answer:
    """Post one transaction. The same key with the same content answers the first result again, and posts nothing.

    MANUAL needs scope admin.
    """
    command = command_of(body, optional_key(call), call)
    if not dry_run:
        return await post_one(posting, ledger, call, command)
    (outcome,) = await posting.rehearse([command])
    if isinstance(outcome, Refused):
        raise api.of_refusal(outcome)
    return api.answer(call, await ledger.now(), {"dry_run": True, **rehearsed(outcome)})
