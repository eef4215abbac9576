"""Plugin status over HTTP."""

import asyncio
import hmac
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode
from uuid import uuid4

import pytest

from credit_service.doors.http.keys import new_key
from credit_service.doors.http.plugin_status import app_proxy
from credit_service.doors.http.problems import Problem
from credit_service.storage.accounts import Accounts
from credit_service.storage.engine import StorageUnavailable
from credit_service.storage.keys import Keys
from tests.doors.running import Running, cloud_event, new_merchant

STATUS = "/credits/plugin-status"


def status(running: Running, merchant: str) -> tuple[str, str]:
    answer = running.get(f"{STATUS}/{merchant}", None)
    assert answer.status_code == 200
    told = answer.json()["data"]
    return told["status"], told["reason"]


def test_status_is_public_and_has_no_meta(running: Running) -> None:
    merchant = running.open()
    answer = running.get(f"{STATUS}/{merchant}", None, headers={"x-request-id": "r", "x-correlation-id": "c"})
    assert answer.status_code == 200
    assert list(answer.json()) == ["data"]
    told = answer.json()["data"]
    assert list(told) == ["merchant_id", "status", "reason", "as_of"]
    assert (told["merchant_id"], told["status"], told["reason"]) == (merchant, "enabled", "available")
    assert (answer.headers["x-request-id"], answer.headers["x-correlation-id"]) == ("r", "c")
    assert answer.headers["content-type"] == "application/json"


def test_status_of_an_id_that_can_be_guessed_needs_a_key(running: Running, start: Callable[..., Running]) -> None:
    merchant = running.open(f"cus_{uuid4().hex[:8]}")
    assert running.get(f"{STATUS}/{merchant}", None).json()["code"] == "unauthenticated"
    told = running.get(f"{STATUS}/{merchant}").json()["data"]
    assert (told["merchant_id"], told["status"], told["reason"]) == (merchant, "enabled", "available")
    assert status(start(plugin_status_public="all"), "cus_17") == ("disabled", "unknown_merchant")


def test_merchant_id_ignores_case(running: Running) -> None:
    merchant = running.open()
    assert running.get(f"{STATUS}/{merchant.upper()}", None).json()["data"]["merchant_id"] == merchant


def test_unknown_merchant_is_disabled(running: Running) -> None:
    assert status(running, new_merchant()) == ("disabled", "unknown_merchant")


def test_posting_changes_the_status_at_once(running: Running) -> None:
    merchant = new_merchant()
    assert status(running, merchant) == ("disabled", "unknown_merchant")
    running.open(merchant)
    assert status(running, merchant) == ("enabled", "available")
    running.spend(merchant, 100)
    assert status(running, merchant) == ("disabled", "exhausted")
    running.tell(cloud_event("evt.billing.payment_succeeded", {"merchant_id": merchant, "payment_id": 1, "credits": 1}))
    assert status(running, merchant) == ("enabled", "available")


def test_etag_answers_304_until_the_status_changes(running: Running) -> None:
    merchant = running.open()
    first = running.get(f"{STATUS}/{merchant}", None)
    tag = first.headers["etag"]
    assert first.headers["cache-control"] == "no-cache"
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        same = running.get(f"{STATUS}/{merchant}", None, headers={"if-none-match": known})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
        assert same.headers["cache-control"] == "no-cache"
        assert "x-request-id" in same.headers
    running.spend(merchant, 100)
    changed = running.get(f"{STATUS}/{merchant}", None, headers={"if-none-match": tag})
    assert (changed.status_code, changed.json()["data"]["status"]) == (200, "disabled")
    assert changed.headers["etag"] != tag


@pytest.mark.parametrize("path", ["/{}/", "/x/{}", "/{}/x", "//{}", "/x%2F{}"])
def test_other_paths_are_not_a_status(running: Running, path: str) -> None:
    answer = running.get(STATUS + path.format(running.open()), None)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("merchant", ["-17", "{}%0A", "%20{}", ".x", "{{{}}}", "urn@{}", "%E2%80%AE", "x" * 65])
def test_malformed_merchant_of_a_status_is_invalid(running: Running, merchant: str) -> None:
    answer = running.get(f"{STATUS}/{merchant.format(new_merchant())}")
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert [fault["pointer"] for fault in answer.json()["errors"]] == ["/path/merchant_id"]


def test_percent_encoded_merchant_is_the_merchant(running: Running) -> None:
    merchant = running.open()
    encoded = "".join(f"%{ord(letter):02x}" for letter in merchant)
    assert running.get(f"{STATUS}/{encoded}", None).json()["data"]["merchant_id"] == merchant


def test_unknown_query_is_ignored(running: Running) -> None:
    assert running.get(f"{STATUS}/{new_merchant()}?_=123", None).status_code == 200


def test_batch_answers_by_the_ids_sent(running: Running) -> None:
    enabled, disabled, unknown = running.open(), running.open(), new_merchant()
    running.spend(disabled, 100)
    asked = [enabled.upper(), disabled, unknown, disabled]
    answer = running.post(f"{STATUS}/batch", {"merchant_ids": asked}, "read")
    assert answer.status_code == 200
    assert answer.json() == {
        "data": {
            "statuses": {
                enabled.upper(): {"status": "enabled", "reason": "available"},
                disabled: {"status": "disabled", "reason": "exhausted"},
                unknown: {"status": "disabled", "reason": "unknown_merchant"},
            }
        }
    }


@pytest.mark.parametrize(
    ("asked", "pointer"),
    [
        ([], "/merchant_ids"),
        ([new_merchant() for _ in range(1001)], "/merchant_ids"),
        (["-17"], "/merchant_ids/0"),
        ([17], "/merchant_ids/0"),
        (None, "/merchant_ids"),
        ({}, "/merchant_ids"),
    ],
)
def test_invalid_batch_of_statuses_is_refused(running: Running, asked: Any, pointer: str) -> None:
    answer = running.post(f"{STATUS}/batch", {"merchant_ids": asked}, "read")
    assert answer.status_code == 422
    assert [fault["pointer"] for fault in answer.json()["errors"]] == [pointer]


def test_batch_may_have_1000_merchants(running: Running) -> None:
    asked = [new_merchant() for _ in range(1000)]
    answer = running.post(f"{STATUS}/batch", {"merchant_ids": asked}, "read")
    assert list(answer.json()["data"]["statuses"]) == asked


def test_setting_demands_a_key(start: Callable[..., Running]) -> None:
    running = start(plugin_status_auth="read")
    path = f"{STATUS}/{running.open()}"
    assert running.get(path, None).status_code == 401
    assert running.get(path, "read").status_code == 200


@pytest.mark.parametrize(("fail", "told"), [("closed", "disabled"), ("open", "enabled")])
def test_last_status_counts_while_the_database_is_away(
    start: Callable[..., Running], fail: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start(plugin_status_cache_ttl=0.000001, gate_fail=fail)
    enabled, disabled, unknown = running.open(), running.open(), new_merchant()
    running.spend(disabled, 100)
    assert status(running, enabled) == ("enabled", "available")
    assert status(running, disabled) == ("disabled", "exhausted")

    async def away(*_: object) -> None:
        raise StorageUnavailable("gone")

    monkeypatch.setattr(Accounts, "load", away)
    assert status(running, enabled) == ("enabled", "unavailable")
    assert status(running, disabled) == ("disabled", "unavailable")
    assert status(running, unknown) == (told, "unavailable")
    batch = running.post(f"{STATUS}/batch", {"merchant_ids": [enabled, unknown]}, "read").json()["data"]["statuses"]
    assert batch == {
        enabled: {"status": "enabled", "reason": "unavailable"},
        unknown: {"status": told, "reason": "unavailable"},
    }
    monkeypatch.undo()
    assert status(running, enabled) == ("enabled", "available")


def test_head_answers_like_get_without_body(running: Running) -> None:
    path = f"{STATUS}/{running.open()}"
    while True:
        whole, head, again = (running.call(method, path, None) for method in ("GET", "HEAD", "GET"))
        if whole.headers["etag"] == again.headers["etag"]:  # the status was not looked up anew meanwhile
            break
    assert (head.status_code, head.content) == (200, b"")
    for name in ("etag", "cache-control", "content-length", "content-type"):
        assert head.headers[name] == whole.headers[name]


def test_statuses_are_counted_by_source(start: Callable[..., Running], redis_url: str) -> None:
    source = uuid4().hex
    running = start(redis_url=redis_url, service_source=source)
    merchant = running.open()
    for _ in range(3):
        status(running, merchant)
    checks = running.service.metrics.status_checks
    # The opening was told to the others, which kept it there for all.
    assert sum(checks["enabled", level] for level in ("redis", "storage")) == 1
    assert checks["enabled", "near"] == 2
    running.post(f"{STATUS}/batch", {"merchant_ids": [merchant, new_merchant()]}, "read")
    assert (checks["enabled", "near"], checks["disabled", "storage"]) == (3, 1)


def test_health_shows_redis_if_configured(
    start: Callable[..., Running], redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("credit_service.gate.redis.PATIENCE_SECONDS", 5.0)

    def components(running: Running) -> Any:
        return running.get("/health/detailed").json()["data"]

    assert "redis" not in components(start())["components"]
    with_redis = components(start(redis_url=redis_url))
    assert (with_redis["status"], with_redis["components"]["redis"]["status"]) == ("ok", "ok")
    away = components(start(redis_url="redis://u:hunter2@127.0.0.1:1/0"))
    assert away["status"] == "degraded"
    assert away["components"]["redis"]["reason"] == "Redis cannot be used: ConnectionError."


# ---- who may ask


def publishable(running: Running) -> str:
    """A publishable key: scope status."""
    made = new_key("page", "status", 0)
    running.run(Keys(running.service.engine).add(made.key))
    return made.whole


def test_key_of_scope_status_reads_one_status_only(start: Callable[..., Running]) -> None:
    running = start(plugin_status_auth="publishable", cors_origins="https://shop.example")
    merchant = running.open()
    running.keys["status"] = publishable(running)
    assert running.get(f"{STATUS}/{merchant}", None).status_code == 401
    told = running.get(f"{STATUS}/{merchant}", "status", headers={"origin": "https://shop.example"})
    assert (told.status_code, told.json()["data"]["status"]) == (200, "enabled")
    assert told.headers["access-control-allow-origin"] == "https://shop.example"
    assert running.get(f"{STATUS}/{merchant}", "read").status_code == 200
    others = [
        running.get(STATUS, "status"),
        running.post(f"{STATUS}/batch", {"merchant_ids": [merchant]}, "status"),
        running.get(f"/credits/accounts/{merchant}", "status"),
        running.post("/credits/accounts", {"merchant_id": merchant}, "status"),
    ]
    assert {(answer.status_code, answer.json()["code"]) for answer in others} == {(403, "scope_missing")}
    preflight = running.client.options(
        f"/api/v1{STATUS}/{merchant}",
        headers={
            "origin": "https://shop.example",
            "access-control-request-method": "GET",
            "access-control-request-headers": "authorization",
        },
    )
    assert preflight.status_code == 200
    assert "authorization" in preflight.headers["access-control-allow-headers"]


def test_key_of_scope_status_is_too_little_for_read(start: Callable[..., Running]) -> None:
    running = start(plugin_status_auth="read")
    running.keys["status"] = publishable(running)
    assert running.get(f"{STATUS}/{running.open()}", "status").status_code == 403


def test_requests_with_a_publishable_key_count_for_the_address(start: Callable[..., Running]) -> None:
    running = start(plugin_status_auth="publishable", rate_limit_enabled=True, rate_limit_key_burst=1)
    running.keys["status"] = publishable(running)
    answers = [running.get(f"{STATUS}/{new_merchant()}", "status") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 200]


def test_known_key_is_accepted_while_the_database_is_away(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start(plugin_status_auth="publishable", plugin_status_cache_ttl=0.000001)
    running.keys["status"] = publishable(running)
    path = f"{STATUS}/{running.open()}"
    assert running.get(path, "status").status_code == 200

    async def away(*_: object) -> None:
        raise StorageUnavailable("gone")

    monkeypatch.setattr(running.service.engine, "read", away)
    monkeypatch.setattr(running.service.keyring, "_clock", lambda: time.monotonic() + 60)
    answer = running.get(path, "status")
    assert (answer.status_code, answer.json()["data"]["reason"]) == (200, "unavailable")
    assert running.get("/credits/accounts", "status").status_code == 503


SECRET, BEFORE = "hush", "hush-before"


def signed(query: str, secret: str = SECRET) -> str:
    """Sign a query as Shopify's app proxy does. It follows the Ruby example that Shopify publishes."""
    values: dict[str, list[str]] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        values.setdefault(name, []).append(value)
    message = "".join(sorted(f"{name}={','.join(some)}" for name, some in values.items()))
    return f"{query}&signature={hmac.new(secret.encode(), message.encode(), sha256).hexdigest()}"


def from_shopify(at: float, **more: str) -> str:
    shop = {"shop": "some-shop.myshopify.com", "path_prefix": "/apps/credits", "timestamp": str(int(at))}
    return urlencode({"logged_in_customer_id": "", **shop, **more})


def test_published_example_of_shopify_is_accepted() -> None:
    """From shopify.dev, "Authenticate app proxies": the query, and the secret `hush`."""
    query = (
        b"extra=1&extra=2&shop=shop-name.myshopify.com&logged_in_customer_id=1&path_prefix=%2Fapps%2Fawesome_reviews"
        b"&timestamp=1317327555&signature=4c68c8624d737112c91818c11017d24d334b524cb5c2b8ba08daa056f7395ddb"
    )
    app_proxy.check(query, [SECRET], 1317327555)


@pytest.mark.parametrize(
    ("query", "secrets"),
    [
        (signed(from_shopify(1000)), (SECRET,)),
        (signed(from_shopify(1000), BEFORE), (SECRET, BEFORE)),
        (signed(from_shopify(1000) + "&a=2&a=1&b&c=%E2%82%AC&d=x%26y%3Dz"), (SECRET,)),
        (signed(from_shopify(1000 - app_proxy.FRESH_SECONDS)), (SECRET,)),
        (signed(from_shopify(1000 + app_proxy.FRESH_SECONDS)), (SECRET,)),
    ],
)
def test_recent_signature_of_shopify_is_accepted(query: str, secrets: tuple[str, ...]) -> None:
    app_proxy.check(query.encode(), secrets, 1000)


@pytest.mark.parametrize(
    "query",
    [
        "",
        from_shopify(1000),
        signed(from_shopify(1000), "another"),
        signed(from_shopify(1000), BEFORE),
        signed(from_shopify(1000)) + "&extra=1",
        signed(from_shopify(1000)).replace("some-shop", "other-shop"),
        signed(from_shopify(1000)) + "&signature=" + "0" * 64,
        signed(from_shopify(1000)).upper(),
        signed(from_shopify(1000))[:-1],
        signed(from_shopify(1000))[:-1] + "%00",
        signed(from_shopify(999 - app_proxy.FRESH_SECONDS)),
        signed(from_shopify(1001 + app_proxy.FRESH_SECONDS)),
        signed("shop=some-shop.myshopify.com"),
        signed("timestamp=&shop=x"),
        signed("timestamp=-1000"),
        signed("timestamp=1e3"),
        signed("timestamp=1000&timestamp=1000"),
        signed("timestamp=" + "9" * 5000),
        "&".join(f"a{number}=1" for number in range(1000)),
        quote("\udcff", errors="surrogatepass"),
    ],
)
def test_other_signatures_are_refused(query: str) -> None:
    with pytest.raises(Problem) as refused:
        app_proxy.check(query.encode(), [SECRET], 1000)
    assert (refused.value.code, refused.value.status) == ("unauthenticated", 401)
    assert SECRET not in f"{refused.value} {vars(refused.value)}"


def test_setting_demands_the_app_proxy(start: Callable[..., Running]) -> None:
    running = start(plugin_status_auth="shopify", shopify_webhook_secret=SECRET, shopify_webhook_secret_previous=BEFORE)
    path = f"{STATUS}/{running.open()}"
    for secret in (SECRET, BEFORE):
        answer = running.get(f"{path}?{signed(from_shopify(time.time()), secret)}", None)
        assert (answer.status_code, answer.json()["data"]["status"]) == (200, "enabled")
    for query in ("", f"?{signed(from_shopify(time.time()), 'another')}"):
        refused = running.get(path + query, "admin")
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")
        assert refused.headers["www-authenticate"].startswith("Shopify-App-Proxy")


# ---- fail policies of accounts


def test_fail_policy_is_set_and_dropped(running: Running) -> None:
    path = f"/credits/accounts/{running.open()}/fail-policy"

    def told(answer: Any) -> tuple[str, bool]:
        assert answer.status_code == 200
        data = answer.json()["data"]
        return data["fail"], data["own"]

    assert told(running.get(path, "admin")) == ("closed", False)
    body = {"content": b'{"fail": "open"}', "headers": {"content-type": "application/json"}}
    for _ in range(2):
        assert told(running.call("PUT", path, "admin", **body)) == ("open", True)
    assert told(running.get(path, "admin")) == ("open", True)
    for _ in range(2):
        assert told(running.call("DELETE", path, "admin")) == ("closed", False)


def test_fail_policy_needs_scope_admin_and_an_account(running: Running) -> None:
    path = f"/credits/accounts/{running.open()}/fail-policy"
    unknown = f"/credits/accounts/{new_merchant()}/fail-policy"
    json_ = {"content-type": "application/json"}
    for method, content in (("GET", None), ("PUT", b'{"fail": "open"}'), ("DELETE", None)):
        more: dict[str, Any] = {} if content is None else {"content": content, "headers": json_}
        assert running.call(method, path, "write", **more).status_code == 403
        assert running.call(method, unknown, "admin", **more).json()["code"] == "account_not_found"
    wrong = running.call("PUT", path, "admin", content=b'{"fail": "ajar"}', headers=json_)
    assert [fault["pointer"] for fault in wrong.json()["errors"]] == ["/fail"]


def test_own_fail_policy_counts_while_the_database_is_away(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start(plugin_status_cache_ttl=0.000001, gate_stale_seconds=0)
    merchant = running.open()
    running.call(
        "PUT",
        f"/credits/accounts/{merchant}/fail-policy",
        "admin",
        content=b'{"fail": "open"}',
        headers={"content-type": "application/json"},
    )

    async def away(*_: object) -> None:
        raise StorageUnavailable("gone")

    monkeypatch.setattr(Accounts, "load", away)
    assert status(running, merchant) == ("enabled", "unavailable")
    assert status(running, new_merchant()) == ("disabled", "unavailable")
    assert running.service.metrics.status_checks["enabled", "fail"] == 1


def test_silent_database_is_awaited_once(start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> None:
    running = start(plugin_status_cache_ttl=0.000001)
    merchant = running.open()
    assert status(running, merchant) == ("enabled", "available")
    for place in ("levels", "status"):
        monkeypatch.setattr(f"credit_service.gate.{place}.PATIENCE_SECONDS", 0.1)
    asked = 0
    open_again = asyncio.Event()

    async def silent(*_: object) -> dict[Any, Any]:
        nonlocal asked
        asked += 1
        await open_again.wait()
        return {}

    monkeypatch.setattr("credit_service.breaker.PAUSE_SECONDS", 3600.0)
    monkeypatch.setattr(Accounts, "load", silent)
    assert status(running, merchant) == ("enabled", "unavailable")
    for _ in range(5):
        assert status(running, merchant) == ("enabled", "unavailable")
        assert status(running, new_merchant()) == ("disabled", "unavailable")
    assert asked == 1
    running.loop.call_soon_threadsafe(open_again.set)
