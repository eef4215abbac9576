"""The connection to NATS comes and goes, and whoever uses it need not notice; streams are made, and never altered."""

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
"""How long the service may take to be back after NATS is."""


@asynccontextmanager
async def running(url: str, **options: Any) -> AsyncIterator[Broker]:
    broker = Broker(url, name="test", **options)
    broker.start()
    try:
        yield broker
    finally:
        await broker.close()


async def published(broker: Broker, subject: str) -> int:
    """The number of a message that is published as soon as NATS takes it."""
    while True:
        try:
            return (await (await broker.jetstream()).publish(subject, b"x", timeout=1)).seq
        except FAILURES:
            await asyncio.sleep(0.1)


async def test_a_user_and_password_with_anything_in_them_are_understood(nats_url: str) -> None:
    async with running(nats_url) as broker:
        assert (await (await broker.jetstream()).account_info()).streams == 0
        await broker.check()


async def test_a_token_stands_in_place_of_a_user(new_nats: Callable[..., Nats]) -> None:
    server = new_nats(settings='authorization { token: "t@ken" }')
    async with running(f"nats://t%40ken@127.0.0.1:{server.port}") as broker:
        await broker.jetstream()


async def test_the_next_server_is_tried_where_one_does_not_answer(new_nats: Callable[..., Nats]) -> None:
    async with running(f"nats://127.0.0.1:1, {new_nats().url}") as broker:
        async with asyncio.timeout(RECOVERY_SECONDS):
            await broker.jetstream()


async def test_NATS_may_be_absent_at_the_start(new_nats: Callable[..., Nats]) -> None:
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
async def test_a_connection_is_made_anew_after_NATS_was_started_again(new_nats: Callable[..., Nats], end: str) -> None:
    server = new_nats()
    async with running(server.url) as broker:
        await broker.ensure_stream("CREDITS_TEST", ["test.>"])
        assert await published(broker, "test.1") == 1
        getattr(server, end)()
        server.start()
        async with asyncio.timeout(RECOVERY_SECONDS):
            assert await published(broker, "test.2") == 2


async def test_a_connection_that_is_silent_is_given_up_and_made_anew(new_nats: Callable[..., Nats]) -> None:
    server = new_nats()
    async with running(server.url) as broker:
        await broker.ensure_stream("CREDITS_TEST", ["test.>"])
        server.pause()
        # More than the kernel buffers: to send what is left would take for ever.
        client = (await broker.jetstream())._nc
        sending = [asyncio.create_task(client.publish("elsewhere", bytes(900_000))) for _ in range(10)]
        try:
            async with asyncio.timeout(RECOVERY_SECONDS):
                while broker.connected:  # noqa: ASYNC110 - it tells nobody
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


async def test_a_wrong_password_is_told_once_and_never_shown(new_nats: Callable[..., Nats]) -> None:
    server = new_nats()
    with capture_logs() as logs:
        async with running(f"nats://tester:canary@127.0.0.1:{server.port}") as broker:
            await asyncio.to_thread(wait_until, lambda: server.log().count("authentication error") >= 3, "attempts")
            with pytest.raises(BrokerUnavailable, match="Authorization Violation") as refused:
                await broker.check()
            assert "canary" not in f"{logs} {refused.value!r} {broker.name} {vars(broker)}"
    assert [line["event"] for line in logs] == ["nats_unavailable"]


async def test_it_is_closed_also_where_the_client_takes_the_end_for_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("credit_service.broker._END_SECONDS", 0.05)
    monkeypatch.setattr("credit_service.broker._PAUSE_SECONDS", 0)
    connecting = asyncio.Event()

    async def connect(*_: object) -> None:
        first = not connecting.is_set()
        connecting.set()
        try:
            await asyncio.Event().wait()  # for ever
        except asyncio.CancelledError:
            if not first:
                raise

    monkeypatch.setattr(Broker, "_connect", connect)
    async with asyncio.timeout(RECOVERY_SECONDS), running("nats://127.0.0.1:1"):
        await connecting.wait()


async def test_what_the_user_may_not_do_is_told(new_nats: Callable[..., Nats]) -> None:
    users = '{ users: [ {user: u, password: p, permissions: {publish: "$JS.API.INFO"}} ] }'
    server = new_nats(settings=f"authorization {users}")
    with capture_logs() as logs:
        async with running(f"nats://u:p@127.0.0.1:{server.port}") as broker:
            streams = await broker.jetstream()
            with pytest.raises(FAILURES):
                await streams.publish("test.1", b"", timeout=0.5)
    assert "permissions violation for publish to" in str([one for one in logs if "permission" in one["event"]])


# ---- streams


async def test_a_stream_is_created_for_the_subjects_that_no_stream_carries(nats_url: str) -> None:
    async with connected(nats_url) as client:
        await client.jetstream().add_stream(name="CREDITS_OTHERS", subjects=["a.>"])
        async with running(nats_url) as broker:
            for _ in range(2):
                carried = await broker.ensure_stream("CREDITS_TEST", ["a.b", "c", "c.*"])
                assert carried == {"CREDITS_OTHERS": ["a.b"], "CREDITS_TEST": ["c", "c.*"]}
        made = (await client.jetstream().stream_info("CREDITS_TEST")).config
        assert made.subjects == ["c", "c.*"]
        assert (made.max_age, made.num_replicas) == (30 * 86_400, 1)


async def test_several_services_may_create_a_stream_at_once(nats_url: str) -> None:
    async with running(nats_url) as one, running(nats_url) as other:
        await asyncio.gather(*[broker.ensure_stream("CREDITS_TEST", ["a", "a.*"]) for broker in (one, other) * 5])


async def test_a_stream_that_lacks_a_subject_is_told_once_and_left_alone(nats_url: str) -> None:
    async with connected(nats_url) as client, running(nats_url) as broker:
        await client.jetstream().add_stream(name="CREDITS_TEST", subjects=["a"], max_msgs=7)
        before = (await client.jetstream().stream_info("CREDITS_TEST")).config
        sentence = (
            "The stream CREDITS_TEST is there, without the subject b; it is left as it is: add that, or remove it."
        )
        await broker.jetstream()  # that there is a connection is told, too
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


async def test_a_stream_that_NATS_refuses_is_told(nats_url: str) -> None:
    async with running(nats_url, replicas=3) as broker:
        with pytest.raises(StreamConflict, match="replicas"):
            await broker.ensure_stream("CREDITS_TEST", ["a"])
    async with running(nats_url) as broker:
        with pytest.raises(StreamConflict, match="CREDITS_TEST cannot be created"):
            await broker.create_stream(StreamConfig(name="CREDITS_TEST", subjects=["not a subject"]))
