"""Questions that come by way of Shopify's app proxy, which signs what it passes on.

Shopify takes the parameters of the query but for `signature`, joins the values of each by commas, sorts them, and
writes them one after the other as name=value; the signature is the hexadecimal HMAC-SHA256 of that with the client
secret of the app (shopify.dev, "Authenticate app proxies").
"""

import hmac
from collections.abc import Iterable
from hashlib import sha256
from typing import Final
from urllib.parse import parse_qsl

from credit_service.doors.http import api

FRESH_SECONDS: Final = 300
"""How far a `timestamp` may be from now: clocks differ, and a question that is asked again does no harm."""
_CHALLENGE: Final = {"WWW-Authenticate": 'Shopify-App-Proxy realm="credit-service"'}


def check(query: bytes, secrets: Iterable[str], now: float) -> None:
    """Raise Problem unless a query was signed lately with one of these secrets. `now` in seconds since 1970."""
    values: dict[str, list[str]] = {}
    text = query.decode(errors="surrogateescape")
    try:
        for name, value in parse_qsl(text, keep_blank_values=True, max_num_fields=100, errors="surrogateescape"):
            values.setdefault(name, []).append(value)
    except ValueError:
        raise _refused("The query has too many parameters.") from None
    signatures = values.pop("signature", [])
    if len(signatures) != 1:
        raise _refused("Ask by way of the app proxy: the query has no signature, or more than one.")
    message = _bytes("".join(sorted([f"{name}={','.join(some)}" for name, some in values.items()])))
    made = [hmac.new(secret.encode(), message, sha256).hexdigest().encode() for secret in secrets]
    if not any(hmac.compare_digest(one, _bytes(signatures[0])) for one in made):
        raise _refused("The signature of the query is not that of the app's secret.")
    timestamp = "".join(values.get("timestamp", []))
    if not (timestamp.isascii() and timestamp.isdigit()) or abs(int(timestamp[:20]) - now) > FRESH_SECONDS:
        raise _refused("The timestamp of the query is not of the last minutes.")


def _bytes(text: str) -> bytes:
    """The bytes that Shopify signed, whatever they spell."""
    return text.encode(errors="surrogateescape")


def _refused(detail: str) -> api.Problem:
    return api.Problem("unauthenticated", detail, headers=_CHALLENGE)
