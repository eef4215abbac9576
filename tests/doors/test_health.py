"""Health and probes."""

import asyncio
from collections.abc import Callable, Collection
from typing import Any

import pytest

from credit_service import supervision
from tests.doors.running import Running
from tests.servers.nats import Nats
from tests.servers.processes import wait_until


def test_health_has_no_meta(running: Running) -> None:
    answer = running.get("/health", None)
    assert (answer.status_code, answer.json()) == (200, {"data": {"status": "ok"}})
    assert "x-request-id" in answer.headers


def test_detailed_health_shows_each_component(running: Running) -> None:
    answer = running.get("/health/detailed")
    assert answer.status_code == 200
    assert list(answer.json()) == ["data", "meta"]
    told = answer.json()["data"]
    assert told["status"] == "ok"
    assert list(told["components"]) == ["database", "posting", "background"]
    assert all(component["status"] == "ok" for component in told["components"].values())
    assert told["components"]["database"]["latency_ms"] >= 0


def test_livez_and_readyz_are_public(running: Running) -> None:
    for path in ("/livez", "/readyz", "/livez?verbose", "/readyz?a=b"):
        answer = running.client.get(path)
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def kill_background_tasks(dead: Collection[str] = ()) -> set[str]:
    """Let every supervised task of the running loop die of an error, except the dead ones; returns their names."""
    killed = set()
    for task in asyncio.all_tasks():
        coroutine: Any = task.get_coro()
        waiting: Any = task
        if coroutine.__name__ == "_keep_running" and task.get_name() not in dead:
            if waiting._fut_waiter is not None:
                waiting._fut_waiter.cancel()  # it dies of a cancellation that was not sent to itself
            killed.add(task.get_name())
    return killed


def test_every_background_task_that_dies_is_restarted(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "SETTLED_SECONDS", 6)  # longer than all deaths take on a busy machine
    with Nats() as nats:
        running = start(nats_url=nats.url, shopify_webhook_secret="s" * 32)
        merchant = running.open()
        supervisor = running.service.supervisor
        killed = running.run(kill_background_tasks())
        assert killed >= {
            *("posting 0", "sweeper", "auditor", "key uses", "shopify inbox", "gate fail policies"),
            *("webhooks", "publisher", "dead letters", "consumer", "nats connection"),
        }

        def are_dead() -> bool:
            # A task that connects just now handles its cancellation, so it is killed again.
            return set(supervisor.faults) == killed or not running.run(kill_background_tasks(supervisor.faults))

        wait_until(are_dead, "the deaths")
        not_ready = running.client.get("/readyz")
        assert (not_ready.status_code, not_ready.json()["code"]) == (503, "overloaded")
        assert "posting 0 (CancelledError)" in not_ready.json()["detail"]
        background = running.get("/health/detailed").json()["data"]["components"]["background"]
        assert background["status"] == "unavailable"
        assert all(name in background["reason"] for name in killed)
        assert f"credits_background_tasks_failing {len(killed)}.0" in running.client.get("/metrics").text
        wait_until(lambda: not supervisor.faults, "the restarts")
        assert running.client.get("/readyz").status_code == 200
        assert running.spend(merchant).status_code == 201


def test_dead_task_that_serves_no_request_leaves_the_service_ready(start: Callable[..., Running]) -> None:
    running = start()
    running.service.supervisor.faults["webhooks"] = "KeyError"
    assert running.client.get("/readyz").status_code == 200
    assert running.get("/health/detailed").json()["data"]["status"] == "degraded"
