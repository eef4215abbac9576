"""Webhook endpoints over HTTP, and webhooks to a real receiver."""

import asyncio
import base64
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from credit_service.messages.outbound import PAYLOADS
from tests.doors.running import Running
from tests.outlets.receiver import Receiver
from tests.storage.engines import Ledgers, only_on

PATH = "/credits/webhook-endpoints"
URL = "http://127.0.0.1:1/credits"
"""An address without a listener. No test resolves a name or calls another machine."""
ENDPOINT = [
    "id",
    "url",
    "event_types",
    "enabled",
    "disabled_at",
    "disabled_reason",
    "failing_since",
    "created_at",
]
DELIVERY = [
    "id",
    "event_id",
    "event_type",
    "state",
    "attempts",
    "next_attempt_at",
    "last_status",
    "last_error",
    "redelivers",
    "created_at",
    "ended_at",
]


@pytest.fixture(scope="module")
def service(ledgers: Ledgers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service on each engine that may send webhooks to loopback only."""
    with (
        ledgers.new(tmp_path_factory.mktemp("webhooks")) as url,
        Running(database_url=url, webhook_allowed_networks="127.0.0.0/8") as running,
    ):
        yield running


@pytest.fixture
def running(service: Running) -> Iterator[Running]:
    """The same service, without endpoints."""
    yield service
    for one in service.get(PATH, "admin", params={"limit": 200}).json()["data"]:
        assert service.call("DELETE", f"{PATH}/{one['id']}").status_code == 200


def register(running: Running, url: str = URL, **more: Any) -> dict[str, Any]:
    answer = running.post(PATH, {"url": url, **more}, "admin")
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()["data"]
    return found


def patch(running: Running, id_: str, body: Any) -> httpx2.Response:
    return running.call("PATCH", f"{PATH}/{id_}", json=body)


def read(running: Running, id_: str) -> dict[str, Any]:
    found: dict[str, Any] = running.get(f"{PATH}/{id_}", "admin").json()["data"]
    return found


def deliveries(running: Running, id_: str, **params: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = running.get(f"{PATH}/{id_}/deliveries", "admin", params=params).json()["data"]
    return found


def ask(running: Running, path: str, **more: Any) -> httpx2.Response:
    """POST without a body."""
    return running.call("POST", f"{PATH}/{path}", **more)


# ---- register, list, change, delete


def test_endpoint_is_registered_and_its_secret_shown_once(running: Running) -> None:
    answer = running.post(PATH, {"url": URL}, "admin")
    assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store")
    told = answer.json()["data"]
    assert list(told) == [*ENDPOINT, "secret"]
    secret = told.pop("secret")
    assert len(base64.b64decode(secret.removeprefix("whsec_"))) == 32
    assert (told["url"], told["event_types"], told["enabled"], told["failing_since"]) == (URL, None, True, None)
    assert read(running, told["id"]) == told
    listed = running.get(PATH, "admin", params={"limit": 200})
    assert listed.json()["data"][0] == told
    everything = [listed, *(running.get(f"{PATH}/{told['id']}{more}", "admin") for more in ("", "/deliveries"))]
    assert all(secret[6:] not in one.text for one in everything)


def test_cursors_lead_through_endpoints_newest_first(running: Running) -> None:
    made = [register(running)["id"] for _ in range(3)][::-1]
    first = running.get(PATH, "admin", params={"limit": 2}).json()
    assert [one["id"] for one in first["data"]] == made[:2]
    second = running.get(first["links"]["next"].removeprefix("/api/v1"), "admin").json()
    assert second["data"][0]["id"] == made[2]
    assert second["pagination"]["has_previous"] is True
    wrong = running.get(PATH, "admin", params={"cursor": "AAAA"})
    assert wrong.json()["code"] == "cursor_invalid"


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/url"),
        ({"url": None}, "/url"),
        ({"url": ""}, "/url"),
        ({"url": "hooks.example"}, "/url"),
        ({"url": "ftp://hooks.example/"}, "/url"),
        ({"url": "https://hooks.example/ü"}, "/url"),
        ({"url": "https://hooks.example/ x"}, "/url"),
        ({"url": f"https://hooks.example/{'x' * 2048}"}, "/url"),
        ({"url": "https://me:hidden@hooks.example/"}, "/url"),
        ({"url": "https://10.0.0.1/"}, "/url"),
        ({"url": "https://2130706433/"}, "/url"),
        ({"url": "https://[::1]/"}, "/url"),
        ({"url": "https://[::ffff:169.254.169.254]/"}, "/url"),
        ({"url": "https://93.184.215.14/"}, "/url"),
        ({"url": URL, "event_types": []}, "/event_types"),
        ({"url": URL, "event_types": ["consumed"]}, "/event_types/0"),
        ({"url": URL, "event_types": ["evt.credits.consumed", "evt.credits.*"]}, "/event_types/1"),
        ({"url": URL, "event_types": "evt.credits.consumed"}, "/event_types"),
        ({"url": URL, "secret": "mine"}, "/secret"),
    ],
)
def test_invalid_endpoint_is_refused(running: Running, body: Any, pointer: str) -> None:
    answer = running.post(PATH, body, "admin")
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert [fault["pointer"] for fault in answer.json()["errors"]] == [pointer]
    if "url" in body and pointer == "/url":
        made = register(running)
        assert patch(running, made["id"], body).status_code == 422
        assert read(running, made["id"])["url"] == URL
        assert "hidden" not in answer.text


def test_event_types_are_those_of_the_catalogue(running: Running) -> None:
    types = [f"evt.credits.{name}" for name in PAYLOADS]
    made = register(running, event_types=[*types, types[0]])
    assert made["event_types"] == types
    assert patch(running, made["id"], {"event_types": types[:1]}).json()["data"]["event_types"] == types[:1]
    assert patch(running, made["id"], {"event_types": None}).json()["data"]["event_types"] is None


def test_endpoint_is_changed_disabled_and_enabled(running: Running) -> None:
    made = register(running)
    id_ = made["id"]
    moved = patch(running, id_, {"url": URL + "/v2"}).json()["data"]
    assert moved == {name: made[name] for name in ENDPOINT} | {"url": URL + "/v2"}
    disabled = patch(running, id_, {"enabled": False}).json()["data"]
    assert (disabled["url"], disabled["enabled"]) == (URL + "/v2", False)
    assert disabled["disabled_reason"].startswith("It was disabled by key:")
    assert patch(running, id_, {"enabled": False}).json()["data"] == disabled
    enabled = patch(running, id_, {"enabled": True, "url": URL}).json()["data"]
    assert enabled == {name: made[name] for name in ENDPOINT}
    nothing = patch(running, id_, {})
    assert (nothing.status_code, nothing.json()["errors"][0]["code"]) == (422, "required")
    for wrong in ({"enabled": None}, {"enabled": "no"}, {"url": None}, {"secret": "x"}):
        assert patch(running, id_, wrong).status_code == 422


def test_deleted_endpoint_is_gone(running: Running) -> None:
    made = register(running)
    ask(running, f"{made['id']}/test")
    answer = running.call("DELETE", f"{PATH}/{made['id']}")
    assert (answer.status_code, answer.json()["data"]["id"]) == (200, made["id"])
    assert made["id"] not in running.get(PATH, "admin", params={"limit": 200}).text
    for method, path, body in everything_about(made["id"]):
        answer = running.call(method, path, json=body) if body else running.call(method, path)
        assert (answer.status_code, answer.json()["code"]) == (404, "endpoint_not_found"), path


def everything_about(id_: str) -> list[tuple[str, str, Any]]:
    return [
        ("GET", f"{PATH}/{id_}", None),
        ("PATCH", f"{PATH}/{id_}", {"enabled": True}),
        ("DELETE", f"{PATH}/{id_}", None),
        ("POST", f"{PATH}/{id_}/rotate", None),
        ("POST", f"{PATH}/{id_}/test", None),
        ("POST", f"{PATH}/{id_}/replay", {"from": "2026-01-01T00:00:00Z"}),
        ("GET", f"{PATH}/{id_}/deliveries", None),
        ("POST", f"{PATH}/deliveries/{id_}-1/redeliver", None),
    ]


@pytest.mark.parametrize("id_", ["aaaaaaaaaaaa", "x", "AAAAAAAAAAAA", "aaaaaaaaaaaa%0A", "%00"])
def test_unknown_endpoint_is_not_found(running: Running, id_: str) -> None:
    for method, path, body in everything_about(id_):
        answer = running.call(method, path, json=body) if body else running.call(method, path)
        assert (answer.status_code, answer.json()["code"]) == (404, "endpoint_not_found"), path


@pytest.mark.parametrize("number", ["0", "01", "-1", "x", "9" * 19, ""])
def test_malformed_delivery_id_is_not_found(running: Running, number: str) -> None:
    made = register(running)
    answer = ask(running, f"deliveries/{made['id']}-{number}/redeliver")
    assert (answer.status_code, answer.json()["code"]) == (404, "endpoint_not_found")


def test_route_without_a_body_accepts_an_empty_one_only(running: Running) -> None:
    made = register(running)
    assert ask(running, f"{made['id']}/test").status_code == 202
    assert ask(running, f"{made['id']}/test", json={}).status_code == 202
    wrong = ask(running, f"{made['id']}/test", json={"type": "evt.credits.consumed"})
    assert (wrong.status_code, wrong.json()["code"]) == (422, "validation_failed")
    wrong = ask(running, f"{made['id']}/test", content=b"x")
    assert (wrong.status_code, wrong.json()["code"]) == (415, "unsupported_media_type")


def test_replay_from_the_future_is_refused(running: Running) -> None:
    made = register(running)
    path = f"{PATH}/{made['id']}/replay"
    soon = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
    for body, code in (({"from": soon}, "not_allowed"), ({}, "required"), ({"from": "yesterday"}, "malformed")):
        answer = running.post(path, body, "admin")
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/from")
        assert answer.json()["errors"][0]["code"] == code
    assert running.post(path, {"from": "2020-01-01T00:00:00Z"}, "admin").status_code == 202


# ---- what is sent


class Sending:
    """A service that may send to loopback, and receivers in an event loop of their own."""

    def __init__(self, running: Running, loop: asyncio.AbstractEventLoop) -> None:
        self.running = running
        self._loop = loop

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the loop of the receivers."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def metric(self, name: str) -> float:
        """The value of a metric of the service."""
        text = self.running.client.get("/metrics").text
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"{name} "))


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="receivers")
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def sending(running: Running, loop: asyncio.AbstractEventLoop) -> Sending:
    return Sending(running, loop)


@pytest.fixture
def receiver(sending: Sending) -> Iterator[Receiver]:
    receiver = Receiver()
    sending.run(receiver.start())
    yield receiver
    sending.run(receiver.stop())


def until(found: Callable[[], Any]) -> Any:
    """Ask again until the answer is not empty."""
    deadline = time.monotonic() + 20
    while not (it := found()):
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.01)
    return it


def test_receiver_can_verify_a_webhook(sending: Sending, receiver: Receiver) -> None:
    running, delivered = sending.running, 'credits_webhook_deliveries_total{outcome="delivered"}'
    before = sending.metric(delivered)
    made = register(running, receiver.url, event_types=["evt.credits.consumed", "evt.credits.plugin_status_changed"])
    merchant = running.open()
    assert running.spend(merchant, 100).status_code == 201
    sent = sending.run(receiver.wait_for(3))
    events = [Webhook(made["secret"]).verify(one.body, one.headers) for one in sent]
    assert [(event["type"], event["sequence"]) for event in events] == [
        ("evt.credits.plugin_status_changed", "3"),
        ("evt.credits.consumed", "4"),
        ("evt.credits.plugin_status_changed", "7"),
    ]
    assert {event["subject"] for event in events} == {merchant}
    until(lambda: all(one["state"] == "delivered" for one in deliveries(running, made["id"])))
    log = deliveries(running, made["id"])
    assert all(list(one) == DELIVERY for one in log)
    assert [(one["id"], one["event_id"], one["event_type"]) for one in log] == [
        (f"{made['id']}-{number}", event["id"], event["type"]) for number, event in reversed([*enumerate(events, 1)])
    ]
    assert {(one["attempts"], one["last_status"], one["last_error"], one["next_attempt_at"]) for one in log} == {
        (1, 204, None, None)
    }
    page = running.get(f"{PATH}/{made['id']}/deliveries", "admin", params={"limit": 2}).json()
    rest = running.get(page["links"]["next"].removeprefix("/api/v1"), "admin").json()
    assert page["data"] + rest["data"] == log
    other = register(running, receiver.url)
    cursor = page["pagination"]["next_cursor"]
    wrong = running.get(f"{PATH}/{other['id']}/deliveries", "admin", params={"cursor": cursor})
    assert wrong.json()["code"] == "cursor_invalid"
    assert sending.metric(delivered) == before + 3


def test_both_secrets_verify_after_a_rotation(sending: Sending, receiver: Receiver) -> None:
    running = sending.running
    made = register(running, receiver.url)
    answer = ask(running, f"{made['id']}/rotate")
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    rotated = answer.json()["data"]
    assert list(rotated) == [*ENDPOINT, "secret", "previous_secret_until"]
    ends = datetime.fromisoformat(rotated["previous_secret_until"]) - datetime.now(UTC)
    assert timedelta(hours=23) < ends <= timedelta(hours=24)
    assert rotated["secret"] != made["secret"]
    assert ask(running, f"{made['id']}/test").status_code == 202
    (sent,) = sending.run(receiver.wait_for(1))
    for secret in (made["secret"], rotated["secret"]):
        assert Webhook(secret).verify(sent.body, sent.headers)["type"] == "evt.credits.webhook_test"
    assert len(sent.headers["webhook-signature"].split(" ")) == 2
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + "A" * 44).verify(sent.body, sent.headers)


def test_test_is_sent_to_a_disabled_endpoint_too(sending: Sending, receiver: Receiver) -> None:
    running = sending.running
    made = register(running, receiver.url)
    patch(running, made["id"], {"enabled": False})
    sending.run(answers(receiver, 500))
    answer = ask(running, f"{made['id']}/test")
    test = answer.json()["data"]
    assert (answer.status_code, list(test)) == (202, DELIVERY)
    assert (test["state"], test["attempts"], test["event_id"]) == ("pending", 0, f"test-{test['id']}")
    (told,) = until(lambda: [one for one in deliveries(running, made["id"]) if one["state"] != "pending"])
    assert (told["state"], told["last_status"], told["last_error"]) == ("failed", 500, "It answered 500.")
    assert receiver.sent[0].headers["webhook-id"] == test["event_id"]


async def answers(receiver: Receiver, *some: int) -> None:
    receiver.answers += some


def test_deliveries_are_sent_again_on_request(sending: Sending, receiver: Receiver) -> None:
    running = sending.running
    before = sending.metric("credits_webhook_redeliveries_total")
    sending.run(answers(receiver, 410))
    made = register(running, receiver.url, event_types=["evt.credits.account.created"])
    running.open()
    until(lambda: not read(running, made["id"])["enabled"])
    until(lambda: sending.metric("credits_webhook_endpoints_disabled") == 1)
    assert read(running, made["id"])["disabled_reason"] == "It answered 410 (gone)."
    (first,) = deliveries(running, made["id"])
    assert (first["state"], first["last_status"]) == ("pending", 410)

    again = ask(running, f"deliveries/{first['id']}/redeliver")
    assert (again.status_code, again.json()["data"]["redelivers"]) == (202, first["id"])
    assert again.json()["data"]["event_id"] == first["event_id"]
    sending.run(receiver.wait_for(2))
    second, replaced = until(
        lambda: found if (found := deliveries(running, made["id"]))[0]["state"] == "delivered" else None
    )
    assert (second["id"], second["attempts"]) == (f"{made['id']}-2", 1)
    assert (replaced["state"], replaced["last_error"]) == ("failed", "It is sent again as 2.")

    assert patch(running, made["id"], {"enabled": True}).json()["data"]["enabled"] is True
    answer = running.post(f"{PATH}/{made['id']}/replay", {"from": made["created_at"]}, "admin")
    assert (answer.status_code, list(answer.json()["data"])) == (202, ENDPOINT)
    sending.run(receiver.wait_for(3))
    assert len(set(receiver.ids)) == 1
    assert sending.metric("credits_webhook_redeliveries_total") == before + 1


@only_on("sqlite")
def test_pending_webhooks_are_sent_after_a_restart(
    loop: asyncio.AbstractEventLoop, new_ledger: Callable[[], str]
) -> None:
    receiver = Receiver()
    settings: dict[str, Any] = {"database_url": new_ledger(), "webhook_allowed_networks": "127.0.0.0/8"}
    with Running(**settings) as first:
        Sending(first, loop).run(receiver.start())
        made = register(first, receiver.url)
        patch(first, made["id"], {"enabled": False})
        first.open()
    with Running(**settings) as second:
        assert receiver.sent == []
        patch(second, made["id"], {"enabled": True})
        Sending(second, loop).run(receiver.wait_for(3))
        Sending(second, loop).run(receiver.stop())
