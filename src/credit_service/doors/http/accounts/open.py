"""Open a merchant's account."""

from typing import Annotated

from credit_service.doors.http.accounts.shared import ACCOUNTS, AccountShape, answer_account
from credit_service.doors.http.answers import MERCHANT, one
from credit_service.doors.http.call import Answer, Call
from credit_service.doors.http.endpoints import endpoint
from credit_service.doors.http.ledger import Ledger
from credit_service.doors.http.openapi import QUEUED, examples
from credit_service.doors.http.problems import of_refusal
from credit_service.ledger.commands import OpenAccount
from credit_service.ledger.draft import Posted
from credit_service.ledger.refusals import Refused
from credit_service.ledger.types import TRIAL, natural_key
from credit_service.messages.fields import Body, Uuid, uuid
from credit_service.posting import Posting


class OpenBody(Body):
    """The merchant whose account is opened."""

    merchant_id: Uuid


@endpoint(
    "POST",
    ACCOUNTS,
    scope="write",
    tag="accounts",
    answers=one(AccountShape),
    status_code=201,
    responses={200: {"model": one(AccountShape), "description": "It was open already"}},
    problems=("idempotency_key_reused", "amount_out_of_range", *QUEUED),
)
async def open_account(
    body: Annotated[OpenBody, examples(open={"merchant_id": MERCHANT})],
    call: Call,
    posting: Posting,
    ledger: Ledger,
) -> Answer:
    """Open a merchant's account and grant the trial. Again is the same account, with the trial if it had none."""
    merchant_id = uuid(body.merchant_id)
    command = OpenAccount(
        merchant_id=merchant_id,
        key=natural_key(TRIAL, merchant_id=merchant_id),
        actor=call.actor,
        correlation_id=call.correlation_id,
    )
    outcome = await posting.submit(command)
    if isinstance(outcome, Refused):
        raise of_refusal(outcome)
    opened = isinstance(outcome, Posted) and outcome.opened
    return await answer_account(ledger, call, body.merchant_id, 201 if opened else 200)
