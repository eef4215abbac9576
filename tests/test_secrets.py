"""The service never shows a secret.

Each test sets a canary wherever a secret can be, and searches all output for it.
"""

import asyncio
import contextlib
import json
import sqlite3
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from structlog.testing import capture_logs

from credit_service.broker import Broker
from credit_service.doors.http.keys import Keyring, new_key
from credit_service.service import Service, first_key
from credit_service.settings import YAML_FILE, Settings, SettingsError, database_of, load
from credit_service.storage.keys import Keys
from tests.commands import clean_environment, command
from tests.doors.keys import key_of
from tests.doors.running import Running, delivery
from tests.served import plain_client, served
from tests.servers.processes import wait_until
from tests.servers.valkey import Valkey
from tests.storage.engines import on_server, only_on, opened

CANARY = "Canary-in-the-mine"
MERCHANT = "6f1c2a54-8d0e-4c0b-9c55-0c7a8c1f2b11"
NO_SERVER = "127.0.0.1:1"
"""No server listens on this address."""

URLS = (
    f"postgresql://user:{CANARY}@{NO_SERVER}/credits",
    f"postgres://user:{CANARY}@{NO_SERVER}/credits",
    f"postgresql+asyncpg://user:{CANARY}@{NO_SERVER}/credits",
    f"postgresql://user@{NO_SERVER}/credits?password={CANARY}",
    f"postgresql://user@{NO_SERVER}/credits?sslpassword={CANARY}&sslmode=disable",
    f"postgresql://user:{CANARY}@127.0.0.1:port/credits",
    f"postgresql://user@127.0.0.1:{CANARY}/credits",
    f"postgresql://user:{CANARY}@@{NO_SERVER}/credits",
    f"postgresql://user:%{CANARY}@{NO_SERVER}/credits",
    f"postgresql://user:{CANARY}@[::1/credits",
    f"postgresql//user:{CANARY}@{NO_SERVER}/credits",
    f"postgresql:///{CANARY}:{CANARY}@{NO_SERVER}/credits",
    f"mysql://user:{CANARY}@{NO_SERVER}/credits",
    f"sqlite://user:{CANARY}@{NO_SERVER}/credits",
    f"sqlite:///user:{CANARY}@{NO_SERVER}/credits",
    f"sqlite:///postgresql://user:{CANARY}@{NO_SERVER}/credits",
    f"user:{CANARY}@{NO_SERVER}/credits",
    CANARY,
)
"""Database URLs with a password: valid URLs and common mistakes."""

REDIS_URLS = (
    f"redis://user:{CANARY}@{NO_SERVER}/0",
    f"redis://:{CANARY}@{NO_SERVER}",
    f"rediss://user:{CANARY}@{NO_SERVER}?ssl_password={CANARY}",
    f"redis://{CANARY}@@{NO_SERVER}/0",
    f"redis://user:{CANARY}@127.0.0.1:port",
    f"redis://{NO_SERVER}/0?password={CANARY}",
    f"unix://user:{CANARY}@/run/redis",
    CANARY,
)
"""Redis URLs with a password: valid URLs and common mistakes."""

COMMANDS = (
    ("config",),
    ("config", "--json"),
    ("doctor",),
    ("doctor", "--json"),
    ("migrate",),
    ("verify",),
    ("keys", "create", "--name", "x", "--scope", "read"),
    ("serve", "--port", "0"),
)


@pytest.fixture(autouse=True)
def _empty_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test in an empty folder and without settings in the environment."""
    monkeypatch.chdir(tmp_path)
    environment = clean_environment()
    for name in [name for name in Settings.model_fields if name.upper() not in environment]:
        monkeypatch.delenv(name.upper(), raising=False)


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception with all its causes and contexts, even those that a traceback hides."""
    left, seen = [error], set[int]()
    while left:
        one = left.pop()
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            left += [other for other in (one.__cause__, one.__context__) if other is not None]


def text_of_error(error: BaseException) -> str:
    """Return all texts of an exception: message, arguments, attributes and traceback."""
    return "\n".join(
        text
        for one in chain(error)
        for text in (str(one), repr(one), repr(one.args), repr(vars(one)), *traceback.format_exception(one))
    )


def text_of(thing: Any) -> str:
    """Return all text representations of a value."""
    return "\n".join((repr(thing), str(thing), f"{thing}", repr([thing]), repr({"it": thing})))


def lacks_secret(*texts: str, canary: str = CANARY) -> bool:
    """Return whether none of the texts contains the canary in any spelling."""
    spellings = {canary, canary.lower(), canary.upper(), canary.encode().hex()}
    return not any(spelling in text for text in texts for spelling in spellings)


# ---- passwords in the URL of the database


@pytest.mark.parametrize("url", URLS)
def test_no_command_shows_the_database_password(url: str, tmp_path: Path) -> None:
    for arguments in COMMANDS:
        ran = command(*arguments, cwd=tmp_path, DATABASE_URL=url, LOG_LEVEL="debug")
        assert lacks_secret(ran.out, ran.err), arguments
        ran = command(*arguments, "--database-url", url, cwd=tmp_path)
        assert lacks_secret(ran.out, ran.err), arguments
    for file, text in ((".env", f"DATABASE_URL={url}\n"), (YAML_FILE, f"database_url: '{url}'\n")):
        (tmp_path / file).write_text(text)
        for arguments in COMMANDS[:3]:
            ran = command(*arguments, cwd=tmp_path)
            assert lacks_secret(ran.out, ran.err), (file, arguments)
        (tmp_path / file).unlink()


@pytest.mark.parametrize("url", URLS)
def test_settings_and_their_errors_hide_the_database_password(url: str) -> None:
    with contextlib.suppress(SettingsError):
        settings = load(database_url=url)
        database = database_of(settings)
        assert lacks_secret(
            text_of(settings), settings.model_dump_json(), str(settings.model_dump()), text_of(database), database.name
        )
        return
    with pytest.raises(SettingsError) as refused:
        load(database_url=url)
    assert lacks_secret(text_of_error(refused.value))


@pytest.mark.parametrize("url", REDIS_URLS)
def test_no_command_shows_the_redis_password(url: str, tmp_path: Path) -> None:
    for arguments in COMMANDS[:4]:
        ran = command(*arguments, cwd=tmp_path, REDIS_URL=url, LOG_LEVEL="debug")
        assert lacks_secret(ran.out, ran.err), arguments
    with contextlib.suppress(SettingsError):
        settings = load(redis_url=url)
        assert lacks_secret(text_of(settings), settings.model_dump_json(), str(settings.model_dump()))
        return
    with pytest.raises(SettingsError) as refused:
        load(redis_url=url)
    assert lacks_secret(text_of_error(refused.value))


def test_service_hides_redis_password_and_shopify_secret(tmp_path: Path, new_valkey: Callable[[], Valkey]) -> None:
    valkey = new_valkey()
    password = urlsplit(valkey.url).password or ""
    settings = {
        "LOG_LEVEL": "debug",
        "LOG_FORMAT": "json",
        "PLUGIN_STATUS_AUTH": "shopify",
        "SHOPIFY_WEBHOOK_SECRET": CANARY,
        "SHOPIFY_WEBHOOK_SECRET_PREVIOUS": CANARY,
    }
    output: list[str] = []
    for url in (valkey.url, valkey.url.replace(password, CANARY)):
        with served(tmp_path / "a.db", settings={**settings, "REDIS_URL": url}) as service:
            with service.client() as client:
                output.append(client.get(f"/credits/plugin-status/{MERCHANT}?signature=x&timestamp=1").text)
                batch = {"merchant_ids": [MERCHANT]}
                output.append(client.post("/credits/plugin-status/batch", json=batch).text)
                output.append(client.get("/health/detailed").text)
                if url == valkey.url:
                    valkey.kill()
                    batch = {"merchant_ids": ["00000000-0000-4000-8000-000000000000"]}
                    output.append(client.post("/credits/plugin-status/batch", json=batch).text)
                    output.append(client.get("/health/detailed").text)
                    valkey.start()
            service.process.terminate()
            service.process.wait(30)
            assert service.process.stdout is not None
            output += [service.errors(), service.process.stdout.read()]
    assert "Redis cannot be used: " in "".join(output)
    assert all(lacks_secret(*output, canary=one) for one in (CANARY, password, unquote(password)))


@only_on("postgres")
def test_service_on_postgresql_never_shows_its_password(new_ledger: Callable[[], str], tmp_path: Path) -> None:
    url = new_ledger()
    password = urlsplit(url).password
    assert password
    passwords = (password, unquote(password))
    settings = {"LOG_LEVEL": "debug", "LOG_FORMAT": "json", "DATABASE_ALLOW_UNSAFE": "true"}
    output: list[str] = []
    with served(url, folder=tmp_path, settings=settings) as service:
        with service.client() as client:
            output.append(client.get("/health/detailed").text)
            with on_server(url, "DROP TABLE grants CASCADE"):
                pass
            answer = client.post("/credits/accounts", json={"merchant_id": MERCHANT})
            assert answer.status_code >= 500
            output.append(answer.text)
        service.process.terminate()
        service.process.wait(30)
        assert service.process.stdout is not None
        output += [service.errors(), service.process.stdout.read()]
    wrong = url.replace(password, "wrong-password")
    for database in (url, wrong, f"{url}_that_is_not_there"):
        for arguments in COMMANDS:
            ran = command(*arguments, cwd=tmp_path, DATABASE_URL=database, **settings, SERVICE_HOST="0.0.0.0.0")
            output += [ran.out, ran.err]
    assert all(lacks_secret(*output, canary=one) for one in (*passwords, "wrong-password"))
    store = opened(url)
    assert all(
        lacks_secret(text_of(store), text_of(database_of(load(database_url=url))), canary=one) for one in passwords
    )
    asyncio.run(store.close())


# ---- passwords in the URL of NATS

BROKERS = (
    f"nats://user:{CANARY}@{NO_SERVER}",
    f"nats://{CANARY}@{NO_SERVER}",
    f"nats://{NO_SERVER},tls://user:{CANARY}@{NO_SERVER}",
    f"nats://user:{CANARY}@@{NO_SERVER}",
    f"nats://user:{CANARY}@127.0.0.1:port",
    f"nats://user:{CANARY}/@{NO_SERVER}",
    f"http://user:{CANARY}@{NO_SERVER}",
    f"user:{CANARY}@{NO_SERVER}",
    CANARY,
)


@pytest.mark.parametrize("url", BROKERS)
def test_nothing_shows_the_nats_password(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No server listens there, so waiting longer changes nothing.
    monkeypatch.setattr(import_module("credit_service.cli.doctor"), "_NATS_SECONDS", 0.5)
    for arguments in (("config",), ("config", "--json"), ("doctor",)):
        ran = command(*arguments, cwd=tmp_path, NATS_URL=url)
        assert lacks_secret(ran.out, ran.err), arguments
    if url not in BROKERS[:3]:
        with pytest.raises(SettingsError) as refused:
            load(nats_url=url)
        assert lacks_secret(text_of_error(refused.value))
        return
    settings = load(nats_url=url)
    broker = Broker(settings.nats_url.get_secret_value(), name="n")
    assert lacks_secret(text_of(settings), settings.model_dump_json(), text_of(broker), broker.name)
    with served(tmp_path / "ledger.db", settings={"NATS_URL": url, "LOG_LEVEL": "debug"}) as service:
        with service.client() as client:
            text = client.get("/health/detailed").text
        service.stop()
        assert "nats_unavailable" in service.errors()
        assert lacks_secret(text, service.errors())


# ---- wrong settings


@pytest.mark.parametrize(
    "text",
    [
        f"database_url: [{CANARY}\n",
        f"database_url: '{CANARY}\n",
        f"database_url: {{a: {CANARY}}}\n",
        f"database_url: *{CANARY}\n",
        f"database_url: !{CANARY} x\n",
        f"database_url: !!python/name:{CANARY} x\n",
        f"database_url: &{CANARY}\n  - *x\n",
        f"database_url: x\n  {CANARY}: :\n",
        f"%{CANARY} 1\n---\nx\n",
        f"%TAG ! {CANARY}\n",
        f"postgresql://user:{CANARY}@host/db: x\n",
        f"? [{CANARY}]\n: x\n",
        f"? {{{CANARY}: 1}}\n: x\n",
        f"- {CANARY}\n",
        f"{CANARY}\n",
        f"trial_credits: {CANARY}\n",
        f"trial_credits: [{CANARY}]\n",
        f"log_level: {CANARY}\n",
        f"tracing_endpoint: http://user:{CANARY}@host/\n",
        f"nats_url: http://user:{CANARY}@host/\n",
        f"nats_subjects: {CANARY}\n",
    ],
)
def test_error_does_not_quote_wrong_yaml_line(text: str, tmp_path: Path) -> None:
    (tmp_path / YAML_FILE).write_text(text)
    with pytest.raises(SettingsError) as refused:
        load()
    assert lacks_secret(text_of_error(refused.value))
    ran = command("config", cwd=tmp_path)
    assert ran.code == 2
    assert lacks_secret(ran.out, ran.err)


@pytest.mark.parametrize(
    "content",
    [
        f"DATABASE_URL={CANARY}\n".encode(),
        f"DATABASE_URL='{CANARY}\nTRIAL_CREDITS=x\n".encode(),
        f"export {CANARY}\nTRIAL_CREDITS=x\n".encode(),
        f"TRIAL_CREDITS={CANARY}\n".encode(),
        f"DATABASE_URL={CANARY}".encode() + b"\xff\n",
        f"{CANARY}=\n== {CANARY}\nTRIAL_CREDITS=-1".encode(),
    ],
)
def test_error_does_not_quote_wrong_env_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(content)
    with pytest.raises(SettingsError) as refused:
        load()
    assert lacks_secret(text_of_error(refused.value))
    ran = command("config", cwd=tmp_path)
    assert ran.code == 2
    assert lacks_secret(ran.out, ran.err)


# ---- keys in memory


async def test_repr_of_every_part_hides_the_keys(tmp_path: Path) -> None:
    settings = load(database_url=f"sqlite:///{tmp_path / 'a.db'}")
    store = await database_of(settings).opened()
    try:
        whole = await first_key(Keys(store), tmp_path / "a.db", terminal=True)
        assert whole is not None
        made = new_key("x", "read", 0)
        await Keys(store).add(made.key)
        service = Service(store, settings)
        assert await key_of(service.keyring, whole)
        for secret in (whole.split("_", 2)[2], made.whole.split("_", 2)[2]):
            for thing in (settings, store, service, service.keyring, service.app, service.posting, service.gate, made):
                assert lacks_secret(text_of(thing), canary=secret)
            assert lacks_secret(text_of(await Keys(store).all()), text_of(made.key), canary=secret)
        for wrong in (f"{whole}x", f"{whole[:-1]}!", f"Basic {whole}"):
            assert await key_of(Keyring(Keys(store)), wrong) is None
    finally:
        await store.close()


def test_log_of_internal_error_contains_no_header(start_broken: Callable[[], Running]) -> None:
    running = start_broken()
    with capture_logs() as logs:
        answer = running.post("/credits/accounts", {"merchant_id": MERCHANT}, "admin")
    assert answer.status_code == 500
    (line,) = [line for line in logs if line["event"] == "internal_error"]
    secret = running.keys["admin"].split("_", 2)[2]
    assert lacks_secret(text_of_error(line["exc_info"]), repr(logs), answer.text, canary=secret)


@pytest.fixture
def start_broken(tmp_path: Path) -> Iterator[Callable[[], Running]]:
    """Return a function that starts a service with one missing table."""
    with Running(tmp_path) as running:

        def started() -> Running:
            with closing(sqlite3.connect(running.settings.database_path)) as database:
                database.execute("DROP TABLE grants")
            return running

        yield started


# ---- signing secrets of webhooks


def test_webhook_secret_is_shown_once_and_never_again(tmp_path: Path) -> None:
    settings = {"LOG_LEVEL": "debug", "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8"}
    hidden = f"/hooks/{CANARY}"  # the path of a receiver's URL may be a secret too, so no log may contain it
    with served(tmp_path / "a.db", settings=settings) as service:
        with service.client() as client:
            made = client.post("/credits/webhook-endpoints", json={"url": f"http://{NO_SERVER}{hidden}"}).json()["data"]
            path = f"/credits/webhook-endpoints/{made['id']}"
            rotated = client.post(f"{path}/rotate").json()["data"]
            secrets = [made.pop("secret")[6:], rotated.pop("secret")[6:]]
            test = client.post(f"{path}/test")
            again = client.post(f"/credits/webhook-endpoints/deliveries/{made['id']}-1/redeliver")
            text = ""
            for _ in range(5000):
                if '"attempts":1' in (text := client.get(f"{path}/deliveries").text):
                    break
            assert '"attempts":1' in text
            wrong = client.post("/credits/webhook-endpoints", json={"url": f"http://me:{CANARY}@{NO_SERVER}/"})
            assert wrong.status_code == 422
            assert lacks_secret(wrong.text)
            client.patch(path, json={"event_types": None})
            # Break a table, so that sending fails with an unexpected error.
            with closing(sqlite3.connect(tmp_path / "a.db")) as database, database:
                database.execute("UPDATE webhook_endpoints SET position = 'x'")
            asked = [path, "/credits/webhook-endpoints", f"{path}/deliveries", "/api-keys", "/health/detailed"]
            answers = [test.text, again.text, text, str(made), str(rotated), *(client.get(one).text for one in asked)]
            answers.append(client.get(f"{service.url}/metrics").text)
            assert client.get(path).json()["code"] == "internal"
        wait_until(lambda: "webhooks_failed" in service.errors(), "a failed round")
        service.process.terminate()
        service.process.wait(30)
        log = service.errors()
        assert lacks_secret(log)
        assert all(lacks_secret(log, *answers, canary=secret) for secret in secrets)


# ---- keys sent to a service


def answers_to(url: str, *keys: str) -> str:
    """Send requests with each key in the right header and in wrong places. Return all answers as text."""
    output: list[str] = []
    client = plain_client(url, timeout=60)

    def ask(method: str, path: str, headers: dict[str, str], **more: Any) -> None:
        answer = client.request(method, path, headers=headers, **more)
        output.append(f"{answer.status_code} {answer.headers} {answer.text}")

    opening = {"content": json.dumps({"merchant_id": MERCHANT}).encode()}
    for key in keys:
        placed: list[dict[str, str]] = [
            {"authorization": f"Bearer {key}"},
            {"authorization": f"bearer  {key}"},
            {"authorization": f"Bearer {key}x"},
            {"authorization": f"Bearer {key[:-1]}"},
            {"authorization": f"Bearer cs_{key}"},
            {"authorization": f"Basic {key}"},
            {"authorization": key},
            {"x-api-key": key},
            {"cookie": f"key={key}"},
        ]
        for headers in placed:
            ask("GET", "/api/v1/credits/accounts", headers)
            ask("GET", "/api/v1/health/detailed", headers)
            ask("POST", "/api/v1/credits/accounts", {**headers, "content-type": "application/json"}, **opening)
            ask("POST", "/api/v1/credits/transactions", {**headers, "content-type": "application/json"}, content=b"{")
        for query in (f"api_key={key}", f"access_token={key}", f"limit={key}", f"cursor={key}"):
            for headers in ({}, placed[0]):
                ask("GET", f"/api/v1/credits/accounts?{query}", headers)
        ask("GET", f"/livez?key={key}", {})
    for path in ("/metrics", "/openapi.json", "/docs", "/docs/errors", "/readyz", "/api/v1/health"):
        ask("GET", path, {})
    client.close()
    return "\n".join(output)


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_service_shows_no_key_in_log_or_answers(tmp_path: Path, log_format: str) -> None:
    settings = {
        "LOG_FORMAT": log_format,
        "LOG_LEVEL": "debug",
        "TRACING_ENABLED": "true",
        "TRACING_ENDPOINT": f"http://{NO_SERVER}/v1/traces",
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{CANARY}",
    }
    with served(tmp_path / "a.db", settings=settings) as service:
        with service.client() as client:
            made = client.post("/api-keys", json={"name": "x", "scope": "read"}).json()["data"]["key"]
            unknown = f"cs_abcdefghijkl_{CANARY:x<43}"
            secrets = [service.key.split("_", 2)[2], made.split("_", 2)[2], CANARY]
            answers = [answers_to(service.url, service.key, made, unknown, CANARY), client.get("/api-keys").text]
            # Drop a table, so that a request with a valid key fails with an unexpected error.
            with closing(sqlite3.connect(tmp_path / "a.db")) as database:
                database.execute("DROP TABLE grants")
            broken = client.post("/credits/accounts", json={"merchant_id": "00000000-0000-4000-8000-000000000000"})
            assert broken.json()["code"] == "internal"
            answers += [broken.text, answers_to(service.url, service.key, made)]
        service.process.terminate()
        service.process.wait(30)
        assert service.process.stdout is not None
        output = service.process.stdout.read()
        log = service.errors()
        assert "internal_error" in log
        assert '"request"' in log or "request  " in log
        assert all(lacks_secret(log, output, *answers, canary=secret) for secret in secrets)
        assert "authorization" not in log.lower()


# ---- secrets of webhooks


def test_service_never_shows_the_shopify_secrets(tmp_path: Path) -> None:
    previous = f"{CANARY}-before"
    secrets = {"SHOPIFY_WEBHOOK_SECRET": CANARY, "SHOPIFY_WEBHOOK_SECRET_PREVIOUS": previous}
    for arguments in COMMANDS[:7]:
        ran = command(*arguments, cwd=tmp_path, LOG_LEVEL="debug", **secrets)
        assert lacks_secret(ran.out, ran.err), arguments
    settings = load(shopify_webhook_secret=CANARY, shopify_webhook_secret_previous=previous)
    assert lacks_secret(text_of(settings), settings.model_dump_json(), str(settings.model_dump()))
    (tmp_path / "served").mkdir()
    output: list[str] = []
    with (
        served(tmp_path / "served" / "a.db", settings={**secrets, "LOG_LEVEL": "debug"}) as service,
        plain_client(service.url) as client,
    ):
        for body in (b"{}", b"{", b"\xff"):
            for secret in (CANARY, previous, "guessed"):
                signed = delivery("orders/paid", body, secret, "a.myshopify.com")
                for headers in (signed, signed | {"x-shopify-topic": "t"}, signed | {"x-shopify-hmac-sha256": secret}):
                    answer = client.post("/api/v1/webhooks/shopify", content=body, headers=headers)
                    output.append(f"{answer.status_code} {answer.headers} {answer.text}")
        assert {text[:3] for text in output} == {"200", "401"}
        service.stop()
        assert lacks_secret(service.errors(), *output)


# ---- keys given to the command line


def test_replay_hides_its_key_and_the_url_password(tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text("merchant_id,order_id,total,currency\n")
    events = tmp_path / "events.jsonl"
    events.write_text(
        json.dumps({"specversion": "1.0", "id": "1", "source": "s", "type": "evt.merchant.created"}) + "\n"
    )
    for url in (
        f"http://user:{CANARY}@{NO_SERVER}",
        f"http://{NO_SERVER}/?key={CANARY}",
        f"{CANARY}",
        f"http://[{CANARY}",
    ):
        whole = f"cs_abcdefghijkl_{CANARY:x<43}"
        for key in (whole, f"{whole} ", f"{whole}\n", CANARY):
            ran = command("replay", events, "--url", url, "--key", key, cwd=tmp_path)
            assert ran.code != 0
            assert lacks_secret(ran.out, ran.err), (url, key)
            ran = command("replay", events, "--url", f"http://{NO_SERVER}", cwd=tmp_path, CREDIT_SERVICE_KEY=key)
            assert lacks_secret(ran.out, ran.err)


def test_new_key_appears_once_and_only_on_standard_output(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'a.db'}"
    assert command("migrate", cwd=tmp_path, DATABASE_URL=database).code == 0
    ran = command(*COMMANDS[6], cwd=tmp_path, DATABASE_URL=database, LOG_LEVEL="debug")
    assert ran.out.startswith("cs_")
    assert lacks_secret(ran.err, canary=ran.out.strip().split("_", 2)[2])
