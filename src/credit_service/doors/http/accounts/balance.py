"""Read a balance, now or at another instant."""

from typing import Annotated

from fastapi import Query
from pydantic import BaseModel

from credit_service.doors.http import api
from credit_service.doors.http.accounts.shared import ACCOUNT, MISSING, Left, MerchantId
from credit_service.messages.fields import Time, format_time, parse_time


class BalanceShape(BaseModel):
    """The credits of an account: available = balance - held - pending."""

    merchant_id: api.MerchantText
    balance: Left
    held: int
    pending: int
    available: Left
    as_of: api.Instant


@api.endpoint(
    "GET", ACCOUNT + "/balance", scope="read", tag="accounts", answers=api.one(BalanceShape), problems=MISSING
)
async def get_balance(
    merchant_id: MerchantId,
    call: api.Call,
    ledger: api.Ledger,
    at: Annotated[Time | None, Query(description="At this instant (RFC 3339), past or future.")] = None,
) -> api.Answer:
    """Read a balance. With `at`: as it was at a past instant, or as it will be if nothing is posted."""
    now = await ledger.now()
    instant = now if at is None else parse_time(at)
    loaded = await ledger.load(merchant_id, instant)
    if at is None or instant >= loaded.account.settled_at:
        account = ledger.standing(loaded, instant).account
        balance, held, pending = account.balance, account.held, account.pending
    else:
        balance, pending = await ledger.accounts.past(loaded.account.number, instant)
        held = 0
    shape = {
        "merchant_id": str(loaded.account.merchant_id),
        "balance": balance,
        "held": held,
        "pending": pending,
        "available": balance - held - pending,
        "as_of": format_time(instant),
    }
    return api.answer(call, now, shape)
