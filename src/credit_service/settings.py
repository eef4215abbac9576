"""The settings: one flat name each, from the environment, `.env` or `credit-service.yaml`; the environment wins.

An impossible value, or an unknown name in YAML, stops the start with one readable line that names it. Values that may
hold a secret are never shown. What each kind of value must look like stands in `setting_types`.

This file is longer than 400 lines because every setting stands here once, with its description.
"""

import re
from collections.abc import Hashable
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_origin

import yaml
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, YamlConfigSettingsSource

from credit_service import setting_types as types
from credit_service.ledger.account import MICROSECONDS
from credit_service.ledger.policy import Policy
from credit_service.setting_types import Credits, Days, PriceList, Rate, Seconds, Share

if TYPE_CHECKING:
    from credit_service.gate.levels import Channel
    from credit_service.gate.redis import RedisLevel
    from credit_service.storage.databases import Database
    from credit_service.storage.engine import Engine

YAML_FILE = "credit-service.yaml"
_WORD = re.compile(r"\w{1,64}")
_FOR_TRACING = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")


class SettingsError(Exception):
    """A setting has an impossible value; the message names it in one line."""


class _Loader(yaml.SafeLoader):
    """Reads YAML, and refuses a name that stands there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, name in enumerate(names):
            if name in names[:position]:
                raise SettingsError(f"{_shown(name)}: stands there twice ({YAML_FILE}).")
        return super().construct_mapping(node, deep)


class _Yaml(YamlConfigSettingsSource):
    """The YAML file; every name in it must be a setting."""

    def _read_file(self, file_path: Any) -> dict[str, Any]:
        # From a stream: of a string, an error would show the line, and so perhaps a secret.
        with file_path.open(encoding="utf-8") as file:
            found = yaml.load(file, _Loader) or {}  # noqa: S506 - it is a safe loader
        if not isinstance(found, dict):
            raise SettingsError(f"{YAML_FILE}: must be lines like trial_credits: 100.")
        for name in found:
            if name not in Settings.model_fields:
                raise SettingsError(f"{_shown(name)}: there is no such setting ({YAML_FILE}).")
        return found


def _shown(name: Any) -> str:
    """A name in YAML, if it is a word; anything else may be a secret on a line of its own."""
    return str(name) if _WORD.fullmatch(str(name)) else "A name that is no word"


class Settings(BaseSettings):
    """Everything an operator may choose. Without any setting the service runs embedded: SQLite, loopback, no server."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",  # other programs share the environment and .env; YAML is ours alone
        frozen=True,
        hide_input_in_errors=True,
        yaml_file=YAML_FILE,
    )

    service_host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    service_port: int = Field(8015, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    service_source: str = Field(
        "credit-service", pattern=r"^[!-~]+$", description="`source` of outbound events, a URI reference."
    )
    database_url: types.DatabaseUrl = Field(
        SecretStr("sqlite:///credit-service.db"), description="The ledger's database: an SQLite file, or PostgreSQL."
    )
    database_pool_size: int = Field(10, ge=1, le=1000, description="Connections of a process for reads (PostgreSQL).")
    database_timeout_seconds: Seconds = Field(5, description="Longest wait for PostgreSQL, in seconds.")
    database_pooled: bool = Field(
        False, description="Whether PgBouncer, or another pooler in transaction mode, is between us and PostgreSQL."
    )
    database_allow_unsafe: bool = Field(
        False, description="Whether PostgreSQL may have fsync off, or a clock that differs from ours."
    )
    nats_url: types.NatsUrl = Field(
        SecretStr(""), description="NATS, for events in and out; several servers separated by commas."
    )
    nats_consumer: str = Field(
        "credit-service", pattern=r"^[\w-]{1,64}$", description="Name of the durable consumer of inbound events."
    )
    nats_batch_size: int = Field(500, ge=1, le=1000, description="Events that are fetched and posted at once.")
    nats_subjects: types.Subjects = Field(
        "",
        description="Other subjects for inbound events, as pairs like "
        "evt.shopify.webhook.order_paid=shop.orders.paid, separated by commas.",
    )
    nats_partitions: int = Field(
        0, ge=0, le=256, description="Number of partitions that keep each merchant's events in order; 0 is none."
    )
    nats_partitions_taken: types.Partitions = Field(
        "", description="Partitions that this replica consumes, like 0-3,8; empty means all."
    )
    nats_stream_replicas: int = Field(1, ge=1, le=5, description="Replicas of a stream that the service creates.")
    redis_url: types.RedisUrl = Field(
        SecretStr(""),
        description="Redis or Valkey (6 or newer), a shared cache behind the cache of each process; or empty.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level that is logged.")
    log_format: Literal["console", "json"] = Field("console", description="Format of the log.")

    trial_credits: Credits = Field(100, description="Credits of the trial of a new merchant; 0 grants none.")
    order_credit_fixed_amount: Share = Field(Decimal(1), description="Credits that an order costs, whatever its total.")
    order_credit_percentage: Share = Field(Decimal(0), description="Percent of an order's total that it costs.")
    order_credit_minimum: Share = Field(Decimal(0), description="Least credits that an order costs.")
    low_balance_threshold_percent: Annotated[Decimal, Field(ge=0, le=1000)] = Field(
        Decimal(20), description="Default low threshold, in percent of TRIAL_CREDITS."
    )
    orders_when_insufficient: Literal["overdraft", "partial", "reject"] = Field(
        "overdraft", description="What happens to an order that the available credits cannot cover."
    )
    refunds_grace_days: Days = Field(
        30, description="Days until credits expire that a refund gives back to an expired grant."
    )
    clawback_policy: Literal["debt", "clamp", "freeze"] = Field(
        "debt",
        description="What happens if the credits of a refunded or disputed payment are spent: they become a debt, are "
        "never taken (clamp), or become a debt and freeze the account.",
    )
    refunds_wait_days: Days = Field(7, description="Days that a refund waits for its order or payment.")
    accounts_auto_create: bool = Field(True, description="Whether an event opens the account of an unknown merchant.")

    shopify_webhook_secret: types.WebhookSecret | None = Field(
        None, description="Client secret of the Shopify app; without it Shopify's webhooks are refused."
    )
    shopify_webhook_secret_previous: types.WebhookSecret | None = Field(
        None, description="Previous client secret, also valid while the secret is rotated."
    )
    shopify_plan_credits: PriceList = Field(
        {}, description='Credits for a period of a Shopify subscription, by its plan: `{"Pro": 500}`.'
    )
    shopify_purchase_credits: PriceList = Field(
        {}, description='Credits for a one-time purchase on Shopify, by its name: `{"1000 credits": 1000}`.'
    )

    plugin_status_cache_ttl: Seconds = Field(15, description="Seconds that a cached plugin status may be answered.")
    plugin_status_cache_size: int = Field(100_000, ge=1, description="Merchants whose plugin status is cached.")
    plugin_status_auth: Literal["none", "publishable", "read", "shopify"] = Field(
        "none",
        description="Who may ask for one plugin status: anybody, keys of scope status or read, Shopify's app proxy.",
    )
    plugin_status_public: Literal["uuids", "all"] = Field(
        "uuids",
        description="Whose plugin status anybody may ask for. Ids that are no UUIDs can be guessed: they need a key of "
        "scope status.",
    )
    gate_stale_seconds: Annotated[float, Field(ge=0, le=604_800)] = Field(
        300, description="Seconds that the last known plugin status is valid while the database is away."
    )
    gate_fail: Literal["closed", "open"] = Field(
        "closed", description="Plugin status after GATE_STALE_SECONDS, for accounts without a fail policy of their own."
    )

    posting_deadline_seconds: Seconds = Field(5, description="Seconds after which a waiting posting is refused.")
    posting_streams: int = Field(
        4, ge=1, le=16, description="Batches that a process posts to PostgreSQL at once; SQLite has one."
    )
    posting_queue_size: int = Field(20_000, ge=1, description="Postings that may wait at once.")
    shutdown_delay_seconds: Annotated[float, Field(ge=0, le=600)] = Field(
        0, description="Seconds that /readyz answers 503 before the service stops."
    )
    sweep_seconds: Seconds = Field(
        1, description="Seconds between two sweeps, which post expiries and other changes that are due."
    )

    rate_limit_enabled: bool = Field(True, description="Whether the rate of requests is limited.")
    rate_limit_key_per_second: Rate = Field(5000, description="Requests per second that one API key may send.")
    rate_limit_key_burst: int = Field(10_000, ge=1, description="Requests that one API key may send at once.")
    rate_limit_address_per_second: Rate = Field(
        2000, description="Requests per second that one address may send without a valid API key."
    )
    rate_limit_address_burst: int = Field(
        4000, ge=1, description="Requests that one address may send at once without a valid API key."
    )
    trusted_proxies: types.ProxyNetworks = Field(
        "",
        description="Networks of the proxies before the service, separated by commas. The service trusts `Forwarded` "
        "and `X-Forwarded-For` only from these proxies.",
    )
    cors_origins: types.Origins = Field(
        "", description="Origins whose pages may call the service, separated by commas; * means any."
    )
    metrics_enabled: bool = Field(True, description="Whether /metrics is served.")
    metrics_port: int = Field(
        0,
        ge=0,
        le=65_000,
        description="Port of the first worker's /metrics; the second worker has the next port. 0 is none.",
    )
    metrics_balance_per_merchant: bool = Field(
        False, description="Whether /metrics has the balance of every merchant: one series for each of them."
    )
    audit_accounts_per_second: int = Field(
        200,
        ge=0,
        le=100_000,
        description="Accounts per second that the service compares with their transactions; 0 is none.",
    )
    tracing_enabled: bool = Field(
        False, description="Whether traces are sent to a collector; needs the extra `credit-service[tracing]`."
    )
    tracing_endpoint: types.PlainUrl = Field(
        "http://127.0.0.1:4318/v1/traces", description="Collector of traces, by OTLP over HTTP."
    )
    tracing_sample_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        1,
        description="Share of the service's own traces that it sends; a caller's `traceparent` decides for the "
        "caller's traces.",
    )

    webhook_allowed_networks: types.Networks = Field(
        "public",
        description="Networks that webhooks may reach, like 10.1.0.0/16, separated by commas; public means every "
        "public address (https only).",
    )

    body_max_bytes: int = Field(64 * 1024, ge=1024, description="Largest size of a request's body.")
    batch_body_max_bytes: int = Field(
        1024 * 1024, ge=1024, description="Largest size of the body of a batch, or of events."
    )
    bodies_in_flight_max_bytes: int = Field(
        64 * 1024 * 1024,
        ge=1024 * 1024,
        description="Most bytes of all request bodies in memory together; a request beyond this gets 503.",
    )
    headers_max_bytes: int = Field(16 * 1024, ge=1024, description="Largest size of a request's headers.")
    header_timeout_seconds: Seconds = Field(10, description="Seconds for a request's headers to arrive.")
    body_timeout_seconds: Seconds = Field(30, description="Seconds for a request's body to arrive.")
    write_timeout_seconds: Seconds = Field(
        30, description="Seconds that the service waits for a client that does not read its answer."
    )
    keep_alive_seconds: Annotated[int, Field(ge=1, le=86_400)] = Field(
        75, description="Seconds that an idle connection stays open; set more than the idle timeout of the proxy."
    )
    connections_max: int = Field(10_000, ge=1, description="Most connections of a process at once.")
    connections_max_per_address: int = Field(
        1000, ge=1, description="Connections of one address at once; those of TRUSTED_PROXIES are not limited."
    )
    key_max_length: int = Field(255, ge=64, le=255, description="Characters of a key, or of a reference.")
    metadata_max_bytes: int = Field(
        8192, ge=2, le=65_536, description="Largest size of the metadata of a posting, as JSON."
    )
    # The fast decoders go as deep as the least of these.
    json_max_depth: int = Field(32, ge=20, le=200, description="Levels that JSON may be nested.")
    batch_max_items: int = Field(1000, ge=1, le=1000, description="Items in a batch.")
    page_max_limit: int = Field(200, ge=1, le=1000, description="Entries on a page.")

    @field_validator("*", mode="before")
    @classmethod
    def _tidy(cls, value: Any, info: ValidationInfo) -> Any:
        """Remove stray white space, as at the end of a secret's file; a choice may be written in any case."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and kind is not bool:
            raise ValueError("must not be true or false")
        if not isinstance(value, str):
            return value
        return value.strip().lower() if get_origin(kind) is Literal else value.strip()

    @field_validator("nats_partitions_taken")
    @classmethod
    def _known_partitions(cls, text: str, info: ValidationInfo) -> str:
        if max(types.numbers_of(text), default=-1) >= info.data.get("nats_partitions", 0):
            raise ValueError("must be numbers from 0 to NATS_PARTITIONS - 1")
        return text

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

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The command line (as arguments) wins over the environment, that over `.env`, and that over YAML."""
        return (init_settings, env_settings, dotenv_settings, _Yaml(settings_cls))

    @property
    def is_postgres(self) -> bool:
        """Whether the ledger is in PostgreSQL, and not in an SQLite file."""
        return not self.database_url.get_secret_value().startswith(types.SQLITE)

    @property
    def database_path(self) -> Path:
        """The SQLite file."""
        return Path(self.database_url.get_secret_value().removeprefix(types.SQLITE))

    @property
    def webhook_networks(self) -> tuple[list[types.Network], bool]:
        """The networks that webhooks may go to, and whether they may go to every public address, too."""
        return types.networks_of(self.webhook_allowed_networks)

    @property
    def trusted_proxy_networks(self) -> list[types.Network]:
        """The networks of the proxies before the service."""
        return types.networks_of(self.trusted_proxies)[0] if self.trusted_proxies else []

    @property
    def remapped_subjects(self) -> dict[str, str]:
        """Subjects by event type, where they differ."""
        return dict(types.pairs_of(self.nats_subjects))

    @property
    def partitions_taken(self) -> list[int]:
        """The partitions that this replica consumes."""
        return types.numbers_of(self.nats_partitions_taken) or list(range(self.nats_partitions))

    @property
    def policy(self) -> Policy:
        """The settings that the ledger's rules depend on."""
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
            clawback=self.clawback_policy,
        )


def load(**given: Any) -> Settings:
    """The settings in force; `given` are those of the command line, None where one was not given.

    Raises SettingsError with one line that names the first setting with an impossible value.
    """
    for name in (YAML_FILE, ".env"):
        if Path(name).is_dir():  # as a container makes it when the file to mount is missing
            raise SettingsError(f"{name} cannot be read: it is a folder.")
    # Raised outside the handlers: their errors hold what was given, and would stay attached to ours as its context.
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


def database_of(settings: Settings) -> "Database":
    """The database that the settings name, not opened yet."""
    from credit_service.storage import databases  # with its drivers, which most commands do not need

    if settings.is_postgres:
        return databases.PostgresDatabase(
            settings.database_url.get_secret_value(),
            settings.posting_streams,
            settings.database_pool_size,
            settings.database_timeout_seconds,
            settings.database_pooled,
            settings.database_allow_unsafe,
        )
    return databases.SQLiteDatabase(settings.database_path)


def redis_of(settings: Settings) -> "RedisLevel | None":
    """The Redis of the settings, if they name one."""
    if not (url := settings.redis_url.get_secret_value()):
        return None
    from credit_service.gate.redis import RedisLevel  # takes long to import

    return RedisLevel(url, name=settings.service_source, ttl=int(settings.plugin_status_cache_ttl * MICROSECONDS))


def channel_of(settings: Settings, engine: "Engine") -> "Channel | None":
    """How processes without a Redis hear of changes of plugin status. A pooler forgets which connection listens."""
    from credit_service.gate.postgres import PostgresChannel
    from credit_service.gate.sqlite import FileChannel
    from credit_service.storage.sqlite.engine import SQLiteEngine

    if isinstance(engine, SQLiteEngine):
        return FileChannel(engine.data_version)
    url = settings.database_url.get_secret_value()
    return None if settings.database_pooled else PostgresChannel(url, timeout_seconds=settings.database_timeout_seconds)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even its parent is installed
        return False
