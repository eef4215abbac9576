"""The proxy makes exactly the fault that a test asks for, at the right moment."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import asyncpg
import pytest

from tests.servers.proxy import Proxy

LOST = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)


@pytest.fixture
def echo() -> Iterator[tuple[Proxy, socket.socket, socket.socket]]:
    """Yield a proxy and both ends of a connection through it."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        listener.settimeout(10)
        with (
            Proxy(f"tcp://user:word@127.0.0.1:{listener.getsockname()[1]}/path") as proxy,
            socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client,
        ):
            server, _ = listener.accept()
            with server:
                server.settimeout(10)
                client.sendall(b"hello")  # the other end receives it, so the connection is open
                _read(server, 5)
                yield proxy, client, server


async def test_cut_before_commit_changes_nothing(postgres_url: str, proxied: Callable[[str], Proxy]) -> None:
    assert await _insert_while(proxied(postgres_url), Proxy.cut_before, postgres_url) == 0


async def test_cut_after_commit_keeps_all_changes(postgres_url: str, proxied: Callable[[str], Proxy]) -> None:
    assert await _insert_while(proxied(postgres_url), Proxy.cut_after, postgres_url) == 1


async def _insert_while(proxy: Proxy, cut: Callable[[Proxy, bytes], threading.Event], url: str) -> object:
    direct = await asyncpg.connect(url)
    await direct.execute("CREATE TABLE numbers (number integer)")
    connection = await asyncpg.connect(proxy.url)
    happened = cut(proxy, b"COMMIT")
    with pytest.raises(LOST):
        async with connection.transaction():
            await connection.execute("INSERT INTO numbers VALUES (1)")
    assert happened.is_set()
    await connection.close()
    again = await asyncpg.connect(proxy.url)  # later connections pass
    await again.close()
    async with direct.transaction():
        await direct.execute("LOCK TABLE numbers")  # waits until the server has finished the lost connection
        count = await direct.fetchval("SELECT count(*) FROM numbers")
    await direct.close()
    return count


def test_proxy_forwards_all_data_both_ways(echo: tuple[Proxy, socket.socket, socket.socket]) -> None:
    proxy, client, server = echo
    assert proxy.url == f"tcp://user:word@127.0.0.1:{proxy.port}/path"
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    assert _read_to_end(server) == b"question"
    server.sendall(b"answer")
    server.close()
    assert _read_to_end(client) == b"answer"


def test_cut_resets_both_ends(echo: tuple[Proxy, socket.socket, socket.socket]) -> None:
    proxy, client, server = echo
    proxy.cut()
    for end in (client, server):
        with pytest.raises(ConnectionResetError):
            end.recv(1)


def test_nth_occurrence_counts_even_in_parts(
    echo: tuple[Proxy, socket.socket, socket.socket],
) -> None:
    proxy, client, server = echo
    cut = proxy.cut_before(b"COMMIT", 3)
    client.sendall(b"COMMIT one COMMIT two COM")
    assert _read(server, 25) == b"COMMIT one COMMIT two COM"
    assert not cut.is_set()
    client.sendall(b"MIT three")
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert cut.is_set()
    assert _read_to_end(server) == b""


def test_data_before_the_pattern_is_delivered(echo: tuple[Proxy, socket.socket, socket.socket]) -> None:
    proxy, client, server = echo
    proxy.cut_before(b"COMMIT", 2)
    client.sendall(b"COMMIT one COMMIT two")
    assert _read_to_end(server) == b"COMMIT one "


def test_client_cut_after_the_pattern_gets_no_answer(
    echo: tuple[Proxy, socket.socket, socket.socket],
) -> None:
    proxy, client, server = echo
    cut = proxy.cut_after(b"COMMIT")
    client.sendall(b"COMMIT")
    assert _read(server, 6) == b"COMMIT"
    assert not cut.is_set()
    server.sendall(b"done")
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert cut.is_set()


def test_held_proxy_forwards_data_only_after_release(
    echo: tuple[Proxy, socket.socket, socket.socket],
) -> None:
    proxy, client, server = echo
    proxy.hold()
    client.sendall(b"question")
    server.settimeout(0.2)
    with pytest.raises(TimeoutError):
        server.recv(1)
    socket.create_connection(("127.0.0.1", proxy.port), timeout=10).close()
    server.settimeout(10)
    proxy.release()
    assert _read(server, 8) == b"question"


def test_delay_applies_to_each_direction(echo: tuple[Proxy, socket.socket, socket.socket]) -> None:
    proxy, client, server = echo
    proxy.delay(0.1)
    started = time.monotonic()
    client.sendall(b"?")
    _read(server, 1)
    server.sendall(b"!")
    _read(client, 1)
    assert time.monotonic() - started >= 0.2


def test_client_is_reset_while_server_is_down() -> None:
    with socket.socket() as away:
        away.bind(("127.0.0.1", 0))  # bound, but not listening
        with (
            Proxy(f"tcp://127.0.0.1:{away.getsockname()[1]}") as proxy,
            pytest.raises(ConnectionResetError),
            socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client,
        ):
            client.recv(1)


def _read(end: socket.socket, count: int) -> bytes:
    read = b""
    while len(read) < count and (more := end.recv(count - len(read))):
        read += more
    return read


def _read_to_end(end: socket.socket) -> bytes:
    return _read(end, 1_000_000)
