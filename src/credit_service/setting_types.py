"""The types of settings: each checks a value and says in one line what it must be.

No message shows the value, since it may hold a secret. `settings` lists the settings.
"""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import NoDecode

from credit_service.ledger.account import MAX_CREDITS
from credit_service.storage import dsn

SQLITE = "sqlite:///"
_HOST_AND_PORT = r"(?:[\w.\-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d{1,5}))?"
# Special characters must be written as %40, or a part of the password would be taken for something that is shown.
_NATS = re.compile(rf"(?:nats|tls)://(?:[^:@/?#\s]+(?::[^:@/?#\s]*)?@)?{_HOST_AND_PORT}/?")
_REDIS = re.compile(
    rf"rediss?://(?:[^:@/?#\s]*(?::[^:@/?#\s]*)?@)?{_HOST_AND_PORT}"
    r"(?:/\d{0,5})?(?:\?ssl_[a-z_]+=[^&@#\s]*(?:&ssl_[a-z_]+=[^&@#\s]*)*)?"
)
_PLAIN_URL = re.compile(r"https?://[^/?#@\s]+(/[^?#@\s]*)?")
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/?#@\s*]+|null")
# The name of a file is shown, so it must be neither a URL nor credentials.
_CREDENTIALS = re.compile(r"://|:[^/]*@")
_SUBJECT = re.compile(r"[\w-]+(\.[\w-]+)*")
_RANGE = re.compile(r"(\d{1,3})(?:-(\d{1,3}))?")
_SECRET = re.compile("[!-~]+")

Network = IPv4Network | IPv6Network


def networks_of(text: str) -> tuple[list[Network], bool]:
    """The networks of a list like `10.1.0.0/16,public`, and whether `public` is among them."""
    names = [name.strip() for name in text.split(",")]
    return [ip_network(name) for name in names if name != "public"], "public" in names


def pairs_of(text: str) -> list[tuple[str, str]]:
    """The pairs of a list like `a=b,c=d`."""
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    return [(name.strip(), value.strip()) for name, _, value in pairs]


def numbers_of(text: str) -> list[int]:
    """The numbers of ranges like `0-3,8`, ascending."""
    found: set[int] = set()
    for first, last in _RANGE.findall(text):
        found |= set(range(int(first), int(last or first) + 1))
    return sorted(found)


def _each(pattern: re.Pattern[str]) -> Callable[[str], bool]:
    """Checks a list separated by commas, which may be empty: each entry fits, and a port is one."""

    def fits(text: str) -> bool:
        found = [pattern.fullmatch(entry.strip()) for entry in text.split(",")] if text else []
        return all(one is not None and int(one.groupdict().get("port") or 0) < 65_536 for one in found)

    return fits


def _are_pairs(text: str) -> bool:
    pairs = pairs_of(text)
    return all(map(_SUBJECT.fullmatch, sum(pairs, ()))) and len(dict(pairs)) == len(pairs)


def _database_url(text: str) -> str:
    scheme, _, rest = text.partition("://")
    if text.startswith(SQLITE):
        path = text.removeprefix(SQLITE)
        if "?" in path:
            raise ValueError("has an option, and SQLite has none here")
        if path and path != ":memory:" and not _CREDENTIALS.search(path):
            return text
    elif scheme in ("postgres", "postgresql", "postgresql+asyncpg"):
        dsn.parse(text)
        return f"postgresql://{rest}"
    raise ValueError(
        f"must be the URL of an SQLite file, like {SQLITE}credit-service.db, or of a PostgreSQL database, like "
        "postgresql://user:password@host:5432/credits (special characters of the password written as %40)"
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError
    return dict(pairs)


def _price_list(value: Any) -> Any:
    """JSON in a text, as in the environment; YAML holds a mapping already."""
    try:
        value = json.loads(value, object_pairs_hook=_unique) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or any(isinstance(credits, bool | str | float) for credits in value.values()):
        raise ValueError('must be an object of whole credits by name, each name once, like {"Pro": 500}') from None
    return value


def _must_be(words: str, check: Callable[[str], object]) -> Callable[[str], str]:
    """A validator of texts: `check` returns whether a text is valid, or raises ValueError."""

    def valid(text: str) -> str:
        with suppress(ValueError):
            if check(text):
                return text
        raise ValueError(f"must be {words}")

    return valid


def _secret(check: Callable[[str], str]) -> AfterValidator:
    return AfterValidator(lambda secret: SecretStr(check(secret.get_secret_value())))


def _text(words: str, check: Callable[[str], object]) -> AfterValidator:
    return AfterValidator(_must_be(words, check))


_ESCAPED = "(special characters of the password written as %40)"
_A_NATS = f"the URL of NATS, like nats://user:password@host:4222, or several separated by commas {_ESCAPED}"
_A_REDIS = f"a URL like redis://user:password@host:6379/0, or rediss:// with TLS {_ESCAPED}"
_A_COLLECTOR = "a URL like http://127.0.0.1:4318/v1/traces; credentials go into OTEL_EXPORTER_OTLP_HEADERS"
_SUBJECTS = "pairs like evt.shopify.webhook.order_paid=shop.orders.paid, separated by commas"

Credits = Annotated[int, Field(ge=0, le=MAX_CREDITS)]
Share = Annotated[Decimal, Field(ge=0, le=1_000_000, max_digits=12, decimal_places=6)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Days = Annotated[int, Field(ge=1, le=3650)]
Rate = Annotated[float, Field(gt=0, le=1_000_000)]
PriceList = Annotated[dict[Annotated[str, Field(min_length=1)], Credits], NoDecode, BeforeValidator(_price_list)]
DatabaseUrl = Annotated[SecretStr, _secret(_database_url)]
NatsUrl = Annotated[SecretStr, _secret(_must_be(_A_NATS, _each(_NATS)))]
RedisUrl = Annotated[SecretStr, _secret(_must_be(_A_REDIS, lambda text: "," not in text and _each(_REDIS)(text)))]
WebhookSecret = Annotated[SecretStr, _secret(_must_be("printable ASCII without white space", _SECRET.fullmatch))]
PlainUrl = Annotated[str, _text(_A_COLLECTOR, _PLAIN_URL.fullmatch)]
Origins = Annotated[str, _text("origins like https://shop.example.com, separated by commas, or *", _each(_ORIGIN))]
Networks = Annotated[str, _text("networks like 10.1.0.0/16, or public, separated by commas", networks_of)]
ProxyNetworks = Annotated[
    str, _text("networks like 10.1.0.0/16, separated by commas", lambda text: not text or not networks_of(text)[1])
]
Subjects = Annotated[str, _text(_SUBJECTS, _are_pairs)]
Partitions = Annotated[str, _text("numbers of partitions like 0-3,8", _each(_RANGE))]
