"""The paths of transactions, the shape of a transaction, and the answers of the endpoints that post one."""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, Field

from credit_service.doors.http import api
from credit_service.ledger.commands import RESERVED_KEY_PREFIX
from credit_service.ledger.decide import Outcome, Replayed
from credit_service.ledger.draft import Posted
from credit_service.ledger.refusals import Refused
from credit_service.ledger.types import Operation, TransactionType
from credit_service.messages import shapes
from credit_service.messages.fields import MAX_KEY

TRANSACTIONS = api.PREFIX + "/credits/transactions"
REPLAYED: Final[dict[str, Any]] = {"description": "Replayed", "headers": api.headers("Idempotency-Replayed")}
POSTED: Final = (
    "idempotency_key_invalid",
    "idempotency_key_reused",
    "account_not_found",
    "account_closed",
    "insufficient_credits",
)
REFUSED: Final = (*POSTED, "account_frozen", "trial_already_granted", "amount_out_of_range", *api.QUEUED)
KEY_OR_NATURAL: Final = (
    "The caller's name for this posting, kept for ever. ORDER_PAID and PAYMENT may leave it out: their key is made"
    " from their reference."
)
SPEND: Final = {
    "merchant_id": api.MERCHANT,
    "operation_type": "DECREASE",
    "transaction_type": "USAGE",
    "amount": 25,
    "reference": {"type": "message", "id": "1001"},
}
PAYMENT: Final = {
    "merchant_id": api.MERCHANT,
    "operation_type": "INCREASE",
    "transaction_type": "PAYMENT",
    "amount": 500,
    "reference": {"type": "payment", "id": "2026-0042"},
    "metadata": {"plan": "starter"},
    "grant": {"category": "paid", "priority": 50, "expires_at": "2099-12-31T23:59:59Z"},
}


class DrawShape(BaseModel):
    """A change of one grant."""

    grant_id: api.GrantText
    amount: Annotated[int, Field(examples=[-25])]


class ReferenceShape(BaseModel):
    """The subject of a transaction, in the caller's words."""

    type: Annotated[str, Field(examples=["message"])]
    id: Annotated[str, Field(examples=["1001"])]


class TransactionShape(BaseModel):
    """One immutable, numbered entry in an account's history."""

    id: api.TransactionText
    merchant_id: api.MerchantText
    account_id: api.AccountText
    sequence: Annotated[int, Field(ge=1, examples=[2])]
    operation_type: Annotated[Operation, Field(examples=["DECREASE"])]
    transaction_type: Annotated[TransactionType, Field(examples=["USAGE"])]
    amount: Annotated[int, Field(ge=0, examples=[25])]
    shortfall: Annotated[int, Field(ge=0)]
    balance_before: Annotated[int, Field(examples=[100])]
    balance_after: Annotated[int, Field(examples=[75])]
    debt_after: Annotated[int, Field(ge=0)]
    idempotency_key: Annotated[str, Field(examples=["message-1001"])]
    reference: ReferenceShape | None
    metadata: Annotated[dict[str, Any] | None, api.Unset]
    draws: list[DrawShape]
    reverses: Annotated[api.TransactionText | None, api.Unset]
    actor: Annotated[str, Field(examples=["key:vzphnrglpgkp"])]
    correlation_id: api.RequestId | None
    occurred_at: api.Instant
    created_at: api.Instant
    hash: Annotated[
        str,
        Field(pattern="^[0-9a-f]{64}$", examples=["6fa79dff63ee173e79788aae91a4456223b815d680da1e5d6163b9fbec8dfdb3"]),
    ]


class ResultShape(BaseModel):
    """The result of one posting."""

    outcome: Literal["posted", "replayed", "refused"]
    transaction: TransactionShape | None = None
    error: Annotated[api.ProblemShape | None, api.Unset] = None


class AnnouncementShape(BaseModel):
    """An announcement that a posting would cause."""

    type: Annotated[str, Field(examples=["consumed"])]
    transaction_sequence: Annotated[int | None, Field(examples=[2])]
    available: Annotated[int, Field(examples=[75])]


class RehearsedShape(ResultShape):
    """The result that a posting would have."""

    announcements: list[AnnouncementShape]


def result(outcome: Outcome) -> dict[str, Any]:
    """The result of one posting."""
    match outcome:
        case Posted(transaction=transaction) if transaction is not None:
            return {"outcome": "posted", "transaction": shapes.transaction(transaction)}
        case Replayed(first=first) if first is not None:
            return {"outcome": "replayed", "transaction": shapes.transaction(first)}
        case Refused():
            return {"outcome": "refused", "error": api.of_refusal(outcome).shape(None)}
    raise AssertionError(f"a posting cannot come to {outcome}")


def rehearsed(outcome: Outcome) -> dict[str, Any]:
    """The result that a posting would have, with its announcements."""
    announcements = outcome.announcements if isinstance(outcome, Posted) else ()
    return {**result(outcome), "announcements": [shapes.announcement(announcement) for announcement in announcements]}


def key_header(
    description: str = "The caller's name for this posting, kept for ever.", *, is_required: bool = True
) -> Any:
    """The Idempotency-Key as a parameter (for `openapi_extra`): `posting.idempotency_key` reads it."""
    schema = {
        "type": "string",
        "minLength": 1,
        "maxLength": MAX_KEY,
        "pattern": rf'^(?!"?{RESERVED_KEY_PREFIX})([!#-~][ -~]*|"[ !#-\[\]-~]+")$',  # bare, or quoted
        "examples": ["message-1001"],
    }
    named = {"name": "Idempotency-Key", "in": "header", "required": is_required}
    return {"parameters": [{**named, "description": description, "schema": schema}]}
