"""docs/http.md: every route for a reader, from docs/openapi.json. Written by scripts.pages."""

import json
import re
from collections.abc import Callable, Iterator
from textwrap import fill
from typing import Any

from credit_service.doors.http.problems import CODES
from credit_service.messages import patterns
from credit_service.messages.inbound import CATALOGUE
from scripts.openapi import COMMITTED

Operation = dict[str, Any]
KINDS: dict[str, Callable[[str, Operation], bool]] = {
    "Any route": lambda path, operation: True,
    "One under `/api/v1`": lambda path, operation: path.startswith("/api/v1/"),
    "One that needs a scope": lambda path, operation: bool(operation["security"]),
    "One with a body": lambda path, operation: "requestBody" in operation,
    "One with both": lambda path, operation: "requestBody" in operation and bool(operation["security"]),
    "One that posts": lambda path, operation: "outcome_unknown" in _refusals(operation),
}
"""Kinds of routes. A code that all of a kind may answer is said once, at the head of the page."""

EVENTS: dict[str, str] = {
    "evt.merchant.created": "nothing more: opens the account and grants the trial",
    "evt.billing.trial_started": "`trial_id`, `credits`",
    "evt.shopify.webhook.order_paid": "`order_id`, `total` or `credits`, `currency`?; or `order_items`, 1 to 1,000 "
    "objects of these",
    "evt.shopify.webhook.order_refunded": "`refund_id`, and `order_id` with `refund_amount`, `order_total`?, "
    "`currency`?; or `credits`, with or without an order",
    "evt.billing.payment_succeeded": "`payment_id`, `credits`, `expires_at`?",
    "evt.billing.payment_refunded": "`payment_id`, `refund_id`, `credits`",
    "evt.billing.subscription_renewed": "`subscription_id`, `period` or `renewal_id`, `credits`, `expires_at`?",
    "cmd.credits.manual_adjustment": "`adjustment_id`, `operation_type`, `credits`, `reason`, `admin_id`",
    "evt.credits.manual_adjustment": "the same",
}
"""What the `data` of an event says beside its merchant. A test holds this to the fields that are read."""

_HEAD = """# HTTP reference

Every route, with its limits. This page is generated from [openapi.json](openapi.json), which a running service serves
as `/openapi.json`, and as a page to try things out as `/docs`.

- **Who calls.** `Authorization: Bearer cs_…`, an [API key](operating.md#api-keys) whose scope includes the route's:
  admin includes write, write includes read, read includes status.
- **Sent.** JSON, `Content-Type: application/json`. Unknown fields and parameters are refused. Credits are whole
  numbers. Times are RFC 3339; a leap second (`23:59:60Z`) is the start of the second after it.
- **Answered.** `{"data": …, "meta": {"request_id", "correlation_id", "timestamp"}}`, times in UTC. A list has `data` as
  an array, `pagination` and `links`; follow `links.next` as it is until it is null. `X-Request-ID` and
  `X-Correlation-ID` are taken from the request or made, and returned.
- **Idempotency.** The same `Idempotency-Key` with the same content answers the first result again: 200 and
  `Idempotency-Replayed: true`.
- **Manual transactions.** A `MANUAL` transaction needs scope admin and a `reason` with a visible character, whichever
  route posts it. The reason is kept in `metadata`. The `actor` is the key that called; the `admin_id` of an adjustment
  event is kept in `metadata`.
- **Limits** of bodies, headers, pages and batches are [settings](settings.md).
"""
_REFUSED = (
    "- **Refused.** A problem with a `code` that [errors.md](errors.md) explains. In a batch that is best effort, and "
    "for events, the answer is 200 and each refused one has its problem in its result."
)


def page() -> str:
    """The page."""
    document = json.loads(COMMITTED.read_text(encoding="utf-8"))
    operations = [
        (path, method, _with_responses(document, operation))
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    common: dict[str, set[str]] = {}
    for kind, is_one in KINDS.items():
        known = set().union(*common.values())
        ones = [_refusals(operation) for path, _, operation in operations if is_one(path, operation)]
        common[kind] = set.intersection(*ones) - known
    told = [f"{kind} may answer {_codes(codes)}." for kind, codes in common.items() if codes]
    parts = [_HEAD + _wrapped(" ".join([_REFUSED, *told]), subsequent_indent="  ")]
    groups: dict[str, list[str]] = {}
    for path, method, operation in operations:
        said = set().union(*(codes for kind, codes in common.items() if KINDS[kind](path, operation)))
        own = _refusals(operation) - said
        groups.setdefault(operation["tags"][0], []).extend(_operation(document, path, method, operation, own))
    for tag, sections in groups.items():
        parts += [f"## {tag[0].upper()}{tag[1:]}".replace("Api", "API"), *sections]
    return "\n\n".join([*parts, _shapes(document)]) + "\n"


def _with_responses(document: dict[str, Any], operation: Operation) -> Operation:
    """An operation with its responses in place of references to them."""
    shared = document["components"].get("responses", {})
    responses = {
        status: shared[response["$ref"].rpartition("/")[2]] if "$ref" in response else response
        for status, response in operation["responses"].items()
    }
    return {**operation, "responses": responses}


def _wrapped(text: str, **more: str) -> str:
    return fill(text, 120, break_long_words=False, break_on_hyphens=False, **more)  # type: ignore[arg-type]


def _operation(
    document: dict[str, Any], path: str, method: str, operation: Operation, refusals: set[str]
) -> Iterator[str]:
    yield f"### {method.upper()} {path}"
    scope = operation["security"][0]["apiKey"][0] if operation["security"] else None
    needs = f"Scope {scope}." if scope else "Needs no key."
    yield _wrapped(f"{operation['description']} {needs}")
    rows = [*_parameters(operation), *_body(document, operation)]
    if rows:
        yield "| name | in | what |\n| --- | --- | --- |\n" + "\n".join(rows)
    if operation["operationId"] == "post_events":
        yield _events()
    told = ", ".join(_answer(document, *one) for one in sorted(operation["responses"].items()) if one[0] < "400")
    yield _wrapped(f"Answers {told}." + (f" Refused: {_codes(refusals)}." if refusals else ""))


def _refusals(operation: Operation) -> set[str]:
    """The codes that an operation may answer: its problems are examples of their names."""
    return {
        code
        for response in operation["responses"].values()
        for code in response.get("content", {}).get("application/problem+json", {}).get("examples", ())
    }


def _codes(codes: set[str]) -> str:
    return ", ".join(f"{CODES[code].status} [{code}](errors.md#{code})" for code in CODES if code in codes)


def _parameters(operation: dict[str, Any]) -> Iterator[str]:
    for one in operation.get("parameters", []):
        yield _row(
            one["name"], one["in"], "required" if one["required"] else "", one["schema"], one.get("description", "")
        )


def _body(document: dict[str, Any], operation: dict[str, Any]) -> Iterator[str]:
    content = operation.get("requestBody", {}).get("content", {})
    for media_type, sent in content.items():
        schema = _resolved(document, sent["schema"])
        if schema["type"] == "array":
            yield f"| | body | `{media_type}`: {_kind(schema)} of the above |"
        elif "properties" not in schema:
            yield f"| | body | {schema['description']} |"
        else:
            if len(content) > 1:
                yield f"| | body | `{media_type}`: |"
            yield from _fields(document, schema, "")


def _fields(document: dict[str, Any], schema: dict[str, Any], prefix: str, required: str = "required") -> Iterator[str]:
    for name, found in schema["properties"].items():
        resolved = _resolved(document, found)
        inner = _resolved(document, resolved.get("items", resolved))
        suffix = "[]" if resolved.get("type") == "array" else ""
        must = required if name in schema.get("required", ()) else ""
        yield _row(prefix + name, "body", must, found, resolved.get("description", ""))
        if "properties" in inner:
            with_it = required if must else "required with it"
            yield from _fields(document, inner, f"{prefix}{name}{suffix}.", with_it)


def _resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without the reference that it is, or the null that it may be."""
    if "anyOf" in schema:
        (schema,) = [one for one in schema["anyOf"] if one.get("type") != "null"]
    if "$ref" in schema:
        found: dict[str, Any] = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return found
    return schema


def _row(name: str, where: str, required: str, schema: dict[str, Any], description: str) -> str:
    if "anyOf" in schema:
        (schema,) = [one for one in schema["anyOf"] if one.get("type") != "null"]
    kind = _kind(schema)
    if description in _SAID:
        description = ""
    default = schema.get("default")
    otherwise = f" Default {json.dumps(default)}." if default is not None else ""
    what = ". ".join(filter(None, [kind[:1].upper() + kind[1:], description]))
    return f"| `{name}` | {where}{f', {required}' if required else ''} | {what.rstrip('.')}.{otherwise} |"


_SAID = ("A UUID.", "The merchant's UUID.", "An instant (RFC 3339).", "Whole credits.", "Whole credits, at least 1.")
"""Descriptions that say no more than the kind does."""


def _kind(schema: dict[str, Any]) -> str:
    """What may stand there, in words."""
    pattern = schema.get("pattern")
    if "$ref" in schema:
        return ""
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return "one of " + ", ".join(f"`{value}`" for value in schema["enum"])
    if pattern == patterns.UUID:
        return "UUID"
    if pattern == patterns.TIME:
        return "time"
    match schema["type"]:
        case "boolean":
            return "true or false"
        case "integer":
            return f"whole number{_range(schema, 'minimum', 'maximum')}"
        case "string":
            printable = " of printable ASCII" if pattern == patterns.PRINTABLE else ""
            size = _range(schema, "minLength", "maxLength").removeprefix(", ")
            return f"{size} characters{printable}" if size else "text"
        case "array":
            inner = schema.get("items", {})
            what = "UUIDs" if inner.get("pattern") == patterns.UUID else ""
            return f"array, {_range(schema, 'minItems', 'maxItems').removeprefix(', ')} {what}".rstrip()
        case _:
            return "object"


def _range(schema: dict[str, Any], least: str, most: str) -> str:
    low, high = (_number(schema.get(name)) for name in (least, most))
    if low and high:
        return f", {low} to {high}"
    return f", at least {low}" if low else f", at most {high}" if high else ""


def _number(value: float | None) -> str:
    if value is None:
        return ""
    sign = "-" if value < 0 else ""
    return f"{sign}(2^53-1)" if sign and -value == 2**53 - 1 else "2^53-1" if value == 2**53 - 1 else f"{int(value):,}"


def _answer(document: dict[str, Any], status: str, response: dict[str, Any]) -> str:
    """A status with its `data`, or with what it means where it is not the rule."""
    when = response.get("description", _RULE)
    if when != _RULE:
        return f"{status} ({when[0].lower()}{when[1:].rstrip('.')})"
    told = [f"{'each ' if data.get('type') == 'array' else ''}{_named(data)[0]}" for data in _data(document, response)]
    return f"{status} ({' or '.join(told)})" if told else status


_RULE = "Successful Response"
"""How FastAPI describes an answer of which nothing else was said."""


def _data(document: dict[str, Any], response: dict[str, Any]) -> list[dict[str, Any]]:
    """The schemas that `data` of an answer may have."""
    schema = response.get("content", {}).get("application/json", {}).get("schema", {})
    answers = [_resolved(document, one) for one in schema.get("anyOf", [schema])]
    return [answer["properties"]["data"] for answer in answers if "data" in answer.get("properties", ())]


def _named(schema: dict[str, Any]) -> list[str]:
    """The shapes that a schema names, by their names on the page."""
    return [name.removesuffix("Shape") for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(schema))]


def _shapes(document: dict[str, Any]) -> str:
    """What `data` is made of, and what that is made of."""
    shapes = {name.removesuffix("Shape"): shape for name, shape in document["components"]["schemas"].items()}
    answers = [
        response
        for methods in document["paths"].values()
        for operation in methods.values()
        for response in operation["responses"].values()
    ]
    open_ = [name for response in answers for data in _data(document, response) for name in _named(data)]
    used = {"Problem"}
    while open_:
        name = open_.pop()
        if name not in used:
            used.add(name)
            open_ += _named(shapes[name])
    rows = [
        f"| {name} | {shape['description']} | {', '.join(_field(*one) for one in shape['properties'].items())} |"
        for name, shape in shapes.items()
        if name in used - {"Problem"}
    ]
    head = (
        "## Shapes\n\nWhat `data` is, and what it is made of; a Problem is told of in [errors.md](errors.md).\n\n"
        "| shape | what it is | fields |\n| --- | --- | --- |\n"
    )
    return head + "\n".join(rows)


def _field(name: str, schema: dict[str, Any]) -> str:
    """A field, with its shape where it has one."""
    many = schema.get("type") in ("array", "object")
    found = _named(schema)
    return f"`{name}`" + (f" ({'each ' if many else ''}{found[0]})" if found else "")


def _events() -> str:
    head = (
        "`data` says its `merchant_id`, perhaps `metadata`, and by `type` (`?` may be left out; `credits_used` and "
        "`credits_to_use` mean `credits`):"
    )
    rows = [f"| `{type_}` | {EVENTS[type_]} |" for type_ in CATALOGUE]
    results = f"In its result an event may also be refused with {_codes(_RESULTS)}."
    table = "| type | data |\n| --- | --- |\n" + "\n".join(rows)
    return "\n\n".join([_wrapped(head), table, _wrapped(results)])


_RESULTS = {
    "account_not_found",
    "idempotency_key_reused",
    "currency_mismatch",
    "insufficient_credits",
    "amount_out_of_range",
}
"""The codes that stand in results alone, so that the document does not tell them of their route."""


def fields_told(type_: str) -> set[str]:
    """The fields that the page tells of an event type's data."""
    told = EVENTS["cmd.credits.manual_adjustment"] if EVENTS[type_] == "the same" else EVENTS[type_]
    return set(re.findall(r"`(\w+)`", told))
