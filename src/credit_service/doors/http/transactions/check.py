"""Check whether credits may be spent. With `consume` they are spent, atomically."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from credit_service.doors.http import api
from credit_service.doors.http.transactions.adjust import KEY_PROBLEMS
from credit_service.doors.http.transactions.posting import PostingBody, ReferenceBody, command_of, idempotency_key
from credit_service.doors.http.transactions.shared import TransactionShape, key_header
from credit_service.ledger.account import Account
from credit_service.ledger.decide import Replayed
from credit_service.ledger.draft import Posted
from credit_service.ledger.refusals import Refusal, Refused
from credit_service.ledger.types import DECREASE, USAGE
from credit_service.messages import shapes
from credit_service.messages.fields import Body, MerchantId, Metadata, PositiveCredits, merchant_text
from credit_service.posting import Posting

Why = Literal["insufficient_credits", "account_not_found", "account_frozen", "account_closed"]
_NOT_ALLOWED = {
    Refusal.ACCOUNT_NOT_FOUND,
    Refusal.ACCOUNT_CLOSED,
    Refusal.ACCOUNT_FROZEN,
    Refusal.INSUFFICIENT_CREDITS,
}
_NO_SPENDS = {"frozen": Refusal.ACCOUNT_FROZEN, "closed": Refusal.ACCOUNT_CLOSED}


class CheckBody(Body):
    """The spend to check. With `consume`, the transaction keeps `reference` and `metadata`."""

    merchant_id: MerchantId
    amount: PositiveCredits
    consume: bool = False
    reference: ReferenceBody | None = None
    metadata: Metadata | None = None


class CheckShape(BaseModel):
    """Whether the spend is allowed; with `consume`, its transaction."""

    allowed: Annotated[bool, Field(examples=[True])]
    reason: Annotated[Why | None, api.Unset]
    available: Annotated[int, Field(examples=[75])]
    required: Annotated[int, Field(examples=[25])]
    transaction: Annotated[TransactionShape | None, api.Unset]


_CHECKS = api.examples(
    look={"merchant_id": api.MERCHANT, "amount": 25},
    spend={"merchant_id": api.MERCHANT, "amount": 25, "consume": True, "reference": {"type": "message", "id": "1004"}},
)


@api.endpoint(
    "POST",
    api.PREFIX + "/credits/check",
    scope="read",
    tag="check",
    answers=api.one(CheckShape),
    problems=(*KEY_PROBLEMS, *api.QUEUED),
    openapi_extra=key_header("With consume: the caller's name for this spend, kept for ever.", is_required=False),
)
async def check_credits(
    body: Annotated[CheckBody, _CHECKS], call: api.Call, posting: Posting, ledger: api.Ledger
) -> api.Answer:
    """Check whether credits may be spent; always 200. With `consume` it spends them.

    `consume` needs scope write and an Idempotency-Key.
    """
    key = idempotency_key(call) if body.consume or call.sent(b"idempotency-key") else ""
    data = await (_consume(body, key, call, posting, ledger) if body.consume else _look(body, ledger))
    return api.answer(call, await ledger.now(), data)


async def _look(body: CheckBody, ledger: api.Ledger) -> dict[str, Any]:
    account = await _account(body, ledger)
    if account is None:
        return _shape(body, 0, Refusal.ACCOUNT_NOT_FOUND)
    refusal = None if account.available >= body.amount else Refusal.INSUFFICIENT_CREDITS
    return _shape(body, account.available, _NO_SPENDS.get(account.state, refusal))


async def _consume(body: CheckBody, key: str, call: api.Call, posting: Posting, ledger: api.Ledger) -> dict[str, Any]:
    call.require("write")
    spend = PostingBody(
        merchant_id=body.merchant_id,
        operation_type=DECREASE,
        transaction_type=USAGE,
        amount=body.amount,
        reference=body.reference,
        metadata=body.metadata,
    )
    outcome = await posting.submit(command_of(spend, key, call))
    match outcome:
        case Posted(transaction=transaction, account=account) if transaction is not None:
            return _shape(body, account.available, None) | {"transaction": shapes.transaction(transaction)}
        case Replayed(first=first) if first is not None:
            standing = await _account(body, ledger)
            return _shape(body, _available(standing), None) | {"transaction": shapes.transaction(first)}
        case Refused(refusal=refusal) if refusal in _NOT_ALLOWED:
            return _shape(body, _available(await _account(body, ledger)), refusal)
        case Refused():
            raise api.of_refusal(outcome)
    raise AssertionError(f"a spend cannot come to {outcome}")


async def _account(body: CheckBody, ledger: api.Ledger) -> Account | None:
    """The account as it stands now, if there is one."""
    merchant_id, now = merchant_text(body.merchant_id), await ledger.now()
    loaded = (await ledger.accounts.load([merchant_id], now)).get(merchant_id)
    return None if loaded is None else ledger.standing(loaded, now).account


def _available(account: Account | None) -> int:
    return 0 if account is None else account.available


def _shape(body: CheckBody, available: int, refusal: Refusal | None) -> dict[str, Any]:
    return {
        "allowed": refusal is None,
        "reason": None if refusal is None else refusal.code,
        "available": available,
        "required": body.amount,
        "transaction": None,
    }
