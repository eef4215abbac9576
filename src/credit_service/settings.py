"""The settings: one flat name each, from the environment, `.env` or `credit-service.yaml`; the environment wins.

An impossible value, or an unknown name in YAML, stops the start with one readable line that names it. Values that may
hold a secret are never shown.
"""

import json
import re
from decimal import Decimal
from importlib.util import find_spec
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from credit_service.ledger.account import MAX_CREDITS
from credit_service.ledger.policy import Policy

YAML_FILE = "credit-service.yaml"
_SQLITE = "sqlite:///"
# What is no file's name, but a URL or credentials that were mistaken for one: a file's name is shown.
_CREDENTIALS = re.compile(r"://|:[^/]*@")
# User, password, host and port, database, options. What is special must be written as %40, or a part of the password
# would be taken for something that is shown.
_POSTGRES = re.compile(
    r"(?:postgres|postgresql|postgresql\+asyncpg)://"
    r"((?:[^:@/?#\s]+(?::[^:@/?#\s]*)?@)?(?:[\w.\-]*|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d{1,5}))?"
    r"/[^:@/?#\s]+(?:\?[^@#\s]*)?)"
)
_NATS = re.compile(
    r"(?:nats|tls)://(?:[^:@/?#\s]+(?::[^:@/?#\s]*)?@)?(?:[\w.\-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d{1,5}))?/?"
)
_SUBJECT = re.compile(r"[\w-]+(\.[\w-]+)*")
_RANGE = re.compile(r"(\d{1,3})(?:-(\d{1,3}))?")
_REDIS = re.compile(
    r"rediss?://(?:[^:@/?#\s]*(?::[^:@/?#\s]*)?@)?(?:[\w.\-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d{1,5}))?"
    r"(?:/\d{0,5})?(?:\?ssl_[a-z_]+=[^&@#\s]*(?:&ssl_[a-z_]+=[^&@#\s]*)*)?"
)
_WORD = re.compile(r"\w{1,64}")
_PLAIN_URL = re.compile(r"https?://[^/?#@\s]+(/[^?#@\s]*)?")
_FOR_TRACING = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")

Network = IPv4Network | IPv6Network
Credits = Annotated[int, Field(ge=0, le=MAX_CREDITS)]


def _price_list(value: Any) -> Any:
    """JSON where it is a text, as in the environment; in YAML it is a mapping already."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or any(isinstance(credits, bool | str | float) for credits in value.values()):
        raise ValueError('must be an object of whole credits by name, like {"Pro": 500}') from None
    return value


PriceList = Annotated[dict[Annotated[str, Field(min_length=1)], Credits], NoDecode, BeforeValidator(_price_list)]
Share = Annotated[Decimal, Field(ge=0, le=1_000_000, max_digits=12, decimal_places=6)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Days = Annotated[int, Field(ge=1, le=3650)]


class SettingsError(Exception):
    """A setting that cannot be; the message names it in one line."""


class _Yaml(YamlConfigSettingsSource):
    """The YAML file, of which every name must be a setting."""

    def _read_file(self, file_path: Any) -> dict[str, Any]:
        # As a stream: of a text, an error would show the line, and so perhaps a secret.
        with file_path.open(encoding="utf-8") as file:
            found = yaml.safe_load(file) or {}
        if not isinstance(found, dict):
            raise SettingsError(f"{YAML_FILE}: must be lines like trial_credits: 100.")
        for name in found:
            if name not in Settings.model_fields:
                # What is no word may be anything, a secret on a line of its own for one.
                shown = name if _WORD.fullmatch(str(name)) else "A name that is none"
                raise SettingsError(f"{shown}: there is no such setting ({YAML_FILE}).")
        return found


class Settings(BaseSettings):
    """Everything an operator may choose. Unset, the service runs embedded: SQLite, loopback, nothing else needed."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",  # the environment and .env are shared with others; YAML is ours alone
        frozen=True,
        hide_input_in_errors=True,
        yaml_file=YAML_FILE,
    )

    service_host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    service_port: int = Field(8015, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    service_source: str = Field("credit-service", min_length=1, description="`source` of the events that go out.")
    database_url: SecretStr = Field(
        SecretStr("sqlite:///credit-service.db"), description="Where the ledger is kept: an SQLite file, or PostgreSQL."
    )
    database_pool_size: int = Field(10, ge=1, le=1000, description="Connections of a process for reads (PostgreSQL).")
    database_timeout_seconds: Seconds = Field(5, description="Seconds to wait for PostgreSQL at most, each time.")
    database_pooled: bool = Field(
        False, description="Whether PgBouncer, or the like, stands before PostgreSQL in transaction mode."
    )
    database_allow_unsafe: bool = Field(
        False, description="Whether PostgreSQL may have fsync off, or a clock that is not ours."
    )
    nats_url: SecretStr = Field(
        SecretStr(""), description="NATS, by which events come in and go out; several servers separated by commas."
    )
    nats_consumer: str = Field(
        "credit-service", pattern=r"^[\w-]{1,64}$", description="Name of the durable consumer of what comes in."
    )
    nats_batch_size: int = Field(500, ge=1, le=1000, description="Events that are fetched and posted at once.")
    nats_subjects: str = Field(
        "",
        description="Other subjects for events that come in, as pairs like "
        "evt.shopify.webhook.order_paid=shop.orders.paid, separated by commas.",
    )
    nats_partitions: int = Field(
        0,
        ge=0,
        le=256,
        description="Among how many partitions merchants are divided to keep their events in order; or 0.",
    )
    nats_partitions_taken: str = Field(
        "", description="Which partitions this replica takes, like 0-3,8; all if it does not say."
    )
    nats_stream_replicas: int = Field(1, ge=1, le=5, description="Replicas of a stream that the service creates.")
    redis_url: SecretStr = Field(
        SecretStr(""),
        description="Redis or Valkey (6 or newer) behind the memory of each process; unset, there is none.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="What is logged.")
    log_format: Literal["console", "json"] = Field("console", description="How it is logged.")

    trial_credits: Credits = Field(100, description="Credits of the trial of a new merchant; 0 grants none.")
    order_credit_fixed_amount: Share = Field(Decimal(1), description="Credits that an order costs, whatever its total.")
    order_credit_percentage: Share = Field(Decimal(0), description="Percent of an order's total that it costs.")
    order_credit_minimum: Share = Field(Decimal(0), description="The least that an order costs.")
    low_balance_threshold_percent: Annotated[Decimal, Field(ge=0, le=1000)] = Field(
        Decimal(20), description="The default low threshold, in percent of TRIAL_CREDITS."
    )
    orders_when_insufficient: Literal["overdraft", "partial", "reject"] = Field(
        "overdraft", description="What becomes of an order that the available credits cannot cover."
    )
    refunds_grace_days: Days = Field(30, description="How long credits live that come back to an expired grant.")
    refunds_wait_days: Days = Field(7, description="How long a refund waits for its order or payment.")
    accounts_auto_create: bool = Field(True, description="Whether an event opens the account of an unknown merchant.")

    shopify_webhook_secret: SecretStr | None = Field(
        None, min_length=1, description="The client secret of the Shopify app; unset, its webhooks are not taken."
    )
    shopify_webhook_secret_previous: SecretStr | None = Field(
        None, min_length=1, description="The client secret before that, which counts as well while it is rotated."
    )
    shopify_plan_credits: PriceList = Field(
        {},
        description='Credits that a period of a Shopify subscription gives, by its plan: `{"Pro": 500}`.',
    )
    shopify_purchase_credits: PriceList = Field(
        {}, description='Credits that a one-time purchase on Shopify gives, by its name: `{"1000 credits": 1000}`.'
    )

    plugin_status_cache_ttl: Seconds = Field(15, description="Seconds a plugin status may be answered from memory.")
    plugin_status_cache_size: int = Field(100_000, ge=1, description="Merchants whose plugin status is remembered.")
    plugin_status_auth: Literal["none", "publishable", "read", "shopify"] = Field(
        "none",
        description="Who may ask for one plugin status: anybody, keys of scope status or read, Shopify's app proxy.",
    )
    gate_stale_seconds: Annotated[float, Field(ge=0, le=604_800)] = Field(
        300, description="Seconds the last known plugin status counts while the database is away."
    )
    gate_fail: Literal["closed", "open"] = Field(
        "closed", description="The plugin status after that, of accounts without a policy of their own."
    )

    posting_deadline_seconds: Seconds = Field(5, description="Seconds a posting may wait before it is given up.")
    posting_streams: int = Field(
        4, ge=1, le=16, description="Postings of a process that PostgreSQL takes at once; SQLite takes one."
    )
    posting_queue_size: int = Field(20_000, ge=1, description="Postings that may wait at once.")
    shutdown_delay_seconds: Annotated[float, Field(ge=0, le=600)] = Field(
        0, description="Seconds that /readyz answers 503 before the service stops."
    )
    sweep_seconds: Seconds = Field(1, description="Seconds between two sweeps for what time has done.")

    rate_limit_enabled: bool = Field(True, description="Whether callers are limited in how often they may call.")
    rate_limit_key_per_second: Annotated[float, Field(gt=0, le=1_000_000)] = Field(
        5000, description="Requests a second of one API key."
    )
    rate_limit_key_burst: int = Field(10_000, ge=1, description="Requests of one API key at once.")
    rate_limit_address_per_second: Annotated[float, Field(gt=0, le=1_000_000)] = Field(
        2000, description="Requests a second of one address without a valid API key."
    )
    rate_limit_address_burst: int = Field(
        4000, ge=1, description="Requests of one address without a valid key at once."
    )
    cors_origins: str = Field("", description="Origins whose pages may call, separated by commas; * means any.")
    metrics_enabled: bool = Field(True, description="Whether /metrics is served.")
    metrics_port: int = Field(
        0,
        ge=0,
        le=65_000,
        description="Port that serves /metrics of the first worker, the next one of the second; or 0.",
    )
    metrics_balance_per_merchant: bool = Field(
        False, description="Whether /metrics tells the balance of every merchant: a series for each of them."
    )
    audit_accounts_per_second: int = Field(
        200, ge=0, le=100_000, description="Accounts a second that are compared with what they rest on; 0 for none."
    )
    tracing_enabled: bool = Field(
        False, description="Whether traces are sent to a collector; needs the extra `credit-service[tracing]`."
    )
    tracing_endpoint: str = Field(
        "http://127.0.0.1:4318/v1/traces", description="The collector of traces, which speaks OTLP over HTTP."
    )
    tracing_sample_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        1, description="Share of the traces begun here that are sent; of others their `traceparent` decides."
    )

    webhook_allowed_networks: str = Field(
        "public",
        description="Where webhooks may go, separated by commas: networks like 10.1.0.0/16, and public for every "
        "public address (https alone).",
    )

    body_max_bytes: int = Field(64 * 1024, ge=1024, description="Size of a request's body.")
    batch_body_max_bytes: int = Field(1024 * 1024, ge=1024, description="Size of the body of a batch, or of events.")
    headers_max_bytes: int = Field(16 * 1024, ge=1024, description="Size of a request's headers.")
    header_timeout_seconds: Seconds = Field(10, description="Seconds for a request's headers to arrive.")
    body_timeout_seconds: Seconds = Field(30, description="Seconds for a request's body to arrive.")
    key_max_length: int = Field(255, ge=64, le=255, description="Characters of a key, or of a reference.")
    metadata_max_bytes: int = Field(8192, ge=2, le=65_536, description="Size of the metadata of a posting, as JSON.")
    # The fast decoders go as deep as the least of these.
    json_max_depth: int = Field(32, ge=20, le=200, description="Levels that JSON may be nested.")
    batch_max_items: int = Field(1000, ge=1, le=1000, description="Items in a batch.")
    page_max_limit: int = Field(200, ge=1, le=1000, description="Entries on a page.")

    @field_validator("*", mode="before")
    @classmethod
    def _no_flag_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("must not be true or false")
        return value

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, url: SecretStr) -> SecretStr:
        text = url.get_secret_value()
        if text.startswith(_SQLITE):
            path = text.removeprefix(_SQLITE)
            if path and path != ":memory:" and not _CREDENTIALS.search(path):
                return url
        elif (found := _POSTGRES.fullmatch(text)) is not None and int(found["port"] or 0) < 65_536:
            return SecretStr(f"postgresql://{found[1]}")
        raise ValueError(
            f"must be the URL of an SQLite file, like {_SQLITE}credit-service.db, or of a PostgreSQL database, like "
            "postgresql://user:password@host:5432/credits (what is special in the password written as %40)"
        )

    @field_validator("webhook_allowed_networks")
    @classmethod
    def _known_networks(cls, text: str) -> str:
        try:
            _networks(text)
        except ValueError:
            raise ValueError("must be networks like 10.1.0.0/16, or public, separated by commas") from None
        return text

    @field_validator("nats_url")
    @classmethod
    def _known_broker(cls, url: SecretStr) -> SecretStr:
        servers = [server.strip() for server in url.get_secret_value().split(",")]
        found = [_NATS.fullmatch(server) for server in servers]
        if servers != [""] and not all(one is not None and int(one["port"] or 0) < 65_536 for one in found):
            raise ValueError(
                "must be the URL of NATS, like nats://user:password@host:4222, or several separated by commas (what is "
                "special in the password written as %40)"
            )
        return SecretStr(",".join(servers))

    @field_validator("nats_subjects")
    @classmethod
    def _known_subjects(cls, pairs: str) -> str:
        types, subjects = _pairs(pairs)
        if pairs and not (all(map(_SUBJECT.fullmatch, [*types, *subjects])) and len({*types}) == len(types)):
            raise ValueError("must be pairs like evt.shopify.webhook.order_paid=shop.orders.paid, separated by commas")
        return pairs

    @field_validator("nats_partitions_taken")
    @classmethod
    def _known_partitions(cls, text: str, info: ValidationInfo) -> str:
        if text:
            ranges = [_RANGE.fullmatch(part.strip()) for part in text.split(",")]
            if not all(ranges):
                raise ValueError("must be numbers of partitions like 0-3,8")
            if max(_numbers(text), default=0) >= info.data.get("nats_partitions", 0):
                raise ValueError("must be numbers from 0 to NATS_PARTITIONS - 1")
        return text

    @field_validator("redis_url")
    @classmethod
    def _known_redis(cls, url: SecretStr) -> SecretStr:
        text = url.get_secret_value()
        found = _REDIS.fullmatch(text)
        if text and (found is None or int(found["port"] or 0) > 65_535):
            raise ValueError(
                "must be a URL like redis://user:password@host:6379/0, or rediss:// with TLS (what is special in the "
                "password written as %40)"
            )
        return url

    @field_validator("plugin_status_auth")
    @classmethod
    def _can_check_signatures(cls, auth: str, info: ValidationInfo) -> str:
        if auth == "shopify" and info.data.get("shopify_webhook_secret") is None:
            raise ValueError("shopify needs SHOPIFY_WEBHOOK_SECRET, the client secret of the app")
        return auth

    @field_validator("tracing_enabled")
    @classmethod
    def _can_trace(cls, enabled: bool) -> bool:
        if enabled and not all(map(_is_installed, _FOR_TRACING)):
            raise ValueError('needs more to be installed: pip install "credit-service[tracing]"')
        return enabled

    @field_validator("tracing_endpoint")
    @classmethod
    def _without_credentials(cls, url: str) -> str:
        if not _PLAIN_URL.fullmatch(url):
            example = "http://127.0.0.1:4318/v1/traces"
            raise ValueError(f"must be a URL like {example}; credentials go into OTEL_EXPORTER_OTLP_HEADERS")
        return url

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over `.env`, and that over YAML; the command line comes as arguments, before all."""
        return (init_settings, env_settings, dotenv_settings, _Yaml(settings_cls))

    @property
    def is_postgres(self) -> bool:
        """Whether the ledger is kept in PostgreSQL, and not in an SQLite file."""
        return not self.database_url.get_secret_value().startswith(_SQLITE)

    @property
    def database_path(self) -> Path:
        """The SQLite file."""
        return Path(self.database_url.get_secret_value().removeprefix(_SQLITE))

    @property
    def webhook_networks(self) -> tuple[list[Network], bool]:
        """The networks that webhooks may go to, and whether every public address is allowed beside them."""
        return _networks(self.webhook_allowed_networks)

    @property
    def remapped_subjects(self) -> dict[str, str]:
        """Subjects by event type, for those that are not named like it."""
        return dict(zip(*_pairs(self.nats_subjects), strict=True))

    @property
    def partitions_taken(self) -> list[int]:
        """The partitions that this replica takes."""
        if not self.nats_partitions_taken:
            return list(range(self.nats_partitions))
        return _numbers(self.nats_partitions_taken)

    @property
    def policy(self) -> Policy:
        """Those settings that the ledger's rules depend on."""
        return Policy(
            trial_credits=self.trial_credits,
            order_fixed=self.order_credit_fixed_amount,
            order_percent=self.order_credit_percentage,
            order_minimum=self.order_credit_minimum,
            low_balance_percent=self.low_balance_threshold_percent,
            when_insufficient=self.orders_when_insufficient,
            refund_grace_days=self.refunds_grace_days,
            refund_wait_days=self.refunds_wait_days,
            auto_create=self.accounts_auto_create,
        )


def load(**given: Any) -> Settings:
    """The settings in force; `given` are those of the command line, None where one was not said.

    Raises SettingsError with one line that names the first setting that cannot be.
    """
    # Raised outside the handlers: their errors hold what was given, and would hang on to ours as its context.
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        fault = f"{name.upper()}: {first['msg'].removeprefix('Value error, ')}."
    except yaml.MarkedYAMLError as error:  # whose own words quote the file
        mark = error.problem_mark or error.context_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        fault = f"{YAML_FILE} cannot be read: this is not YAML{place}."
    except (OSError, ValueError, yaml.YAMLError) as error:
        fault = f"{YAML_FILE} or .env cannot be read: {' '.join(str(error).split())}"
    raise SettingsError(fault)


def _networks(text: str) -> tuple[list[Network], bool]:
    names = [name.strip() for name in text.split(",")]
    return [ip_network(name) for name in names if name != "public"], "public" in names


def _pairs(text: str) -> tuple[list[str], list[str]]:
    """What stands before and behind the equals signs of pairs separated by commas."""
    pairs = [part.strip().partition("=") for part in text.split(",")] if text else []
    return [name.strip() for name, _, _ in pairs], [value.strip() for _, _, value in pairs]


def _numbers(text: str) -> list[int]:
    """The numbers of ranges like 0-3,8."""
    found: set[int] = set()
    for first, last in _RANGE.findall(text):
        found |= set(range(int(first), int(last or first) + 1))
    return sorted(found)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even what it is a part of
        return False
