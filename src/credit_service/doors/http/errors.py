"""The explanation of each code: the page that the `type` of a problem links to, and docs/errors.md."""

import json
import re
from functools import cache
from html import escape
from typing import Any, NamedTuple

from credit_service.doors.http.problems import CODES, Problem
from credit_service.messages.faults import Fault


class Advice(NamedTuple):
    """What happened, and what the caller should do. Code stands in `backquotes`."""

    happened: str
    do: str


INTRODUCTION = (
    "Every error is a problem (RFC 9457, `application/problem+json`) of one shape. Programs decide by `code`, which is "
    "one of the codes below; `type` links to its heading. `title` and `detail` are for people. `errors` lists every "
    "fault of the request, each with its place as a JSON Pointer; a place outside the body begins with `/query`, "
    "`/path` or `/header`. `request_id` finds the request in the log. In the answer to a batch or to events, the "
    "result of each refused item has its problem as `error`.",
    "After status 408, 429, 500 or 503 repeat the request. Repeat a posting with the same key, so that it cannot count "
    "twice. `Retry-After` says how many seconds to wait. After any other status change the request first: the same "
    "request would get the same answer. A refused command has posted nothing and its key is still free, so the changed "
    "request may use the same key.",
)

ADVICE: dict[str, Advice] = {
    "bad_request": Advice(
        "The bytes are not valid HTTP/1.1: broken framing, a missing or malformed `Host`, or a transfer coding other "
        "than chunked. Or the client closed the connection before its body had arrived. Nothing was posted.",
        "Check the client, or the proxy before the service. A client that lost its connection within a request may "
        "repeat the request with the same key.",
    ),
    "validation_failed": Advice(
        "The request is not valid: it is not JSON, a field is missing, unknown, of the wrong type or out of range, an "
        "object has a name twice, or two fields contradict each other. Credits are whole JSON numbers: neither `1.0` "
        'nor `"1"`. Nothing was posted.',
        "Correct everything in `errors`, which lists all faults, and send the request again. The key is still free.",
    ),
    "cursor_invalid": Advice(
        "The cursor belongs to another list, or to other filters.",
        "Start again without `cursor`, and follow `links.next` unchanged. Keep the filters from page to page.",
    ),
    "event_type_unknown": Advice(
        "The service does not know the `type` of the event. `errors` lists the known types.",
        "Correct the type, or do not send such events. A repeat gets the same answer.",
    ),
    "idempotency_key_missing": Advice(
        "The request can move credits and has no `Idempotency-Key`. Nothing was posted.",
        "Choose a key that names the work (for example the id of the message that is paid for), store it, and send it "
        "with every attempt.",
    ),
    "idempotency_key_invalid": Advice(
        "The `Idempotency-Key` is empty, too long, not printable ASCII, sent twice, or begins with `expiry:`, which "
        "the service keeps for itself. Or an `ORDER_PAID` did not carry its natural key, `shopify:order:` and the id "
        "of the order. Nothing was posted.",
        "Send one `Idempotency-Key`, in the form that `detail` describes.",
    ),
    "unauthenticated": Advice(
        "The route needs an API key. The request has none, more than one, or one that is unknown, expired or revoked; "
        "the answer does not say which. A delivery from Shopify needs a signature made with a secret of the settings.",
        "Send `Authorization: Bearer cs_…`, once, and the key in no other place. If the key worked before, it has "
        "expired or was revoked: ask an administrator for a new one. If Shopify gets this answer, compare "
        "`SHOPIFY_WEBHOOK_SECRET` with the client secret of the app.",
    ),
    "scope_missing": Advice(
        "The API key is valid, but its scope does not include the scope of this route, which `detail` names. admin "
        "includes write, write includes read, read includes status.",
        "Use a key with that scope. The scope of a key cannot change; an administrator can create another key.",
    ),
    "not_found": Advice(
        "No route has this path, or the settings turn it off.",
        "Compare the path with `/docs`, which lists every route.",
    ),
    "method_not_allowed": Advice(
        "A route has this path, but it does not take this method.",
        "Use one of the methods in the `Allow` header.",
    ),
    "request_timeout": Advice(
        "The headers or the body did not arrive in time (`HEADER_TIMEOUT_SECONDS`, `BODY_TIMEOUT_SECONDS`). Nothing "
        "was posted, and the service closed the connection.",
        "Repeat the request with the same key over a new connection.",
    ),
    "body_too_large": Advice(
        "The body is larger than `BODY_MAX_BYTES`, or `BATCH_BODY_MAX_BYTES` for batches and events. Nothing was "
        "posted, and the service closed the connection.",
        "Send a smaller body: split the batch, or shorten the metadata.",
    ),
    "unsupported_media_type": Advice(
        "The `Content-Type` is missing, or this route does not read it, or the body is compressed. Nothing was posted.",
        "Send the type that `detail` names, usually `application/json`, without `Content-Encoding`.",
    ),
    "headers_too_large": Advice(
        "Path, query and headers together are larger than `HEADERS_MAX_BYTES`, or the trailers and chunk extensions of "
        "the body are. Nothing was posted, and the service closed the connection.",
        "Send fewer or shorter headers. The service needs no cookies and no trailers.",
    ),
    "account_not_found": Advice(
        "The merchant has no account. Nothing was posted.",
        "Open the account (`POST /api/v1/credits/accounts`), or correct the `merchant_id`; then repeat the request, a "
        "posting with the same key. Events open accounts themselves, unless `ACCOUNTS_AUTO_CREATE` is off.",
    ),
    "transaction_not_found": Advice(
        "No transaction has this id.",
        "Correct the id. Transactions are never removed, so an id from an earlier answer stays valid.",
    ),
    "grant_not_found": Advice(
        "The account has no grant with this id.",
        "Take the id from `GET …/grants`, or from `draws` of a transaction, of the same merchant. Grants are never "
        "removed, so an id from an earlier answer stays valid.",
    ),
    "endpoint_not_found": Advice(
        "No webhook endpoint has this id, or the endpoint has no such delivery. The endpoint may have been deleted. "
        "Deliveries are kept for 30 days.",
        "Send the `id` from the list: `GET /api/v1/credits/webhook-endpoints` lists the endpoints, and each endpoint "
        "lists its deliveries.",
    ),
    "key_not_found": Advice(
        "No API key has this id, so none was revoked.",
        "Send the key's `id` from the list: the part after `cs_`, not the whole key.",
    ),
    "shop_not_found": Advice(
        "No merchant is linked to this shop. A delivery from Shopify waits for the link as long as "
        "`REFUNDS_WAIT_DAYS` says; after that it is a dead letter.",
        "Correct the domain (it ends with `.myshopify.com`), or link the shop: `PUT "
        "/api/v1/credits/shops/{shop_domain}`.",
    ),
    "idempotency_key_reused": Advice(
        "This merchant has used the key before with other content: another amount, type, reference, metadata or grant. "
        "The first posting stands, and nothing was posted now.",
        "Do not repeat the request. Other work needs a key of its own. For the same work, find what changes from "
        "attempt to attempt (often a time in the metadata), and send the content of the first attempt. A refund that "
        "waits for its order has used its key, too.",
    ),
    "trial_already_granted": Advice(
        "A merchant gets one trial, and this merchant has had it. Nothing was posted.",
        "Nothing is left to do. To give credits anyway, post them as `MANUAL`.",
    ),
    "currency_mismatch": Advice(
        "The refund and the order have different currencies, so the share of the order is unknown. Nothing was posted.",
        "Send the refund in the currency of the order, or say its `credits`.",
    ),
    "order_unknown": Advice(
        "A refund waited for its order as long as `REFUNDS_WAIT_DAYS` says, and the order never arrived. The refund is "
        "a dead letter. No request gets this code as its answer.",
        "Find out why the order was not sent. Then send the order, and give the refund back by hand (`POST "
        "/api/v1/credits/adjustments`).",
    ),
    "payment_unknown": Advice(
        "The refund of a payment waited for its payment as long as `REFUNDS_WAIT_DAYS` says, and the payment never "
        "arrived. The refund is a dead letter. No request gets this code as its answer.",
        "Find out why the payment was not sent. Then send the payment, and take the credits back by hand (`POST "
        "/api/v1/credits/adjustments`).",
    ),
    "insufficient_credits": Advice(
        "The command asks for more credits than are available: see `available` and `required`. Nothing was posted. A "
        "fact is never refused for this reason.",
        "Ask the merchant to buy credits, or ask for less; then repeat the request with the same key. A repeat is "
        "refused again until more credits are available.",
    ),
    "amount_out_of_range": Advice(
        "The posting would take the balance or the available credits of the account beyond 2^53-1. Nothing was posted.",
        "Check the amount. A repeat gets the same answer.",
    ),
    "rate_limited": Advice(
        "This API key, or this address without a valid key, has called too often. Nothing was posted. The headers "
        "`RateLimit` and `RateLimit-Policy` say what is left.",
        "Repeat the request with the same key after `Retry-After`. To post much, send batches: a batch counts as one "
        "request. Behind a proxy, check `TRUSTED_PROXIES`: without it all visitors share the address of the proxy.",
    ),
    "overloaded": Advice(
        "The service has reached a limit: of waiting postings (`POSTING_QUEUE_SIZE`), of bodies under way "
        "(`BODIES_IN_FLIGHT_MAX_BYTES`) or of connections (`CONNECTIONS_MAX`, `CONNECTIONS_MAX_PER_ADDRESS`). Or it is "
        "stopping. Nothing was posted.",
        "Repeat the request with the same key after `Retry-After`, and more slowly if it is refused again. Reuse "
        "connections.",
    ),
    "storage_unavailable": Advice(
        "The database cannot be used now: it is away, full, or busy for too long. Nothing was posted.",
        "Repeat the request with the same key after `Retry-After`. The log says what is wrong with the database, and "
        "`credit-service doctor` says what to do.",
    ),
    "deadline_exceeded": Advice(
        "The posting waited in the queue for longer than `POSTING_DEADLINE_SECONDS`. Nothing was posted.",
        "Repeat the request with the same key after `Retry-After`.",
    ),
    "outcome_unknown": Advice(
        "The database did not answer the commit, or the service had to stop. The posting may or may not have been "
        "made.",
        "Repeat the request with the same key after `Retry-After` until the answer is another one: 201 means posted "
        "now, 200 with `Idempotency-Replayed: true` means posted then. Never use a new key: that could count twice.",
    ),
    "internal": Advice(
        "A fault of the service. A posting is there entirely or not at all.",
        "Repeat the request once with the same key. If it fails again, give the `request_id` to the operator of the "
        "service: the log has the cause.",
    ),
}

EXAMPLES: dict[str, Problem] = {
    "validation_failed": Problem(
        "validation_failed",
        "The request has 2 faults; errors lists them.",
        errors=[
            Fault("/amount", "wrong_type", "Input should be a valid integer."),
            Fault("/memo", "unknown_field", "This field is not known."),
        ],
    ),
    "insufficient_credits": Problem(
        "insufficient_credits", "Not enough credits are available.", available=70, required=1000
    ),
}
"""Example problems, for codes that need one."""


def example(code: str) -> str | None:
    """The example of a code as JSON, None if there is none."""
    found = EXAMPLES.get(code)
    shape: Any = None if found is None else found.shape("0b5c7e0e4b9f4c6f8a4f3d0c1e2a9b77")
    return shape and json.dumps(shape, indent=2)


@cache
def page() -> bytes:
    """The page, in HTML that needs no other file."""
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
