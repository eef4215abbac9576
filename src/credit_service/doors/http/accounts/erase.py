"""Erase the personal data of a merchant."""

from typing import Annotated

from pydantic import BaseModel, Field

from credit_service.doors.http import api
from credit_service.doors.http.accounts.shared import ACCOUNT, MISSING, MerchantId
from credit_service.erasure import Erasure
from credit_service.messages.fields import merchant_text

Found = Annotated[int, Field(ge=0, examples=[1])]


class ErasedShape(BaseModel):
    """How much personal data an erasure found and erased, by the place that kept it."""

    merchant_id: api.MerchantText
    transactions: Found
    parked: Found
    dead_letters: Found
    deliveries: Found
    reasons: Found


@api.endpoint("POST", ACCOUNT + "/erase", scope="admin", tag="accounts", answers=api.one(ErasedShape), problems=MISSING)
async def erase_merchant(merchant_id: MerchantId, call: api.Call, ledger: api.Ledger, erasure: Erasure) -> api.Answer:
    """Erase a merchant's personal data for good; balances, hashes and idempotency keys stay. Again finds nothing."""
    now = await ledger.now()
    await ledger.load(merchant_id, now)
    erased = await erasure.erase(merchant_text(merchant_id))
    return api.answer(call, now, {"merchant_id": merchant_text(merchant_id), **erased._asdict()})
