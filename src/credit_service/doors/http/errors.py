"""What each code means and what to do about it: the page that `type` of a problem links to, and docs/errors.md."""

import json
import re
from functools import cache
from html import escape
from typing import Any, NamedTuple

from credit_service.doors.http.problems import CODES, Problem
from credit_service.messages.faults import Fault


class Advice(NamedTuple):
    """What happened, and what the caller does about it; in `backquotes` what is code."""

    happened: str
    do: str


INTRODUCTION = (
    "Every error is a problem (RFC 9457, `application/problem+json`) of one shape. `code` is one of those below, and "
    "`type` links to its heading; programs decide by `code`, while `title` and `detail` are for people. `errors` lists "
    "every fault of the request, each with its place as a JSON Pointer; places outside of the body begin with `/query` "
    "or `/path`. `request_id` finds the request in the log. In the answer to a batch or to events, each refused one "
    "has its problem in its result, as `error`.",
    "Status 408, 429, 500 and 503: repeat it, a posting with the same key, so that it cannot count twice; "
    "`Retry-After`, where it comes, says in how many seconds. Any other status: the same request would get the same "
    "answer, so change something first. A refused command has posted nothing and leaves its key free, so the changed "
    "request may use it.",
)

ADVICE: dict[str, Advice] = {
    "bad_request": Advice(
        "What arrived is not HTTP/1.1, or the connection was closed before the body had arrived. Nothing was posted.",
        "Look at the client, or at the proxy before the service, and not at what was asked. A client that went away in "
        "the middle of a request may send it again, with the same key.",
    ),
    "validation_failed": Advice(
        "The request says something that cannot be: it is not JSON, a field is missing, unknown, of the wrong type or "
        "out of its range, a name in an object came twice, or two fields contradict each other. Credits are whole JSON "
        'numbers: neither `1.0` nor `"1"`. Nothing was posted.',
        "Correct what `errors` lists (it lists all of it, so once is enough) and send it again; the key is free.",
    ),
    "cursor_invalid": Advice(
        "The cursor was not given out for this list with these filters.",
        "Begin again without `cursor`, and follow `links.next` as it is. Filters stay the same from page to page.",
    ),
    "event_type_unknown": Advice(
        "The `type` of the event is none that this service understands. `errors` lists those it does.",
        "Correct the type, or leave such events out. Repeating it is of no use.",
    ),
    "idempotency_key_missing": Advice(
        "The request can move credits and carries no `Idempotency-Key`. Nothing was posted.",
        "Make a key for what is to be done (the id of the message that is paid for, say), keep it, and send it with "
        "every try.",
    ),
    "idempotency_key_invalid": Advice(
        "The `Idempotency-Key` is empty, too long, not printable ASCII, came twice, or begins with `expiry:`, which is "
        "the service's own. Or an `ORDER_PAID` did not carry its natural key, `shopify:order:` and the order's id. "
        "Nothing was posted.",
        "Send one `Idempotency-Key`, in the form that `detail` asks for.",
    ),
    "unauthenticated": Advice(
        "The route needs an API key, and the request carries none, more than one, or one that is unknown, expired or "
        "revoked. It is not said which. A delivery of Shopify's must be signed with a secret of the settings instead.",
        "Send `Authorization: Bearer cs_…`, once, and nowhere but in that header. If the key worked before, it has "
        "expired or was revoked: ask an administrator for a new one. Where Shopify is answered this, compare "
        "`SHOPIFY_WEBHOOK_SECRET` with the client secret of the app.",
    ),
    "scope_missing": Advice(
        "The API key is valid, but its scope does not include this route. `detail` names the scope that does: admin "
        "includes write, write includes read.",
        "Use a key of that scope. The scope of a key cannot be changed; an administrator can make another key.",
    ),
    "not_found": Advice(
        "There is no route at this path, or the settings turned it off.",
        "Compare the path with `/docs`, which lists every route.",
    ),
    "method_not_allowed": Advice(
        "There is a route at this path, but not for this method.",
        "Use a method that the `Allow` header names.",
    ),
    "request_timeout": Advice(
        "The headers or the body did not arrive in time (`HEADER_TIMEOUT_SECONDS`, `BODY_TIMEOUT_SECONDS`). Nothing "
        "was posted, and the connection is closed.",
        "Repeat it with the same key, over a new connection.",
    ),
    "body_too_large": Advice(
        "The body is larger than `BODY_MAX_BYTES`, or `BATCH_BODY_MAX_BYTES` for batches and events. Nothing was "
        "posted, and the connection is closed.",
        "Send a smaller one: split a batch, shorten the metadata.",
    ),
    "unsupported_media_type": Advice(
        "The `Content-Type` is missing, or none that this route reads. Nothing was posted.",
        "Send the type that `detail` names, mostly `application/json`.",
    ),
    "headers_too_large": Advice(
        "Path, query and headers together are larger than `HEADERS_MAX_BYTES`. Nothing was posted, and the connection "
        "is closed.",
        "Send fewer or shorter headers; cookies are not needed here.",
    ),
    "account_not_found": Advice(
        "The merchant has no account. Nothing was posted.",
        "Open the account (`POST /api/v1/credits/accounts`), or correct the `merchant_id`; then send it again, a "
        "posting with the same key. Events open accounts by themselves, unless `ACCOUNTS_AUTO_CREATE` is off.",
    ),
    "transaction_not_found": Advice(
        "No transaction has this id.",
        "Correct the id. Transactions are never removed: one that was answered can always be read.",
    ),
    "endpoint_not_found": Advice(
        "No webhook endpoint has this id, or none of its deliveries; it may have been deleted. What an endpoint was "
        "sent is forgotten after 30 days.",
        "Send the `id` as it is listed: of an endpoint by `GET /api/v1/credits/webhook-endpoints`, of a delivery among "
        "those of its endpoint.",
    ),
    "key_not_found": Advice(
        "No API key has this id, so none was revoked.",
        "Send the key's `id` as it is listed: the part after `cs_`, not the whole key.",
    ),
    "shop_not_found": Advice(
        "No merchant is linked to this shop. A delivery of Shopify's waits for its shop to be linked as long as "
        "`REFUNDS_WAIT_DAYS` says, and is a dead letter after that.",
        "Correct the domain (the one that ends with `.myshopify.com`), or link the shop: `PUT "
        "/api/v1/credits/shops/{shop_domain}`.",
    ),
    "idempotency_key_reused": Advice(
        "This merchant has used the key before, and with other content: another amount, type, reference, metadata or "
        "grant. The first posting stands, and nothing was posted now.",
        "Do not repeat it. If it is something else that is to be done, it needs a key of its own. If it is the same, "
        "something in it changes from try to try (a time in the metadata, often): send it as it was the first time. A "
        "refund that waits for its order has used its key, too. A dead letter of Shopify's with this code: another "
        "merchant was credited for this purchase or subscription.",
    ),
    "trial_already_granted": Advice(
        "A merchant has one trial, and this one has had it. Nothing was posted.",
        "Nothing is left to do. To give credits all the same, post them as `MANUAL`.",
    ),
    "currency_mismatch": Advice(
        "The refund is in another currency than the order, so its share of the order cannot be told. Nothing was "
        "posted.",
        "Tell the refund again in the currency of the order, or say its `credits`.",
    ),
    "order_unknown": Advice(
        "A refund waited for its order as long as `REFUNDS_WAIT_DAYS` says, and the order never arrived. The refund is "
        "kept as a dead letter. No request is answered with this code.",
        "Find out why the order was not told. Once it is, give the refund back by hand (`POST "
        "/api/v1/credits/adjustments`).",
    ),
    "payment_unknown": Advice(
        "The refund of a payment waited for its payment as long as `REFUNDS_WAIT_DAYS` says, and the payment never "
        "arrived. The refund is kept as a dead letter. No request is answered with this code.",
        "Find out why the payment was not told. Once it is, take the credits back by hand (`POST "
        "/api/v1/credits/adjustments`).",
    ),
    "insufficient_credits": Advice(
        "Less is available than the command asks for: `available` and `required` say how much. Nothing was posted. "
        "Facts are never refused for this.",
        "Ask the merchant to buy credits, or ask for less; then send it again, with the same key. Until more is "
        "available, a repeat is refused again.",
    ),
    "amount_out_of_range": Advice(
        "The posting would take the account beyond 2^53-1 credits, in the balance or in what is available. Nothing was "
        "posted.",
        "Look at the amount: it is probably not meant. Repeating it is of no use.",
    ),
    "rate_limited": Advice(
        "This API key, or this address without one, has called too often. Nothing was posted. The headers `RateLimit` "
        "and `RateLimit-Policy` of each answer tell what is left.",
        "Repeat it with the same key after `Retry-After`. To post much, send batches: one counts as one call.",
    ),
    "overloaded": Advice(
        "More postings wait than may wait at once (`POSTING_QUEUE_SIZE`), or the service is stopping. Nothing was "
        "posted.",
        "Repeat it with the same key after `Retry-After`, and slower if it comes again.",
    ),
    "storage_unavailable": Advice(
        "The database cannot be used right now: away, full, or busy for too long. Nothing was posted.",
        "Repeat it with the same key after `Retry-After`. The log says what is wrong with the database, and "
        "`credit-service doctor` what to do about it.",
    ),
    "deadline_exceeded": Advice(
        "The posting waited in the queue for longer than `POSTING_DEADLINE_SECONDS` and was given up. Nothing was "
        "posted.",
        "Repeat it with the same key after `Retry-After`.",
    ),
    "outcome_unknown": Advice(
        "The posting was on its way to the disk when the answer was lost, or the service had to stop. It may be "
        "posted, and it may not.",
        "Repeat it with the same key after `Retry-After`, until the answer is another: 201 is posted just now, 200 "
        "with `Idempotency-Replayed: true` was posted then. Never use a new key for it: that could count twice.",
    ),
    "internal": Advice(
        "A fault of the service. What was posted is whole: a posting is there entirely or not at all.",
        "Repeat it once with the same key. If it comes again, give the `request_id` to whoever runs the service: the "
        "log tells the rest.",
    ),
}

EXAMPLES: dict[str, Problem] = {
    "validation_failed": Problem(
        "validation_failed",
        "2 things are wrong with this request; errors lists them.",
        errors=[
            Fault("/amount", "wrong_type", "Input should be a valid integer."),
            Fault("/memo", "unknown_field", "This field is not known."),
        ],
    ),
    "insufficient_credits": Problem(
        "insufficient_credits", "Not enough credits are available.", available=70, required=1000
    ),
}
"""A problem as it is answered, where that helps."""


def example(code: str) -> str | None:
    """The example of a code as JSON, None where there is none."""
    found = EXAMPLES.get(code)
    shape: Any = None if found is None else found.shape("0b5c7e0e4b9f4c6f8a4f3d0c1e2a9b77")
    return shape and json.dumps(shape, indent=2)


@cache
def page() -> bytes:
    """The page, in HTML that needs nothing else."""
    parts = [_HEAD, *(f"<p>{_html(paragraph)}</p>" for paragraph in INTRODUCTION)]
    for code, (status, title) in CODES.items():
        happened, do = ADVICE[code]
        shown = example(code)
        parts += [
            f'<h2 id="{code}">{code}</h2>',
            f"<p><b>{status} &middot; {_html(title)}.</b> {_html(happened)}</p>",
            f"<p><b>What to do.</b> {_html(do)}</p>",
            "" if shown is None else f"<pre>{escape(shown)}</pre>",
        ]
    return "\n".join(filter(None, [*parts, "</html>"])).encode()


_HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Errors</title>
<style>
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
code, pre, h2 { font-family: ui-monospace, monospace; }
pre { background: #8882; padding: 0.75rem; overflow-x: auto; }
h2 { font-size: 1.1rem; margin-top: 2rem; }
:target { background: #fd08; }
:root { color-scheme: light dark; }
</style>
<h1>Errors</h1>"""


def _html(text: str) -> str:
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))
