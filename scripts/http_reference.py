"""Make docs/http.md, the reference of all routes, from docs/openapi.json. scripts.pages writes the file."""

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
    "Every route": lambda path, operation: True,
    "Every route but `/livez`": lambda path, operation: path != "/livez",
    "Every route that needs a scope": lambda path, operation: bool(operation["security"]),
    "Every route with a request body": lambda path, operation: "requestBody" in operation,
    "Every route with a scope and a request body": lambda path, operation: (
        "requestBody" in operation and bool(operation["security"])
    ),
    "Every route that posts": lambda path, operation: "outcome_unknown" in _refusals(operation),
}
"""Kinds of routes. If every route of a kind may return the same code, the top of the page lists this code once."""

_PAYMENT = "and `payment_id`, or `subscription_id` and `period`"
EVENTS: dict[str, str] = {
    "evt.merchant.created": "no more fields; the event opens the account and grants the trial",
    "evt.billing.trial_started": "`trial_id`, `credits`",
    "evt.shopify.webhook.order_paid": "`order_id`, `total` or `credits`, `currency`?; or `order_items`, 1 to 1,000 "
    "objects with these fields",
    "evt.shopify.webhook.order_refunded": "`refund_id`, and `order_id` with `refund_amount`, `order_total`?, "
    "`currency`?; or `credits`, with or without an order",
    "evt.billing.payment_succeeded": "`payment_id`, `credits`, `expires_at`?",
    "evt.billing.payment_refunded": f"`refund_id`, `credits`, {_PAYMENT}",
    "evt.billing.payment_disputed": f"`dispute_id`, `credits`? (all of the payment), {_PAYMENT}",
    "evt.billing.payment_dispute_closed": f"`dispute_id`, `outcome` (won or lost), `credits`?, {_PAYMENT}",
    "evt.billing.subscription_renewed": "`subscription_id`, `period` or `renewal_id`, `credits`, `expires_at`?",
    "cmd.credits.manual_adjustment": "`adjustment_id`, `operation_type`, `credits`, `reason`, `admin_id`",
    "evt.credits.manual_adjustment": "the same fields",
}
"""The fields in the `data` of each event, without `merchant_id`. A test compares them with the fields that the code
reads."""

_HEAD = """# HTTP reference

All routes with their limits. This page is generated from [openapi.json](openapi.json). A running service serves the
same document at `/openapi.json`, and an interactive page at `/docs`.

- **Authentication.** Send an [API key](operating.md#api-keys) as `Authorization: Bearer cs_…`. Its scope must include
  the scope of the route: admin includes write, write includes read, read includes status.
- **Requests.** Send JSON with `Content-Type: application/json`. The service refuses unknown fields and parameters.
  Credits are whole numbers. Times are RFC 3339. A leap second (`23:59:60Z`) means the start of the next second.
- **Responses.** The body is `{"data": …, "meta": {"request_id", "correlation_id", "timestamp"}}`, with times in UTC. In
  a list, `data` is an array, and the body also has `pagination` and `links`. Follow `links.next` unchanged until it is
  null. The service returns your `X-Request-ID` and `X-Correlation-ID`, or makes them.
- **Idempotency.** A request with the same `Idempotency-Key` and the same content gets the first result again, with 200
  and `Idempotency-Replayed: true`.
- **Manual transactions.** A `MANUAL` transaction needs scope admin and a `reason` with a visible character on every
  route. `metadata` keeps the reason. The `actor` is the API key of the request. `metadata` also keeps the `admin_id` of
  an adjustment event.
- **Limits.** The limits of bodies, headers, pages and batches are [settings](settings.md).
"""
_REFUSED = (
    "- **Refusals.** The body is a problem with a `code`. [errors.md](errors.md) explains each code. For a best-effort "
    "batch and for events the status is 200, and the result of each refused item contains its problem."
)


def page() -> str:
    """Return the text of the page."""
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
    shared = [f"{kind} may return {_codes(codes)}." for kind, codes in common.items() if codes]
    parts = [_HEAD + _wrapped(" ".join([_REFUSED, *shared]), subsequent_indent="  ")]
    groups: dict[str, list[str]] = {}
    for path, method, operation in operations:
        said = set().union(*(codes for kind, codes in common.items() if KINDS[kind](path, operation)))
        own = _refusals(operation) - said
        groups.setdefault(operation["tags"][0], []).extend(_operation(document, path, method, operation, own))
    for tag, sections in groups.items():
        parts += [f"## {tag[0].upper()}{tag[1:]}".replace("Api", "API"), *sections]
    return "\n\n".join([*parts, _shapes(document)]) + "\n"


def _with_responses(document: dict[str, Any], operation: Operation) -> Operation:
    """Return the operation with its responses in place of the references to them."""
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
    needs = f"Needs scope {scope}." if scope else "Needs no key."
    yield _wrapped(" ".join([*operation["description"].split(), needs]))
    rows = [*_parameters(operation), *_body(document, operation)]
    if rows:
        yield "| name | in | what |\n| --- | --- | --- |\n" + "\n".join(rows)
    if operation["operationId"] == "post_events":
        yield _events()
    answers = ", ".join(_answer(document, *one) for one in sorted(operation["responses"].items()) if one[0] < "400")
    yield _wrapped(f"Returns {answers}." + (f" Refusals: {_codes(refusals)}." if refusals else ""))


def _refusals(operation: Operation) -> set[str]:
    """Return the codes that an operation may return. They are the names of its examples."""
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
            yield f"| | body | `{media_type}`: {_kind(schema)} of the objects above |"
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
            nested = required if must else "required with its parent"
            yield from _fields(document, inner, f"{prefix}{name}{suffix}.", nested)


def _resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema without null and with its reference resolved."""
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
    if description in _REDUNDANT:
        description = ""
    default = schema.get("default")
    otherwise = f" Default {json.dumps(default)}." if default is not None else ""
    what = ". ".join(filter(None, [kind[:1].upper() + kind[1:], description]))
    return f"| `{name}` | {where}{f', {required}' if required else ''} | {what.rstrip('.')}.{otherwise} |"


_REDUNDANT = (
    "A str.",
    "The merchant's str.",
    "An instant (RFC 3339).",
    "Whole credits.",
    "Whole credits, at least 1.",
)
"""Descriptions that only repeat the kind."""


def _kind(schema: dict[str, Any]) -> str:
    """Describe the values that a schema allows, in words."""
    pattern = schema.get("pattern")
    if "$ref" in schema:
        return ""
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return "one of " + ", ".join(f"`{value}`" for value in schema["enum"])
    if pattern == patterns.UUID:
        return "str"
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
            item = "UUIDs" if inner.get("pattern") == patterns.UUID else ""
            return f"array, {_range(schema, 'minItems', 'maxItems').removeprefix(', ')} {item}".rstrip()
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
    """Return a status with the shapes of its `data`, or with its description if it has one."""
    when = response.get("description", _DEFAULT)
    if when != _DEFAULT:
        return f"{status} ({when[0].lower()}{when[1:].rstrip('.')})"
    shapes = [
        f"{'a list of ' if data.get('type') == 'array' else ''}{_named(data)[0]}" for data in _data(document, response)
    ]
    return f"{status} ({' or '.join(shapes)})" if shapes else status


_DEFAULT = "Successful Response"
"""The description that FastAPI gives to a response without one."""


def _data(document: dict[str, Any], response: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the schemas that `data` of a response may have."""
    schema = response.get("content", {}).get("application/json", {}).get("schema", {})
    answers = [_resolved(document, one) for one in schema.get("anyOf", [schema])]
    return [answer["properties"]["data"] for answer in answers if "data" in answer.get("properties", ())]


def _named(schema: dict[str, Any]) -> list[str]:
    """Return the names of the shapes that a schema refers to, as the page prints them."""
    return [name.removesuffix("Shape") for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(schema))]


def _shapes(document: dict[str, Any]) -> str:
    """Return the table of all shapes that `data` uses, directly or through another shape."""
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
        "## Shapes\n\nThese are the shapes of `data` and of its parts. [errors.md](errors.md) describes a Problem.\n\n"
        "| shape | meaning | fields |\n| --- | --- | --- |\n"
    )
    return head + "\n".join(rows)


def _field(name: str, schema: dict[str, Any]) -> str:
    """Return a field with its shape, if it has one."""
    many = schema.get("type") in ("array", "object")
    found = _named(schema)
    return f"`{name}`" + (f" ({'each a ' if many else ''}{found[0]})" if found else "")


def _events() -> str:
    head = (
        "`data` has `merchant_id`, optionally `metadata`, and the fields of its `type`. A `?` marks an optional field. "
        "`credits_used` and `credits_to_use` mean `credits`."
    )
    rows = [f"| `{type_}` | {EVENTS[type_]} |" for type_ in CATALOGUE]
    results = f"The result of an event may also have the code {_codes(_RESULTS)}."
    table = "| type | data |\n| --- | --- |\n" + "\n".join(rows)
    return "\n\n".join([_wrapped(head), table, _wrapped(results)])


_RESULTS = {
    "account_not_found",
    "idempotency_key_reused",
    "currency_mismatch",
    "insufficient_credits",
    "amount_out_of_range",
}
"""Codes that only the result of an event has. The OpenAPI document does not list them for the route."""


def documented_fields(type_: str) -> set[str]:
    """Return the fields of `data` that the page lists for an event type."""
    text = EVENTS["cmd.credits.manual_adjustment"] if EVENTS[type_] == "the same fields" else EVENTS[type_]
    return set(re.findall(r"`(\w+)`", text))
