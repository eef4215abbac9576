"""Reverse a transaction."""

from typing import Annotated

from credit_service.doors.http import api
from credit_service.doors.http.transactions.get import found_transaction
from credit_service.doors.http.transactions.posting import check_not_reserved, idempotency_key, post_one
from credit_service.doors.http.transactions.shared import POSTED, REPLAYED, TRANSACTIONS, TransactionShape, key_header
from credit_service.ledger.commands import Reverse
from credit_service.ledger.types import REVERSAL
from credit_service.messages.content import fingerprint, metadata_text
from credit_service.messages.fields import Body, PositiveCredits, Reason, Uuid
from credit_service.posting import Posting


class ReverseBody(Body):
    """How many credits to reverse, and why."""

    amount: PositiveCredits | None = None
    reason: Reason


@api.endpoint(
    "POST",
    TRANSACTIONS + "/{transaction_id}/reverse",
    scope="admin",
    tag="transactions",
    answers=api.one(TransactionShape),
    status_code=201,
    responses={200: {**REPLAYED, "model": api.one(TransactionShape)}},
    problems=(
        "idempotency_key_missing",
        *POSTED,
        "transaction_not_found",
        "not_reversible",
        "already_reversed",
        "amount_out_of_range",
        *api.QUEUED,
    ),
    openapi_extra=key_header(),
)
async def reverse_transaction(
    transaction_id: Uuid,
    body: Annotated[ReverseBody, api.examples(mistake={"reason": "booked twice, ticket 4713"})],
    call: api.Call,
    posting: Posting,
    ledger: api.Ledger,
) -> api.Answer:
    """Undo `amount` credits of a transaction; without `amount` all that refunds and reversals have left of it.

    The credits of a decrease return to their grants. Those of an increase are taken back as if it were refunded.
    """
    key = idempotency_key(call)
    check_not_reserved(key)
    target = await found_transaction(transaction_id, ledger)
    metadata, salt = metadata_text({"reason": body.reason}, call.limits)
    command = Reverse(
        merchant_id=target.merchant_id,
        key=key,
        content=fingerprint(REVERSAL, target.sequence, body.amount),
        actor=call.actor,
        correlation_id=call.correlation_id,
        metadata=metadata,
        salt=salt,
        sequence=target.sequence,
        target=target.key,
        amount=body.amount,
    )
    return await post_one(posting, ledger, call, command)
