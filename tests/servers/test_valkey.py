"""The Valkey of the tests is real, and a test can stop, kill, pause and flush it."""

from collections.abc import Callable

import pytest
import redis

from tests.servers.valkey import Valkey, client


def test_valkey_restarts_on_its_port_after_stop_and_kill(new_valkey: Callable[[], Valkey]) -> None:
    server = new_valkey()
    for end in (Valkey.stop, Valkey.kill):
        with client(server.url) as connection:
            connection.set("key", "value")
            assert connection.get("key") == b"value"
            server.flush()
            assert connection.get("key") is None
        end(server)
        with client(server.url) as connection, pytest.raises(redis.ConnectionError):
            connection.ping()
        server.start()


def test_paused_valkey_does_not_answer(new_valkey: Callable[[], Valkey]) -> None:
    server = new_valkey()
    server.pause()
    with redis.Redis.from_url(server.url, socket_timeout=0.05, retry=None, protocol=2) as connection:
        with pytest.raises(redis.TimeoutError):
            connection.ping()
        server.resume()
    with client(server.url) as connection:
        assert connection.ping()
