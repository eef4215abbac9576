"""Change an account's own terms."""

from typing import Annotated, Literal

from pydantic import ConfigDict

from credit_service.doors.http.accounts.shared import ACCOUNT, MISSING, AccountShape, MerchantId, answer_account
from credit_service.doors.http.answers import one
from credit_service.doors.http.call import Answer, Call
from credit_service.doors.http.endpoints import changes, endpoint
from credit_service.doors.http.ledger import Ledger
from credit_service.doors.http.openapi import QUEUED, examples
from credit_service.doors.http.problems import of_refusal
from credit_service.ledger.commands import ChangeTerms
from credit_service.ledger.refusals import Refused
from credit_service.messages.fields import Body, Credits, uuid
from credit_service.posting import Posting


class TermsBody(Body):
    """The terms to change: null goes back to the default, and what is left out stays."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    low_threshold: Credits | None = None
    when_insufficient: Literal["overdraft", "partial", "reject"] | None = None
    overdraft_limit: Credits | None = None


_TERMS = examples(
    warn_sooner={"low_threshold": 50},
    no_debt={"when_insufficient": "reject"},
    some_debt={"when_insufficient": "overdraft", "overdraft_limit": 500},
)


@endpoint("PATCH", ACCOUNT, scope="admin", tag="accounts", answers=one(AccountShape), problems=(*MISSING, *QUEUED))
async def change_terms(
    merchant_id: MerchantId, body: Annotated[TermsBody, _TERMS], call: Call, posting: Posting, ledger: Ledger
) -> Answer:
    """Change an account's own low threshold, policy for orders that it cannot cover, and overdraft limit."""
    command = ChangeTerms(
        merchant_id=uuid(merchant_id), key="", actor=call.actor, correlation_id=call.correlation_id, **changes(body)
    )
    outcome = await posting.submit(command)
    if isinstance(outcome, Refused):
        raise of_refusal(outcome)
    return await answer_account(ledger, call, merchant_id)
