"""Change an account's own terms."""

from typing import Annotated, Literal

from pydantic import ConfigDict

from credit_service.doors.http import api
from credit_service.doors.http.accounts.shared import ACCOUNT, MISSING, AccountShape, MerchantId, answer_account
from credit_service.ledger.commands import ChangeTerms
from credit_service.ledger.refusals import Refused
from credit_service.messages.fields import Body, Credits, merchant_text
from credit_service.posting import Posting


class TermsBody(Body):
    """The terms to change: null goes back to the default, and what is left out stays."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    low_threshold: Credits | None = None
    when_insufficient: Literal["overdraft", "partial", "reject"] | None = None
    overdraft_limit: Credits | None = None


_TERMS = api.examples(
    warn_sooner={"low_threshold": 50},
    no_debt={"when_insufficient": "reject"},
    some_debt={"when_insufficient": "overdraft", "overdraft_limit": 500},
)


@api.endpoint(
    "PATCH", ACCOUNT, scope="admin", tag="accounts", answers=api.one(AccountShape), problems=(*MISSING, *api.QUEUED)
)
async def change_terms(
    merchant_id: MerchantId, body: Annotated[TermsBody, _TERMS], call: api.Call, posting: Posting, ledger: api.Ledger
) -> api.Answer:
    """Change an account's own low threshold, policy for orders that it cannot cover, and overdraft limit."""
    command = ChangeTerms(
        merchant_id=merchant_text(merchant_id),
        key="",
        actor=call.actor,
        correlation_id=call.correlation_id,
        **api.changes(body),
    )
    outcome = await posting.submit(command)
    if isinstance(outcome, Refused):
        raise api.of_refusal(outcome)
    return await answer_account(ledger, call, merchant_id)
