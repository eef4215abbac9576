"""From the body of a posting to its command, and from its outcome to an answer."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from credit_service.doors.http import api
from credit_service.ledger.account import Reference
from credit_service.ledger.commands import (
    DEFAULT_TERMS,
    RESERVED_KEY_PREFIX,
    Command,
    GrantTerms,
    OrderPaid,
    PaymentSucceeded,
    Post,
)
from credit_service.ledger.decide import Replayed
from credit_service.ledger.draft import Posted
from credit_service.ledger.refusals import Refused
from credit_service.ledger.types import (
    DECREASE,
    INCREASE,
    MANUAL,
    ORDER_PAID,
    PAYMENT,
    Category,
    Operation,
    PostableType,
    TransactionType,
    natural_key,
    postable,
)
from credit_service.messages import shapes
from credit_service.messages.content import command_content, metadata_text
from credit_service.messages.faults import Fault, Invalid
from credit_service.messages.fields import (
    MAX_KEY,
    Body,
    Credits,
    Key,
    MerchantId,
    Metadata,
    Reason,
    Time,
    id_text,
    merchant_text,
    parse_time,
)
from credit_service.messages.patterns import ID
from credit_service.messages.strict_json import canonical
from credit_service.posting import Posting


class ReferenceBody(Body):
    """The subject of a transaction, in the caller's words."""

    type: Key
    id: Annotated[Key, Field(pattern=ID)]


class GrantBody(Body):
    """How the credits of an INCREASE may be spent."""

    category: Category | None = None
    priority: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    effective_at: Time | None = None
    expires_at: Time | None = None


def _where(name: str, value: str, then: dict[str, Any], otherwise: dict[str, Any]) -> dict[str, Any]:
    return {"if": {"properties": {name: {"const": value}}}, "then": then, "else": otherwise}


ALLOWED = {operation: postable(operation) for operation in (INCREASE, DECREASE)}
"""The transaction types that a caller may post, by their operation."""
FACTS: Mapping[TransactionType, str] = {ORDER_PAID: "order", PAYMENT: "payment"}
"""The types that tell a fact, and the type of the reference that names it: its natural key is made from that."""
COMMANDED: dict[str, Any] = {"properties": {"transaction_type": {"not": {"enum": list(FACTS)}}}}
"""The JSON Schema of a posting that is a command, so its caller chooses the key."""
HOW_FIELDS_FIT: list[dict[str, Any]] = [
    _where(
        "operation_type",
        INCREASE,
        {"properties": {"transaction_type": {"enum": list(ALLOWED[INCREASE])}}},
        {"properties": {"transaction_type": {"enum": list(ALLOWED[DECREASE])}, "grant": {"type": "null"}}},
    ),
    *[
        {
            "if": {"properties": {"transaction_type": {"const": fact}}},
            "then": {
                "required": ["reference"],
                "properties": {"reference": {"properties": {"type": {"const": named}}, "type": "object"}},
            },
        }
        for fact, named in FACTS.items()
    ],
    {"if": COMMANDED, "then": {"properties": {"amount": {"minimum": 1}}}},
    _where(
        "transaction_type",
        MANUAL,
        {"required": ["reason"], "properties": {"reason": {"type": "string"}}},
        {"properties": {"reason": {"type": "null"}}},
    ),
]
"""What `_faults` demands of several fields together, for the OpenAPI document."""


class PostingBody(Body):
    """One posting."""

    model_config = ConfigDict(json_schema_extra={"allOf": list(HOW_FIELDS_FIT)})

    merchant_id: MerchantId
    operation_type: Operation
    transaction_type: PostableType
    amount: Credits
    reference: ReferenceBody | None = None
    reason: Annotated[Reason | None, Field(description="Why. MANUAL requires it; other types refuse it.")] = None
    metadata: Metadata | None = None
    grant: GrantBody | None = None


def command_of(body: Any, key: str | None, call: api.Call, prefix: str = "") -> Command:
    """The command or fact that a posting asks for. `prefix` points at the item of a batch.

    `body` is a `PostingBody`, or what the fast decoder makes of one. `key`: None if the caller sent none. Raises
    Invalid with all faults that more than one field shows; Problem if the key is not the natural one, or missing, or
    if the caller's key lacks the scope.
    """
    faults = _faults(body, key, call.limits.key)
    if faults:
        raise Invalid([fault._replace(pointer=prefix + fault.pointer) for fault in faults])
    if body.transaction_type == MANUAL:
        call.require("admin")
    reference = None if body.reference is None else Reference(body.reference.type, body.reference.id)
    if body.transaction_type in FACTS and reference is not None:
        reference = reference._replace(id=id_text(reference.id))
    sent = body.metadata if body.reason is None else {**(body.metadata or {}), "reason": body.reason}
    metadata, salt = metadata_text(sent, call.limits, f"{prefix}/metadata")
    grant, terms = _terms(body.grant)
    common: dict[str, Any] = {
        "merchant_id": merchant_text(body.merchant_id),
        "key": _key(body.transaction_type, reference, key, prefix),
        "content": command_content(body.operation_type, body.transaction_type, body.amount, reference, grant),
        "actor": call.actor,
        "correlation_id": call.correlation_id,
        "metadata": metadata,
        "salt": salt,
    }
    if body.transaction_type == ORDER_PAID and reference is not None:
        return OrderPaid(**common, order_id=reference.id, credits=body.amount)
    if body.transaction_type == PAYMENT and reference is not None:
        return PaymentSucceeded(**common, payment_id=reference.id, credits=body.amount, terms=terms)
    return Post(
        **common,
        operation=body.operation_type,
        type=body.transaction_type,
        amount=body.amount,
        reference=reference,
        terms=terms,
    )


def _key(type_: TransactionType, reference: Reference | None, sent: str | None, prefix: str) -> str:
    """The key of a posting: of a fact the natural one, else the caller's. Raises Problem if `sent` is not that."""
    if type_ in FACTS and reference is not None:
        natural = natural_key(type_, **{f"{reference.type}_id": reference.id})
        if sent not in (None, natural):
            raise _key_invalid(f"The key of {type_} is its natural key: {natural}", prefix)
        return natural
    if sent is None:
        raise key_missing()
    check_not_reserved(sent, prefix)
    return sent


def check_not_reserved(key: str, prefix: str = "") -> None:
    """Raise Problem if the service keeps such keys for itself."""
    if key.startswith(RESERVED_KEY_PREFIX):
        raise _key_invalid(f"Keys that begin with {RESERVED_KEY_PREFIX} are the service's own.", prefix)


def _key_invalid(detail: str, prefix: str) -> api.Problem:
    errors: Sequence[Fault] = [Fault(f"{prefix}/idempotency_key", "not_allowed", detail)] if prefix else ()
    return api.Problem("idempotency_key_invalid", detail, errors=errors)


def key_missing() -> api.Problem:
    return api.Problem("idempotency_key_missing", "Send an Idempotency-Key, so that a repeat cannot post twice.")


def _faults(body: Any, key: str | None, most: int) -> list[Fault]:
    faults: list[Fault] = []
    if most < MAX_KEY:  # else the models and the header have this limit
        texts = {"/idempotency_key": key or ""}
        if body.reference is not None:
            texts |= {"/reference/type": body.reference.type, "/reference/id": body.reference.id}
        faults = [
            Fault(pointer, "too_long", f"This may have {most} characters at most.")
            for pointer, text in texts.items()
            if len(text) > most
        ]
    if body.transaction_type not in (allowed := ALLOWED[body.operation_type]):
        faults.append(Fault("/transaction_type", "not_allowed", f"{body.operation_type} takes {', '.join(allowed)}."))
    if (named := FACTS.get(body.transaction_type)) is not None:
        if body.reference is None or body.reference.type != named:
            sentence = f'{body.transaction_type} refers to its {named}: {{"type": "{named}", "id": …}}.'
            faults.append(Fault("/reference", "required", sentence))
    elif body.amount < 1:
        faults.append(Fault("/amount", "out_of_range", "Input should be greater than or equal to 1."))
    if body.transaction_type == MANUAL and body.reason is None:
        faults.append(Fault("/reason", "required", "MANUAL needs a reason."))
    elif body.transaction_type != MANUAL and body.reason is not None:
        faults.append(Fault("/reason", "not_allowed", "Only MANUAL takes a reason; use metadata instead."))
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


def idempotency_key(call: api.Call) -> str:
    """The Idempotency-Key of a request; quoted and bare mean the same. Raises Problem without exactly one."""
    if (key := optional_key(call)) is None:
        raise key_missing()
    return key


def optional_key(call: api.Call) -> str | None:
    """As `idempotency_key`, but None if the request has none."""
    sent = call.sent(b"idempotency-key")
    if not sent:
        return None
    if len(sent) > 1:
        raise api.Problem("idempotency_key_invalid", "The Idempotency-Key came more than once.")
    key = sent[0].decode("latin-1").strip(" \t")
    if key.startswith('"'):
        inner = key[1:-1]
        if len(key) < 2 or not key.endswith('"') or '"' in inner or "\\" in inner:
            raise api.Problem("idempotency_key_invalid", "A quoted Idempotency-Key ends with a quotation mark.")
        key = inner
    most = call.limits.key
    if not (1 <= len(key) <= most and key.isascii() and key.isprintable()):
        detail = f"An Idempotency-Key has 1 to {most} printable ASCII characters."
        raise api.Problem("idempotency_key_invalid", detail)
    return key


async def post_one(posting: Posting, ledger: api.Ledger, call: api.Call, command: Command) -> api.Answer:
    """Submit a posting, and answer its transaction. Raises Problem if it is refused."""
    outcome = await posting.submit(command)
    now = await ledger.now()
    match outcome:
        case Posted(transaction=transaction) if transaction is not None:
            return api.answer(call, now, shapes.transaction(transaction), 201)
        case Replayed(first=first) if first is not None:
            return api.answer(call, now, shapes.transaction(first), 200, [(b"idempotency-replayed", b"true")])
        case Refused():
            raise api.of_refusal(outcome)
    raise AssertionError(f"a posting cannot come to {outcome}")
