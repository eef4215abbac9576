"""API keys over HTTP, and the scope of each route."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

from credit_service.doors.http.app import ENDPOINTS
from credit_service.storage.keys import Keys
from tests.doors.running import API, SCOPES, Running, new_merchant

KEY = ["id", "name", "scope", "created_at", "expires_at", "revoked_at", "last_used_at"]


def make(running: Running, scope: str = "read", **more: Any) -> dict[str, Any]:
    answer = running.post("/api-keys", {"name": "made", "scope": scope, **more}, "admin")
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()["data"]
    return found


def authorized(running: Running, key: str) -> int:
    return running.get("/health/detailed", None, headers={"authorization": f"Bearer {key}"}).status_code


def test_new_key_is_shown_once_and_works_at_once(running: Running) -> None:
    answer = running.post("/api-keys", {"name": "till", "scope": "write"}, "admin")
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    assert list(answer.json()) == ["data", "meta"]
    told = answer.json()["data"]
    assert list(told) == [*KEY, "key"]
    whole = told.pop("key")
    public, secret = whole.removeprefix("cs_").split("_", 1)
    assert public == told["id"]
    assert len(secret) == 43
    assert (told["name"], told["scope"], told["expires_at"], told["revoked_at"]) == ("till", "write", None, None)
    assert authorized(running, whole) == 200
    listed = running.get("/api-keys", "admin", params={"limit": 200})
    assert told in listed.json()["data"]
    assert secret not in listed.text


def test_keys_are_listed_newest_first(running: Running) -> None:
    first, second = make(running), make(running)
    listed = running.get("/api-keys", "admin").json()
    assert list(listed) == ["data", "pagination", "links", "meta"]
    assert [key["id"] for key in listed["data"][:2]] == [second["id"], first["id"]]
    assert all(list(key) == KEY for key in listed["data"])


def test_revoked_key_is_refused_at_once_and_stays_listed(running: Running) -> None:
    made = make(running)
    assert authorized(running, made["key"]) == 200
    answer = running.call("DELETE", f"/api-keys/{made['id']}")
    assert answer.status_code == 200
    assert list(answer.json()["data"]) == KEY
    revoked_at = answer.json()["data"]["revoked_at"]
    assert revoked_at is not None
    assert authorized(running, made["key"]) == 401
    again = running.call("DELETE", f"/api-keys/{made['id']}")
    assert (again.status_code, again.json()["data"]["revoked_at"]) == (200, revoked_at)


@pytest.mark.parametrize("identifier", ["aaaaaaaaaaaa", "x", "AAAAAAAAAAAA", "aaaaaaaaaaaa%0A", "%00"])
def test_unknown_key_cannot_be_revoked(running: Running, identifier: str) -> None:
    answer = running.call("DELETE", f"/api-keys/{identifier}")
    assert (answer.status_code, answer.json()["code"]) == (404, "key_not_found")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"scope": "read"}, "/name"),
        ({"name": "", "scope": "read"}, "/name"),
        ({"name": "x" * 101, "scope": "read"}, "/name"),
        ({"name": "x", "scope": "root"}, "/scope"),
        ({"name": "x", "scope": "read", "expires_at": "2020-01-01T00:00:00Z"}, "/expires_at"),
        ({"name": "x", "scope": "read", "expires_at": "soon"}, "/expires_at"),
        ({"name": "x", "scope": "read", "key": "cs_mine"}, "/key"),
    ],
)
def test_invalid_key_is_not_created(running: Running, body: Any, pointer: str) -> None:
    answer = running.post("/api-keys", body, "admin")
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert [fault["pointer"] for fault in answer.json()["errors"]] == [pointer]


def test_key_shows_its_last_use(running: Running) -> None:
    made = make(running)
    assert authorized(running, made["key"]) == 200
    running.run(running.service.keyring.flush())
    assert made["created_at"] <= last_used(running, made["id"])


def test_key_can_be_rotated_without_a_gap(running: Running) -> None:
    first = make(running, "write", name="till")
    assert authorized(running, first["key"]) == 200
    running.run(running.service.keyring.flush())
    second = make(running, "write", name="till, second")
    assert [authorized(running, key["key"]) for key in (first, second)] == [200, 200]
    # Callers switch over: from now on only the second key is used.
    running.run(running.service.keyring.flush())
    uses = last_used(running, first["id"])
    assert authorized(running, second["key"]) == 200
    running.run(running.service.keyring.flush())
    assert last_used(running, first["id"]) == uses is not None
    assert last_used(running, second["id"]) is not None
    assert running.call("DELETE", f"/api-keys/{first['id']}").status_code == 200
    assert [authorized(running, key["key"]) for key in (first, second)] == [401, 200]


def last_used(running: Running, key_id: str) -> Any:
    listed = running.get("/api-keys", "admin", params={"limit": 200}).json()["data"]
    return {key["id"]: key["last_used_at"] for key in listed}[key_id]


def routes() -> list[tuple[str, str, str | None]]:
    """Every endpoint: method, path below the prefix, scope."""
    return [(one.method, one.path.removeprefix(API), one.scope) for one in ENDPOINTS if one.path.startswith(API)]


@pytest.mark.parametrize(("method", "path", "needed"), [r for r in routes() if r[2] is not None])
def test_route_requires_its_scope(running: Running, method: str, path: str, needed: str) -> None:
    given = {"merchant_id": new_merchant(), "transaction_id": new_merchant()}
    path = path.format_map(defaultdict(lambda: "x", given))
    more: dict[str, Any] = {} if method in ("GET", "DELETE") else {"json": {}}
    nobody = running.call(method, path, None, **more)
    assert (nobody.status_code, nobody.json()["code"]) == (401, "unauthenticated")
    assert nobody.headers["www-authenticate"] == 'Bearer realm="credit-service"'
    for scope in SCOPES:
        answer = running.call(method, path, scope, **more)
        if SCOPES.index(scope) < SCOPES.index(needed):
            assert (answer.status_code, answer.json()["code"]) == (403, "scope_missing")
        else:
            assert answer.status_code in (200, 404, 422), answer.text


def test_public_routes_are_these(running: Running) -> None:
    public = {(method, path) for method, path, needed in routes() if needed is None}
    delivery = ("POST", "/webhooks/shopify")  # it checks a signature instead
    assert public == {("GET", "/health"), ("GET", "/credits/plugin-status/{merchant_id}"), delivery}
    for _, path in public - {delivery}:
        assert running.get(path.format(merchant_id=new_merchant()), None).status_code == 200


@pytest.mark.parametrize(
    "credential",
    [
        "",
        "{key}",
        "Basic {key}",
        "Bearer",
        "Bearer ",
        "Bearer cs_",
        "Bearer{key}",
        "Bearer {key}x",
        "Bearer {key} ",
        "Bearer {key}, Bearer {key}",
        "Bearer {other}",
        "Bearer {forged}",
        "Bearer cs_aaaaaaaaaaaa_" + "a" * 43,
        "Bearer " + "x" * 5000,
    ],
)
def test_other_credentials_are_refused(running: Running, credential: str) -> None:
    key = running.keys["admin"]
    forged = key[:-1] + ("A" if key[-1] != "A" else "B")
    value = credential.format(key=key, other=key.upper(), forged=forged)
    with running.connection() as connection:
        connection.send(f"GET /api/v1/api-keys HTTP/1.1\r\nhost: a\r\nauthorization: {value}\r\n\r\n".encode())
        status, headers, body = connection.answer()
    if credential == "Bearer {key} ":  # HTTP strips white space around a header value
        assert status == 200
        return
    assert status == 401
    assert headers["www-authenticate"].startswith("Bearer")
    assert b"unauthenticated" in body
    assert key.encode() not in body


def test_two_credentials_are_refused(running: Running) -> None:
    line = f"authorization: Bearer {running.keys['read']}\r\n"
    with running.connection() as connection:
        connection.send(f"GET /api/v1/health/detailed HTTP/1.1\r\nhost: a\r\n{line}{line}\r\n".encode())
        assert connection.answer()[0] == 401


@pytest.mark.parametrize("place", ["?key={key}", "?access_token={key}", "?authorization=Bearer%20{key}"])
def test_key_in_the_url_is_refused(running: Running, place: str) -> None:
    answer = running.get("/health/detailed" + place.format(key=running.keys["admin"]), None)
    assert answer.status_code == 401


def test_credentials_are_checked_before_the_body(running: Running) -> None:
    for path in ("/credits/transactions", "/credits/transactions/batch", "/credits/events", "/credits/accounts"):
        assert running.post(path, b"{", None).status_code == 401
        assert running.post(path, b"{", "read").status_code == 403
        assert running.post(path + "?x=1", b"{", None).status_code == 401


def test_unknown_key_answers_503_while_the_database_is_away(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start()

    async def away(*_: object) -> None:
        from credit_service.storage.engine import StorageUnavailable

        raise StorageUnavailable("gone")

    monkeypatch.setattr(Keys, "get", away)
    running.service.keyring.forget(running.keys["read"][3:15])
    for answer in (running.get("/credits/accounts"), running.post("/credits/transactions", {}, "read")):
        assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
        assert answer.headers["retry-after"] == "1"
