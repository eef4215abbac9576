"""The paths of accounts, and the shape of one."""

from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import BaseModel, Field

from credit_service.doors.http import api
from credit_service.ledger.account import AccountState, Status
from credit_service.messages import patterns, shapes
from credit_service.storage.accounts import LoadedAccount

ACCOUNTS = api.PREFIX + "/credits/accounts"
ACCOUNT = ACCOUNTS + "/{merchant_id}"
MISSING = ("account_not_found",)
MerchantId = Annotated[str, Path(pattern=patterns.MERCHANT, description="The merchant's id.", examples=[api.MERCHANT])]
Left = Annotated[int, Field(examples=[75])]


class AccountShape(BaseModel):
    """One merchant's credits, with the terms in force."""

    id: api.AccountText
    merchant_id: api.MerchantText
    state: Annotated[AccountState, Field(examples=["open"])]
    balance: Left
    held: int
    pending: int
    available: Left
    status: Annotated[Status, Field(examples=["ACTIVE"])]
    low_threshold: Annotated[int, Field(examples=[20])]
    when_insufficient: Literal["overdraft", "partial", "reject"]
    overdraft_limit: Annotated[int | None, api.Unset]
    sequence: Annotated[int, Field(examples=[2])]
    last_transaction_id: api.TransactionText | None
    last_transaction_at: api.Instant | None
    created_at: api.Instant
    updated_at: api.Instant


def account_shape(ledger: api.Ledger, loaded: LoadedAccount, now: int) -> dict[str, Any]:
    """An account as it stands now."""
    return shapes.account(ledger.standing(loaded, now), ledger.policy, loaded.account.settled_at)


async def answer_account(ledger: api.Ledger, call: api.Call, merchant_id: str, status: int = 200) -> api.Answer:
    """The answer with a merchant's account as it stands now."""
    now = await ledger.now()
    return api.answer(call, now, account_shape(ledger, await ledger.load(merchant_id, now), now), status)
