"""Bodies for the tests that compare fast and slow readers: valid, nearly valid, and broken bytes."""

import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

MERCHANT = "6f1c2a54-8d0e-4c0b-9c55-0c7a8c1f2b11"


class Raw(str):
    """JSON text that goes into the body unchanged."""


Pairs = tuple[tuple[str, Any], ...]
"""An object with possibly duplicate keys."""

# Values for any field: a few are valid, most are invalid, some in a way that is easy to overlook.
ODD = r"""
null true false 0 1 -1 -0 1.0 1e2 1E2 0.5 1e999 -1e999 1e99999999999999999999 NaN Infinity
9007199254740991 9007199254740992 18446744073709551615 18446744073709551616 -9223372036854775809
[] {} [[]] [null] {"":{}} {"a":1,"a":2} {"a":"x","b":"x"}
"" "1" "1.0" "x" "null" "\u0000" "\ud800" "\ud83d\udcb3" "\n" "a\"b" "\\" "\u0061" "é" "💳" "USAGE" "order" "GBP"
"2026-01-01T00:00:00Z" "2999-01-01t00:00:00z" "2999-01-01T00:00:00.123456789+01:00"
"2026-02-30T00:00:00Z" "0001-01-01T00:00:00+01:00"
"149.90" 149.90 1e12 1000000000000.000001 0.0000001
""".split()  # noqa: SIM905 - one list, read as JSON
LONG = ["9" * 400, *[f'"{"x" * size}"' for size in (255, 256, 9000)], "[" * 40 + "]" * 40, '" "']
odd: st.SearchStrategy[Any] = st.sampled_from(
    [Raw(text) for text in (*ODD, *LONG, f'"{MERCHANT.upper()}"', f'"{{{MERCHANT}}}"')]
)
texts = st.sampled_from(["a", "job", "17", "x y", "ü", "gid://shop/Order/1", "null", 'say "hi"', "\\", "\n", "", "💳"])
plain = st.sampled_from(["a", "job", "17", "order-1", "gid://shop/Order/1", "-_.~"])
leaves = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.floats(allow_nan=False), texts, odd)
metadata = st.dictionaries(
    texts,
    st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)),
    max_size=3,
)
plain_metadata = st.dictionaries(plain, st.one_of(st.integers(-3, 3), st.booleans(), plain), max_size=3)
times = st.sampled_from(["2999-01-01T00:00:00Z", "2020-06-01T12:00:00.5+02:00", "2998-12-31t23:59:59z"])
ids = st.one_of(plain, st.integers(1, 2**64))
amounts = st.integers(1, 60)
money = st.sampled_from(["149.90", "0", "10", 10, 0, Raw("149.90"), Raw("1e1"), "0.000001", Raw("20.000000")])
references: st.SearchStrategy[Any] = st.fixed_dictionaries({"type": plain, "id": plain})
grants: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {},
    optional={
        "category": st.sampled_from(["paid", "promotional"]),
        "priority": st.integers(0, 200),
        "effective_at": times,
        "expires_at": times,
    },
)


@st.composite
def objects(
    draw: st.DrawFn, fields: dict[str, st.SearchStrategy[Any]], optional: dict[str, st.SearchStrategy[Any]]
) -> Pairs:
    """An object with these fields, nearly always valid."""
    pairs = [(name, draw(values)) for name, values in fields.items()]
    pairs += [(name, draw(values)) for name, values in optional.items() if draw(st.integers(0, 2)) == 0]
    fault = draw(st.integers(0, 17))
    if fault == 0:
        at = draw(st.integers(0, len(pairs) - 1))
        pairs[at] = (pairs[at][0], draw(odd))
    elif fault == 1:
        pairs.pop(draw(st.integers(0, len(pairs) - 1)))
    elif fault == 2:
        pairs.append((draw(texts), draw(leaves)))
    elif fault == 3:
        pairs.append((draw(st.sampled_from(pairs))[0], draw(leaves)))
    elif fault == 4:
        pairs.append(draw(st.sampled_from(pairs)))
    elif fault == 5:
        pairs.append((draw(st.sampled_from([*fields, *optional])), draw(odd)))
    if draw(st.booleans()):
        pairs = draw(st.permutations(pairs))
    return tuple(pairs)


def postings(merchant_id: str = MERCHANT, **more: st.SearchStrategy[Any]) -> st.SearchStrategy[Pairs]:
    """Bodies of postings."""
    spend = objects(
        {
            "merchant_id": st.sampled_from([merchant_id, merchant_id.upper()]),
            "operation_type": st.just("DECREASE"),
            "transaction_type": st.just("USAGE"),
            "amount": amounts,
            **more,
        },
        {"reference": references, "metadata": plain_metadata | metadata},
    )
    order = objects(
        {
            "merchant_id": st.just(merchant_id),
            "operation_type": st.just("DECREASE"),
            "transaction_type": st.just("ORDER_PAID"),
            "amount": st.integers(0, 60),
            "reference": st.fixed_dictionaries({"type": st.just("order"), "id": plain}),
            **more,
        },
        {"metadata": plain_metadata},
    )
    grant = objects(
        {
            "merchant_id": st.just(merchant_id),
            "operation_type": st.just("INCREASE"),
            "transaction_type": st.sampled_from(["PAYMENT", "SUBSCRIPTION", "ORDER_REFUNDED", "TRIAL"]),
            "amount": amounts,
            **more,
        },
        {"reference": references, "metadata": plain_metadata, "grant": grants},
    )
    manual = objects(
        {
            "merchant_id": st.just(merchant_id),
            "operation_type": st.sampled_from(["INCREASE", "DECREASE"]),
            "transaction_type": st.just("MANUAL"),
            "amount": amounts,
            "reason": plain | texts,
            **more,
        },
        {"metadata": plain_metadata},
    )
    return st.one_of(spend, order, grant, manual)


def batches(merchant_id: str = MERCHANT) -> st.SearchStrategy[Pairs]:
    """Bodies of batches of postings."""
    keys = st.sampled_from(["k1", "k2", "k3", "shopify:order:a", "shopify:order:job", "expiry:1", 'q"'])
    items = postings(merchant_id, idempotency_key=keys)
    return objects({"items": st.lists(items, min_size=1, max_size=4)}, {"atomic": st.booleans()})


def event_data(merchant_id: str = MERCHANT) -> dict[str, st.SearchStrategy[Pairs]]:
    """Data of each type of event."""
    merchant = st.just(merchant_id)
    some_credits = st.integers(0, 60)
    item = objects(
        {"order_id": ids}, {"total": money, "credits": some_credits, "currency": st.just("GBP"), "metadata": metadata}
    )
    payment = {"payment_id": ids, "subscription_id": ids, "period": ids}
    adjustment = objects(
        {
            "merchant_id": merchant,
            "adjustment_id": ids,
            "operation_type": st.sampled_from(["INCREASE", "DECREASE"]),
            "credits": amounts,
            "reason": texts,
            "admin_id": plain,
        },
        {"metadata": plain_metadata},
    )
    return {
        "evt.merchant.created": objects({"merchant_id": merchant}, {"metadata": plain_metadata}),
        "evt.billing.trial_started": objects({"merchant_id": merchant, "trial_id": ids, "credits": some_credits}, {}),
        "evt.shopify.webhook.order_paid": st.one_of(
            objects(
                {"merchant_id": merchant, "order_id": ids},
                {"total": money, "currency": st.just("GBP"), "credits": some_credits, "metadata": plain_metadata},
            ),
            objects(
                {"merchant_id": merchant, "order_items": st.lists(item | odd, min_size=1, max_size=3)},
                {"currency": st.just("EUR")},
            ),
        ),
        "evt.shopify.webhook.order_refunded": objects(
            {"merchant_id": merchant, "refund_id": ids},
            {
                "order_id": ids,
                "refund_amount": money,
                "order_total": money,
                "currency": st.just("GBP"),
                "credits_used": some_credits,
            },
        ),
        "evt.billing.payment_succeeded": objects(
            {"merchant_id": merchant, "payment_id": ids, "credits": some_credits}, {"expires_at": times}
        ),
        "evt.billing.payment_refunded": objects(
            {"merchant_id": merchant, "refund_id": ids, "credits_to_use": some_credits}, payment
        ),
        "evt.billing.payment_disputed": objects(
            {"merchant_id": merchant, "dispute_id": ids}, payment | {"credits": some_credits}
        ),
        "evt.billing.payment_dispute_closed": objects(
            {"merchant_id": merchant, "dispute_id": ids, "outcome": st.sampled_from(["won", "lost", "drawn"])}, payment
        ),
        "evt.billing.subscription_renewed": objects(
            {"merchant_id": merchant, "subscription_id": ids, "credits": some_credits},
            {"period": ids, "renewal_id": ids, "expires_at": times},
        ),
        "cmd.credits.manual_adjustment": adjustment,
        "evt.credits.manual_adjustment": adjustment,
    }


def events(merchant_id: str = MERCHANT) -> st.SearchStrategy[Pairs]:
    """Whole events."""
    envelopes = [
        objects(
            {
                "specversion": st.just("1.0"),
                "id": plain,
                "source": plain,
                "type": st.just(type_),
                "data": data,
            },
            {
                "subject": plain,
                "time": times,
                "datacontenttype": st.sampled_from(["application/json", "application/cloudevents+json", "text/plain"]),
                "correlationid": plain,
            },
        )
        for type_, data in event_data(merchant_id).items()
    ]
    return st.one_of(envelopes)


@st.composite
def as_bytes(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> bytes:
    """Values as JSON in various spellings; one in five is broken."""
    style = draw(st.sampled_from([("", ""), (" ", ""), ("\n  ", " "), ("\t", "\r\n")]))
    escapes: list[Callable[[str], str]] = [json_text, json_text, json_text, json.dumps, escaped]
    escape = draw(st.sampled_from(escapes))
    body = spelt(draw(values), *style, escape).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 4)) == 0:
        for _ in range(draw(st.integers(1, 3))):
            body = draw(broken(body))
    return body


def json_text(text: str) -> str:
    """A string with only the necessary escapes."""
    return json.dumps(text, ensure_ascii=False)


def escaped(text: str) -> str:
    """A string that consists of escapes."""
    return '"' + "".join(f"\\u{unit:04x}" for unit in utf16(text)) + '"'


def utf16(text: str) -> list[int]:
    """The code units of a text."""
    encoded = text.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(encoded[at : at + 2], "big") for at in range(0, len(encoded), 2)]


def spelt(value: Any, space: str, after: str, text: Callable[[str], str]) -> str:
    """A value as JSON; a tuple of pairs is an object."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, str):
        return text(value)
    if isinstance(value, dict):
        value = tuple(value.items())
    if isinstance(value, tuple):
        entries = [f"{space}{text(name)}{after}:{after}{spelt(entry, space, after, text)}" for name, entry in value]
        return "{" + ",".join(entries) + after + "}"
    if isinstance(value, list):
        return "[" + f",{space}".join([spelt(entry, space, after, text) for entry in value]) + after + "]"
    return json.dumps(value)


def broken(body: bytes) -> st.SearchStrategy[bytes]:
    """Bytes with a part removed, duplicated or inserted."""
    at = st.integers(0, len(body))
    pieces = st.sampled_from(
        [b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\0", b"\xff", b"\xed\xa0\x80", b"null"]
    )
    more = st.sampled_from(
        [b"1", b".0", b"e2", b"-", b" ", b'"a":1,', b'"amount":5,', b'"atomic":true,', b"\xef\xbb\xbf"]
    )
    return st.one_of(
        st.builds(lambda start, size: body[:start] + body[start + size :], at, st.integers(1, 8)),
        st.builds(lambda start, size: body[: start + size] + body[start:], at, st.integers(1, 40)),
        st.builds(lambda start, piece: body[:start] + piece + body[start:], at, pieces | more),
        st.builds(lambda start: body[:start], at),
    )
