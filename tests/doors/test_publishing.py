"""A running service with NATS: events reach the stream, and postings go on whatever NATS does."""

import asyncio
import re
import time
from collections.abc import Callable
from typing import Any

from tests.doors.running import Running, posting
from tests.outlets.publishing import check_stream
from tests.servers.nats import Nats, connected


def metric(running: Running, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", running.client.get("/metrics").text, flags=re.MULTILINE)
    return float(found[1]) if found else 0.0


def component(running: Running, name: str) -> dict[str, Any]:
    return dict(running.get("/health/detailed").json()["data"]["components"][name])


def wait_until(condition: Callable[[], bool], seconds: float = 15) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def spend(running: Running, merchant: str, times: int) -> None:
    for _ in range(times):
        assert running.transact(posting(merchant)).status_code == 201


CONSUMED = 'credits_events_published_total{event_type="evt.credits.consumed"}'


def test_postings_are_published_and_counted(start: Callable[..., Running], nats_url: str) -> None:
    running = start(nats_url=nats_url)
    merchant = running.open()
    spend(running, merchant, 3)
    wait_until(lambda: metric(running, CONSUMED) == 3)
    wait_until(lambda: metric(running, "credits_outbox_lag_seconds") == 0)
    told = component(running, "publishing")
    assert told == {"status": "ok", "lag_seconds": 0.0}
    messages = running.run(check_stream(running.service.engine, nats_url))
    assert [message.subject for message in messages][-3:] == ["evt.credits.consumed"] * 3


def test_postings_go_on_without_nats_and_the_backlog_drains(
    start: Callable[..., Running], new_nats: Callable[..., Nats]
) -> None:
    server = new_nats()
    server.stop()
    running = start(nats_url=server.url)
    merchant = running.open()
    spend(running, merchant, 5)
    wait_until(lambda: component(running, "publishing")["status"] == "unavailable")
    told = component(running, "publishing")
    assert "does not take events" in told["reason"]
    assert told["lag_seconds"] > 0
    assert running.get("/health/detailed").json()["data"]["status"] == "degraded"
    assert running.client.get("/readyz").status_code == 200, "it can take postings"
    lag = metric(running, "credits_outbox_lag_seconds")
    wait_until(lambda: metric(running, "credits_outbox_lag_seconds") > lag > 0)
    server.start()
    wait_until(lambda: metric(running, CONSUMED) == 5)
    messages = running.run(check_stream(running.service.engine, server.url))
    assert [int(message.event["sequence"]) for message in messages] == list(range(1, len(messages) + 1))
    wait_until(lambda: component(running, "publishing") == {"status": "ok", "lag_seconds": 0.0})


def test_conflicting_stream_shows_in_health(start: Callable[..., Running], nats_url: str) -> None:
    async def take() -> None:
        async with connected(nats_url) as nats:
            await nats.jetstream().add_stream(name="CREDITS_TAKEN", subjects=["evt.credits.consumed"])

    asyncio.run(take())
    running = start(nats_url=nats_url)
    running.open()
    wait_until(lambda: "overlap" in component(running, "publishing").get("reason", ""))
    assert "stream CREDITS cannot be created" in component(running, "nats")["reason"]
