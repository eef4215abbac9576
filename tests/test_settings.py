"""The settings: their sources, invalid values, and hidden secrets."""

import typing
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import SecretStr

from credit_service.settings import YAML_FILE, Settings, SettingsError, load
from tests.commands import clean_environment

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def _empty_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test in an empty folder and without settings in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    assert clean_environment().keys().isdisjoint(name.upper() for name in Settings.model_fields)


def refused(**given: Any) -> str:
    """Return the one line that names the wrong setting."""
    with pytest.raises(SettingsError) as error:
        load(**given)
    line = str(error.value)
    assert "\n" not in line
    assert SECRET not in line
    assert SECRET not in repr(error.value)
    assert error.value.__cause__ is None
    assert error.value.__context__ is None  # the context would contain the given value
    return line


def test_default_ledger_is_an_sqlite_file() -> None:
    settings = load()
    assert settings.database_path == Path("credit-service.db")
    assert (settings.service_host, settings.service_port) == ("127.0.0.1", 8015)


def test_defaults_match_the_contract() -> None:
    promised = {
        "trial_credits": 100,
        "order_credit_fixed_amount": 1,
        "order_credit_percentage": 0,
        "order_credit_minimum": 0,
        "low_balance_threshold_percent": 20,
        "plugin_status_cache_ttl": 15,
        "posting_deadline_seconds": 5,
        "orders_when_insufficient": "overdraft",
        "refunds_grace_days": 30,
        "refunds_wait_days": 7,
        "accounts_auto_create": True,
        "gate_fail": "closed",
        "body_max_bytes": 64 * 1024,
        "batch_body_max_bytes": 1024 * 1024,
        "headers_max_bytes": 16 * 1024,
        "key_max_length": 255,
        "metadata_max_bytes": 8 * 1024,
        "metrics_balance_per_merchant": False,
        "audit_accounts_per_second": 200,
        "tracing_enabled": False,
        "json_max_depth": 32,
        "page_max_limit": 200,
        "batch_max_items": 1000,
        "header_timeout_seconds": 10,
        "body_timeout_seconds": 30,
    }
    settings = load()
    assert {name: getattr(settings, name) for name in promised} == promised


def test_environment_overrides_env_file_and_env_file_overrides_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / YAML_FILE).write_text("trial_credits: 1\nservice_port: 1\norder_credit_minimum: 1.5\n")
    (tmp_path / ".env").write_text("TRIAL_CREDITS=2\nSERVICE_PORT=2\nNOT_OURS=x\n")
    monkeypatch.setenv("TRIAL_CREDITS", "3")
    monkeypatch.setenv("NOT_OURS_EITHER", "x")
    settings = load()
    assert (settings.trial_credits, settings.service_port) == (3, 2)
    assert settings.order_credit_minimum == Decimal("1.5")
    assert load(trial_credits=4).trial_credits == 4  # the command line overrides all
    assert load(trial_credits=None).trial_credits == 3


def test_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIAL_CREDITS", "")
    assert load().trial_credits == 100


def test_policy_contains_the_settings_of_the_rules(tmp_path: Path) -> None:
    (tmp_path / YAML_FILE).write_text(
        "trial_credits: 7\norder_credit_fixed_amount: 0\norder_credit_percentage: 2.5\norder_credit_minimum: 3\n"
        "low_balance_threshold_percent: 50\norders_when_insufficient: reject\nrefunds_grace_days: 1\n"
        "refunds_wait_days: 2\naccounts_auto_create: false\n"
    )
    policy = load().policy
    prices = (policy.order_fixed, policy.order_percent, policy.order_minimum)
    assert prices == (Decimal(0), Decimal("2.5"), Decimal(3))
    assert (policy.trial_credits, policy.default_threshold) == (7, 3)
    assert (policy.when_insufficient, policy.refund_grace_days, policy.refund_wait_days) == ("reject", 1, 2)
    assert policy.auto_create is False


def invalid() -> list[tuple[str, str]]:
    """Return pairs of a setting and an invalid value, made from the types of the settings."""
    found = [
        ("database_url", value)
        for value in (
            *("nonsense", "sqlite://", "sqlite:///", "sqlite:///:memory:", "mysql://a/b"),
            *("postgresql://", "postgresql://host", "postgresql://host/", "postgresql://host:port/db", "postgres:db"),
            *("postgresql://u:hunter2@x@h/db", "postgresql://u:hun/ter2@h/db", "postgresql://h/db?p=hunter2@h"),
            *("sqlite:///user:hunter2@host/db", "sqlite:///postgresql://host/db", "sqlite:///a.db?mode=ro"),
            *("postgresql://h,/db", "postgresql://h:1:2/db", "postgresql://h/db?x=", "postgresql://h:1,h2/db?port=2"),
        )
    ]
    found += [
        ("redis_url", value)
        for value in (
            *("redis", "redis://", "http://host", "redis://host:port", "redis://host:70000", "redis://host/db"),
            *("redis://u:hunter2@x@h", "redis://u:hun/ter2@h", "redis://h/0?password=hunter2", "unix:///a"),
        )
    ]
    found.append(("plugin_status_auth", "shopify"))  # it needs the secret, which is not set
    for name in ("shopify_webhook_secret", "shopify_webhook_secret_previous"):
        found += [(name, "hunter2 hunter2"), (name, "hunter2\u200b"), (name, "hünter2")]
    found += [("cors_origins", value) for value in ("shop.example", "https://shop.example/", "https://a,,https://b")]
    found += [
        ("tracing_endpoint", value) for value in ("collector", "http://u:hunter2@c/", "http://c/?k=hunter2", "//c")
    ]
    found += [
        ("nats_url", value)
        for value in (
            *("nonsense", "nats://", "http://host", "nats://host:port", "nats://host:99999", "nats://a,,nats://b"),
            *("nats://u:hunter2@x@h", "nats://u:hun/ter2@h", "nats://h/hunter2", "nats://h?k=hunter2"),
        )
    ]
    found += [("service_source", value) for value in ("a b", "ä")]
    found += [("nats_consumer", value) for value in ("a b", "a.b", "*", "x" * 65)]
    found += [("nats_subjects", value) for value in ("x", "a=b=c", "a=*", "a=b,", "a=b,a=c", "=b", "a=b c")]
    found += [("nats_partitions_taken", value) for value in ("x", "0", "1-", "-1", "0;1")]
    found += [
        ("webhook_allowed_networks", value)
        for value in ("private", "10.0.0.1/8", "10.0.0.0/33", "public 10.0.0.0/8", "public,,10.0.0.0/8", "10.*", ",")
    ]
    for name, field in Settings.model_fields.items():
        kind: Any = field.annotation
        if kind is bool:
            found += [(name, "perhaps"), (name, "2")]
        elif kind in (int, float, Decimal):
            found += [(name, value) for value in ("-1", "x", "NaN", "1e30", "Infinity", "0x10", "1,5")]
            if kind is int:
                found.append((name, "1.5"))
        elif typing.get_origin(kind) is Literal:
            found.append((name, "neither"))
        elif typing.get_origin(kind) is dict:
            credits = ("-1", "1.5", "true", '"1"', "null", "NaN", str(2**53))
            found += [(name, value) for value in ("x", "[1]", "5", '{"": 1}', *[f'{{"a": {one}}}' for one in credits])]
            found.append((name, '{"a": 1, "a": 2}'))
    return found


@pytest.mark.parametrize(("name", "value"), invalid())
def test_error_for_invalid_value_names_setting_in_one_line(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name.upper(), value)
    assert refused().startswith(f"{name.upper()}: ")
    monkeypatch.delenv(name.upper())
    (tmp_path / ".env").write_text(f"{name.upper()}={value}\n")
    assert refused().startswith(f"{name.upper()}: ")
    (tmp_path / ".env").unlink()
    (tmp_path / YAML_FILE).write_text(f"{name}: '{value}'\n")
    assert refused().startswith(f"{name.upper()}: ")


def test_every_setting_except_free_text_has_invalid_values() -> None:
    tried = {name for name, _ in invalid()}
    free = {name for name, field in Settings.model_fields.items() if field.annotation is str}
    assert tried | free == set(Settings.model_fields)


def test_service_takes_all_partitions_by_default() -> None:
    assert load().partitions_taken == []
    assert load(nats_partitions=3).partitions_taken == [0, 1, 2]
    assert load(nats_partitions=9, nats_partitions_taken="0-2, 8,1").partitions_taken == [0, 1, 2, 8]
    assert refused(nats_partitions=4, nats_partitions_taken="2-4").startswith("NATS_PARTITIONS_TAKEN: ")
    assert refused(nats_partitions_taken="0").startswith("NATS_PARTITIONS_TAKEN: ")


def test_nats_subjects_setting_remaps_subjects() -> None:
    assert load().remapped_subjects == {}
    remapped = load(nats_subjects="evt.merchant.created=a.b, evt.billing.trial_started = c").remapped_subjects
    assert remapped == {"evt.merchant.created": "a.b", "evt.billing.trial_started": "c"}


@pytest.mark.parametrize("url", ["nats://h", "tls://u:p%40ss@h:4222", "nats://token@[::1]:1", "nats://a, nats://b:2/"])
def test_settings_accept_usual_nats_urls(url: str) -> None:
    settings = load(nats_url=url)
    assert settings.nats_url.get_secret_value() == url
    assert "p%40ss" not in f"{settings!r}{settings.model_dump_json()}"


@pytest.mark.parametrize("value", ["[1]", "{a: 1}", "", "~", "[]", "2026-01-01", "true"])
def test_yaml_value_that_is_not_a_number_is_refused(value: str, tmp_path: Path) -> None:
    (tmp_path / YAML_FILE).write_text(f"trial_credits: {value}\n")
    assert refused().startswith("TRIAL_CREDITS: ")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("trial_credit: 5\n", "trial_credit"),
        ("TRIAL_CREDITS: 5\n", "TRIAL_CREDITS"),
        ("1: 2\n", "1"),
        ("~: 2\n", "None"),
        ("postgresql://user:hunter2@host/db: 2\n", "A name that is no word"),
    ],
)
def test_error_names_unknown_yaml_name(text: str, name: str, tmp_path: Path) -> None:
    (tmp_path / YAML_FILE).write_text(text)
    assert refused() == f"{name}: there is no such setting ({YAML_FILE})."


@pytest.mark.parametrize("text", ["trial_credits: 1\ntrial_credits: 2\n", "shopify_plan_credits:\n  a: 1\n  a: 2\n"])
def test_error_names_duplicate_yaml_name(text: str, tmp_path: Path) -> None:
    (tmp_path / YAML_FILE).write_text(text)
    assert refused() == f"{'trial_credits' if 'trial' in text else 'a'}: stands there twice ({YAML_FILE})."


@pytest.mark.parametrize(
    "content",
    [b"- a\n", b"text", b"17", b"{: :", b"a: b: c", b"\xff\xfe", b"a: !!python/object:os.system x\n", b"\t- x"],
)
def test_error_names_unreadable_yaml_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / YAML_FILE).write_bytes(content)
    assert YAML_FILE in refused()


def test_error_names_unreadable_env_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"TRIAL_CREDITS=\xff\n")
    assert ".env" in refused()


@pytest.mark.parametrize("name", [YAML_FILE, ".env"])
def test_folder_in_place_of_a_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    assert refused() == f"{name} cannot be read: it is a folder."


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"---\n"])
def test_empty_yaml_file_sets_nothing(content: bytes, tmp_path: Path) -> None:
    (tmp_path / YAML_FILE).write_bytes(content)
    assert load().trial_credits == 100


@pytest.mark.parametrize(
    "url", [f"postgresql://user:{SECRET}@host", f"sqlite+pysqlite://{SECRET}", f"{SECRET}", f"redis://:{SECRET}@h"]
)
def test_error_hides_password_in_wrong_url(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    assert refused().startswith("DATABASE_URL: ")
    monkeypatch.delenv("DATABASE_URL")
    (tmp_path / YAML_FILE).write_text(f"database_url: {url}\n  x: :\n")
    refused()
    (tmp_path / YAML_FILE).write_text(f"database_url: [{url}\n")
    refused()


STRAY = ("{} ", " {}", "{}\n", "\t{}\r\n", "\u00a0{}")
"""White space that a copied secret or a secret file may add."""


@pytest.mark.parametrize("stray", STRAY)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("database_url", "postgresql://u:hunter2@h/db"),
        ("redis_url", "redis://u:hunter2@h/0"),
        ("nats_url", "nats://u:hunter2@h"),
        ("shopify_webhook_secret", "hunter2"),
        ("shopify_webhook_secret_previous", "hunter2"),
    ],
)
def test_settings_strip_white_space_around_secrets_and_urls(
    name: str, value: str, stray: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name.upper(), stray.format(value))
    assert getattr(load(), name).get_secret_value() == value


@pytest.mark.parametrize("level", ["DEBUG", "Debug", "debug", " debug "])
def test_log_level_ignores_case(level: str) -> None:
    assert load(log_level=level).log_level == "debug"


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg"])
@pytest.mark.parametrize(
    "rest",
    [
        *("u:p%40ss@h:5432/credits?sslmode=require", "h/db", "/db?host=/run/postgresql", "[::1]/db"),
        *("h1:5432,h2/db?target_session_attrs=read-write", "u@h1,[::1]:2/db?connect_timeout=3&application_name=us"),
    ],
)
def test_settings_accept_usual_postgresql_urls(scheme: str, rest: str) -> None:
    settings = load(database_url=f"{scheme}://{rest}")
    assert settings.is_postgres
    assert settings.database_url.get_secret_value() == f"postgresql://{rest}"


@pytest.mark.parametrize("url", [f"sqlite:///{SECRET}.db", f"postgresql://user:{SECRET}@host/db"])
def test_settings_never_show_a_secret(url: str) -> None:
    settings = load(database_url=url)
    assert settings.database_url.get_secret_value() == url
    for text in (repr(settings), str(settings), settings.model_dump_json(), str(settings.model_dump())):
        assert SECRET not in text
    assert isinstance(settings.database_url, SecretStr)


def test_price_list_is_json_in_environment_and_mapping_in_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / YAML_FILE).write_text("shopify_plan_credits:\n  Pro: 500\n  Für alle: 0\n")
    monkeypatch.setenv("SHOPIFY_PURCHASE_CREDITS", '{"1000 credits": 1000}')
    settings = load()
    assert settings.shopify_plan_credits == {"Pro": 500, "Für alle": 0}
    assert settings.shopify_purchase_credits == {"1000 credits": 1000}


@pytest.mark.parametrize("name", ["shopify_webhook_secret", "shopify_webhook_secret_previous"])
def test_settings_refuse_empty_secret(name: str, tmp_path: Path) -> None:
    (tmp_path / YAML_FILE).write_text(f"{name}: ''\n")
    assert refused().startswith(f"{name.upper()}: ")


def test_settings_are_frozen() -> None:
    settings = load()
    with pytest.raises(ValueError, match="frozen"):
        setattr(settings, "trial_credits", 5)  # noqa: B010
