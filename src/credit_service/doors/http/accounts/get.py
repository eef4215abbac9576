"""Read one account."""

from credit_service.doors.http import api
from credit_service.doors.http.accounts.shared import ACCOUNT, MISSING, AccountShape, MerchantId, answer_account


@api.endpoint("GET", ACCOUNT, scope="read", tag="accounts", answers=api.one(AccountShape), problems=MISSING)
async def get_account(merchant_id: MerchantId, call: api.Call, ledger: api.Ledger) -> api.Answer:
    """Read an account."""
    return await answer_account(ledger, call, merchant_id)
