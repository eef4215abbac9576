"""Post many transactions, or rehearse them: best effort, or all or nothing."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from credit_service.doors.http import api
from credit_service.doors.http.transactions.post import DryRun
from credit_service.doors.http.transactions.posting import COMMANDED, FACTS, HOW_FIELDS_FIT, PostingBody, command_of
from credit_service.doors.http.transactions.shared import (
    PAYMENT,
    REFUSED,
    SPEND,
    TRANSACTIONS,
    RehearsedShape,
    ResultShape,
    rehearsed,
    result,
)
from credit_service.ledger.commands import Command
from credit_service.ledger.decide import Outcome
from credit_service.ledger.draft import Posted
from credit_service.ledger.refusals import Refused
from credit_service.ledger.types import ORDER_PAID
from credit_service.messages.faults import Fault, Invalid
from credit_service.messages.fields import Body, Key, merchant_text
from credit_service.posting import Posting, RefusedAt

_HAS_KEY: dict[str, Any] = {
    "required": ["idempotency_key"],
    "properties": {"idempotency_key": {"type": "string"}},
}


class ItemBody(PostingBody):
    """One posting of a batch, with its key. ORDER_PAID and PAYMENT may leave the key out."""

    model_config = ConfigDict(json_schema_extra={"allOf": [*HOW_FIELDS_FIT, {"if": COMMANDED, "then": _HAS_KEY}]})

    idempotency_key: Key | None = None


class BatchBody(Body):
    """Postings in their order: best effort, or atomic."""

    atomic: bool = False
    items: Annotated[list[ItemBody], Field(min_length=1, max_length=1000)]


class ResultsShape(BaseModel):
    """The results of the items, in their order."""

    results: list[ResultShape]


class RehearsalsShape(BaseModel):
    """The results that the items would have, in their order."""

    dry_run: Literal[True]
    results: list[RehearsedShape]


_ORDER = SPEND | {
    "transaction_type": ORDER_PAID,
    "amount": 2,
    "reference": {"type": "order", "id": "1001"},
}
_BATCHES = api.examples(
    best_effort={"items": [{**SPEND, "idempotency_key": "message-1002"}, _ORDER]},
    all_or_nothing={
        "atomic": True,
        "items": [PAYMENT, {**SPEND, "idempotency_key": "message-1003"}],
    },
)


@api.endpoint(
    "POST",
    TRANSACTIONS + "/batch",
    scope="write",
    tag="transactions",
    answers=api.one(ResultsShape) | api.one(RehearsalsShape),
    responses={201: {"model": api.one(ResultsShape), "description": "Posted atomically"}},
    problems=REFUSED,
    is_fast=True,
    is_large=True,
)
async def post_transactions(
    body: Annotated[BatchBody, _BATCHES], call: api.Call, posting: Posting, ledger: api.Ledger, dry_run: DryRun = False
) -> api.Answer:
    """Post up to 1,000 transactions in their order: best effort, each with its own result, or all or nothing.

    MANUAL needs scope admin.
    """
    commands, is_atomic = _commands(body, call), bool(body.atomic)
    if dry_run:
        outcomes = await posting.rehearse(commands)
        for index, outcome in enumerate(outcomes):
            if is_atomic and isinstance(outcome, Refused):
                raise api.of_refusal(outcome, f"/items/{index}")
        data: dict[str, Any] = {"dry_run": True, "results": [rehearsed(outcome) for outcome in outcomes]}
        return api.answer(call, await ledger.now(), data)
    outcomes = await (_posted_atomically(posting, commands) if is_atomic else posting.submit_many(commands))
    status = 201 if is_atomic and any(isinstance(outcome, Posted) for outcome in outcomes) else 200
    return api.answer(call, await ledger.now(), {"results": [result(outcome) for outcome in outcomes]}, status)


async def _posted_atomically(posting: Posting, commands: Sequence[Command]) -> Sequence[Outcome]:
    """Post all commands or none. Raises Problem at the first refusal."""
    outcomes = await posting.submit_atomic(commands)
    if isinstance(outcomes, RefusedAt):
        raise api.of_refusal(outcomes.refused, f"/items/{outcomes.position}")
    return outcomes


def _commands(body: Any, call: api.Call) -> list[Command]:
    """The commands of a batch. Raises Invalid with the faults of all items."""
    commands: list[Command] = []
    faults: list[Fault] = []
    if len(body.items) > call.limits.batch:
        raise Invalid([Fault("/items", "too_long", f"A batch has {call.limits.batch} items at most.")])
    for index, item in enumerate(body.items):
        if item.idempotency_key is None and item.transaction_type not in FACTS:
            faults.append(Fault(f"/items/{index}/idempotency_key", "required", "This field is required."))
            continue
        try:
            commands.append(command_of(item, item.idempotency_key, call, f"/items/{index}"))
        except Invalid as error:
            faults += error.faults
        if body.atomic and merchant_text(item.merchant_id) != merchant_text(body.items[0].merchant_id):
            sentence = "An atomic batch is of one merchant."
            faults.append(Fault(f"/items/{index}/merchant_id", "not_allowed", sentence))
    if faults:
        raise Invalid(faults)
    return commands
