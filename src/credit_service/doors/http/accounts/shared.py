"""The paths of accounts, and the shape of one."""

from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import BaseModel, Field

from credit_service.doors.http.answers import (
    MERCHANT,
    AccountText,
    Instant,
    MerchantText,
    TransactionText,
    Unset,
    answer,
)
from credit_service.doors.http.call import Answer, Call
from credit_service.doors.http.endpoints import PREFIX
from credit_service.doors.http.ledger import Ledger
from credit_service.ledger.account import Status
from credit_service.messages import patterns, shapes
from credit_service.storage.accounts import LoadedAccount

ACCOUNTS = PREFIX + "/credits/accounts"
ACCOUNT = ACCOUNTS + "/{merchant_id}"
MISSING = ("account_not_found",)
MerchantId = Annotated[str, Path(pattern=patterns.UUID, description="The merchant's UUID.", examples=[MERCHANT])]
Left = Annotated[int, Field(examples=[75])]


class AccountShape(BaseModel):
    """One merchant's credits, with the terms in force."""

    id: AccountText
    merchant_id: MerchantText
    balance: Left
    held: int
    pending: int
    available: Left
    status: Annotated[Status, Field(examples=["ACTIVE"])]
    low_threshold: Annotated[int, Field(examples=[20])]
    when_insufficient: Literal["overdraft", "partial", "reject"]
    overdraft_limit: Annotated[int | None, Unset]
    sequence: Annotated[int, Field(examples=[2])]
    last_transaction_id: TransactionText | None
    last_transaction_at: Instant | None
    created_at: Instant
    updated_at: Instant


def account_shape(ledger: Ledger, loaded: LoadedAccount, now: int) -> dict[str, Any]:
    """An account as it stands now."""
    return shapes.account(ledger.standing(loaded, now), ledger.policy, loaded.account.settled_at)


async def answer_account(ledger: Ledger, call: Call, merchant_id: str, status: int = 200) -> Answer:
    """The answer with a merchant's account as it stands now."""
    now = await ledger.now()
    return answer(call, now, account_shape(ledger, await ledger.load(merchant_id, now), now), status)
