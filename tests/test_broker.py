"""The broker reconnects to NATS by itself. It creates missing streams and never changes an existing stream."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from nats.js.api import StreamConfig
from structlog.testing import capture_logs

from credit_service.broker import FAILURES, Broker, BrokerUnavailable, StreamConflict
from tests.servers.nats import Nats, connected
from tests.servers.processes import wait_until

RECOVERY_SECONDS = 10
"""The longest time that the broker may take to reconnect after NATS is back."""


@asynccontextmanager
async def running(url: str, **options: Any) -> AsyncIterator[Broker]:
    broker = Broker(url, name="test", **options)
    broker.start()
    try:
        yield broker
    finally:
        await broker.close()


async def published(broker: Broker, subject: str) -> int:
    """Publish a message as soon as NATS accepts it. Returns its sequence number."""
    while True:
        try:
            return (await (await broker.jetstream()).publish(subject, b"x", timeout=1)).seq
        except FAILURES:
            await asyncio.sleep(0.1)


async def test_user_and_password_may_contain_special_characters(nats_url: str) -> None:
    async with running(nats_url) as broker:
        assert (await (await broker.jetstream()).account_info()).streams == 0
        await broker.check()


async def test_token_works_in_place_of_a_user(new_nats: Callable[..., Nats]) -> None:
    server = new_nats(settings='authorization { token: "t@ken" }')
    async with running(f"nats://t%40ken@127.0.0.1:{server.port}") as broker:
        await broker.jetstream()


async def test_broker_tries_next_server_if_one_does_not_answer(new_nats: Callable[..., Nats]) -> None:
    async with running(f"nats://127.0.0.1:1, {new_nats().url}") as broker:
        async with asyncio.timeout(RECOVERY_SECONDS):
            await broker.jetstream()


async def test_broker_starts_without_nats_and_connects_later(new_nats: Callable[..., Nats]) -> None:
    server = new_nats()
    server.stop()
    async with running(server.url) as broker:
        with pytest.raises(BrokerUnavailable, match=rf"^NATS 127.0.0.1:{server.port} cannot be used: "):
            await broker.check()
        assert not broker.connected
        server.start()
        async with asyncio.timeout(RECOVERY_SECONDS):
            await broker.jetstream()


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_broker_reconnects_after_nats_restarts(new_nats: Callable[..., Nats], end: str) -> None:
    server = new_nats()
    async with running(server.url) as broker:
        await broker.ensure_stream("CREDITS_TEST", ["test.>"])
        assert await published(broker, "test.1") == 1
        getattr(server, end)()
        server.start()
        async with asyncio.timeout(RECOVERY_SECONDS):
            assert await published(broker, "test.2") == 2


async def test_broker_replaces_a_silent_connection(new_nats: Callable[..., Nats]) -> None:
    server = new_nats()
    async with running(server.url) as broker:
        await broker.ensure_stream("CREDITS_TEST", ["test.>"])
        server.pause()
        # This is more than the kernel can buffer, so the client can never send the rest.
        client = (await broker.jetstream())._nc
        sending = [asyncio.create_task(client.publish("elsewhere", bytes(900_000))) for _ in range(10)]
        try:
            async with asyncio.timeout(RECOVERY_SECONDS):
                while broker.connected:  # noqa: ASYNC110 - the broker has no event to wait for
                    await asyncio.sleep(0.05)
        finally:
            for one in sending:
                one.cancel()
            await asyncio.gather(*sending, return_exceptions=True)
        with pytest.raises(BrokerUnavailable):
            await broker.check()
        server.resume()
        async with asyncio.timeout(RECOVERY_SECONDS):
            assert await published(broker, "test.1") > 0


async def test_wrong_password_logs_one_line_without_the_password(new_nats: Callable[..., Nats]) -> None:
    server = new_nats()
    with capture_logs() as logs:
        async with running(f"nats://tester:canary@127.0.0.1:{server.port}") as broker:
            await asyncio.to_thread(wait_until, lambda: server.log().count("authentication error") >= 3, "attempts")
            with pytest.raises(BrokerUnavailable, match="Authorization Violation") as refused:
                await broker.check()
            assert "canary" not in f"{logs} {refused.value!r} {broker.name} {vars(broker)}"
    assert [line["event"] for line in logs] == ["nats_unavailable"]


async def test_broker_closes_even_if_client_swallows_cancellation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("credit_service.broker._END_SECONDS", 0.05)
    monkeypatch.setattr("credit_service.broker._PAUSE_SECONDS", 0)
    connecting = asyncio.Event()

    async def connect(*_: object) -> None:
        first = not connecting.is_set()
        connecting.set()
        try:
            await asyncio.Event().wait()  # never ends
        except asyncio.CancelledError:
            if not first:
                raise

    monkeypatch.setattr(Broker, "_connect", connect)
    async with asyncio.timeout(RECOVERY_SECONDS), running("nats://127.0.0.1:1"):
        await connecting.wait()


async def test_broker_logs_a_permission_violation(new_nats: Callable[..., Nats]) -> None:
    users = '{ users: [ {user: u, password: p, permissions: {publish: "$JS.API.INFO"}} ] }'
    server = new_nats(settings=f"authorization {users}")
    with capture_logs() as logs:
        async with running(f"nats://u:p@127.0.0.1:{server.port}") as broker:
            streams = await broker.jetstream()
            with pytest.raises(FAILURES):
                await streams.publish("test.1", b"", timeout=0.5)
    assert "permissions violation for publish to" in str([one for one in logs if "permission" in one["event"]])


# ---- streams


async def test_broker_creates_stream_for_subjects_without_a_stream(nats_url: str) -> None:
    async with connected(nats_url) as client:
        await client.jetstream().add_stream(name="CREDITS_OTHERS", subjects=["a.>"])
        async with running(nats_url) as broker:
            for _ in range(2):
                carried = await broker.ensure_stream("CREDITS_TEST", ["a.b", "c", "c.*"])
                assert carried == {"CREDITS_OTHERS": ["a.b"], "CREDITS_TEST": ["c", "c.*"]}
        made = (await client.jetstream().stream_info("CREDITS_TEST")).config
        assert made.subjects == ["c", "c.*"]
        assert (made.max_age, made.num_replicas) == (30 * 86_400, 1)


async def test_several_services_can_create_one_stream_at_once(nats_url: str) -> None:
    async with running(nats_url) as one, running(nats_url) as other:
        await asyncio.gather(*[broker.ensure_stream("CREDITS_TEST", ["a", "a.*"]) for broker in (one, other) * 5])


async def test_stream_without_a_subject_is_logged_once_and_unchanged(nats_url: str) -> None:
    async with connected(nats_url) as client, running(nats_url) as broker:
        await client.jetstream().add_stream(name="CREDITS_TEST", subjects=["a"], max_msgs=7)
        before = (await client.jetstream().stream_info("CREDITS_TEST")).config
        sentence = (
            "The stream CREDITS_TEST is there, without the subject b; it is left as it is: add that, or remove it."
        )
        await broker.jetstream()  # connect first, because the broker logs the connection
        with capture_logs() as logs:
            for _ in range(3):
                with pytest.raises(StreamConflict) as refused:
                    await broker.ensure_stream("CREDITS_TEST", ["a", "b"])
                assert str(refused.value) == sentence
        assert [line["event"] for line in logs] == ["nats_conflict"]
        with pytest.raises(BrokerUnavailable, match="CREDITS_TEST"):
            await broker.check()
        assert (await client.jetstream().stream_info("CREDITS_TEST")).config == before
        await client.jetstream().update_stream(name="CREDITS_TEST", subjects=["a", "b"])
        await broker.ensure_stream("CREDITS_TEST", ["a", "b"])
        await broker.check()


async def test_broker_reports_a_stream_that_nats_refuses(nats_url: str) -> None:
    async with running(nats_url, replicas=3) as broker:
        with pytest.raises(StreamConflict, match="replicas"):
            await broker.ensure_stream("CREDITS_TEST", ["a"])
    async with running(nats_url) as broker:
        with pytest.raises(StreamConflict, match="CREDITS_TEST cannot be created"):
            await broker.create_stream(StreamConfig(name="CREDITS_TEST", subjects=["not a subject"]))
