"""Open a merchant's account."""

from typing import Annotated

from credit_service.doors.http import api
from credit_service.doors.http.accounts.shared import ACCOUNTS, AccountShape, answer_account
from credit_service.ledger.commands import OpenAccount
from credit_service.ledger.draft import Posted
from credit_service.ledger.refusals import Refused
from credit_service.ledger.types import TRIAL, natural_key
from credit_service.messages.fields import Body, MerchantId, merchant_text
from credit_service.posting import Posting


class OpenBody(Body):
    """The merchant whose account is opened."""

    merchant_id: MerchantId


@api.endpoint(
    "POST",
    ACCOUNTS,
    scope="write",
    tag="accounts",
    answers=api.one(AccountShape),
    status_code=201,
    responses={200: {"model": api.one(AccountShape), "description": "It was open already"}},
    problems=("idempotency_key_reused", "amount_out_of_range", *api.QUEUED),
)
async def open_account(
    body: Annotated[OpenBody, api.examples(open={"merchant_id": api.MERCHANT})],
    call: api.Call,
    posting: Posting,
    ledger: api.Ledger,
) -> api.Answer:
    """Open a merchant's account and grant the trial. Again is the same account, with the trial if it had none."""
    merchant_id = merchant_text(body.merchant_id)
    command = OpenAccount(
        merchant_id=merchant_id,
        key=natural_key(TRIAL, merchant_id=merchant_id),
        actor=call.actor,
        correlation_id=call.correlation_id,
    )
    outcome = await posting.submit(command)
    if isinstance(outcome, Refused):
        raise api.of_refusal(outcome)
    opened = isinstance(outcome, Posted) and outcome.opened
    return await answer_account(ledger, call, body.merchant_id, 201 if opened else 200)
