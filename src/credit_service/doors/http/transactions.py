"""Transactions: post one, post many, read them."""

from collections.abc import Coroutine, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from credit_service.doors.http.call import Answer, Call
from credit_service.doors.http.openapi import QUEUED, examples, headers, problems
from credit_service.doors.http.problems import Problem, of_faults, of_refusal
from credit_service.doors.http.routes import (
    MERCHANT,
    WHOLE,
    AccountText,
    CallOf,
    Cursor,
    GrantText,
    Instant,
    Limit,
    Links,
    MerchantText,
    Meta,
    Pagination,
    Parts,
    PartsOf,
    ProblemShape,
    RequestId,
    Since,
    TransactionText,
    Unsaid,
    Until,
    answer,
    cursor_place,
    cursor_text,
    page,
    page_limit,
    respond,
    router,
)
from credit_service.ledger.account import Reference
from credit_service.ledger.addresses import TRANSACTION, parse
from credit_service.ledger.commands import (
    DEFAULT_TERMS,
    RESERVED_KEY_PREFIX,
    Command,
    GrantTerms,
    OrderPaid,
    Post,
    order_key,
)
from credit_service.ledger.decide import Outcome, Replayed
from credit_service.ledger.draft import Posted
from credit_service.ledger.refusals import Refused
from credit_service.ledger.types import DECREASE, INCREASE, MANUAL, ORDER_PAID, TransactionType
from credit_service.messages import patterns, shapes
from credit_service.messages.content import command_content, metadata_text
from credit_service.messages.fast import decoder
from credit_service.messages.faults import Fault, Invalid
from credit_service.messages.fields import (
    MAX_KEY,
    Body,
    Credits,
    Key,
    Metadata,
    Reason,
    Time,
    Uuid,
    parse_time,
    uuid,
)
from credit_service.messages.strict_json import canonical
from credit_service.posting import RefusedAt
from credit_service.storage.transactions import TransactionQuery

ONE = "/credits/transactions"
MANY = "/credits/transactions/batch"
PageNumber = Annotated[int, Field(ge=1, le=10**9), WHOLE]

ALLOWED: dict[str, tuple[TransactionType, ...]] = {
    INCREASE: ("TRIAL", "SUBSCRIPTION", "PAYMENT", "MANUAL", "ORDER_REFUNDED"),
    DECREASE: ("USAGE", "MANUAL", "ORDER_PAID"),
}
"""The transaction types that can be posted by a caller, by their direction."""


class ReferenceBody(Body):
    """What a transaction is about, in the caller's words."""

    type: Key
    id: Key


class GrantBody(Body):
    """How the credits of an INCREASE may be spent."""

    category: Literal["paid", "promotional"] | None = None
    priority: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    effective_at: Time | None = None
    expires_at: Time | None = None


def _where(name: str, value: str, then: dict[str, Any], otherwise: dict[str, Any]) -> dict[str, Any]:
    return {"if": {"properties": {name: {"const": value}}}, "then": then, "else": otherwise}


_HOW_FIELDS_FIT: dict[str, Any] = {
    "allOf": [
        _where(
            "operation_type",
            INCREASE,
            {"properties": {"transaction_type": {"enum": list(ALLOWED[INCREASE])}}},
            {"properties": {"transaction_type": {"enum": list(ALLOWED[DECREASE])}, "grant": {"type": "null"}}},
        ),
        _where(
            "transaction_type",
            ORDER_PAID,
            {
                "required": ["reference"],
                "properties": {"reference": {"properties": {"type": {"const": "order"}}, "type": "object"}},
            },
            {"properties": {"amount": {"minimum": 1}}},
        ),
        _where(
            "transaction_type",
            MANUAL,
            {"required": ["reason"], "properties": {"reason": {"type": "string"}}},
            {"properties": {"reason": {"type": "null"}}},
        ),
    ]
}
"""What `_faults` demands of several fields together, for the OpenAPI document."""


class PostingBody(Body):
    """One posting."""

    model_config = ConfigDict(json_schema_extra=_HOW_FIELDS_FIT)

    merchant_id: Uuid
    operation_type: Literal["INCREASE", "DECREASE"]
    transaction_type: Literal["TRIAL", "SUBSCRIPTION", "PAYMENT", "MANUAL", "ORDER_REFUNDED", "USAGE", "ORDER_PAID"]
    amount: Credits
    reference: ReferenceBody | None = None
    reason: Annotated[Reason | None, Field(description="Why. MANUAL requires it; other types refuse it.")] = None
    metadata: Metadata | None = None
    grant: GrantBody | None = None


class ItemBody(PostingBody):
    """One posting of a batch, with its key."""

    idempotency_key: Key


class BatchBody(Body):
    """Postings in their order: best effort, or atomic."""

    atomic: bool = False
    items: Annotated[list[ItemBody], Field(min_length=1, max_length=1000)]


class DrawShape(BaseModel):
    """A change of one grant."""

    grant_id: GrantText
    amount: Annotated[int, Field(examples=[-25])]


class ReferenceShape(BaseModel):
    """What a transaction is about."""

    type: Annotated[str, Field(examples=["message"])]
    id: Annotated[str, Field(examples=["1001"])]


class TransactionShape(BaseModel):
    """One immutable, numbered entry in an account's history."""

    id: TransactionText
    merchant_id: MerchantText
    account_id: AccountText
    sequence: Annotated[int, Field(ge=1, examples=[2])]
    operation_type: Annotated[Literal["INCREASE", "DECREASE"], Field(examples=["DECREASE"])]
    transaction_type: Annotated[TransactionType, Field(examples=["USAGE"])]
    amount: Annotated[int, Field(ge=0, examples=[25])]
    shortfall: Annotated[int, Field(ge=0)]
    balance_before: Annotated[int, Field(examples=[100])]
    balance_after: Annotated[int, Field(examples=[75])]
    debt_after: Annotated[int, Field(ge=0)]
    idempotency_key: Annotated[str, Field(examples=["message-1001"])]
    reference: ReferenceShape | None
    metadata: Annotated[dict[str, Any] | None, Unsaid]
    draws: list[DrawShape]
    reverses: Annotated[TransactionText | None, Unsaid]
    actor: Annotated[str, Field(examples=["key:vzphnrglpgkp"])]
    correlation_id: RequestId | None
    occurred_at: Instant
    created_at: Instant
    hash: Annotated[
        str,
        Field(pattern="^[0-9a-f]{64}$", examples=["6fa79dff63ee173e79788aae91a4456223b815d680da1e5d6163b9fbec8dfdb3"]),
    ]


class OneTransaction(BaseModel):
    """A transaction."""

    data: TransactionShape
    meta: Meta


class TransactionPage(BaseModel):
    """A page of transactions, newest first."""

    data: list[TransactionShape]
    pagination: Pagination
    links: Links
    meta: Meta


class ResultShape(BaseModel):
    """What became of one item of a batch."""

    outcome: Literal["posted", "replayed", "refused"]
    transaction: TransactionShape | None = None
    error: Annotated[ProblemShape | None, Unsaid] = None


class ResultsShape(BaseModel):
    """What became of the items, in their order."""

    results: list[ResultShape]


class BatchResults(BaseModel):
    """What became of a batch."""

    data: ResultsShape
    meta: Meta


class AnnouncementShape(BaseModel):
    """What would be announced."""

    type: Annotated[str, Field(examples=["consumed"])]
    transaction_sequence: Annotated[int | None, Field(examples=[2])]
    available: Annotated[int, Field(examples=[75])]


class RehearsedShape(ResultShape):
    """What would come of a posting."""

    announcements: list[AnnouncementShape]


class RehearsalShape(RehearsedShape):
    """What would come of one posting."""

    dry_run: Literal[True]


class Rehearsal(BaseModel):
    """A posting that was only rehearsed."""

    data: RehearsalShape
    meta: Meta


class RehearsalsShape(BaseModel):
    """What would come of the items, in their order."""

    dry_run: Literal[True]
    results: list[RehearsedShape]


class BatchRehearsal(BaseModel):
    """A batch that was only rehearsed."""

    data: RehearsalsShape
    meta: Meta


# ---- from bodies to commands, for the fast decoder's bodies and for FastAPI's


def command_of(body: Any, key: str, call: Call, prefix: str = "") -> Command:
    """The command or fact a posting asks for.

    `prefix` points at the item, in a batch. Raises Invalid with every fault that one field alone does not show, Problem
    where the key is not the one it must be.
    """
    faults = _faults(body, key, call.limits.key)
    if faults:
        raise Invalid([fault._replace(pointer=prefix + fault.pointer) for fault in faults])
    reference = None if body.reference is None else Reference(body.reference.type, body.reference.id)
    told = body.metadata if body.reason is None else {**(body.metadata or {}), "reason": body.reason}
    metadata, salt = metadata_text(told, call.limits, f"{prefix}/metadata")
    grant, terms = _terms(body.grant)
    common: dict[str, Any] = {
        "merchant_id": uuid(body.merchant_id),
        "key": key,
        "content": command_content(body.operation_type, body.transaction_type, body.amount, reference, grant),
        "actor": call.actor,
        "correlation_id": call.correlation_id,
        "metadata": metadata,
        "salt": salt,
    }
    if body.transaction_type == ORDER_PAID:
        assert reference is not None
        if key != order_key(reference.id):
            detail = f"An order's key is its natural key: {order_key(reference.id)}"
            raise _key_invalid(detail, prefix)
        return OrderPaid(**common, order_id=reference.id, credits=body.amount)
    if key.startswith(RESERVED_KEY_PREFIX):
        raise _key_invalid(f"Keys that begin with {RESERVED_KEY_PREFIX} are the service's own.", prefix)
    return Post(
        **common,
        operation=body.operation_type,
        type=body.transaction_type,
        amount=body.amount,
        reference=reference,
        terms=terms,
    )


def _key_invalid(detail: str, prefix: str) -> Problem:
    errors = [Fault(f"{prefix}/idempotency_key", "not_allowed", detail)] if prefix else []
    return Problem("idempotency_key_invalid", detail, errors=errors)


def _faults(body: Any, key: str, most: int) -> list[Fault]:
    faults: list[Fault] = []
    if most < MAX_KEY:  # else the bodies and the header know
        texts = {"/idempotency_key": key}
        if body.reference is not None:
            texts |= {"/reference/type": body.reference.type, "/reference/id": body.reference.id}
        faults = [
            Fault(pointer, "too_long", f"This may have {most} characters at most.")
            for pointer, text in texts.items()
            if len(text) > most
        ]
    if body.transaction_type not in ALLOWED[body.operation_type]:
        allowed = ", ".join(ALLOWED[body.operation_type])
        faults.append(Fault("/transaction_type", "not_allowed", f"A {body.operation_type} takes {allowed}."))
    if body.transaction_type == ORDER_PAID:
        if body.reference is None or body.reference.type != "order":
            sentence = 'An ORDER_PAID refers to its order: {"type": "order", "id": …}.'
            faults.append(Fault("/reference", "required", sentence))
    elif body.amount < 1:
        faults.append(Fault("/amount", "out_of_range", "Input should be greater than or equal to 1."))
    if body.transaction_type == MANUAL and body.reason is None:
        faults.append(Fault("/reason", "required", "A MANUAL needs a reason."))
    elif body.transaction_type != MANUAL and body.reason is not None:
        faults.append(Fault("/reason", "not_allowed", "Only a MANUAL takes a reason; use metadata instead."))
    if body.grant is not None:
        if body.operation_type == DECREASE:
            faults.append(Fault("/grant", "not_allowed", "Only an INCREASE leaves a grant."))
        effective_at, expires_at = body.grant.effective_at, body.grant.expires_at
        if effective_at is not None and expires_at is not None and parse_time(expires_at) <= parse_time(effective_at):
            faults.append(Fault("/grant/expires_at", "not_allowed", "expires_at must be later than effective_at."))
    return faults


def _terms(body: Any) -> tuple[str | None, GrantTerms]:
    """A grant as sent, in canonical JSON, and as the ledger knows it."""
    if body is None:
        return None, DEFAULT_TERMS
    names = ("category", "priority", "effective_at", "expires_at")
    sent = {name: value for name in names if (value := getattr(body, name)) is not None}
    terms = GrantTerms(
        category=body.category,
        priority=DEFAULT_TERMS.priority if body.priority is None else body.priority,
        effective_at=None if body.effective_at is None else parse_time(body.effective_at),
        expires_at=None if body.expires_at is None else parse_time(body.expires_at),
    )
    return canonical(sent), terms


def idempotency_key(call: Call) -> str:
    """The Idempotency-Key of a request; quoted and bare mean the same. Raises Problem without exactly one."""
    sent = call.sent(b"idempotency-key")
    if not sent:
        raise Problem("idempotency_key_missing", "Send an Idempotency-Key, so that a repeat cannot post twice.")
    if len(sent) > 1:
        raise Problem("idempotency_key_invalid", "The Idempotency-Key came more than once.")
    key = sent[0].decode("latin-1").strip(" \t")
    if key.startswith('"'):
        inner = key[1:-1]
        if len(key) < 2 or not key.endswith('"') or '"' in inner or "\\" in inner:
            raise Problem("idempotency_key_invalid", "A quoted Idempotency-Key ends with a quotation mark.")
        key = inner
    most = call.limits.key
    if not (1 <= len(key) <= most and key.isascii() and key.isprintable()):
        detail = f"An Idempotency-Key has 1 to {most} printable ASCII characters."
        raise Problem("idempotency_key_invalid", detail)
    return key


# ---- posting


async def post_one(parts: Parts, call: Call, command: Command) -> Answer:
    """Submit a posting, and answer the transaction that came of it."""
    outcome = await parts.posting.submit(command)
    now = await parts.now()
    match outcome:
        case Posted(transaction=transaction) if transaction is not None:
            return answer(call, now, shapes.transaction(transaction), 201)
        case Replayed(first=first) if first is not None:
            return answer(call, now, shapes.transaction(first), 200, [(b"idempotency-replayed", b"true")])
        case Refused():
            raise of_refusal(outcome)
    raise AssertionError(f"a posting cannot come to {outcome}")


async def _post_many(parts: Parts, call: Call, commands: Sequence[Command], *, atomic: bool) -> Answer:
    if not atomic:
        outcomes: Sequence[Outcome] = await parts.posting.submit_many(commands)
        status = 200
    else:
        decided = await parts.posting.submit_atomic(commands)
        if isinstance(decided, RefusedAt):
            raise of_refusal(decided.refused, f"/items/{decided.position}")
        outcomes = decided
        status = 201 if any(isinstance(outcome, Posted) for outcome in outcomes) else 200
    return answer(call, await parts.now(), {"results": [_result(outcome) for outcome in outcomes]}, status)


async def _rehearse_one(parts: Parts, call: Call, command: Command) -> Answer:
    (outcome,) = await parts.posting.rehearse([command])
    if isinstance(outcome, Refused):
        raise of_refusal(outcome)
    return answer(call, await parts.now(), {"dry_run": True, **_rehearsed(outcome)})


async def _rehearse_many(parts: Parts, call: Call, commands: Sequence[Command], *, atomic: bool) -> Answer:
    outcomes = await parts.posting.rehearse(commands)
    for index, outcome in enumerate(outcomes):
        if atomic and isinstance(outcome, Refused):
            raise of_refusal(outcome, f"/items/{index}")
    results = [_rehearsed(outcome) for outcome in outcomes]
    return answer(call, await parts.now(), {"dry_run": True, "results": results})


def _rehearsed(outcome: Outcome) -> dict[str, Any]:
    """A result, with what would be announced."""
    announcements = outcome.announcements if isinstance(outcome, Posted) else ()
    return {**_result(outcome), "announcements": [shapes.announcement(announcement) for announcement in announcements]}


def _commands(parts: Parts, call: Call, body: Any) -> list[Command]:
    """The commands of a batch. Raises Invalid with the faults of all items."""
    commands: list[Command] = []
    faults: list[Fault] = []
    if len(body.items) > parts.settings.batch_max_items:
        sentence = f"A batch has {parts.settings.batch_max_items} items at most."
        raise Invalid([Fault("/items", "too_long", sentence)])
    for index, item in enumerate(body.items):
        try:
            commands.append(command_of(item, item.idempotency_key, call, f"/items/{index}"))
        except Invalid as error:
            faults += error.faults
        if body.atomic and item.merchant_id.lower() != body.items[0].merchant_id.lower():
            sentence = "An atomic batch is of one merchant."
            faults.append(Fault(f"/items/{index}/merchant_id", "not_allowed", sentence))
    if faults:
        raise Invalid(faults)
    return commands


def _result(outcome: Outcome) -> dict[str, Any]:
    match outcome:
        case Posted(transaction=transaction) if transaction is not None:
            return {"outcome": "posted", "transaction": shapes.transaction(transaction)}
        case Replayed(first=first) if first is not None:
            return {"outcome": "replayed", "transaction": shapes.transaction(first)}
        case Refused():
            return {"outcome": "refused", "error": of_refusal(outcome).shape(None)}
    raise AssertionError(f"a posting cannot come to {outcome}")


# ---- the hot routes: the same, without FastAPI, for what is plainly well formed

_decode_one = decoder(PostingBody)
_decode_many = decoder(BatchBody)


def hot_one(parts: Parts, call: Call) -> Coroutine[Any, Any, Answer] | None:
    """POST one, where the body is plainly well formed; None leaves it to FastAPI."""
    body = _decode_one(call.body)
    if body is None or call.query or body.transaction_type == MANUAL:
        return None
    try:
        command = command_of(body, idempotency_key(call), call)
    except (Invalid, ValueError):
        return None
    return post_one(parts, call, command)


def hot_many(parts: Parts, call: Call) -> Coroutine[Any, Any, Answer] | None:
    """POST a batch, where the body is plainly well formed; None leaves it to FastAPI."""
    body = _decode_many(call.body)
    if body is None or call.query or any(item.transaction_type == MANUAL for item in body.items):
        return None
    try:
        commands = _commands(parts, call, body)
    except (Invalid, ValueError):
        return None
    return _post_many(parts, call, commands, atomic=bool(body.atomic))


# ---- FastAPI's routes

read, write = router("read"), router("write")
DryRun = Annotated[bool, Query(description="Answer what would come of it, with draws and announcements; post nothing.")]
_tags: list[Any] = ["transactions"]


def key_header(
    description: str = "The caller's name for this posting, kept for ever.", *, required: bool = True
) -> Any:
    """The Idempotency-Key as a parameter (for `openapi_extra`): FastAPI leaves reading it to `idempotency_key`."""
    schema = {
        "type": "string",
        "minLength": 1,
        "maxLength": MAX_KEY,
        "pattern": rf'^(?!"?{RESERVED_KEY_PREFIX})([!#-~][ -~]*|"[ !#-\[\]-~]+")$',  # bare, or quoted
        "examples": ["message-1001"],
    }
    return {
        "parameters": [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": required,
                "description": description,
                "schema": schema,
            }
        ]
    }


REPLAYED: dict[str, Any] = {"description": "Replayed", "headers": headers("Idempotency-Replayed")}
_POSTED = ("idempotency_key_invalid", "idempotency_key_reused", "account_not_found", "insufficient_credits")
_REFUSED = (*_POSTED, "trial_already_granted", "amount_out_of_range", *QUEUED)
_SPEND = {
    "merchant_id": MERCHANT,
    "operation_type": "DECREASE",
    "transaction_type": "USAGE",
    "amount": 25,
    "reference": {"type": "message", "id": "1001"},
}
_PAYMENT = {
    "merchant_id": MERCHANT,
    "operation_type": "INCREASE",
    "transaction_type": "PAYMENT",
    "amount": 500,
    "reference": {"type": "invoice", "id": "2026-0042"},
    "metadata": {"plan": "starter"},
    "grant": {"category": "paid", "priority": 50, "expires_at": "2099-12-31T23:59:59Z"},
}
_ADJUSTMENT = {
    "merchant_id": MERCHANT,
    "operation_type": "DECREASE",
    "transaction_type": "MANUAL",
    "amount": 5,
    "reason": "booked twice by hand",
}
_ORDER = {
    "merchant_id": MERCHANT,
    "operation_type": "DECREASE",
    "transaction_type": "ORDER_PAID",
    "amount": 2,
    "reference": {"type": "order", "id": "1001"},
    "idempotency_key": order_key("1001"),
}
_POSTINGS = examples(spend=_SPEND, payment_with_a_grant=_PAYMENT, adjustment=_ADJUSTMENT)
_BATCHES = examples(
    best_effort={"items": [{**_SPEND, "idempotency_key": "message-1002"}, _ORDER]},
    all_or_nothing={
        "atomic": True,
        "items": [{**_PAYMENT, "idempotency_key": "invoice-0043"}, {**_SPEND, "idempotency_key": "message-1003"}],
    },
)


@write.post(
    ONE,
    operation_id="post_transaction",
    status_code=201,
    response_model=OneTransaction,
    openapi_extra=key_header(),
    tags=_tags,
    responses={
        200: {**REPLAYED, "model": OneTransaction | Rehearsal, "description": "Replayed, or rehearsed"},
        **problems("idempotency_key_missing", *_REFUSED),
    },
)
async def post_transaction(
    body: Annotated[PostingBody, _POSTINGS], call: CallOf, parts: PartsOf, dry_run: DryRun = False
) -> Response:
    """Post one transaction. The same key with the same content answers the first result again, and posts nothing.

    MANUAL needs scope admin.
    """
    if body.transaction_type == MANUAL:
        call.require("admin")
    key = idempotency_key(call)
    command = command_of(body, key, call)
    return respond(await (_rehearse_one if dry_run else post_one)(parts, call, command))


@write.post(
    MANY,
    operation_id="post_transactions",
    response_model=BatchResults | BatchRehearsal,
    tags=_tags,
    responses={201: {"model": BatchResults, "description": "Posted atomically"}, **problems(*_REFUSED)},
)
async def post_transactions(
    body: Annotated[BatchBody, _BATCHES], call: CallOf, parts: PartsOf, dry_run: DryRun = False
) -> Response:
    """Post up to 1,000 transactions in their order: best effort, each with its own result, or all or nothing.

    MANUAL needs scope admin.
    """
    if any(item.transaction_type == MANUAL for item in body.items):
        call.require("admin")
    commands = _commands(parts, call, body)
    return respond(await (_rehearse_many if dry_run else _post_many)(parts, call, commands, atomic=body.atomic))


@read.get(
    ONE + "/{transaction_id}",
    operation_id="get_transaction",
    response_model=OneTransaction,
    tags=_tags,
    responses=problems("transaction_not_found"),
)
async def get_transaction(transaction_id: Uuid, call: CallOf, parts: PartsOf) -> Response:
    """Read one transaction."""
    address = parse(uuid(transaction_id))
    found = None
    if address is not None and address.kind == TRANSACTION:
        found = await parts.transactions.get(address)
    if found is None:
        raise Problem("transaction_not_found", "There is no transaction of this id.")
    return respond(answer(call, await parts.now(), shapes.transaction(found)))


@read.get(
    ONE,
    operation_id="list_transactions",
    response_model=TransactionPage,
    tags=_tags,
    responses=problems("account_not_found", "cursor_invalid"),
)
async def list_transactions(
    call: CallOf,
    parts: PartsOf,
    merchant_id: Annotated[str | None, Query(pattern=patterns.UUID)] = None,
    operation_type: Literal["INCREASE", "DECREASE"] | None = None,
    transaction_type: TransactionType | None = None,
    start_date: Since = None,
    end_date: Until = None,
    reference_type: Annotated[str | None, Query(min_length=1, max_length=MAX_KEY)] = None,
    reference_id: Annotated[str | None, Query(min_length=1, max_length=MAX_KEY)] = None,
    limit: Limit = None,
    page_number: Annotated[PageNumber | None, Query(alias="page", description="With merchant_id.")] = None,
    cursor: Cursor = None,
) -> Response:
    """List transactions, newest first. With merchant_id by page or cursor, without it by cursor."""
    limit = page_limit(limit, parts.settings)
    _one_way_to_page(merchant_id, page_number, cursor)
    now = await parts.now()
    filters: dict[str, Any] = {
        "operation": operation_type,
        "type": transaction_type,
        "start_at": None if start_date is None else parse_time(start_date),
        "end_at": None if end_date is None else parse_time(end_date),
        "reference_type": reference_type,
        "reference_id": reference_id,
    }
    bound = {"list": "transactions", "merchant": merchant_id and merchant_id.lower(), **filters}
    before = None if cursor is None else cursor_place(cursor, 1 if merchant_id else parts.outbox.lanes, **bound)
    sequence = None
    if merchant_id is not None:
        held = (await parts.accounts.load([uuid(merchant_id)], now)).get(uuid(merchant_id))
        if held is None:
            raise Problem("account_not_found", "This merchant has no account.")
        filters["account"] = held.account.number
        sequence = held.account.sequence
    query = TransactionQuery(**filters)
    total, offset = None, 0
    if page_number is not None:
        skipped = (page_number - 1) * limit
        if query == TransactionQuery(account=query.account):
            # Sequences have no gaps, so where a page begins is arithmetic, and the last page costs what the first does.
            total = sequence
            before = ((sequence or 0) + 1 - skipped,)
        else:
            total, offset = await parts.transactions.count(query), skipped
    found = await parts.transactions.page(query, before, limit + 1, offset)
    more = len(found) > limit
    return page(
        call,
        now,
        [shapes.transaction(entry.transaction) for entry in found[:limit]],
        limit=limit,
        next_cursor=cursor_text(found[limit - 1].position, **bound) if more else None,
        has_previous=cursor is not None or (page_number or 1) > 1,
        number=page_number,
        total=total,
    )


def _one_way_to_page(merchant_id: str | None, page_number: int | None, cursor: str | None) -> None:
    if page_number is not None and cursor is not None:
        raise of_faults([Fault("/query/page", "not_allowed", "Give page or cursor, not both.")])
    if page_number is not None and merchant_id is None:
        raise of_faults([Fault("/query/page", "not_allowed", "Without merchant_id, go on by cursor.")])


ROUTERS: tuple[APIRouter, ...] = (read, write)
