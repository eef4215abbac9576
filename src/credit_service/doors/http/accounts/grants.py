"""List an account's open grants."""

from functools import partial
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from credit_service.doors.http.accounts.shared import ACCOUNT, MISSING, Left, MerchantId
from credit_service.doors.http.answers import GrantText, Instant, TransactionText, Unset
from credit_service.doors.http.call import Answer, Call
from credit_service.doors.http.endpoints import endpoint
from credit_service.doors.http.ledger import Ledger, no_account
from credit_service.doors.http.pages import Cursor, Limit, Pager, page_of
from credit_service.messages import shapes
from credit_service.messages.fields import uuid


class GrantShape(BaseModel):
    """The credits of an INCREASE that are left to be spent."""

    id: GrantText
    transaction_id: Annotated[TransactionText, Field(examples=["a7800de5-8bd6-8a69-9100-000000000001"])]
    category: Annotated[Literal["paid", "promotional"], Field(examples=["promotional"])]
    priority: Annotated[int, Field(examples=[100])]
    amount: Annotated[int, Field(examples=[100])]
    remaining: Left
    effective_at: Instant
    expires_at: Annotated[Instant | None, Unset]


@endpoint(
    "GET",
    ACCOUNT + "/grants",
    scope="read",
    tag="accounts",
    answers=page_of(GrantShape),
    problems=(*MISSING, "cursor_invalid"),
)
async def list_grants(
    merchant_id: MerchantId, call: Call, ledger: Ledger, limit: Limit = None, cursor: Cursor = None
) -> Answer:
    """List the open grants, in the order in which they will be spent."""
    pager = Pager(call, limit, list="grants", merchant=merchant_id.lower())
    now, loaded = await ledger.now(), await ledger.accounts.with_grants(uuid(merchant_id))
    if loaded is None:
        raise no_account()
    shape = partial(shapes.grant, loaded.account)
    return pager.slice(now, ledger.standing(loaded, now).grants, shape, cursor)
