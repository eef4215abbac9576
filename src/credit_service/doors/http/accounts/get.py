"""Read one account."""

from credit_service.doors.http.accounts.shared import ACCOUNT, MISSING, AccountShape, MerchantId, answer_account
from credit_service.doors.http.answers import one
from credit_service.doors.http.call import Answer, Call
from credit_service.doors.http.endpoints import endpoint
from credit_service.doors.http.ledger import Ledger


@endpoint("GET", ACCOUNT, scope="read", tag="accounts", answers=one(AccountShape), problems=MISSING)
async def get_account(merchant_id: MerchantId, call: Call, ledger: Ledger) -> Answer:
    """Read an account."""
    return await answer_account(ledger, call, merchant_id)
