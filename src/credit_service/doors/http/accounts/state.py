"""Freeze, thaw and close an account."""

from typing import Annotated

from credit_service.doors.http import api
from credit_service.doors.http.accounts.shared import ACCOUNT, MISSING, AccountShape, MerchantId, answer_account
from credit_service.doors.http.transactions.posting import check_not_reserved, idempotency_key
from credit_service.doors.http.transactions.shared import key_header
from credit_service.ledger.account import CLOSED, FROZEN, OPEN, AccountState
from credit_service.ledger.commands import ChangeState
from credit_service.ledger.refusals import Refused
from credit_service.messages.content import fingerprint, metadata_text
from credit_service.messages.fields import Body, Reason, merchant_text
from credit_service.posting import Posting


class ReasonBody(Body):
    """Why."""

    reason: Reason


class CloseBody(ReasonBody):
    """Why, and whether the credits that are left are forfeited."""

    forfeit: bool = False


_WHY = api.examples(fraud={"reason": "card reported stolen, ticket 4712"})
_PROBLEMS = (*MISSING, "account_closed", *api.QUEUED)


@api.endpoint(
    "POST", ACCOUNT + "/freeze", scope="admin", tag="accounts", answers=api.one(AccountShape), problems=_PROBLEMS
)
async def freeze_account(
    merchant_id: MerchantId, body: Annotated[ReasonBody, _WHY], call: api.Call, posting: Posting, ledger: api.Ledger
) -> api.Answer:
    """Refuse all spends of an account and disable its plugin. Facts and MANUAL transactions still count."""
    return await _changed(_command(merchant_id, FROZEN, body.reason, call), call, posting, ledger)


@api.endpoint(
    "POST", ACCOUNT + "/thaw", scope="admin", tag="accounts", answers=api.one(AccountShape), problems=_PROBLEMS
)
async def thaw_account(
    merchant_id: MerchantId, body: Annotated[ReasonBody, _WHY], call: api.Call, posting: Posting, ledger: api.Ledger
) -> api.Answer:
    """Open a frozen account again."""
    return await _changed(_command(merchant_id, OPEN, body.reason, call), call, posting, ledger)


@api.endpoint(
    "POST",
    ACCOUNT + "/close",
    scope="admin",
    tag="accounts",
    answers=api.one(AccountShape),
    problems=(
        *_PROBLEMS,
        "account_not_empty",
        "idempotency_key_missing",
        "idempotency_key_invalid",
        "idempotency_key_reused",
    ),
    openapi_extra=key_header("With `forfeit`, required: the key of the VOID of what is left.", is_required=False),
)
async def close_account(
    merchant_id: MerchantId,
    body: Annotated[CloseBody, api.examples(goodbye={"reason": "contract ended", "forfeit": True})],
    call: api.Call,
    posting: Posting,
    ledger: api.Ledger,
) -> api.Answer:
    """Close an account without credits and debt; with `forfeit` a VOID takes its credits first.

    A closed account refuses commands. A fact that comes later counts, and opens the account frozen.
    """
    key = idempotency_key(call) if body.forfeit else ""
    check_not_reserved(key)
    command = _command(merchant_id, CLOSED, body.reason, call, key, forfeit=body.forfeit)
    return await _changed(command, call, posting, ledger)


def _command(
    merchant_id: str, state: AccountState, reason: str, call: api.Call, key: str = "", *, forfeit: bool = False
) -> ChangeState:
    metadata, salt = metadata_text({"reason": reason}, call.limits)
    return ChangeState(
        merchant_id=merchant_text(merchant_id),
        key=key,
        content=fingerprint(state, forfeit),
        actor=call.actor,
        correlation_id=call.correlation_id,
        metadata=metadata,
        salt=salt,
        state=state,
        reason=reason,
        forfeit=forfeit,
    )


async def _changed(command: ChangeState, call: api.Call, posting: Posting, ledger: api.Ledger) -> api.Answer:
    """Change the state of an account, and answer the account."""
    outcome = await posting.submit(command)
    if isinstance(outcome, Refused):
        raise api.of_refusal(outcome)
    return await answer_account(ledger, call, command.merchant_id)
