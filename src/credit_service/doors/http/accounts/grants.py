"""List an account's open grants."""

from functools import partial
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from credit_service.doors.http import api
from credit_service.doors.http.accounts.shared import ACCOUNT, MISSING, Left, MerchantId
from credit_service.messages import shapes
from credit_service.messages.fields import merchant_text


class GrantShape(BaseModel):
    """The credits of an INCREASE that are left to be spent."""

    id: api.GrantText
    transaction_id: Annotated[api.TransactionText, Field(examples=["a7800de5-8bd6-8a69-9100-000000000001"])]
    category: Annotated[Literal["paid", "promotional"], Field(examples=["promotional"])]
    priority: Annotated[int, Field(examples=[100])]
    amount: Annotated[int, Field(examples=[100])]
    remaining: Left
    effective_at: api.Instant
    expires_at: Annotated[api.Instant | None, api.Unset]


@api.endpoint(
    "GET",
    ACCOUNT + "/grants",
    scope="read",
    tag="accounts",
    answers=api.page_of(GrantShape),
    problems=(*MISSING, "cursor_invalid"),
)
async def list_grants(
    merchant_id: MerchantId, call: api.Call, ledger: api.Ledger, limit: api.Limit = None, cursor: api.Cursor = None
) -> api.Answer:
    """List the open grants, in the order in which they will be spent."""
    pager = api.Pager(call, limit, list="grants", merchant=merchant_text(merchant_id))
    now, loaded = await ledger.now(), await ledger.accounts.with_grants(merchant_text(merchant_id))
    if loaded is None:
        raise api.no_account()
    shape = partial(shapes.grant, loaded.account)
    return pager.slice(now, ledger.standing(loaded, now).grants, shape, cursor)
