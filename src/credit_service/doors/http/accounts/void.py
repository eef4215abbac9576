"""Void a grant: take its unspent credits."""

from typing import Annotated

from fastapi import Path

from credit_service.doors.http import api
from credit_service.doors.http.accounts.shared import ACCOUNT, MerchantId
from credit_service.doors.http.transactions.posting import check_not_reserved, idempotency_key, post_one
from credit_service.doors.http.transactions.shared import POSTED, REPLAYED, TransactionShape, key_header
from credit_service.ledger.commands import VoidGrant
from credit_service.ledger.types import VOID
from credit_service.messages import patterns
from credit_service.messages.content import fingerprint, metadata_text
from credit_service.messages.fields import Body, PositiveCredits, Reason, merchant_text, uuid
from credit_service.posting import Posting


class VoidBody(Body):
    """How many credits to take, and why."""

    amount: PositiveCredits | None = None
    reason: Reason


GrantId = Annotated[
    str,
    Path(pattern=patterns.UUID, description="The id of the grant.", examples=["a7800de5-8bd6-8a69-9200-000000000001"]),
]


@api.endpoint(
    "POST",
    ACCOUNT + "/grants/{grant_id}/void",
    scope="admin",
    tag="accounts",
    answers=api.one(TransactionShape),
    status_code=201,
    responses={200: {**REPLAYED, "model": api.one(TransactionShape)}},
    problems=("idempotency_key_missing", *POSTED, "grant_not_found", *api.QUEUED),
    openapi_extra=key_header(),
)
async def void_grant(
    merchant_id: MerchantId,
    grant_id: GrantId,
    body: Annotated[VoidBody, api.examples(mistake={"reason": "granted by mistake, ticket 4712"})],
    call: api.Call,
    posting: Posting,
    ledger: api.Ledger,
) -> api.Answer:
    """Take `amount` of a grant's unspent credits; without `amount` all. The metadata of the transaction says why."""
    key = idempotency_key(call)
    check_not_reserved(key)
    grant = uuid(grant_id)
    metadata, salt = metadata_text({"reason": body.reason}, call.limits)
    command = VoidGrant(
        merchant_id=merchant_text(merchant_id),
        key=key,
        content=fingerprint(VOID, str(grant), body.amount),
        actor=call.actor,
        correlation_id=call.correlation_id,
        metadata=metadata,
        salt=salt,
        grant_id=grant,
        amount=body.amount,
    )
    return await post_one(posting, ledger, call, command)
