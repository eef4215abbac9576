"""The types of settings: each checks a value and says in one line what it must be.

No message shows the value, since it may hold a secret. `settings` lists the settings.
"""

import json
import re
from collections.abc import Callable
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


def _is_url(pattern: re.Pattern[str], text: str) -> bool:
    found = pattern.fullmatch(text)
    return found is not None and int(found["port"] or 0) < 65_536


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


def _nats_url(text: str) -> str:
    servers = [server.strip() for server in text.split(",")]
    if text and not all(_is_url(_NATS, server) for server in servers):
        raise ValueError(
            "must be the URL of NATS, like nats://user:password@host:4222, or several separated by commas (special "
            "characters of the password written as %40)"
        )
    return ",".join(servers)


def _redis_url(text: str) -> str:
    if text and not _is_url(_REDIS, text):
        raise ValueError(
            "must be a URL like redis://user:password@host:6379/0, or rediss:// with TLS (special characters of the "
            "password written as %40)"
        )
    return text


def _webhook_secret(text: str) -> str:
    if not _SECRET.fullmatch(text):
        raise ValueError("must be printable ASCII characters without white space")
    return text


def _plain_url(text: str) -> str:
    if not _PLAIN_URL.fullmatch(text):
        example = "http://127.0.0.1:4318/v1/traces"
        raise ValueError(f"must be a URL like {example}; credentials go into OTEL_EXPORTER_OTLP_HEADERS")
    return text


def _origins(text: str) -> str:
    origins = [origin.strip() for origin in text.split(",")]
    if text and not all(map(_ORIGIN.fullmatch, origins)):
        raise ValueError("must be origins like https://shop.example.com, separated by commas, or *")
    return ",".join(origins)


def _networks(text: str) -> str:
    try:
        networks_of(text)
    except ValueError:
        raise ValueError("must be networks like 10.1.0.0/16, or public, separated by commas") from None
    return text


def _proxy_networks(text: str) -> str:
    try:
        _, has_public = networks_of(text) if text else ([], False)
    except ValueError:
        has_public = True
    if has_public:
        raise ValueError("must be networks like 10.1.0.0/16, separated by commas")
    return text


def _subjects(text: str) -> str:
    pairs = pairs_of(text)
    if not all(map(_SUBJECT.fullmatch, sum(pairs, ()))) or len(dict(pairs)) < len(pairs):
        raise ValueError("must be pairs like evt.shopify.webhook.order_paid=shop.orders.paid, separated by commas")
    return text


def _partitions(text: str) -> str:
    if text and not all(map(_RANGE.fullmatch, map(str.strip, text.split(",")))):
        raise ValueError("must be numbers of partitions like 0-3,8")
    return text


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


def _secret(check: Callable[[str], str]) -> AfterValidator:
    return AfterValidator(lambda secret: SecretStr(check(secret.get_secret_value())))


Credits = Annotated[int, Field(ge=0, le=MAX_CREDITS)]
Share = Annotated[Decimal, Field(ge=0, le=1_000_000, max_digits=12, decimal_places=6)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Days = Annotated[int, Field(ge=1, le=3650)]
Rate = Annotated[float, Field(gt=0, le=1_000_000)]
PriceList = Annotated[dict[Annotated[str, Field(min_length=1)], Credits], NoDecode, BeforeValidator(_price_list)]
DatabaseUrl = Annotated[SecretStr, _secret(_database_url)]
NatsUrl = Annotated[SecretStr, _secret(_nats_url)]
RedisUrl = Annotated[SecretStr, _secret(_redis_url)]
WebhookSecret = Annotated[SecretStr, _secret(_webhook_secret)]
PlainUrl = Annotated[str, AfterValidator(_plain_url)]
Origins = Annotated[str, AfterValidator(_origins)]
Networks = Annotated[str, AfterValidator(_networks)]
ProxyNetworks = Annotated[str, AfterValidator(_proxy_networks)]
Subjects = Annotated[str, AfterValidator(_subjects)]
Partitions = Annotated[str, AfterValidator(_partitions)]
