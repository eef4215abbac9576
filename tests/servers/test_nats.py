"""The NATS server of the tests is real and isolated, and a test can stop, kill and pause it."""

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import nats.errors
import pytest

from tests.servers.nats import Nats, broker, connected, find_binary
from tests.servers.processes import Missing, readable, state


async def messages(url: str, stream: str = "CREDITS_TEST") -> int:
    async with connected(url) as connection:
        return (await connection.jetstream().stream_info(stream)).state.messages


async def publish(url: str, stream: str = "CREDITS_TEST") -> None:
    async with connected(url) as connection:
        streams = connection.jetstream()
        await streams.add_stream(name=stream, subjects=[f"{stream}.>"])
        await streams.publish(f"{stream}.one", b"kept")


async def test_stream_stores_published_messages(nats_url: str) -> None:
    await publish(nats_url)
    assert await messages(nats_url) == 1


async def test_every_test_starts_without_streams(nats_url: str) -> None:
    async with connected(nats_url) as connection:
        names = [info.config.name for info in await connection.jetstream().streams_info()]
    assert [name for name in names if (name or "").startswith("CREDITS")] == []


async def test_server_refuses_a_wrong_password(new_nats: Callable[..., Nats]) -> None:
    parts = urlsplit(new_nats().url)
    with pytest.raises(nats.errors.Error, match=r"Authorization Violation"):
        async with connected(f"nats://{parts.username}:guess@127.0.0.1:{parts.port}"):
            pass


async def test_acknowledged_messages_survive_stop_and_kill(new_nats: Callable[..., Nats]) -> None:
    server = new_nats()
    await publish(server.url)
    for end in (server.stop, server.kill):
        port = server.port
        end()
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", port), timeout=2)
        server.start()
        assert server.port == port
        assert await messages(server.url) == 1


async def test_paused_server_answers_only_after_resume(new_nats: Callable[..., Nats]) -> None:
    server = new_nats()
    async with connected(server.url) as connection:
        server.pause()
        socket.create_connection(("127.0.0.1", server.port), timeout=2).close()  # the kernel accepts the connection
        answer = asyncio.create_task(connection.flush())
        assert not (await asyncio.wait([answer], timeout=0.2))[0]
        server.resume()
        await answer


async def test_server_uses_extra_settings(new_nats: Callable[..., Nats]) -> None:
    async with connected(new_nats(settings="max_payload: 4096").url) as connection:
        assert connection.max_payload == 4096


def test_close_ends_server_and_deletes_its_folder() -> None:
    with Nats() as server:
        pid, folder = server._running.pid, server._folder.path
        server.pause()
    assert (state(pid), folder.exists()) == (None, False)


def test_given_server_is_used_and_left_without_our_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    with Nats() as server:
        monkeypatch.setenv("TEST_NATS_URL", server.url)
        for _ in range(2):
            with broker() as url:
                assert url == server.url
                asyncio.run(publish(url))
        asyncio.run(publish(server.url, "OTHERS"))
        with broker():
            pass
        assert asyncio.run(messages(server.url, "OTHERS")) == 1


def test_binary_can_be_given_or_be_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TEST_NATS_BIN", "/somewhere/nats-server")
    assert find_binary() == Path("/somewhere/nats-server")
    monkeypatch.delenv("TEST_NATS_BIN")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("shutil.which", lambda name, path: None)
    with pytest.raises(Missing, match="TEST_NATS_URL"):
        find_binary()


@pytest.mark.skipif(os.getuid() != 0, reason="Only a binary of root can be unreadable for the server's user.")
def test_binary_that_only_root_can_read_is_copied(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    binary = hidden / "nats-server"
    binary.write_bytes(b"#!/bin/sh\n")
    for _ in range(2):
        copy = readable(binary, tmp_path / "cache")
        assert copy.read_bytes() == binary.read_bytes()
